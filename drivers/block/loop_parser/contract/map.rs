// SPDX-License-Identifier: GPL-2.0

//! Resolving guest ranges.

use super::{
    Result,
    Tables, //
};

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
    /// [`Allocate::reserve`](super::Allocate::reserve).
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
