// SPDX-License-Identifier: GPL-2.0

//! Refcounts ("Host cluster management").
//!
//! A refcount table of one or more clusters names refcount blocks of a cluster each, which hold one
//! count per host cluster. Nothing of it is kept in memory: whatever is looked up is checked again.

mod bits;
mod grow;
pub(super) mod overlap;

use loop_parser::contract::{
    Error,
    Result,
    Tables,
    TablesMut, //
};

use super::{
    super::num::{
        add,
        low_bits,
        mul,
        pow2,
        Region, //
    },
    layout::Layout,
    ondisk::TABLE_ENTRY_LEN, //
};

/// Bytes of a refcount block that are on the stack at a time. A cluster is a multiple of it.
const WINDOW_LEN: u64 = 128;

/// Bits 0 to 8 of an entry of the refcount table are reserved.
const BLOCK_MASK: u64 = !0x1ff;

/// Most pieces of refcount blocks that one search looks at: an image of the format's largest blocks
/// has 2^14 of them in each, and its table can name 2^20 blocks, or one of them as often.
const MAX_LOOKS: u64 = 1 << 16;

/// What a search may still look at. The last block is looked at to its end.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Budget {
    /// For one search.
    pub(super) fn new() -> Self {
        Self(MAX_LOOKS)
    }

    /// Whether there is nothing left.
    pub(super) fn is_spent(&self) -> bool {
        self.0 == 0
    }

    fn spend(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }
}

/// Host clusters by number. `start <= end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Clusters {
    /// The first one.
    pub(super) start: u64,
    /// The first one behind them.
    pub(super) end: u64,
}

impl Clusters {
    /// How many there are.
    pub(super) fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there are none.
    pub(super) fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// None, in front of cluster `end`.
    pub(super) fn none(end: u64) -> Self {
        Self { start: end, end }
    }

    /// Cluster `number` alone.
    pub(super) fn one(number: u64) -> Self {
        Self {
            start: number,
            end: number.saturating_add(1),
        }
    }

    /// Whether cluster `number` is one of them.
    pub(super) fn contains(self, number: u64) -> bool {
        (self.start..self.end).contains(&number)
    }

    /// The first `n` of them.
    pub(super) fn first(self, n: u64) -> Self {
        Self {
            start: self.start,
            end: self.start.saturating_add(n).min(self.end),
        }
    }

    /// Both, if there is nothing between them.
    pub(super) fn united_with(self, other: Self) -> Option<Self> {
        let is_one = self.start <= other.end && other.start <= self.end;
        is_one.then_some(Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        })
    }

    /// With cluster `number`, if that is the next one or there are none; else as they are.
    pub(super) fn joined_by(self, number: u64) -> Self {
        match self.is_empty() {
            true => Self::one(number),
            false if self.end == number => Self {
                start: self.start,
                end: number.saturating_add(1),
            },
            false => self,
        }
    }
}

/// Where free clusters were looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// There is no refcount block: all of them are free, but nothing can count them.
    NoBlock,
    /// None is free.
    None,
    /// The first run of free ones.
    Free(Clusters),
}

/// The refcounts of an image.
///
/// # Invariants
///
/// The table at `table` begins at a cluster and has `table_clusters` of them, at most
/// [`MAX_REFTABLE_LEN`](super::ondisk::MAX_REFTABLE_LEN) bytes. Its end does not overflow.
#[derive(Debug)]
pub(super) struct Refcounts {
    layout: Layout,
    /// Host offset in bytes of the refcount table.
    table: u64,
    /// Clusters of it.
    table_clusters: u64,
}

/// A piece of a refcount block.
struct Window {
    bytes: [u8; WINDOW_LEN as usize],
    /// Host offset in bytes.
    at: u64,
    /// The clusters that are counted here.
    clusters: Clusters,
}

impl Refcounts {
    /// Those of an image as it was attached.
    pub(super) fn new(layout: &Layout) -> Self {
        // INVARIANT: it is one of the layout.
        Self {
            layout: *layout,
            table: layout.reftable_offset,
            table_clusters: u64::from(layout.reftable_clusters),
        }
    }

    /// The layout of the image as its header has it now: the table may have moved.
    pub(super) fn layout_now(&self) -> Layout {
        Layout {
            reftable_offset: self.table,
            // By the invariant it is not too large.
            reftable_clusters: u32::try_from(self.table_clusters).unwrap_or(0),
            ..self.layout
        }
    }

    /// The layout of the image.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Clusters that a block counts, as a shift count: 6 to 24.
    fn block_bits(&self) -> u32 {
        let bits = self.layout.cluster_bits.saturating_add(3);
        bits.saturating_sub(self.layout.refcount_order)
    }

    /// The first cluster behind those that are counted in the same block as `cluster`.
    pub(super) fn block_end(&self, cluster: u64) -> u64 {
        let mask = low_bits(self.block_bits());
        (cluster | mask).saturating_add(1)
    }

