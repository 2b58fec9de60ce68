// SPDX-License-Identifier: GPL-2.0

//! Giving back space that lost its pointer.
//!
//! A parser says what its tables no longer point to ([`Unlinked`]); that is collected, and given
//! back a few pieces at a time:
//!
//! 1. The tables are synced: nothing durable points to the space.
//! 2. The driver waits for every request that may have been resolved to it before.
//! 3. With the image locked, the parser takes the space back, and what it says can be punched is
//!    punched. From then on it may be handed out again.
//!
//! Whoever fills the list empties it, after what he has unlinked the space for; a discard empties
//! it before it ends; and so does the last writer. A crash, or an error, before the third step
//! leaks space.
//!
//! Step 2 is for images whose parser uses space again
//! ([`reuses_space`](crate::contract::Features::reuses_space)); others have no [`Epochs`], and pay
//! nothing. A request is inside an epoch from before the tables are looked at for a piece of it
//! until that piece has been moved, which may be in an interrupt
//! ([`enter_epoch`](crate::sys::request::Request::enter_epoch)). What is waited for began before
//! the wait did, so new requests do not prolong it.
//!
//! Why waiting cannot deadlock. Inside an epoch one may wait
//!
//! - for I/O on the image's file, on those below it, and for the memory of that;
//! - for the image's mutex, to look at tables that are being changed;
//! - for the write gate, so for direct writes in flight, which end in interrupts;
//! - for a buffer, so for others who are inside, and who wait for I/O only (`bounce.rs`).
//!
//! One never waits there for an allocation of somebody else
//! ([`Pending`](crate::allocation::Pending)), nor for an epoch: an allocating write leaves before
//! it reserves space, and who gives space back has left ([`give_back`]). And it is called without
//! the image's mutex, so those who hold that one get on. A piece needs no worker to end: one that
//! is inside has its worker, or is the disk's. So it does not matter if all workers but those wait
//! here. The I/O of a file on another loop device ends up at an image further down, whose own
//! waiting is for those who are inside *its* epochs: down there the same holds, and the way down
//! ends, as there are no cycles (`chain.rs`).

use crate::{
    contract::{
        self,
        Unlinked, //
    },
    image::{
        Allocation,
        Layer, //
    },
    sys::epoch::Epochs,
    tables::{
        store_error,
        LockedTables, //
    }, //
};

/// Pieces of space that are given back after one sync.
const BATCH: usize = 8;

/// Space that lost its pointer.
pub(crate) struct UnlinkedList {
    spaces: [Unlinked; BATCH],
    count: usize,
    /// Lists made of this one that are being given back.
    under_way: u32,
}

impl UnlinkedList {
    pub(crate) const fn new() -> Self {
        Self {
            spaces: [Unlinked { offset: 0, len: 0 }; BATCH],
            count: 0,
            under_way: 0,
        }
    }

    /// Adds a piece. If the list is full then, it is moved to `full`, which is the caller's to give
    /// back.
    pub(crate) fn push(&mut self, space: Unlinked, full: &mut Self) {
        if let Some(slot) = self.spaces.get_mut(self.count) {
            *slot = space;
            self.count = self.count.saturating_add(1);
        }
        if self.count == BATCH {
            self.move_to(full);
        }
    }

    /// Whoever gets the pieces calls [`give_back`].
    fn move_to(&mut self, other: &mut Self) {
        other.spaces = self.spaces;
        other.count = core::mem::replace(&mut self.count, 0);
        if other.count > 0 {
            self.under_way = self.under_way.saturating_add(1);
        }
    }
}

/// Gives back what there is. `false`: there was nothing.
///
/// # Errors
///
/// As for [`give_back`].
#[inline(never)]
pub(crate) fn give_back_all(layer: Layer<'_>) -> contract::Result<bool> {
    let mut list = UnlinkedList::new();
    layer.image.allocation.lock().unlinked.move_to(&mut list);
    give_back(layer, &list)?;
    Ok(list.count > 0)
}

/// The same, for one who has found no room: waits for those, too, who are about to give something back.
/// `false`: nobody was. Not from inside an epoch.
///
/// # Errors
///
/// As for [`give_back`].
// Not inlined, for the stack.
#[inline(never)]
pub(crate) fn give_back_now(layer: Layer<'_>) -> contract::Result<bool> {
    if give_back_all(layer)? {
        return Ok(true);
    }
    let mut allocation = layer.image.allocation.lock();
    let before = allocation.unlinked.under_way;
    while allocation.unlinked.under_way == before && before > 0 {
        layer.image.pending_changed.wait(&mut allocation);
    }
    Ok(before > 0)
}

/// Gives a list of pieces back. Not with the image's mutex held, nor from inside an epoch.
///
/// # Errors
///
/// What a sync fails with. What else goes wrong is logged, and leaks space.
// Not inlined, for the stack.
#[inline(never)]
pub(crate) fn give_back(layer: Layer<'_>, list: &UnlinkedList) -> contract::Result {
    if list.count == 0 {
        return Ok(());
    }
    let result = settle(layer, list);
    let mut allocation = layer.image.allocation.lock();
    let under_way = &mut allocation.unlinked.under_way;
    *under_way = under_way.saturating_sub(1);
    drop(allocation);
    layer.image.pending_changed.notify_all();
    result
}

#[inline(never)]
fn settle(layer: Layer<'_>, list: &UnlinkedList) -> contract::Result {
    layer.image.sync_together(layer.file).map_err(store_error)?;
    layer.image.epochs().map(Epochs::wait);
    let mut allocation = layer.image.allocation.lock();
    layer.image.count_reclaim();
    for space in list.spaces.iter().take(list.count) {
        if let Err(error) = reclaim(layer, &mut allocation, *space) {
            layer.image.report_write(&error);
        }
    }
    Ok(())
}

fn reclaim(layer: Layer<'_>, allocation: &mut Allocation, space: Unlinked) -> contract::Result {
    let Allocation { alloc, scratch, .. } = allocation;
    let mut tables = LockedTables::new(layer.image, layer.file, scratch);
    if let Some(range) = alloc.reclaim(&mut tables, space)? {
        // What cannot be punched takes room in the file until it is used again, if it is. Parsers
        // do not rely on what is in there.
        let _ = layer.file.punch_hole(range.offset, range.len);
    }
    Ok(())
}
