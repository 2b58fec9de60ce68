// SPDX-License-Identifier: GPL-2.0

//! Resolving guest ranges, and making room for guest writes.

use super::{
    Result,
    Tables,
    TablesMut, //
};

/// What tells an image from others of its format: the unique id of a VHD, the CID of a VMDK. All
/// zero where the format has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity(pub [u8; 16]);

/// In what state an image was found; the last is the worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing is wrong with it.
    #[default]
    Clean,
    /// A part that was damaged is served from its copy, or as far as it is there.
    Recovered,
    /// It was not closed: it is open elsewhere, or its writer was interrupted.
    Dirty,
}

/// What an image can do besides being read and written. What it lacks, its device does not
/// advertise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// [`Allocate::discard`] can be called for discards.
    pub discard: bool,
    /// It can be called for write-zeroes, too: it leaves zeros and nothing else.
    pub write_zeroes: bool,
    /// [`Allocate::reclaim`] can make space free for [`Allocate::reserve`]: the driver keeps track of
    /// requests in flight, and waits for those that may have resolved to it. Without this it does not
    /// wait, and space that was given back must not be handed out again while the image is attached.
    pub reuses_space: bool,
}

/// What the driver has to know about an attached disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Size of the virtual disk in bytes, a multiple of 512.
    pub size: u64,
    /// Sub-format in the words of its specification ("fixed", "dynamic"), shown in sysfs.
    pub variant: &'static str,
    /// Which of several recorded sizes was believed ("chs", "current_size"), shown in sysfs; empty
    /// where the format records only one.
    pub size_source: &'static str,
    /// The program that made the image, as recorded; zeros where the format does not say.
    pub creator: [u8; 4],
    /// Bytes of guest data in an allocation unit (block, cluster, grain); 0 if there are none.
    pub unit: u64,
    /// What its children know the image by.
    pub identity: Identity,
    /// In what state it was found.
    pub state: State,
    /// What it can do.
    pub features: Features,
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
    /// `len` bytes are those of the parent, at the same guest position; zero past its end. Only of
    /// an image that names a parent.
    Parent {
        /// Length in bytes.
        len: u64,
    },
    /// The bytes are part of a unit that is stored compressed.
    Compressed(Compressed),
}

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate, with a window of 32 KiB. What follows the end of the stream is not looked at.
    Deflate,
    /// zstd, one or several frames.
    Zstd,
    /// Deflate in a zlib stream: a header in front, a checksum behind.
    Zlib,
}

/// A unit (cluster) that is stored compressed. The driver reads it as a whole, and stops
/// decompressing when `unit` bytes are out; if there are less than `least`, or the data is damaged, the
/// I/O fails as that of an image that is malformed at `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// Host offset in bytes of the first compressed byte; any alignment.
    pub offset: u64,
    /// At most this many bytes belong to it. It may end past the end of the file: what is missing
    /// there is just not read.
    pub stored: u32,
    /// How it is compressed.
    pub compression: Compression,
    /// Length in bytes of the whole unit, uncompressed; a power of two, at most
    /// [`Compressed::MAX_UNIT`].
    pub unit: u32,
    /// At least this many bytes have to come out, of which the resolved range is part. The unit that a
    /// disk ends in can be shorter than others.
    pub least: u32,
    /// Where in the unit the resolved range begins, in bytes.
    pub skip: u32,
    /// Length in bytes of what was resolved; it ends within the unit.
    pub len: u64,
}

impl Compressed {
    /// Largest unit that can be compressed, in bytes.
    pub const MAX_UNIT: u32 = 2 << 20;
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
    /// The range begins where the image has no place for it yet: take it through
    /// [`Allocate::reserve`].
    Allocate {
        /// Guest position in bytes of what can only be given a place by one writer at a time.
        pos: u64,
        /// Its length in bytes; it may reach past the end of the disk, which can grow.
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

    /// Looks up the size of the disk in bytes again, after a tool has changed it in the file. What
    /// the image had tables for when it was attached is the most it can be, and nothing else is
    /// read again.
    ///
    /// # Errors
    ///
    /// As for an attach; then the size stays what it was.
    fn reread_size(&self, tables: &dyn Tables) -> Result<u64>;
}

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

/// A range of the image file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRange {
    /// Host offset of its first byte.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

/// A range of the guest disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Guest position of its first byte.
    pub pos: u64,
    /// Its length.
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

    /// Makes room for a guest write that begins at `pos` and for which [`Map::resolve_write`]
    /// answered [`Placement::Allocate`]. Looks again before it does anything: another writer may
    /// have been faster.
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
        tables: &mut dyn TablesMut,
        range: Range,
        size: u64,
        how: Discard,
    ) -> Result<Discarded>;

    /// Takes back space that [`Allocate::publish`] or [`Allocate::discard`] has unlinked: drops what
    /// counts it. The removal of the pointer is durable, and, of an image that
    /// [reuses space](Features::reuses_space), no request is in flight any more that may have
    /// resolved to it. Answers what part of it may be punched now; the driver does that before
    /// anything else is asked of the parser. Afterwards it may be handed out again by
    /// [`Allocate::reserve`].
    ///
    /// Space that was unlinked is lost until a tool finds it if this is not called, or fails.
    fn reclaim(&mut self, tables: &mut dyn TablesMut, space: Unlinked)
        -> Result<Option<HostRange>>;

    /// Called when the last read-write device of the image goes away, after its last write: trims
    /// what was reserved and not used. Not called after a failed sync. Crash-safe like everything.
    fn close(&mut self, tables: &mut dyn TablesMut) -> Result;
}