    /// How many entries the table has.
    fn entries(&self) -> u64 {
        let per_cluster = self.layout.cluster_size() / TABLE_ENTRY_LEN;
        // By the invariant nothing saturates.
        self.table_clusters.saturating_mul(per_cluster)
    }

    /// Number of the table entry for a cluster.
    fn index(&self, cluster: u64) -> u64 {
        cluster.wrapping_shr(self.block_bits())
    }

    /// Whether the table has an entry for a cluster.
    pub(super) fn has_entry(&self, cluster: u64) -> bool {
        self.index(cluster) < self.entries()
    }

    /// Where the table is.
    fn table_region(&self) -> Region {
        let len = self
            .table_clusters
            .saturating_mul(self.layout.cluster_size());
        Region {
            start: self.table,
            end: self.table.saturating_add(len),
        }
    }

    /// Whether a range of the file has a byte in common with the headers, the table, or with where the
    /// table was at attach.
    pub(super) fn is_in_tables(&self, range: Region) -> bool {
        self.table_region().overlaps(range) || self.layout.is_in_header(range)
    }

    /// Whether some cluster must not be handed out although it is free: where the table was at
    /// attach, the map still has it.
    pub(super) fn is_old_table(&self, range: Region) -> bool {
        let layout = &self.layout;
        let old = Region {
            start: layout.reftable_offset,
            end: layout.reftable_offset.saturating_add(layout.reftable_len()),
        };
        self.table != old.start && old.overlaps(range)
    }

    /// Host offset in bytes of the table entry for a cluster; a fault if there is none.
    fn entry_at(&self, cluster: u64) -> Result<u64> {
        if !self.has_entry(cluster) {
            return Err(Error::malformed(
                "qcow2 cluster is past what the refcount table counts",
                self.table,
            ));
        }
        let distance = mul(self.index(cluster), TABLE_ENTRY_LEN, self.table)?;
        add(self.table, distance, self.table)
    }

    /// Host offset in bytes of the block that counts a cluster, `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it begins at no cluster, ends past the end of the file, or lies in one
    /// of the tables of the header.
    fn block<T: Tables + ?Sized>(&self, tables: &T, cluster: u64) -> Result<Option<u64>> {
        if !self.has_entry(cluster) {
            return Ok(None);
        }
        let at = self.entry_at(cluster)?;
        let offset = tables.load_be64(at)? & BLOCK_MASK;
        if offset == 0 {
            return Ok(None);
        }
        if offset & low_bits(self.layout.cluster_bits) != 0 {
            return Err(Error::malformed(
                "qcow2 refcount block begins at no cluster",
                at,
            ));
        }
        let region = Region::new(offset, self.layout.cluster_size(), at)?;
        if region.end > tables.size()? {
            return Err(Error::malformed(
                "qcow2 refcount block is past the end of the file",
                at,
            ));
        }
        if self.is_in_tables(region) {
            return Err(Error::malformed(
                "qcow2 refcount block lies in another table",
                at,
            ));
        }
        Ok(Some(offset))
    }

    /// The piece of the block at host offset `block` that counts `cluster`.
    fn window<T: Tables + ?Sized>(&self, tables: &T, block: u64, cluster: u64) -> Result<Window> {
        let bits = self.window_bits();
        let number = (cluster & low_bits(self.block_bits())).wrapping_shr(bits);
        let start = cluster & !low_bits(bits);
        let mut window = Window {
            bytes: [0; WINDOW_LEN as usize],
            at: add(block, mul(number, WINDOW_LEN, block)?, block)?,
            clusters: Clusters {
                start,
                end: start.saturating_add(pow2(bits)),
            },
        };
        tables.load(window.at, &mut window.bytes)?;
        Ok(window)
    }

    /// Clusters that a window counts, as a shift count: 4 to 10.
    fn window_bits(&self) -> u32 {
        10u32.saturating_sub(self.layout.refcount_order)
    }

    /// The count of a cluster. 0 if nothing counts it.
    pub(super) fn get<T: Tables + ?Sized>(&self, tables: &T, cluster: u64) -> Result<u64> {
        match self.block(tables, cluster)? {
            Some(block) => {
                let window = self.window(tables, block, cluster)?;
                Ok(window.get(cluster, self.layout.refcount_order))
            }
            None => Ok(0),
        }
    }

    /// Lowers the count of a cluster by one, and answers what it is then.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it is 0 already, or the cluster is the block that has it: nobody else
    /// gives that back.
    pub(super) fn drop_one(&self, tables: &mut dyn TablesMut, cluster: u64) -> Result<u64> {
        let at = self.entry_at(cluster)?;
        let uncounted = Error::malformed("qcow2 cluster in use has a refcount of 0", at);
        let block = self.block(tables, cluster)?.ok_or(uncounted)?;
        if block.wrapping_shr(self.layout.cluster_bits) == cluster {
            return Err(Error::malformed(
                "qcow2 refcount block is in use for something else",
                at,
            ));
        }
        let mut window = self.window(tables, block, cluster)?;
        let count = window.get(cluster, self.layout.refcount_order);
        let lower = count.checked_sub(1).ok_or(uncounted)?;
        let one = Clusters::one(cluster);
        window.set(tables, one, lower, self.layout.refcount_order)?;
        Ok(lower)
    }

