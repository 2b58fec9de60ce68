// SPDX-License-Identifier: GPL-2.0

//! Resolving guest ranges, and making room for guest writes.

use super::{
    Result,
    Tables,
    TablesMut, //
};

/// What the driver has to know about an attached disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Size of the virtual disk in bytes, a multiple of 512.
    pub size: u64,
    /// Sub-format in the words of its specification ("fixed", "dynamic"), shown in sysfs.
    pub variant: &'static str,
    /// Which of several recorded sizes was believed ("chs", "current_size"), shown in sysfs; empty
    /// where the format records only one.
    pub size_source: &'static str,
}

/// Where a guest range is read from. `len` is at least one sector and at most what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// `len` bytes lie at host offset `offset` of the image file.
    Data {
        /// Host offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// `len` bytes read as zero.
    Zero {
        /// Length in bytes.
        len: u64,
    },
}

/// Where a guest range is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The first `len` bytes are overwritten where they are. No table changes.
    InPlace {
        /// Host offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The range begins in an allocation unit that has no place yet: take it through
    /// [`Allocate::reserve`].
    Allocate {
        /// Guest position of the allocation unit in bytes.
        pos: u64,
        /// Length of the allocation unit in bytes.
        len: u64,
    },
}

/// Maps guest ranges to extents. Immutable: called by many tasks at once, without a lock.
///
/// Tables may change under a call (the driver notices and asks again) or contain anything at all (a
/// user may own the file): every loaded entry is checked at every use, with checked arithmetic.
pub trait Map: Send + Sync {
    /// Resolves the start of guest range `pos..pos + len` for reading: the longest extent that can
    /// cheaply be proved. The caller guarantees that the range is within the disk, that `pos` and
    /// `len` are multiples of 512 and that `len` is not 0.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](super::Error::WouldBlock) and [`Store`](super::Error::Store) from `tables`;
    /// [`Malformed`](super::Error::Malformed) for an entry that cannot be right.
    fn resolve_read(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Extent>;

    /// Resolves the start of guest range `pos..pos + len` for writing. Same rules as
    /// [`Map::resolve_read`].
    fn resolve_write(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Placement>;
}

/// Space that was made for guest bytes and is not yet visible to anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Guest position in bytes of the allocation unit.
    pub pos: u64,
    /// Length in bytes of the allocation unit.
    pub len: u64,
    /// Host offset in bytes at which the unit's data goes. The space reads as zero.
    pub offset: u64,
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

/// Makes room for guest writes. One per image; the driver calls it under the image's mutex, in a
/// context that may sleep.
///
/// Holds O(1) cursors only, never a copy of tables. A failed call leaves the image as valid as it
/// was, and the same call may be made again later (space may have been made in the meantime).
pub trait Allocate: Send {
    /// Makes room for a guest write that begins at `pos` and for which [`Map::resolve_write`]
    /// answered [`Placement::Allocate`]. Looks again before it does anything: another writer may
    /// have been faster.
    fn reserve(&mut self, tables: &mut dyn TablesMut, pos: u64, len: u64) -> Result<Reserved>;

    /// Stores the pointer to `space`. The driver calls this after the guest's bytes are in the page
    /// cache, and durable if `space` asked for it.
    fn publish(&mut self, tables: &mut dyn TablesMut, space: &Reservation) -> Result;

    /// Gives `space` back unpublished: its data could not be written.
    fn release(&mut self, space: &Reservation);

    /// Called when the last read-write device of the image goes away, after its last write: trims
    /// what was reserved and not used. Not called after a failed sync. Crash-safe like everything.
    fn close(&mut self, tables: &mut dyn TablesMut) -> Result;
}
