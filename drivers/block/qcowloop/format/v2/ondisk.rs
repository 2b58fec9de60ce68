// SPDX-License-Identifier: GPL-2.0

//! On-disk structures of qcow2. Definitions only.
//!
//! All integers are big-endian; offsets are in bytes from the start of the file. Section names are
//! those of `docs/interop/qcow2.rst` in the QEMU sources.

use zerocopy::big_endian::{
    U32,
    U64, //
};
use zerocopy_derive::{
    FromBytes,
    IntoBytes, //
};

/// Bytes in the header of version 2, and in that part of a version 3 header.
pub(super) const HEADER_V2_LEN: u64 = 72;
/// Bytes in the shortest header of version 3.
pub(super) const HEADER_V3_LEN: u64 = 104;
/// Bytes in an L1 entry, and in an entry of the refcount table.
pub(super) const TABLE_ENTRY_LEN: u64 = 8;

/// Smallest [`HeaderFields::cluster_bits`].
pub(super) const MIN_CLUSTER_BITS: u32 = 9;
/// Largest [`HeaderFields::cluster_bits`].
pub(super) const MAX_CLUSTER_BITS: u32 = 21;
/// Smallest [`HeaderFields::cluster_bits`] with extended L2 entries: a subcluster is a sector.
pub(super) const MIN_CLUSTER_BITS_EXTENDED: u32 = 14;
/// Subclusters in a cluster.
pub(super) const SUBCLUSTERS: u32 = 32;
/// Largest [`HeaderV3Fields::refcount_order`].
pub(super) const MAX_REFCOUNT_ORDER: u32 = 6;
/// Refcount order of version 2.
pub(super) const REFCOUNT_ORDER_V2: u32 = 4;
/// Longest name of a backing file in bytes.
pub(super) const MAX_BACKING_NAME: u32 = 1023;

/// Largest L1 in bytes; QEMU has the same limit.
pub(super) const MAX_L1_LEN: u64 = 32 * 1024 * 1024;
/// Largest refcount table in bytes; QEMU has the same limit.
pub(super) const MAX_REFTABLE_LEN: u64 = 8 * 1024 * 1024;
/// Most internal snapshots; QEMU has the same limit.
pub(super) const MAX_SNAPSHOTS: u32 = 65536;
/// Bytes in the smallest entry of the snapshot table.
pub(super) const MIN_SNAPSHOT_LEN: u64 = 40;

/// [`HeaderFields::crypt_method`]: not encrypted.
pub(super) const CRYPT_NONE: u32 = 0;
/// [`HeaderFields::crypt_method`]: AES in CBC mode, of old.
pub(super) const CRYPT_AES: u32 = 1;
/// [`HeaderFields::crypt_method`]: LUKS.
pub(super) const CRYPT_LUKS: u32 = 2;

/// [`HeaderV3Fields::incompatible`]: refcounts may be wrong.
pub(super) const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// [`HeaderV3Fields::incompatible`]: something was found to be wrong.
pub(super) const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// [`HeaderV3Fields::incompatible`]: guest data lie in another file.
pub(super) const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// [`HeaderV3Fields::incompatible`]: the compression type is not deflate.
pub(super) const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
/// [`HeaderV3Fields::incompatible`]: L2 entries have 128 bits.
pub(super) const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// The bits of [`HeaderV3Fields::incompatible`] that have a meaning.
pub(super) const INCOMPATIBLE_KNOWN: u64 = INCOMPATIBLE_DIRTY
    | INCOMPATIBLE_CORRUPT
    | INCOMPATIBLE_DATA_FILE
    | INCOMPATIBLE_COMPRESSION
    | INCOMPATIBLE_EXTENDED_L2;

/// [`HeaderV3Fields::autoclear`]: the external data file is the disk by itself: whatever reads as zero
/// is zeros there, too.
pub(super) const AUTOCLEAR_RAW_DATA: u64 = 1 << 1;

/// [`COMPRESSION_TYPE`]: raw deflate.
pub(super) const COMPRESSION_DEFLATE: u8 = 0;
/// [`COMPRESSION_TYPE`]: zstd.
pub(super) const COMPRESSION_ZSTD: u8 = 1;

