// SPDX-License-Identifier: GPL-2.0

//! Making room for a guest write, in an order that is a type.
//!
//! An [`Allocating`] goes from [`Reserved`](state::Reserved) (space is there, nobody sees it) to
//! [`Written`](state::Written) (the guest's bytes are in the page cache) to
//! [`Durable`](state::Durable) (they are on stable storage, where the crash rules ask for it), and
//! only that can publish the pointer. Dropping it early gives the space back.
//!
//! The image's mutex is held while space is reserved and while the pointer is stored, not while data
//! are written. Two writers to one allocation unit meet in [`Pending`]: the second waits for the
//! first and then finds the unit allocated.

use core::marker::PhantomData;

use kernel::error::code::ENOSPC;

use crate::{
    bounce,
    contract::{
        self,
        Error,
        Extent,
        Range,
        Reservation,
        Result, //
    },
    image::{
        Allocation,
        Layer, //
    },
    reclaim::{
        self,
        UnlinkedList, //
    },
    sys::epoch::Epochs,
    tables::{
        store_error,
        LockedTables, //
    }, //
};

/// Most allocations of one image that can be under way at once; more of them wait. Memory does not
/// grow with the queue depth.
const MAX_PENDING: usize = 16;

const OUTSIDE: Error = Error::Store(-(kernel::bindings::EIO as i32));

/// Guest ranges (start, end) that are being allocated.
pub(crate) struct Pending([Option<(u64, u64)>; MAX_PENDING]);

impl Pending {
    pub(crate) const fn new() -> Self {
        Self([None; MAX_PENDING])
    }

    /// Enters a range; `None` if it has to wait for another one to be done.
    fn enter(&mut self, start: u64, end: u64) -> Option<usize> {
        let busy = |range: &(u64, u64)| range.0 < end && start < range.1;
        if self.0.iter().flatten().any(busy) {
            return None;
        }
        let free = self.0.iter().position(Option::is_none)?;
        *self.0.get_mut(free)? = Some((start, end));
        Some(free)
    }

    /// How many of `len` bytes from `pos` on nobody is allocating.
    pub(crate) fn free_from(&self, pos: u64, len: u64) -> u64 {
        let ranges = self.0.iter().flatten().filter(|range| range.1 > pos);
        let starts = ranges.map(|range| range.0.saturating_sub(pos));
        starts.min().map_or(len, |start| start.min(len))
    }

    fn leave(&mut self, slot: usize) {
        if let Some(entry) = self.0.get_mut(slot) {
            *entry = None;
        }
    }
}

/// How far an allocation has come.
pub(crate) mod state {
    /// Space is there; nobody sees it.
    pub(crate) struct Reserved;
    /// The guest's bytes are in it.
    pub(crate) struct Written;
    /// They are durable, if they have to be.
    pub(crate) struct Durable;
}

/// An allocation under way.
pub(crate) struct Allocating<'a, S> {
    inner: Inner<'a>,
    _state: PhantomData<S>,
}

/// Gives everything back when dropped.
struct Inner<'a> {
    layer: Layer<'a>,
    slot: usize,
    space: Option<Reservation>,
    /// What part of it is to be published.
    written: Range,
}

/// Reserves space for the allocation unit at guest range `unit` (start, length), on behalf of a write of
/// `count` bytes at `at`. `None`: resolve again, as that need not be so any more.
///
/// # Errors
///
/// Those of [`Allocate::reserve`](contract::Allocate::reserve).
// Not inlined, for the stack of the I/O path.
#[inline(never)]
pub(crate) fn make_room(
    layer: Layer<'_>,
    unit: (u64, u64),
    at: u64,
    count: u64,
) -> Result<Option<Allocating<'_, state::Reserved>>> {
    let no_space = Error::Store(ENOSPC.to_errno());
    match reserve(layer, unit, at, count) {
        // There may be room that is about to be given back.
        Err(error) if error == no_space && reclaim::give_back_now(layer)? => Ok(None),
        answer => answer,
    }
}

/// The guest's bytes, `len` at position `at`, are in the page cache: completes, syncs and publishes them,
/// and gives back what they take the place of, if it is time for that.
// Not inlined, for the stack of the I/O path.
#[inline(never)]
pub(crate) fn finish(
    layer: Layer<'_>,
    space: Allocating<'_, state::Reserved>,
    at: u64,
    len: u64,
) -> Result {
    let written = space.complete(at, len)?;
    publish(layer, written.make_durable()?)
}

