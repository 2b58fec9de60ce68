// SPDX-License-Identifier: GPL-2.0

//! On-disk structures. Definitions only.
//!
//! All integers are big-endian; offsets are in bytes from the start of the file unless said
//! otherwise.

use zerocopy::big_endian::{
    U16,
    U32,
    U64, //
};
use zerocopy_derive::{
    FromBytes,
    IntoBytes, //
};

/// Bytes in a footer. Virtual PC before 2004 wrote one less: the last, zero byte is missing.
pub(super) const FOOTER_LEN: u64 = 512;
/// Bytes in the footer that Virtual PC before 2004 wrote.
pub(super) const SHORT_FOOTER_LEN: u64 = 511;
/// Bytes in the dynamic header.
pub(super) const HEADER_LEN: u64 = 1024;
/// Bytes in a BAT entry.
pub(super) const BAT_ENTRY_LEN: u64 = 4;
/// Bytes in tapdisk's batmap header.
pub(super) const BATMAP_HEADER_LEN: u64 = 512;

/// [`FooterFields::cookie`] of a VHD.
pub(super) const FOOTER_COOKIE: [u8; 8] = *b"conectix";
/// [`FooterFields::cookie`] while tapdisk rearranges a VHD: nobody else is to touch it.
pub(super) const POISON_COOKIE: [u8; 8] = *b"v_poison";
/// [`HeaderFields::cookie`].
pub(super) const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// [`BatmapHeader::cookie`].
pub(super) const BATMAP_COOKIE: [u8; 8] = *b"tdbatmap";

/// What tapdisk fills the last 512 bytes with while it has a VHD open read-write.
pub(super) const TAPDISK_FILL: u8 = 0xc7;

/// [`FooterFields::version`] and [`HeaderFields::version`]: 1.0.
pub(super) const VERSION_1_0: u32 = 0x0001_0000;

/// [`FooterFields::disk_type`]: the data lies in front of the footer.
pub(super) const TYPE_FIXED: u32 = 2;
/// [`FooterFields::disk_type`]: blocks are found through a BAT.
pub(super) const TYPE_DYNAMIC: u32 = 3;
/// [`FooterFields::disk_type`]: as dynamic, on top of a parent.
pub(super) const TYPE_DIFFERENCING: u32 = 4;

/// [`FooterFields::data_offset`] of a fixed disk.
pub(super) const NO_DATA_OFFSET: u64 = u64::MAX;
/// What some writers make of [`NO_DATA_OFFSET`]: the specification's text says "0xFFFFFFFF".
pub(super) const NO_DATA_OFFSET_32: u64 = 0xffff_ffff;

/// [`FooterFields::creator_app`] of tapdisk and libvhd.
pub(super) const CREATOR_TAPDISK: [u8; 4] = *b"tap\0";
/// [`FooterFields::creator_version`] of tapdisk 0.1, whose bitmaps are little-endian.
pub(super) const TAPDISK_0_1: u32 = 0x0000_0001;
/// [`FooterFields::creator_version`] of tapdisk 1.1, the first with a batmap.
pub(super) const TAPDISK_1_1: u32 = 0x0001_0001;

/// The fields of the footer ("Hard Disk Footer Format"), without the reserved bytes at its end.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct FooterFields {
    /// [`FOOTER_COOKIE`] or [`POISON_COOKIE`]. (Offset 0.)
    pub(super) cookie: [u8; 8],
    /// Bit 1 is always set, bit 0 means temporary. (8)
    pub(super) features: U32,
    /// [`VERSION_1_0`]. (12)
    pub(super) version: U32,
    /// Offset of the dynamic header; all ones for a fixed disk. (16)
    pub(super) data_offset: U64,
    /// Seconds since 2000-01-01 00:00 UTC. (24)
    pub(super) timestamp: U32,
    /// Who made the image. Four bytes, some of which may be zero. (28)
    pub(super) creator_app: [u8; 4],
    /// Version of the creator. (32)
    pub(super) creator_version: U32,
    /// "Wi2k", "Mac " or zero. (36)
    pub(super) creator_os: [u8; 4],
    /// Size of the disk in bytes when it was created. (40)
    pub(super) original_size: U64,
    /// Size of the disk in bytes. (48)
    pub(super) current_size: U64,
    /// Cylinders of the geometry, at most 65535. (56)
    pub(super) cylinders: U16,
    /// Heads of the geometry, at most 16. (58)
    pub(super) heads: u8,
    /// Sectors per track of the geometry, at most 255. (59)
    pub(super) sectors: u8,
    /// [`TYPE_FIXED`], [`TYPE_DYNAMIC`] or [`TYPE_DIFFERENCING`]. (60)
    pub(super) disk_type: U32,
    /// One's complement of the sum of the 512 bytes, with this field as zero. (64)
    pub(super) checksum: U32,
    /// UUID, by which a child recognises this image. (68)
    pub(super) unique_id: [u8; 16],
    /// A saved state exists. (84)
    pub(super) saved_state: u8,
    /// tapdisk only; reserved elsewhere. (85)
    pub(super) hidden: u8,
}

/// The first fields of the dynamic header ("Dynamic Disk Header Format"). The header has 1024 bytes:
/// the parent's name and the parent locators follow.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct HeaderFields {
    /// [`HEADER_COOKIE`]. (Offset 0.)
    pub(super) cookie: [u8; 8],
    /// Unused; the value means nothing. (8)
    pub(super) data_offset: U64,
    /// Offset of the BAT, a multiple of 512. (16)
    pub(super) table_offset: U64,
    /// [`VERSION_1_0`]. (24)
    pub(super) version: U32,
    /// Entries in the BAT; may be more than the disk needs. (28)
    pub(super) max_entries: U32,
    /// Bytes in a block, a power of two. (32)
    pub(super) block_size: U32,
    /// One's complement of the sum of the 1024 bytes, with this field as zero. (36)
    pub(super) checksum: U32,
    /// [`FooterFields::unique_id`] of the parent; zero for a parent that is a raw disk (tapdisk). (40)
    pub(super) parent_id: [u8; 16],
}