/// The fields of a header that both versions have ("Header").
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct HeaderFields {
    /// `QFI\xfb`. (Offset 0.)
    pub(super) magic: [u8; 4],
    /// 2 or 3. (4)
    pub(super) version: U32,
    /// Offset of the name of the backing file, 0 for none. (8)
    pub(super) backing_offset: U64,
    /// Its length in bytes; means nothing if there is none. (16)
    pub(super) backing_size: U32,
    /// Bytes in a cluster, as a shift count. (20)
    pub(super) cluster_bits: U32,
    /// Size of the disk in bytes. (24)
    pub(super) size: U64,
    /// [`CRYPT_NONE`], [`CRYPT_AES`], [`CRYPT_LUKS`]. (32)
    pub(super) crypt_method: U32,
    /// Entries in the active L1. (36)
    pub(super) l1_size: U32,
    /// Offset of the active L1. (40)
    pub(super) l1_offset: U64,
    /// Offset of the refcount table. (48)
    pub(super) reftable_offset: U64,
    /// Clusters that it takes. (56)
    pub(super) reftable_clusters: U32,
    /// Internal snapshots. (60)
    pub(super) nb_snapshots: U32,
    /// Offset of the snapshot table. (64)
    pub(super) snapshots_offset: U64,
}

/// The fields of a header that came with version 3; at [`HEADER_V2_LEN`].
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct HeaderV3Fields {
    /// Who does not know one of these bits must not open the image. (72)
    pub(super) incompatible: U64,
    /// Who does not know one of these bits can go on, and keeps it. (80)
    pub(super) compatible: U64,
    /// Who does not know one of these bits clears it with the first write. (88)
    pub(super) autoclear: U64,
    /// Bits of a refcount, as a shift count. (96)
    pub(super) refcount_order: U32,
    /// Bytes in the header; extensions follow. (100)
    pub(super) header_length: U32,
}

/// Offset of [`HeaderFields::version`].
pub(super) const VERSION: u64 = 4;
/// Offset of [`HeaderFields::backing_offset`].
pub(super) const BACKING_OFFSET: u64 = 8;
/// Offset of [`HeaderFields::backing_size`].
pub(super) const BACKING_SIZE: u64 = 16;
/// Offset of [`HeaderFields::cluster_bits`].
pub(super) const CLUSTER_BITS: u64 = 20;
/// Offset of [`HeaderFields::size`].
pub(super) const SIZE: u64 = 24;
/// Offset of [`HeaderFields::crypt_method`].
pub(super) const CRYPT_METHOD: u64 = 32;
/// Offset of [`HeaderFields::l1_size`].
pub(super) const L1_SIZE: u64 = 36;
/// Offset of [`HeaderFields::l1_offset`].
pub(super) const L1_OFFSET: u64 = 40;
/// Offset of [`HeaderFields::reftable_offset`].
pub(super) const REFTABLE_OFFSET: u64 = 48;
/// Offset of [`HeaderFields::reftable_clusters`].
pub(super) const REFTABLE_CLUSTERS: u64 = 56;
/// Offset of [`HeaderFields::nb_snapshots`].
pub(super) const NB_SNAPSHOTS: u64 = 60;
/// Offset of [`HeaderFields::snapshots_offset`].
pub(super) const SNAPSHOTS_OFFSET: u64 = 64;
/// Offset of [`HeaderV3Fields::incompatible`].
pub(super) const INCOMPATIBLE: u64 = 72;
/// Offset of [`HeaderV3Fields::autoclear`].
pub(super) const AUTOCLEAR: u64 = 88;
/// Offset of [`HeaderV3Fields::refcount_order`].
pub(super) const REFCOUNT_ORDER: u64 = 96;
/// Offset of [`HeaderV3Fields::header_length`].
pub(super) const HEADER_LENGTH: u64 = 100;
/// Offset of the compression type, one byte; there if the header is longer than [`HEADER_V3_LEN`].
pub(super) const COMPRESSION_TYPE: u64 = 104;

/// What a header extension begins with ("Header extensions"). Its data are padded to 8 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct ExtensionFields {
    /// What it is: [`EXTENSION_END`], … (0)
    pub(super) kind: U32,
    /// Bytes of data, without the padding. (4)
    pub(super) len: U32,
}

/// Bytes in [`ExtensionFields`].
pub(super) const EXTENSION_HEADER_LEN: u64 = 8;
/// What the data of an extension are padded to.
pub(super) const EXTENSION_ALIGN: u64 = 8;
/// [`ExtensionFields::kind`]: there are no more.
pub(super) const EXTENSION_END: u32 = 0;
/// [`ExtensionFields::kind`]: format of the backing file, a name of QEMU's.
pub(super) const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// [`ExtensionFields::kind`]: names of features.
pub(super) const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
/// [`ExtensionFields::kind`]: name of the external data file.
pub(super) const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// Bytes in an entry of the extension [`EXTENSION_FEATURE_NAMES`].
pub(super) const FEATURE_NAME_LEN: u64 = 48;
/// Offset of the name in such an entry: behind the kind and the bit. It is padded with zeros.
pub(super) const FEATURE_NAME_TEXT: u64 = 2;
/// Kind of such an entry: it is about an incompatible bit.
pub(super) const FEATURE_INCOMPATIBLE: u8 = 0;