#[inline(never)]
fn publish(layer: Layer<'_>, written: Allocating<'_, state::Durable>) -> Result {
    let mut unlinked = UnlinkedList::new();
    written.publish(&mut unlinked)?;
    // The write is done. If the sync fails, so does the next flush.
    let _ = reclaim::give_back(layer, &unlinked);
    Ok(())
}

/// See [`make_room`].
// Not inlined, for the stack of the I/O path.
#[inline(never)]
fn reserve(
    layer: Layer<'_>,
    unit: (u64, u64),
    at: u64,
    count: u64,
) -> Result<Option<Allocating<'_, state::Reserved>>> {
    let Layer { image, file, .. } = layer;
    let (pos, len) = unit;
    let range = image.range(at, count)?;
    let end = pos.saturating_add(len);
    let mut allocation = image.allocation.lock();
    let slot = loop {
        if let Some(slot) = allocation.pending.enter(pos, end) {
            break slot;
        }
        image.pending_changed.wait(&mut allocation);
    };
    let Allocation { alloc, scratch, .. } = &mut *allocation;
    let mut tables = LockedTables::new(image, file, scratch);
    let reserved = alloc.reserve(&mut tables, range.start, range.span);
    let space = match reserved {
        Ok(contract::Reserved::Space(space)) => checked(space, at).map(Some),
        Ok(contract::Reserved::Ready) => Ok(None),
        Err(error) => Err(error),
    };
    drop(allocation);
    // From here on dropping `inner` leaves the slot.
    let mut inner = Inner {
        layer,
        slot,
        space: None,
        written: Range { pos, len },
    };
    inner.space = space?;
    Ok(inner.space.is_some().then_some(Allocating {
        inner,
        _state: PhantomData,
    }))
}

/// The range asked for must be in the space that was given.
fn checked(space: Reservation, at: u64) -> Result<Reservation> {
    let end = space.pos.checked_add(space.len);
    if space.pos <= at && end.is_some_and(|end| at < end) {
        Ok(space)
    } else {
        Err(Error::malformed("parser reserved an impossible space", 0))
    }
}

impl<'a, S> Allocating<'a, S> {
    fn into<N>(self) -> Allocating<'a, N> {
        Allocating {
            inner: self.inner,
            _state: PhantomData,
        }
    }
}

impl<'a> Allocating<'a, state::Reserved> {
    /// Host offset for guest position `at`, and how many bytes from there belong to the space.
    pub(crate) fn place(&self, at: u64) -> Result<(u64, u64)> {
        let impossible = Error::malformed("parser reserved an impossible space", 0);
        let space = self.inner.space.as_ref().ok_or(impossible)?;
        let skip = at.checked_sub(space.pos).ok_or(impossible)?;
        let offset = space.offset.checked_add(skip).ok_or(impossible)?;
        let len = space.len.checked_sub(skip).ok_or(impossible)?;
        Ok((offset, len))
    }

    /// The guest's bytes, `len` at position `at`, are in the page cache. Completes them to what can
    /// be published: with what the guest range around them has read as so far.
    pub(crate) fn complete(mut self, at: u64, len: u64) -> Result<Allocating<'a, state::Written>> {
        let impossible = Error::malformed("parser reserved an impossible space", 0);
        let space = self.inner.space.ok_or(impossible)?;
        let written = if space.granule == 0 {
            Range {
                pos: space.pos,
                len: space.len,
            }
        } else {
            let range = granules(space, at, len).ok_or(impossible)?;
            let end = at.checked_add(len).ok_or(impossible)?;
            // Past the end of the disk there is nothing to bring along; the parser has seen to that.
            let Layer { image, file, .. } = self.inner.layer;
            let size = image.known_size(file);
            let range_end = range.pos.saturating_add(range.len).min(size);
            self.inner.copy_old(&space, range.pos, at)?;
            self.inner.copy_old(&space, end, range_end)?;
            range
        };
        self.inner.written = written;
        Ok(self.into())
    }
}

/// The granules of a space that a range touches.
fn granules(space: Reservation, at: u64, len: u64) -> Option<Range> {
    let mask = space.granule.checked_sub(1)?;
    let pos = (at & !mask).max(space.pos);
    let end = at
        .checked_add(len)?
        .checked_next_multiple_of(space.granule)?;
    let end = end.min(space.pos.checked_add(space.len)?);
    Some(Range {
        pos,
        len: end.checked_sub(pos)?,
    })
}

