// SPDX-License-Identifier: GPL-2.0

//! On-disk structures of version 1. Definitions only.
//!
//! All integers are big-endian; offsets are in bytes from the start of the file. There is no
//! specification; the names are those of `block/qcow.c` in the QEMU sources.

use zerocopy::big_endian::{
    U16,
    U32,
    U64, //
};
use zerocopy_derive::{
    FromBytes,
    IntoBytes, //
};

/// Bytes in the header.
pub(super) const HEADER_LEN: u64 = 48;
/// Bytes in an entry of the L1, and of an L2 table.
pub(super) const TABLE_ENTRY_LEN: u64 = 8;

/// Smallest and largest [`HeaderFields::cluster_bits`].
pub(super) const CLUSTER_BITS_RANGE: core::ops::RangeInclusive<u8> = 9..=16;
/// Smallest and largest [`HeaderFields::l2_bits`].
pub(super) const L2_BITS_RANGE: core::ops::RangeInclusive<u8> = 6..=13;
/// Smallest [`HeaderFields::size`]; QEMU has the same limit.
pub(super) const MIN_SIZE: u64 = 2;
/// Largest L1 in bytes; QEMU has the same limit.
pub(super) const MAX_L1_LEN: u64 = 1 << 31;
/// Longest name of a backing file in bytes.
pub(super) const MAX_BACKING_NAME: u32 = 1023;

/// [`HeaderFields::crypt_method`]: not encrypted.
pub(super) const CRYPT_NONE: u32 = 0;
/// [`HeaderFields::crypt_method`]: AES in CBC mode.
pub(super) const CRYPT_AES: u32 = 1;

/// The header.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct HeaderFields {
    /// `QFI\xfb`. (Offset 0.)
    pub(super) magic: [u8; 4],
    /// 1. (4)
    pub(super) version: U32,
    /// Offset of the name of the backing file, 0 for none. (8)
    pub(super) backing_offset: U64,
    /// Its length in bytes. (16)
    pub(super) backing_size: U32,
    /// Seconds since 1970, usually 0. (20)
    pub(super) mtime: U32,
    /// Size of the disk in bytes. (24)
    pub(super) size: U64,
    /// Bytes in a cluster, as a shift count. (32)
    pub(super) cluster_bits: u8,
    /// Entries in an L2 table, as a shift count. (33)
    pub(super) l2_bits: u8,
    /// (34)
    pub(super) padding: U16,
    /// [`CRYPT_NONE`], [`CRYPT_AES`]. (36)
    pub(super) crypt_method: U32,
    /// Offset of the L1, of any alignment. (40)
    pub(super) l1_offset: U64,
}

/// Offset of [`HeaderFields::version`].
pub(super) const VERSION: u64 = 4;
/// Offset of [`HeaderFields::backing_offset`].
pub(super) const BACKING_OFFSET: u64 = 8;
/// Offset of [`HeaderFields::backing_size`].
pub(super) const BACKING_SIZE: u64 = 16;
/// Offset of [`HeaderFields::size`].
pub(super) const SIZE: u64 = 24;
/// Offset of [`HeaderFields::cluster_bits`].
pub(super) const CLUSTER_BITS: u64 = 32;
/// Offset of [`HeaderFields::l2_bits`].
pub(super) const L2_BITS: u64 = 33;
/// Offset of [`HeaderFields::crypt_method`].
pub(super) const CRYPT_METHOD: u64 = 36;
/// Offset of [`HeaderFields::l1_offset`].
pub(super) const L1_OFFSET: u64 = 40;
