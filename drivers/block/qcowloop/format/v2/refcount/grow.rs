// SPDX-License-Identifier: GPL-2.0

//! New refcount blocks, and a larger refcount table.

use loop_parser::contract::{
    Result,
    TablesMut, //
};

use super::{
    super::{
        super::num::{
            add,
            mul,
            TOO_LARGE, //
        },
        ondisk::{
            MAX_REFTABLE_LEN,
            REFTABLE_OFFSET,
            TABLE_ENTRY_LEN, //
        },
    },
    Clusters,
    Refcounts,
    WINDOW_LEN, //
};

/// What the header says of the refcount table: an offset of 8 bytes and a number of clusters of 4.
const HEADER_FIELDS_LEN: usize = 12;

/// The place of a larger refcount table: first the blocks that count it and themselves, then the
/// table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Growth {
    /// Number of the first cluster, a block. The old table has no entry for it.
    start: u64,
    /// How many blocks there are.
    blocks: u64,
    /// Clusters of the new table.
    table: u64,
}

impl Growth {
    /// The clusters that it takes.
    pub(in super::super) fn clusters(self) -> Clusters {
        let len = self.blocks.saturating_add(self.table);
        Clusters {
            start: self.start,
            end: self.start.saturating_add(len),
        }
    }
}

impl Refcounts {
    /// Makes a block that counts itself, at `range.start`, and the other clusters of `range`: all 1.
    /// They are free and counted by no other one; what they hold does not matter. The block is
    /// durable, then its table entry.
    pub(in super::super) fn add_block(
        &self,
        tables: &mut dyn TablesMut,
        range: Clusters,
    ) -> Result {
        let at = self.entry_at(range.start)?;
        let block = range.start.wrapping_shl(self.layout.cluster_bits);
        tables.fill(block, self.layout.cluster_size(), 0)?;
        self.set_in(tables, block, range, 1)?;
        tables.sync()?;
        store_or_restore(tables, at, &block.to_be_bytes(), &[0; 8])?;
        tables.sync()
    }

    /// Where a larger table goes, if that is to `start`, for which the table has no entry.
    ///
    /// # Errors
    ///
    /// The format has no table that is large enough.
    pub(in super::super) fn plan_growth(&self, start: u64) -> Result<Growth> {
        let per_cluster = self.layout.cluster_size() / TABLE_ENTRY_LEN;
        let most = MAX_REFTABLE_LEN.wrapping_shr(self.layout.cluster_bits);
        let mut growth = Growth {
            start,
            blocks: 1,
            table: self.table_clusters.saturating_mul(2).min(most),
        };
        // Each needs more of the other; the factors are so small that this ends soon.
        loop {
            let last = self.index(growth.clusters().end.saturating_sub(1));
            let blocks = last.saturating_sub(self.index(start)).saturating_add(1);
            let table = last.saturating_add(1).div_ceil(per_cluster.max(1));
            if table > most {
                return Err(TOO_LARGE);
            }
            if blocks <= growth.blocks && table <= growth.table {
                return Ok(growth);
            }
            growth.blocks = growth.blocks.max(blocks);
            growth.table = growth.table.max(table);
        }
    }

    /// Moves the table: the copy is durable, then the header, then the old one is freed.
    ///
    /// If it fails, nothing has changed but the contents of free clusters.
    // Not inlined, for the stack.
    #[inline(never)]
    pub(in super::super) fn grow(&mut self, tables: &mut dyn TablesMut, growth: Growth) -> Result {
        let bits = self.layout.cluster_bits;
        let table = growth
            .start
            .saturating_add(growth.blocks)
            .wrapping_shl(bits);
        self.fill_blocks(tables, growth)?;
        self.copy_table(tables, table, growth)?;
        tables.sync()?;

        let old = self.table_region();
        let field = header_fields(table, growth.table);
        let field_before = header_fields(self.table, self.table_clusters);
        store_or_restore(tables, REFTABLE_OFFSET, &field, &field_before)?;
        tables.sync()?;

        // INVARIANT: by `plan_growth` it is not too large.
        self.table = table;
        self.table_clusters = growth.table;
        let (first, end) = (old.start.wrapping_shr(bits), old.end.wrapping_shr(bits));
        for cluster in first..end {
            // One that is still counted is lost until a tool finds it.
            if self.drop_one(tables, cluster).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Fills in the blocks that count a new table.
    fn fill_blocks(&self, tables: &mut dyn TablesMut, growth: Growth) -> Result {
        let size = self.layout.cluster_size();
        let mut at = growth.start.wrapping_shl(self.layout.cluster_bits);
        let mut piece = growth.clusters();
        let end = piece.end;
        for _ in 0..growth.blocks {
            tables.fill(at, size, 0)?;
            piece.end = end.min(self.block_end(piece.start));
            self.set_in(tables, at, piece, 1)?;
            piece.start = piece.end;
            at = add(at, size, at)?;
        }
        Ok(())
    }

    /// Fills in a new table at host offset `table`: the old entries and those of the new blocks.
    fn copy_table(&self, tables: &mut dyn TablesMut, table: u64, growth: Growth) -> Result {
        let bits = self.layout.cluster_bits;
        let len = mul(growth.table, self.layout.cluster_size(), table)?;
        tables.fill(table, len, 0)?;
        let old = self.table_region();
        let mut done = 0u64;
        while done < old.end.saturating_sub(old.start) {
            let mut bytes = [0; WINDOW_LEN as usize];
            tables.load(add(old.start, done, table)?, &mut bytes)?;
            tables.store(add(table, done, table)?, &bytes)?;
            done = done.saturating_add(WINDOW_LEN);
        }
        for number in 0..growth.blocks {
            let index = self.index(growth.start).saturating_add(number);
            let at = add(table, mul(index, TABLE_ENTRY_LEN, table)?, table)?;
            let block = growth.start.saturating_add(number).wrapping_shl(bits);
            tables.store(at, &block.to_be_bytes())?;
        }
        Ok(())
    }
}

fn header_fields(offset: u64, clusters: u64) -> [u8; HEADER_FIELDS_LEN] {
    let mut bytes = [0; HEADER_FIELDS_LEN];
    let clusters = u32::try_from(clusters).unwrap_or(0).to_be_bytes();
    let fields = offset.to_be_bytes();
    for (to, from) in bytes.iter_mut().zip(fields.iter().chain(&clusters)) {
        *to = *from;
    }
    bytes
}

/// Stores a pointer. If that fails, what was there before is put back as well as can be.
fn store_or_restore(tables: &mut dyn TablesMut, at: u64, new: &[u8], old: &[u8]) -> Result {
    let stored = tables.store(at, new);
    if stored.is_err() {
        // A second failure has nobody to be told: the first one is reported.
        let _ = tables.store(at, old);
    }
    stored
}
