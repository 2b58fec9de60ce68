// SPDX-License-Identifier: GPL-2.0

//! On-disk structures of seSparse files. Definitions only.
//!
//! All integers are little-endian and of 64 bits; offsets and sizes are in sectors of 512 bytes.

use zerocopy::little_endian::U64;
use zerocopy_derive::{
    FromBytes,
    IntoBytes, //
};

/// Bytes in each of the two headers.
pub(super) const HEADER_LEN: u64 = 512;
/// Bytes in an entry of the directory, or of a table.
pub(super) const ENTRY_LEN: u64 = 8;

/// [`ConstHeader::magic`].
pub(super) const MAGIC: u64 = 0xcafe_babe;
/// [`ConstHeader::version`]: 2.1.
pub(super) const VERSION_2_1: u64 = 0x2_0000_0001;
/// [`ConstHeader::grain_size`]: 4 KiB.
pub(super) const GRAIN_SECTORS: u64 = 8;
/// [`ConstHeader::table_size`]: 4096 entries.
pub(super) const TABLE_SECTORS: u64 = 64;
/// [`VolatileHeader::magic`].
pub(super) const VOLATILE_MAGIC: u64 = 0xcafe_cafe;

/// A part of the file.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct Area {
    /// Where it begins.
    pub(super) offset: U64,
    /// How large it is.
    pub(super) size: U64,
}

/// The header that never changes, without the zeros at its end.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct ConstHeader {
    /// [`MAGIC`]. (Offset 0.)
    pub(super) magic: U64,
    /// [`VERSION_2_1`]. (8)
    pub(super) version: U64,
    /// Size of the disk, or of the part of it that is in this file. (16)
    pub(super) capacity: U64,
    /// [`GRAIN_SECTORS`]. (24)
    pub(super) grain_size: U64,
    /// [`TABLE_SECTORS`]. (32)
    pub(super) table_size: U64,
    /// 0. (40)
    pub(super) flags: U64,
    /// 0. (48)
    pub(super) reserved: [U64; 4],
    /// The header that changes. (80)
    pub(super) volatile: Area,
    /// (96)
    pub(super) journal_header: Area,
    /// (112)
    pub(super) journal: Area,
    /// The grain directory. (128)
    pub(super) directory: Area,
    /// The grain tables. (144)
    pub(super) tables: Area,
    /// (160)
    pub(super) free_bitmap: Area,
    /// (176)
    pub(super) back_map: Area,
    /// (192)
    pub(super) grains: Area,
}

/// The header that changes, as far as it is of use here.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct VolatileHeader {
    /// [`VOLATILE_MAGIC`]. (Offset 0.)
    pub(super) magic: U64,
    /// (8)
    pub(super) free_table: U64,
    /// (16)
    pub(super) next_transaction: U64,
    /// Not 0: the journal has what the tables do not. (24)
    pub(super) replay_journal: U64,
}

/// Offset of [`ConstHeader::version`].
pub(super) const VERSION: u64 = 8;
/// Offset of [`ConstHeader::capacity`].
pub(super) const CAPACITY: u64 = 16;
/// Offset of [`ConstHeader::grain_size`].
pub(super) const GRAIN_SIZE: u64 = 24;
/// Offset of [`ConstHeader::table_size`].
pub(super) const TABLE_SIZE: u64 = 32;
/// Offset of [`ConstHeader::flags`].
pub(super) const FLAGS: u64 = 40;
/// Offset of [`ConstHeader::volatile`].
pub(super) const VOLATILE: u64 = 80;
/// Offset of [`ConstHeader::directory`].
pub(super) const DIRECTORY: u64 = 128;
/// Offset of [`ConstHeader::tables`].
pub(super) const TABLES: u64 = 144;
/// Offset of [`ConstHeader::grains`].
pub(super) const GRAINS: u64 = 192;
/// Offset of [`VolatileHeader::replay_journal`].
pub(super) const REPLAY_JOURNAL: u64 = 24;
