// SPDX-License-Identifier: GPL-2.0

//! On-disk structures of hosted sparse extents. Definitions only.
//!
//! All integers are little-endian and unaligned; offsets and sizes are in sectors of 512 bytes. The names
//! are those of VMware's "Virtual Disk Format" 5.0.

use zerocopy::little_endian::{
    U16,
    U32,
    U64, //
};
use zerocopy_derive::{
    FromBytes,
    IntoBytes, //
};

/// Bytes that a header takes, of which the last ones are padding.
pub(super) const HEADER_LEN: u64 = 512;

/// [`HeaderFields::magic`].
pub(in super::super) const MAGIC: [u8; 4] = *b"KDMV";
/// What [`HeaderFields::version`] can be.
pub(super) const VERSIONS: core::ops::RangeInclusive<u32> = 1..=3;
/// The version of streams, and of disks whose changes are tracked.
pub(super) const VERSION_3: u32 = 3;

/// [`HeaderFields::flags`]: the check bytes are there.
pub(super) const FLAG_CHECK: u32 = 1 << 0;
/// [`HeaderFields::flags`]: there is a redundant grain directory, with tables of its own.
pub(super) const FLAG_REDUNDANT: u32 = 1 << 1;
/// [`HeaderFields::flags`]: a table entry of 1 is a grain of zeros.
pub(super) const FLAG_ZERO_GRAIN: u32 = 1 << 2;
/// [`HeaderFields::flags`]: grains are compressed.
pub(in super::super) const FLAG_COMPRESSED: u32 = 1 << 16;
/// [`HeaderFields::flags`]: grains have headers, other things have markers.
pub(in super::super) const FLAG_MARKERS: u32 = 1 << 17;
/// Flags of which a reader has to know what they mean.
pub(super) const FLAGS_INCOMPATIBLE: u32 = 0xffff_0000;

/// [`HeaderFields::check`]: what a transfer as text would have changed.
pub(super) const CHECK_BYTES: [u8; 4] = *b"\n \r\n";

/// [`HeaderFields::compression`].
pub(super) const COMPRESSION_NONE: u16 = 0;
/// [`HeaderFields::compression`]: deflate, in a zlib stream.
pub(super) const COMPRESSION_DEFLATE: u16 = 1;

/// [`HeaderFields::gd_offset`]: see the copy of the header at the end of the stream.
pub(in super::super) const GD_AT_END: u64 = u64::MAX;

/// The header, without padding.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct HeaderFields {
    /// [`MAGIC`]. (Offset 0.)
    pub(super) magic: [u8; 4],
    /// One of [`VERSIONS`]. (4)
    pub(super) version: U32,
    /// `FLAG_*`. (8)
    pub(super) flags: U32,
    /// Size of the disk, or of the part of it that is in this file. (12)
    pub(super) capacity: U64,
    /// Size of a grain. (20)
    pub(super) grain_size: U64,
    /// Where the embedded descriptor is, 0 if there is none. (28)
    pub(super) desc_offset: U64,
    /// Room for it. (36)
    pub(super) desc_size: U64,
    /// Entries in a grain table. (44)
    pub(super) gtes_per_gt: U32,
    /// Where the redundant grain directory is. (48)
    pub(super) rgd_offset: U64,
    /// Where the grain directory is, or [`GD_AT_END`]. (56)
    pub(super) gd_offset: U64,
    /// Where the first grain can be. (64)
    pub(super) overhead: U64,
    /// Not 0 while the file is open for writing. (72)
    pub(super) unclean: u8,
    /// [`CHECK_BYTES`]. (73)
    pub(super) check: [u8; 4],
    /// `COMPRESSION_*`. (77)
    pub(super) compression: U16,
}

/// Offset of [`HeaderFields::version`].
pub(super) const VERSION: u64 = 4;
/// Offset of [`HeaderFields::flags`].
pub(in super::super) const FLAGS: u64 = 8;
/// Offset of [`HeaderFields::capacity`].
pub(super) const CAPACITY: u64 = 12;
/// Offset of [`HeaderFields::grain_size`].
pub(super) const GRAIN_SIZE: u64 = 20;
/// Offset of [`HeaderFields::desc_offset`].
pub(super) const DESC_OFFSET: u64 = 28;
/// Offset of [`HeaderFields::desc_size`].
pub(super) const DESC_SIZE: u64 = 36;
/// Offset of [`HeaderFields::gtes_per_gt`].
pub(super) const GTES_PER_GT: u64 = 44;
/// Offset of [`HeaderFields::rgd_offset`].
pub(super) const RGD_OFFSET: u64 = 48;
/// Offset of [`HeaderFields::gd_offset`].
pub(in super::super) const GD_OFFSET: u64 = 56;
/// Offset of [`HeaderFields::overhead`].
pub(super) const OVERHEAD: u64 = 64;
/// Offset of [`HeaderFields::unclean`].
pub(super) const UNCLEAN: u64 = 72;
/// Offset of [`HeaderFields::check`].
pub(super) const CHECK: u64 = 73;
/// Offset of [`HeaderFields::compression`].
pub(super) const COMPRESSION: u64 = 77;