/// Offset of [`HeaderFields::table_offset`] in the header.
pub(super) const HEADER_TABLE_OFFSET: u64 = 16;
/// Offset of [`HeaderFields::version`] in the header.
pub(super) const HEADER_VERSION: u64 = 24;
/// Offset of [`HeaderFields::max_entries`] in the header.
pub(super) const HEADER_MAX_ENTRIES: u64 = 28;
/// Offset of [`HeaderFields::block_size`] in the header.
pub(super) const HEADER_BLOCK_SIZE: u64 = 32;
/// Offset of [`HeaderFields::checksum`] in the header.
pub(super) const HEADER_CHECKSUM: u64 = 36;
/// Offset of [`HeaderFields::parent_id`] in the header.
pub(super) const HEADER_PARENT_ID: u64 = 40;
/// Offset of the parent's name in the header: UTF-16BE, padded with zeros.
pub(super) const HEADER_PARENT_NAME: u64 = 64;
/// Bytes in the parent's name.
pub(super) const HEADER_PARENT_NAME_LEN: u64 = 512;
/// Offset of the parent locators in the header.
pub(super) const HEADER_LOCATORS: u64 = 576;
/// Number of parent locators in the header.
pub(super) const LOCATORS: u64 = 8;
/// Bytes in a parent locator.
pub(super) const LOCATOR_LEN: u64 = 24;

/// Offset of [`FooterFields::version`] in the footer.
pub(super) const FOOTER_VERSION: u64 = 12;
/// Offset of [`FooterFields::data_offset`] in the footer.
pub(super) const FOOTER_DATA_OFFSET: u64 = 16;
/// Offset of [`FooterFields::creator_version`] in the footer.
pub(super) const FOOTER_CREATOR_VERSION: u64 = 32;
/// Offset of [`FooterFields::current_size`] in the footer.
pub(super) const FOOTER_CURRENT_SIZE: u64 = 48;
/// Offset of the geometry in the footer.
pub(super) const FOOTER_GEOMETRY: u64 = 56;
/// Offset of [`FooterFields::disk_type`] in the footer.
pub(super) const FOOTER_DISK_TYPE: u64 = 60;
/// Offset of [`FooterFields::checksum`] in the footer.
pub(super) const FOOTER_CHECKSUM: u64 = 64;

/// A parent locator: where a differencing disk keeps one way to name its parent. In a dynamic image
/// it is of interest only because its space is not free.
///
/// | code | the name is |
/// |---|---|
/// | 0 | none: the locator is unused |
/// | `W2ru`, `W2ku` | a Windows path in UTF-16LE: from the image's folder; absolute |
/// | `MacX` | a file URL in UTF-8 |
/// | `Wi2r`, `Wi2k` | a Windows path in 8-bit characters (deprecated): from the folder; absolute |
/// | `Mac ` | an alias record of Mac OS, which is no path |
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct Locator {
    /// Platform code, 0 for an unused locator. (Offset 0.)
    pub(super) code: U32,
    /// Space set aside: sectors if less than 512, else bytes. (4)
    pub(super) data_space: U32,
    /// Bytes used. (8)
    pub(super) data_length: U32,
    /// Zero. (12)
    pub(super) reserved: U32,
    /// Offset of the name. (16)
    pub(super) data_offset: U64,
}

/// [`Locator::code`] of a relative Windows path in UTF-16LE.
pub(super) const CODE_W2RU: u32 = u32::from_be_bytes(*b"W2ru");
/// [`Locator::code`] of an absolute Windows path in UTF-16LE.
pub(super) const CODE_W2KU: u32 = u32::from_be_bytes(*b"W2ku");
/// [`Locator::code`] of a file URL.
pub(super) const CODE_MACX: u32 = u32::from_be_bytes(*b"MacX");
/// [`Locator::code`] of a relative Windows path in 8-bit characters.
pub(super) const CODE_WI2R: u32 = u32::from_be_bytes(*b"Wi2r");
/// [`Locator::code`] of an absolute Windows path in 8-bit characters.
pub(super) const CODE_WI2K: u32 = u32::from_be_bytes(*b"Wi2k");

/// The start of tapdisk's batmap header, which lies in the first sector behind the BAT.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct BatmapHeader {
    /// [`BATMAP_COOKIE`]: without it there is no batmap. (Offset 0.)
    pub(super) cookie: [u8; 8],
    /// Offset of the map. (8)
    pub(super) batmap_offset: U64,
    /// Sectors in the map. (16)
    pub(super) batmap_size: U32,
    /// [`BATMAP_1_1`] or [`BATMAP_1_2`]. (20)
    pub(super) version: U32,
    /// One's complement of a sum over the start of the map. (24)
    pub(super) checksum: U32,
    /// Set by tools. (28)
    pub(super) marker: u8,
    /// 1: the data is encrypted. (29)
    pub(super) keyhash: u8,
}

/// Offset of [`BatmapHeader::keyhash`] in the batmap header.
pub(super) const BATMAP_KEYHASH: u64 = 29;
/// [`BatmapHeader::version`] 1.1: the checksum adds signed bytes.
pub(super) const BATMAP_1_1: u32 = 0x0001_0001;
/// [`BatmapHeader::version`] 1.2.
pub(super) const BATMAP_1_2: u32 = 0x0001_0002;
/// [`BatmapHeader::keyhash`] of an encrypted image.
pub(super) const KEYHASH_ENCRYPTED: u8 = 1;