impl Inner<'_> {
    /// Copies to the space what guest range `start..end` reads as.
    // Not inlined: not everybody needs it, and its stack.
    #[inline(never)]
    fn copy_old(&self, space: &Reservation, start: u64, end: u64) -> Result {
        let mut pos = start;
        while pos < end {
            let len = self.copy_step(space, pos, end.saturating_sub(pos))?;
            if len == 0 {
                return Err(OUTSIDE);
            }
            pos = pos.checked_add(len).ok_or(OUTSIDE)?;
        }
        Ok(())
    }

    /// Copies the start of guest range `pos..pos + most`. Returns how much that was.
    #[inline(never)]
    fn copy_step(&self, space: &Reservation, pos: u64, most: u64) -> Result<u64> {
        let image = self.layer.image;
        let _epoch = image.epochs().map(Epochs::enter);
        let (layer, extent, is_own) = self.layer.find_old(pos, most)?;
        let to = pos.checked_sub(space.pos).ok_or(OUTSIDE)?;
        let to = space.offset.checked_add(to).ok_or(OUTSIDE)?;
        match extent {
            Extent::Compressed(unit) if is_own => {
                bounce::decompressed(layer, &unit, most, |bytes| self.store(to, bytes))
            }
            // The buffer of a layer below is not to be had while the image is written to, whose file
            // may lie on another device with the same layer below: see `bounce.rs`.
            Extent::Compressed(unit) => {
                bounce::buffered(image.pool()?, unit.len.min(most), |bytes| {
                    let most = bytes.len() as u64;
                    bounce::decompressed(layer, &unit, most, |unit| copy(bytes, unit))?;
                    self.store(to, bytes)
                })
            }
            Extent::Data { offset, len } => bounce::buffered(image.pool()?, len, |bytes| {
                layer.read_data(offset, bytes)?;
                self.store(to, bytes)
            }),
            Extent::Zero { len } | Extent::Parent { len } => {
                bounce::buffered(image.pool()?, len.min(most), |bytes| {
                    bytes.fill(0);
                    self.store(to, bytes)
                })
            }
        }
    }

    fn store(&self, to: u64, bytes: &[u8]) -> Result {
        self.layer.write_data(to, bytes)
    }
}

fn copy(to: &mut [u8], from: &[u8]) -> Result {
    if to.len() != from.len() {
        return Err(OUTSIDE);
    }
    to.copy_from_slice(from);
    Ok(())
}

impl<'a> Allocating<'a, state::Written> {
    /// Makes them durable, if the crash rules ask for it.
    pub(crate) fn make_durable(self) -> Result<Allocating<'a, state::Durable>> {
        let inner = &self.inner;
        if inner
            .space
            .as_ref()
            .is_some_and(|space| space.sync_before_publish)
        {
            let Layer { image, file, .. } = inner.layer;
            image.sync_together(file).map_err(store_error)?;
        }
        Ok(self.into())
    }
}

impl Allocating<'_, state::Durable> {
    /// Stores the pointer: from now on the guest range is allocated. If it is time to give back what
    /// pointers have pointed to, that is put into `full`, which is empty before.
    #[inline(never)]
    fn publish(mut self, full: &mut UnlinkedList) -> Result {
        let inner = &mut self.inner;
        let Some(space) = inner.space else {
            return Ok(());
        };
        let Layer { image, file, .. } = inner.layer;
        let mut allocation = image.allocation.lock();
        let Allocation {
            alloc,
            unlinked,
            scratch,
            ..
        } = &mut *allocation;
        let mut tables = LockedTables::new(image, file, scratch);
        let old = alloc.publish(&mut tables, &space, inner.written)?;
        // Published: no longer ours to give back.
        inner.space = None;
        if let Some(old) = old {
            unlinked.push(old, full);
        }
        Ok(())
    }
}

impl Drop for Inner<'_> {
    fn drop(&mut self) {
        let image = self.layer.image;
        let mut allocation = image.allocation.lock();
        if let Some(space) = self.space.take() {
            allocation.alloc.release(&space);
        }
        allocation.pending.leave(self.slot);
        drop(allocation);
        image.pending_changed.notify_all();
    }
}
