// SPDX-License-Identifier: GPL-2.0

//! On-disk structures of COWD files. Definitions only.
//!
//! All integers are little-endian; offsets and sizes are in sectors of 512 bytes. The names are those of
//! VMware's "Virtual Disk Format" 5.0 ("ESX Server Sparse Extents").

use zerocopy::little_endian::U32;
use zerocopy_derive::{
    FromBytes,
    IntoBytes, //
};

/// Bytes that a header takes.
pub(super) const HEADER_LEN: u64 = 2048;

/// [`HeaderFields::magic`].
pub(super) const MAGIC: [u8; 4] = *b"COWD";
/// [`HeaderFields::version`].
pub(super) const VERSION_1: u32 = 1;
/// Entries in a grain table.
pub(super) const TABLE_ENTRIES: u64 = 4096;

/// The start of the header.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct HeaderFields {
    /// [`MAGIC`]. (Offset 0.)
    pub(super) magic: [u8; 4],
    /// [`VERSION_1`]. (4)
    pub(super) version: U32,
    /// 3. (8)
    pub(super) flags: U32,
    /// Size of the disk, or of the part of it that is in this file. (12)
    pub(super) capacity: U32,
    /// Size of a grain, usually 1. (16)
    pub(super) grain_size: U32,
    /// Where the grain directory is. (20)
    pub(super) gd_offset: U32,
    /// Entries in it. (24)
    pub(super) gd_entries: U32,
    /// Where free space begins. (28)
    pub(super) next_free: U32,
}

/// Offset of [`HeaderFields::version`].
pub(super) const VERSION: u64 = 4;
/// Offset of [`HeaderFields::capacity`].
pub(super) const CAPACITY: u64 = 12;
/// Offset of [`HeaderFields::grain_size`].
pub(super) const GRAIN_SIZE: u64 = 16;
/// Offset of [`HeaderFields::gd_offset`].
pub(super) const GD_OFFSET: u64 = 20;
/// Offset of [`HeaderFields::gd_entries`].
pub(super) const GD_ENTRIES: u64 = 24;
/// Offset of [`HeaderFields::next_free`].
pub(super) const NEXT_FREE: u64 = 28;
/// Offset of the name of a child's parent. In a disk without a parent its geometry is there: the numbers of
/// cylinders, heads and sectors, of four bytes each.
pub(super) const PARENT_NAME: u64 = 32;
/// Offset of a 32-bit number, the generation of a child's parent.
pub(super) const PARENT_GENERATION: u64 = 1056;
/// Offset of a 32-bit number that is not 0 while the file is open for writing.
pub(super) const UNCLEAN: u64 = 1648;
