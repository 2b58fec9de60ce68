// SPDX-License-Identifier: GPL-2.0

//! Making room for guest writes, and giving it back.

use super::{
    num::OUTSIDE,
    HostRange,
    Range,
    Result,
    TablesMut, //
};

/// Space that was made for guest bytes and is not yet visible to anybody. It may be part of a place
/// that is visible otherwise: then publishing changes only what says which part of it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Guest position in bytes of what the space is for.
    pub pos: u64,
    /// Length in bytes of what the space is for; it may reach past the end of the disk.
    pub len: u64,
    /// Host offset in bytes at which its data goes.
    pub offset: u64,
    /// The smallest part of it that can be published by itself, in bytes, a power of two: what the
    /// guest writes, the driver completes to whole granules with what was read there before, be it
    /// the parent's or compressed. 0 if that was zeros and the space reads as zero: then nothing has
    /// to be completed.
    pub granule: u64,
    /// The data must be durable before the pointer is stored. False only under the exception of the
    /// crash rules: the old mapping read as zero and the target is never-written space of a regular
    /// file inside a durable file size.
    pub sync_before_publish: bool,
}

/// The outcome of [`Allocate::reserve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// Write the guest's bytes into this space, then publish it.
    Space(Reservation),
    /// Nothing to publish: the range can be written in place now. Resolve it again.
    Ready,
}

/// Host space that nothing in the tables points to any more. Whether that is durable, and whether
/// somebody is still on the way there, the driver sees to before it calls [`Allocate::reclaim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unlinked {
    /// Host offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// What is to become of a range that the guest has no use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// It may read as anything that it has read as before, or as zero.
    Forget,
    /// It reads as zero, and its space may be given back.
    Zero,
    /// It reads as zero, and space that it has for itself is kept.
    ZeroInPlace,
}

/// The outcome of [`Allocate::discard`] for the first `len` bytes of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// There is nothing to do.
    Done {
        /// Length in bytes.
        len: u64,
    },
    /// They lie at host offset `offset`: the driver makes them read as zero there, by a hole if it
    /// may. No pointer has changed.
    Zero {
        /// Host offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The image has nothing to say that they are zeros with: the driver writes zeros, as it would
    /// write data of the guest. Never the answer to [`Discard::Forget`].
    Write {
        /// Length in bytes.
        len: u64,
    },
    /// Their pointer was removed from the tables, and they read as zero. The driver gives the space
    /// back through [`Allocate::reclaim`].
    Freed {
        /// Length in bytes.
        len: u64,
        /// What the pointer pointed to.
        space: Unlinked,
    },
}

/// Makes room for guest writes. One per image; the driver calls it under the image's mutex, in a
/// context that may sleep.
///
/// Holds O(1) cursors only, never a copy of tables. A failed call leaves the image as valid as it
/// was, and the same call may be made again later (space may have been made in the meantime).
pub trait Allocate: Send {
    /// Called before the first write or discard of an attached image, be it in place, and again after
    /// a failed call, after [`Allocate::close`], when one of several writers has gone, or when a write
    /// or discard has met something [malformed](super::Error::Malformed): who then fails every time
    /// ends all writing. Never called for a read-only device. For changes of the header that have to
    /// be durable before the first write: it has to sync them itself.
    ///
    /// # Errors
    ///
    /// As for [`Allocate::reserve`]; the write fails.
    fn begin(&mut self, tables: &mut dyn TablesMut) -> Result;

    /// Makes room for a guest write that begins at `pos` and for which
    /// [`resolve_write`](super::Map::resolve_write) answered [`Allocate`](super::Placement::Allocate). Looks
    /// again before it does anything: another writer may have been faster.
    fn reserve(&mut self, tables: &mut dyn TablesMut, pos: u64, len: u64) -> Result<Reserved>;

    /// Stores the pointer to `space`, or to that part of it that was `written`: whole granules. The
    /// driver calls this after the guest's bytes are in the page cache, and durable if `space`
    /// asked for it. Answers what the old pointer pointed to, if that is to be given back.
    fn publish(
        &mut self,
        tables: &mut dyn TablesMut,
        space: &Reservation,
        written: Range,
    ) -> Result<Option<Unlinked>>;

    /// Gives `space` back unpublished: its data could not be written.
    fn release(&mut self, space: &Reservation);

    /// Gives back, or makes zero, the start of guest range `range` of a disk of `size` bytes. Only
    /// called if the image has the feature. Bytes that the image does not have itself, but its
    /// parent, are never uncovered.
    ///
    /// # Errors
    ///
    /// As for [`Allocate::reserve`].
    fn discard(
        &mut self,
        _tables: &mut dyn TablesMut,
        _range: Range,
        _size: u64,
        _how: Discard,
    ) -> Result<Discarded> {
        Err(OUTSIDE)
    }

    /// Takes back space that [`Allocate::publish`] or [`Allocate::discard`] has unlinked: drops what
    /// counts it. The removal of the pointer is durable, and, of an image that
    /// [reuses space](super::Features::reuses_space), no request is in flight any more that may have
    /// resolved to it. Answers what part of it may be punched now; the driver does that before
    /// anything else is asked of the parser. Afterwards it may be handed out again by
    /// [`Allocate::reserve`].
    ///
    /// Space that was unlinked is lost until a tool finds it if this is not called, or fails. Where
    /// nothing counts space, and it is not used again, all of it is punched.
    fn reclaim(
        &mut self,
        _tables: &mut dyn TablesMut,
        space: Unlinked,
    ) -> Result<Option<HostRange>> {
        Ok(Some(HostRange {
            offset: space.offset,
            len: space.len,
        }))
    }

    /// Called when the last read-write device of the image goes away, after its last write: trims
    /// what was reserved and not used. Not called after a failed sync. Crash-safe like everything.
    fn close(&mut self, tables: &mut dyn TablesMut) -> Result;
}
