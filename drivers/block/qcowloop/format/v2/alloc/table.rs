// SPDX-License-Identifier: GPL-2.0

//! L2 tables that can be written.

use loop_parser::contract::{
    Error,
    Result,
    TablesMut, //
};

use super::{
    super::{
        super::num::{
            add,
            TOO_LARGE, //
        },
        entry::{
            without_copied,
            L1Entry, //
        },
        layout::Layout,
        ondisk::TABLE_ENTRY_LEN,
        refcount::{
            overlap,
            Clusters, //
        }, //
    },
    Qcow2Allocator, //
};

/// Bytes of a table that are copied at a time. A cluster is a multiple of it.
const CHUNK_LEN: u64 = 128;
/// Most L2 tables that wait for a sync.
const MAX_DEFERRED: usize = 4;

/// L2 tables that the L1 does not name any more; their counts are lowered when that is durable.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    tables: [u64; MAX_DEFERRED],
    count: usize,
}

impl Deferred {
    fn is_full(&self) -> bool {
        self.count == MAX_DEFERRED
    }

    /// Adds the table at host offset `table`. Nothing is lost but space if there is no room.
    fn push(&mut self, table: u64) {
        if let Some(slot) = self.tables.get_mut(self.count) {
            *slot = table;
            self.count = self.count.saturating_add(1);
        }
    }

    fn pop(&mut self) -> Option<u64> {
        self.count = self.count.checked_sub(1)?;
        self.tables.get(self.count).copied()
    }
}

impl Qcow2Allocator {
    /// Host offset of the L2 table of L1 entry `l1`, which can be written in place. If there is none
    /// yet, or a snapshot has it, too, a new one is made.
    pub(super) fn writable_table(&mut self, tables: &mut dyn TablesMut, l1: u64) -> Result<u64> {
        let at = self.layout.l1_entry_at(l1)?;
        let entry = self.layout.load_l1(tables, l1)?;
        let Some(old) = entry.table() else {
            return self.new_table(tables, at, entry);
        };
        self.layout.check_l2_table(tables, old, at)?;
        overlap::check(tables, &self.layout, old, at)?;
        if entry.is_copied() {
            return Ok(old);
        }
        self.copy_table(tables, at, entry, old)
    }

    /// Makes an empty L2 table, and the L1 entry at host offset `at` that names it.
    fn new_table(&mut self, tables: &mut dyn TablesMut, at: u64, old: L1Entry) -> Result<u64> {
        let (counts, layout) = (&mut self.counts, &self.layout);
        let taken = self.space.take(tables, counts, layout, true)?;
        let blank = match taken.is_clean {
            true => Ok(()),
            false => blank(tables, layout, taken.offset),
        };
        self.point_l1(tables, at, old, taken.offset, blank)
    }

    /// Copies the L2 table at host offset `table`, which a snapshot has, too.
    fn copy_table(
        &mut self,
        tables: &mut dyn TablesMut,
        at: u64,
        old: L1Entry,
        table: u64,
    ) -> Result<u64> {
        let bits = self.layout.cluster_bits;
        let count = self.counts.get(tables, table.wrapping_shr(bits))?;
        if count == 0 {
            return Err(Error::malformed(
                "qcow2 L2 table in use has a refcount of 0",
                at,
            ));
        }
        if self.deferred.is_full() {
            self.settle(tables)?;
        }
        let (counts, layout) = (&mut self.counts, &self.layout);
        let taken = self.space.take(tables, counts, layout, false)?;
        let copied = copy(tables, layout, table, taken.offset, count > 1);
        let new = self.point_l1(tables, at, old, taken.offset, copied)?;
        self.deferred.push(table);
        Ok(new)
    }

    /// Stores the L1 entry for the new L2 table at host offset `table`, if that was `prepared`. What
    /// fails gives the table's cluster back.
    fn point_l1(
        &mut self,
        tables: &mut dyn TablesMut,
        at: u64,
        old: L1Entry,
        table: u64,
        prepared: Result,
    ) -> Result<u64> {
        let entry = L1Entry::for_table(table).ok_or(TOO_LARGE);
        let entry = prepared.and(entry).inspect_err(|_| {
            self.space.put_back(&self.layout, table);
        })?;
        if let Err(error) = tables.store(at, &entry.raw().to_be_bytes()) {
            if tables.load_be64(at) == Ok(old.raw()) {
                self.space.put_back(&self.layout, table);
            } else {
                // The page cache may have written it out already: the new table is lost. A second
                // failure has nobody to be told.
                let _ = tables.store(at, &old.raw().to_be_bytes());
            }
            return Err(error);
        }
        Ok(table)
    }

    /// Lowers the counts of the L2 tables that were copied.
    // Not inlined, for the stack.
    #[inline(never)]
    pub(super) fn settle(&mut self, tables: &mut dyn TablesMut) -> Result {
        if self.deferred.count == 0 {
            return Ok(());
        }
        tables.sync()?;
        while let Some(table) = self.deferred.pop() {
            let cluster = table.wrapping_shr(self.layout.cluster_bits);
            match self.counts.drop_one(tables, cluster) {
                Ok(0) => self.space.freed(Clusters::one(cluster)),
                Ok(_) => {}
                // One that is still counted is lost until a tool finds it.
                Err(Error::Store(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Makes a cluster zero, durably.
fn blank(tables: &mut dyn TablesMut, layout: &Layout, offset: u64) -> Result {
    tables.fill(offset, layout.cluster_size(), 0)?;
    tables.sync()
}

/// Copies an L2 table, durably. Of one that `is_shared` no entry says that what it names has a count
/// of 1: the snapshot names it, too.
// Not inlined, for the stack.
#[inline(never)]
fn copy(
    tables: &mut dyn TablesMut,
    layout: &Layout,
    from: u64,
    to: u64,
    is_shared: bool,
) -> Result {
    let mut done = 0u64;
    while done < layout.cluster_size() {
        let mut bytes = [0; CHUNK_LEN as usize];
        tables.load(add(from, done, from)?, &mut bytes)?;
        let entry_len = usize::try_from(layout.l2_entry_len().max(1)).unwrap_or(usize::MAX);
        for entry in bytes.chunks_exact_mut(entry_len) {
            if let Some(word) = entry.first_chunk_mut::<{ TABLE_ENTRY_LEN as usize }>() {
                if is_shared {
                    *word = without_copied(u64::from_be_bytes(*word)).to_be_bytes();
                }
            }
        }
        tables.store(add(to, done, to)?, &bytes)?;
        done = done.saturating_add(CHUNK_LEN);
    }
    tables.sync()
}
