// SPDX-License-Identifier: GPL-2.0

//! Entries that point to what refcounts are in.
//!
//! Where header, L1 and snapshots are, the [`Layout`] knows, and where the refcount table was at attach.
//! Where that is now, the header knows: one load. Whether a cluster is a refcount block, only a look at
//! the whole table could tell, which has up to 2^20 entries; but nearly all blocks count themselves, as
//! they are made behind everything else, with the clusters that come next. So one more load finds out
//! about those. Not found are blocks that another one counts, and L2 tables of other L1 entries.
//!
//! What was written before and is handed out again is another matter: that takes syncs anyway, and is
//! done for up to 16 runs of clusters at a time. There both tables are looked through, so that a count
//! of 0 which is wrong does no harm to a table: some hundred loads for most images, and 40 MiB at
//! the very most. Not found are the tables of snapshots, and what bitmaps have.

use loop_parser::contract::{
    Error,
    Result,
    Tables, //
};

use super::{
    super::{
        super::num::{
            low_bits,
            Region, //
        },
        entry::OFFSET_MASK,
        layout::{
            load_words,
            Layout, //
        },
        ondisk::{
            MAX_REFTABLE_LEN,
            REFTABLE_CLUSTERS,
            REFTABLE_OFFSET,
            TABLE_ENTRY_LEN, //
        },
    },
    Clusters,
    Refcounts,
    BLOCK_MASK, //
};

impl Refcounts {
    /// Those of an image as its header has them now.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if that cannot be.
    pub(in super::super) fn now<T: Tables + ?Sized>(tables: &T, layout: &Layout) -> Result<Self> {
        let table = tables.load_be64(REFTABLE_OFFSET)?;
        let table_clusters = u64::from(tables.load_be32(REFTABLE_CLUSTERS)?);
        let len = table_clusters.saturating_mul(layout.cluster_size());
        let is_aligned = table & low_bits(layout.cluster_bits) == 0;
        if !is_aligned || len > MAX_REFTABLE_LEN || table.checked_add(len).is_none() {
            return Err(Error::malformed(
                "qcow2 refcount table has changed under us",
                REFTABLE_OFFSET,
            ));
        }
        // INVARIANT: that was checked.
        Ok(Self {
            layout: *layout,
            table,
            table_clusters,
        })
    }

    /// Whether one of the clusters that a range of the file has a part of lies in the refcount table,
    /// or is a block that counts one of them.
    pub(in super::super) fn are_in<T: Tables + ?Sized>(
        &self,
        tables: &T,
        range: Region,
    ) -> Result<bool> {
        if self.table_region().overlaps(range) {
            return Ok(true);
        }
        let bits = self.layout.cluster_bits;
        let first = range.start.wrapping_shr(bits);
        let last = range.end.saturating_sub(1).wrapping_shr(bits);
        let mut cluster = first;
        while cluster <= last && self.has_entry(cluster) {
            let at = self.entry_at(cluster)?;
            let [entry] = load_words(&self.layout, tables, at)?;
            let block = (entry & BLOCK_MASK).wrapping_shr(bits);
            if block != 0 && (first..=last).contains(&block) {
                return Ok(true);
            }
            cluster = self.block_end(cluster);
        }
        Ok(false)
    }
}

/// Entries that are loaded at a time. A cluster is a multiple of them.
const CHUNK: usize = 16;

/// Checks clusters whose counts are 0 before they are handed out.
///
/// # Errors
///
/// [`Error::Malformed`] if one of them is an L2 table of the active L1, or a refcount block.
// Not inlined, for the stack.
#[inline(never)]
pub(in super::super) fn check_free<T: Tables + ?Sized>(
    tables: &T,
    counts: &Refcounts,
    runs: impl Iterator<Item = Clusters> + Clone,
) -> Result {
    let layout = counts.layout();
    let l1 = (layout.l1_offset, u64::from(layout.l1_size));
    if let Some(at) = find(tables, layout, l1, OFFSET_MASK, runs.clone())? {
        return Err(Error::malformed("qcow2 refcount of an L2 table is 0", at));
    }
    let table = (counts.table, counts.entries());
    if let Some(at) = find(tables, layout, table, BLOCK_MASK, runs)? {
        return Err(Error::malformed(
            "qcow2 refcount of a refcount block is 0",
            at,
        ));
    }
    Ok(())
}

/// Where a table, of so many entries from a host offset on, has an entry that names one of the clusters.
// Not inlined, for the stack.
#[inline(never)]
fn find<T: Tables + ?Sized>(
    tables: &T,
    layout: &Layout,
    (mut at, mut left): (u64, u64),
    mask: u64,
    runs: impl Iterator<Item = Clusters> + Clone,
) -> Result<Option<u64>> {
    let first = runs.clone().map(|run| run.start).min().unwrap_or(0);
    let end = runs.clone().map(|run| run.end).max().unwrap_or(0);
    let all = Clusters { start: first, end };
    while left > 0 {
        // The last cluster of a file was completed before the first write.
        let words: [u64; CHUNK] = load_words(layout, tables, at)?;
        let there = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        for word in words.into_iter().take(there) {
            let cluster = (word & mask).wrapping_shr(layout.cluster_bits);
            let is_near = cluster != 0 && all.contains(cluster);
            if is_near && runs.clone().any(|run| run.contains(cluster)) {
                return Ok(Some(at));
            }
            at = at.saturating_add(TABLE_ENTRY_LEN);
        }
        left = left.saturating_sub(CHUNK as u64);
    }
    Ok(None)
}

/// Checks what will be written, or given back: the cluster at host offset `offset`, which an entry at
/// `at` names.
///
/// # Errors
///
/// [`Error::Malformed`] if it holds refcounts, or the entry itself.
// Not inlined, for the stack.
#[inline(never)]
pub(in super::super) fn check<T: Tables + ?Sized>(
    tables: &T,
    layout: &Layout,
    offset: u64,
    at: u64,
) -> Result {
    if is_around(layout, offset, at) {
        return Err(Error::malformed("qcow2 entry points to its own table", at));
    }
    let cluster = Region::new(offset, layout.cluster_size(), at)?;
    if Refcounts::now(tables, layout)?.are_in(tables, cluster)? {
        return Err(Error::malformed("qcow2 entry points to refcounts", at));
    }
    Ok(())
}

/// Whether the cluster at host offset `offset` is the one that has byte `at`.
pub(in super::super) fn is_around(layout: &Layout, offset: u64, at: u64) -> bool {
    offset == at.saturating_sub(layout.within(at))
}
