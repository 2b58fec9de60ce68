// SPDX-License-Identifier: GPL-2.0

//! On-disk structures of a stream, and its limits. Definitions only.
//!
//! Behind header and descriptor a stream is a row of grains and markers, each at the start of a
//! sector. All integers are little-endian. The names are those of the *Virtual Disk Format*
//! specification, "Stream-Optimized Compressed Sparse Extents".

use zerocopy::little_endian::{
    U32,
    U64, //
};
use zerocopy_derive::{
    FromBytes,
    IntoBytes, //
};

use loop_parser::contract::{
    Compressed,
    SECTOR_SIZE, //
};

/// What a grain begins with. A marker begins the same way, with a size of 0.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct GrainHeader {
    /// First sector of the grain on the disk. Of a marker: sectors of metadata that follow its own
    /// one. (Offset 0.)
    pub(super) lba: U64,
    /// Bytes of compressed data, which begin behind the header; any number. 0 of a marker. (8)
    pub(super) size: U32,
}

/// Bytes in a [`GrainHeader`].
pub(super) const GRAIN_HEADER_LEN: u64 = 12;
/// Offset of a marker's type, a 32-bit number.
pub(super) const MARKER_TYPE: u64 = 12;

/// Type of a marker: nothing follows.
pub(super) const END_OF_STREAM: u32 = 0;
/// Type of a marker: a grain table follows.
pub(super) const GRAIN_TABLE: u32 = 1;
/// Type of a marker: the grain directory follows.
pub(super) const GRAIN_DIRECTORY: u32 = 2;
/// Type of a marker: the footer follows.
pub(super) const FOOTER: u32 = 3;
/// Type of a marker: something for the program that made the stream.
pub(super) const PROGRESS: u32 = 4;

/// Bytes in an entry of a directory or table.
pub(super) const ENTRY_LEN: u64 = 4;
/// Table entry, if the header's flag says so: the grain is zeros.
pub(super) const ZERO_GRAIN: u32 = 1;

/// From the footer to the end of the file: itself, and the end-of-stream marker.
pub(super) const FOOTER_TO_END: u64 = 2 * SECTOR_SIZE;
/// From the footer's marker to the end of the file.
pub(super) const FOOTER_MARKER_TO_END: u64 = 3 * SECTOR_SIZE;

/// Largest grain in bytes: more is not decompressed at once.
pub(super) const MAX_GRAIN: u64 = Compressed::MAX_UNIT as u64;

/// Most compressed bytes of a grain of `grain` bytes: more than any compressor makes of it.
pub(super) fn max_stored(grain: u64) -> u64 {
    grain.saturating_add(grain / 64).saturating_add(4096)
}