    /// Looks for the first run of clusters in `range`, about `most` of them at most, that are free and
    /// are counted by the same block as the first one. What that takes is taken off the budget.
    pub(super) fn find_free<T: Tables + ?Sized>(
        &self,
        tables: &T,
        range: Clusters,
        most: u64,
        budget: &mut Budget,
    ) -> Result<Found> {
        budget.spend();
        let end = range.end.min(self.block_end(range.start));
        let Some(block) = self.block(tables, range.start)? else {
            return Ok(Found::NoBlock);
        };
        let order = self.layout.refcount_order;
        let mut run = Clusters::none(0);
        let mut cluster = range.start;
        while cluster < end && run.len() < most {
            budget.spend();
            let window = self.window(tables, block, cluster)?;
            for cluster in cluster..window.clusters.end.min(end) {
                if window.get(cluster, order) == 0 {
                    run = run.joined_by(cluster);
                } else if !run.is_empty() {
                    return Ok(Found::Free(run.first(most)));
                }
            }
            cluster = window.clusters.end;
        }
        Ok(match run.is_empty() {
            true => Found::None,
            false => Found::Free(run.first(most)),
        })
    }

    /// Those clusters at the start of `range` whose counts are set at once, or not at all.
    pub(super) fn stored_at_once(&self, range: Clusters) -> Clusters {
        let window_end = (range.start | low_bits(self.window_bits())).saturating_add(1);
        Clusters {
            start: range.start,
            end: range.end.min(window_end),
        }
    }

    /// Sets the counts of clusters, whose blocks exist, to `count`.
    ///
    /// # Errors
    ///
    /// Some of them may have been set.
    pub(super) fn set(&self, tables: &mut dyn TablesMut, range: Clusters, count: u64) -> Result {
        let mut cluster = range.start;
        while cluster < range.end {
            let end = range.end.min(self.block_end(cluster));
            let at = self.entry_at(cluster)?;
            let block = self
                .block(tables, cluster)?
                .ok_or(Error::malformed("qcow2 refcount block has gone", at))?;
            let piece = Clusters {
                start: cluster,
                end,
            };
            self.set_in(tables, block, piece, count)?;
            cluster = end;
        }
        Ok(())
    }

    /// The same, in the block at host offset `block`.
    fn set_in(
        &self,
        tables: &mut dyn TablesMut,
        block: u64,
        range: Clusters,
        count: u64,
    ) -> Result {
        let mut cluster = range.start;
        while cluster < range.end {
            let mut window = self.window(tables, block, cluster)?;
            let piece = Clusters {
                start: cluster,
                end: range.end.min(window.clusters.end),
            };
            window.set(tables, piece, count, self.layout.refcount_order)?;
            cluster = piece.end;
        }
        Ok(())
    }

    /// The end of the highest cluster in `range` that is in use; `range.start` if none is. If that takes
    /// too long, how far down there was none.
    pub(super) fn used_end<T: Tables + ?Sized>(&self, tables: &T, range: Clusters) -> Result<u64> {
        let mut end = range.end;
        let mut budget = Budget::new();
        while end > range.start && !budget.is_spent() {
            budget.spend();
            let last = end.saturating_sub(1);
            let Some(block) = self.block(tables, last)? else {
                end = (last & !low_bits(self.block_bits())).max(range.start);
                continue;
            };
            let window = self.window(tables, block, last)?;
            let first = window.clusters.start.max(range.start);
            let order = self.layout.refcount_order;
            if let Some(used) = (first..end).rev().find(|&it| window.get(it, order) != 0) {
                return Ok(used.saturating_add(1));
            }
            end = first;
        }
        Ok(end)
    }
}

impl Window {
    /// The count of one of its clusters.
    fn get(&self, cluster: u64, order: u32) -> u64 {
        bits::get(&self.bytes, order, self.number(cluster))
    }

    /// Stores one count for some of its clusters. What a failed store leaves is taken back as well as
    /// can be.
    fn set(
        &mut self,
        tables: &mut dyn TablesMut,
        range: Clusters,
        count: u64,
        order: u32,
    ) -> Result {
        let old = self.bytes;
        for cluster in range.start..range.end {
            let number = self.number(cluster);
            bits::set(&mut self.bytes, order, number, count);
        }
        let (start, end) = bits::span(order, self.number(range.start), self.number(range.end));
        let (Some(new), Some(old)) = (self.bytes.get(start..end), old.get(start..end)) else {
            return Ok(());
        };
        let at = add(self.at, u64::try_from(start).unwrap_or(0), self.at)?;
        let stored = tables.store(at, new);
        if stored.is_err() {
            // A second failure has nobody to be told: the first one is reported.
            let _ = tables.store(at, old);
        }
        stored
    }

    fn number(&self, cluster: u64) -> usize {
        let number = cluster.saturating_sub(self.clusters.start);
        usize::try_from(number).unwrap_or(usize::MAX)
    }
}
