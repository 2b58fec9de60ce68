// SPDX-License-Identifier: GPL-2.0

//! Making room for guest writes, and giving it back.
//!
//! Power may fail after any sector, and the page cache writes what it likes in any order; "X before
//! Y" below means that X was synced before Y was stored. The orders that keep an image sound:
//!
//! - Clusters are taken from a *reserve*: their refcounts have been raised to 1, and the file reaches
//!   behind them, before any of them is handed out. A crash leaks them. No other count is ever raised.
//! - A new refcount block, with its own count, comes before its entry in the refcount table. A larger
//!   refcount table comes before the header that names it, and that before the old one is freed.
//! - A new L2 table comes before its entry in the L1: zeros, or a copy of the one that a snapshot
//!   shares.
//! - A guest's bytes, and what they are completed with, come before the L2 entry. They need not if
//!   the cluster was never written, lies within a durable size of a regular file, and the old mapping
//!   read as zero: losing them brings back zeros, the old content.
//! - An entry gets bit 63, "the refcount is exactly 1", as all that is handed out has that count.
//! - What an entry pointed to is counted down in [`Allocate::reclaim`] when the driver says that its
//!   removal is durable and nobody is on the way there. A copied L2 table, which only tables use, is
//!   counted down after a sync of the allocator's own.
//! - In an external data file every cluster has its place, which may have old bytes: what is written
//!   there is always completed, and comes before the L2 entry. It has no count, and keeps its place.
//! - Autoclear bits of what is not kept up to date here are cleared before the first write. Refcounts
//!   are exact whenever everything is durable: the dirty bit is never set.
//!
//! A table that contradicts itself makes the allocator set the corrupt bit, durably, and refuse
//! everything from then on: writes in place, too, as the driver asks it again whether to write.
//!
//! State is a handful of cursors ([`space::Space`]) and short lists of what is under way.

mod cluster;
mod discard;
mod header;
mod held;
mod runs;
mod space;
mod table;

use loop_parser::contract::{
    Allocate,
    Discard,
    Discarded,
    Error,
    Fault,
    HostRange,
    Range,
    Reservation,
    Reserved,
    Result,
    TablesMut,
    Unlinked, //
};

use super::{
    super::num::Region,
    layout::Layout,
    refcount::{
        Clusters,
        Refcounts, //
    }, //
};
use held::Held;
use space::Space;
use table::Deferred;

/// Makes room for writes to the clusters of a qcow2 image that cannot be written in place.
#[derive(Debug)]
pub struct Qcow2Allocator {
    layout: Layout,
    counts: Refcounts,
    space: Space,
    held: Held,
    deferred: Deferred,
    /// The header says that the image is being written by somebody who knows what we know.
    has_begun: bool,
    /// What was found to be wrong: nothing is written any more.
    broken: Option<Fault>,
}

/// What an allocator is made from. It is itself too large to be moved about on a stack.
#[derive(Debug)]
pub struct Blueprint(Layout);

impl Blueprint {
    /// That of an image whose layout was checked.
    pub(super) fn new(layout: &Layout) -> Self {
        Self(*layout)
    }

    /// The allocator.
    pub fn build(&self) -> Qcow2Allocator {
        Qcow2Allocator {
            layout: self.0,
            counts: Refcounts::new(&self.0),
            space: Space::default(),
            held: Held::default(),
            deferred: Deferred::default(),
            has_begun: false,
            broken: None,
        }
    }
}

impl Qcow2Allocator {
    /// Does something; if that comes upon a contradiction, the image is marked corrupt.
    fn guarded<R>(
        &mut self,
        tables: &mut dyn TablesMut,
        work: impl FnOnce(&mut Self, &mut dyn TablesMut) -> Result<R>,
    ) -> Result<R> {
        if let Some(fault) = self.broken {
            return Err(Error::Malformed(fault));
        }
        let result = work(self, tables);
        if let Err(Error::Malformed(fault)) = result {
            self.broken = Some(fault);
            header::mark_corrupt(tables, &self.layout);
        }
        result
    }

    /// Takes back the clusters of `space`; answers the first run of them that nothing uses any more.
    ///
    /// If it fails, nothing has changed.
    fn drop_counts(
        &mut self,
        tables: &mut dyn TablesMut,
        space: Unlinked,
    ) -> Result<Option<HostRange>> {
        let bits = self.layout.cluster_bits;
        let region = Region::new(space.offset, space.len, space.offset)?;
        if self.counts.is_in_tables(region) {
            return Err(Error::malformed(
                "qcow2 L2 entry points into the headers",
                space.offset,
            ));
        }
        let first = region.start.wrapping_shr(bits);
        let last = region.end.saturating_sub(1).wrapping_shr(bits);
        // The first run, and the last one.
        let mut free = Clusters::none(0);
        let mut run = free;
        for cluster in first..last.saturating_add(1) {
            match self.counts.drop_one(tables, cluster) {
                Ok(0) => {
                    free = free.joined_by(cluster);
                    if run.end != cluster {
                        self.space.freed(run);
                        run = Clusters::none(cluster);
                    }
                    run = run.joined_by(cluster);
                }
                Ok(_) => {}
                // The rest is lost until a tool finds it.
                Err(Error::Store(_)) if cluster > first => break,
                Err(error) => return Err(error),
            }
        }
        self.space.freed(run);
        Ok((!free.is_empty()).then(|| HostRange {
            offset: free.start.wrapping_shl(bits),
            len: free.len().wrapping_shl(bits),
        }))
    }
}

impl Allocate for Qcow2Allocator {
    fn begin(&mut self, tables: &mut dyn TablesMut) -> Result {
        self.guarded(tables, |alloc, tables| {
            if !alloc.has_begun {
                header::begin(tables, &alloc.counts.layout_now())?;
                alloc.space.begin(tables, &alloc.layout)?;
                alloc.has_begun = true;
            }
            Ok(())
        })
    }

    fn reserve(&mut self, tables: &mut dyn TablesMut, pos: u64, _len: u64) -> Result<Reserved> {
        self.guarded(tables, |alloc, tables| alloc.reserve_cluster(tables, pos))
    }

    fn publish(
        &mut self,
        tables: &mut dyn TablesMut,
        space: &Reservation,
        written: Range,
    ) -> Result<Option<Unlinked>> {
        self.guarded(tables, |alloc, tables| {
            alloc.publish_part(tables, space, written)
        })
    }

    fn release(&mut self, space: &Reservation) {
        self.release_cluster(space);
    }

    fn discard(
        &mut self,
        tables: &mut dyn TablesMut,
        range: Range,
        size: u64,
        how: Discard,
    ) -> Result<Discarded> {
        self.guarded(tables, |alloc, tables| {
            alloc.discard_start(tables, range, size, how)
        })
    }

    fn reclaim(
        &mut self,
        tables: &mut dyn TablesMut,
        space: Unlinked,
    ) -> Result<Option<HostRange>> {
        self.guarded(tables, |alloc, tables| alloc.drop_counts(tables, space))
    }

    fn close(&mut self, tables: &mut dyn TablesMut) -> Result {
        self.guarded(tables, |alloc, tables| {
            alloc.settle(tables)?;
            alloc.space.close(tables, &alloc.counts)?;
            alloc.has_begun = false;
            Ok(())
        })
    }
}
