// SPDX-License-Identifier: GPL-2.0

//! Entries of L1 and L2 tables ("Cluster mapping").

use loop_parser::contract::{
    Error,
    Result,
    SECTOR_SIZE, //
};

use super::{
    super::num::{
        low_bits,
        pow2, //
    },
    layout::Layout,
    ondisk::SUBCLUSTERS, //
};

/// Bits 9 to 55: a host offset.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount is exactly 1.
const COPIED: u64 = 1 << 63;
/// Bit 62: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0: the cluster reads as zero.
const ZERO: u64 = 1;

/// An entry of an L1 table.
///
/// | bits | meaning |
/// |---|---|
/// | 0-8 | reserved |
/// | 9-55 | host offset of the L2 table; 0: there is none, nothing of its range is allocated |
/// | 56-62 | reserved |
/// | 63 | copied: the refcount of the L2 table is exactly 1, so it can be written in place |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct L1Entry(u64);

impl L1Entry {
    /// Takes an entry as it was loaded. Any value is possible.
    pub(super) fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// Host offset of the L2 table, not checked yet. `None` if there is none.
    pub(super) fn table(self) -> Option<u64> {
        let offset = self.0 & OFFSET_MASK;
        (offset != 0).then_some(offset)
    }

    /// The L2 table can be written in place.
    pub(super) fn is_copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// The entry for an L2 table whose refcount is 1. `None` if no entry can name it.
    pub(super) fn for_table(offset: u64) -> Option<Self> {
        is_nameable(offset).then_some(Self(offset | COPIED))
    }

    /// The entry as it is stored.
    pub(super) fn raw(self) -> u64 {
        self.0
    }
}

/// Host offsets that no entry can name begin here.
pub(super) const MAX_OFFSET: u64 = 1 << 56;

/// Whether an entry can name a host offset.
fn is_nameable(offset: u64) -> bool {
    offset != 0 && offset & !OFFSET_MASK == 0
}

/// The word of an L2 entry without the bit that says that the refcount is 1.
pub(super) fn without_copied(word: u64) -> u64 {
    word & !COPIED
}

/// An entry of an L2 table.
///
/// Standard, and the first word of an extended entry:
///
/// | bits | meaning |
/// |---|---|
/// | 0 | version 3, not extended: the cluster reads as zero |
/// | 1-8 | reserved |
/// | 9-55 | host offset of the cluster; 0: it has no place, unless data lie in another file |
/// | 56-61 | reserved |
/// | 62 | 0 |
/// | 63 | copied: the refcount of the cluster is exactly 1, so it can be written in place |
///
/// Compressed, where x is 70 - `cluster_bits`:
///
/// | bits | meaning |
/// |---|---|
/// | 0 to x-1 | host offset in bytes, of any alignment |
/// | x to 61 | number of sectors that it takes, besides the one that it begins in |
/// | 62 | 1 |
/// | 63 | 0 |
///
/// Second word of an extended entry, of no meaning for a compressed cluster:
///
/// | bits | meaning |
/// |---|---|
/// | 0-31 | subcluster 0 to 31 is allocated |
/// | 32-63 | subcluster 0 to 31 reads as zero |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct L2Entry {
    /// The only word of a standard entry, the first of an extended one.
    pub(super) word: u64,
    /// The second word of an extended entry; `None` if entries are not extended.
    pub(super) bitmap: Option<Subclusters>,
}

/// What an L2 entry says of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// The cluster has no place. It is the backing file's, or reads as zero. With extended entries
    /// some of its subclusters can read as zero all the same.
    Unallocated,
    /// The cluster has no place and reads as zero. Not with extended entries.
    ZeroPlain,
    /// The cluster has a place, whose bytes mean nothing: it reads as zero. Not with extended
    /// entries.
    ZeroAllocated {
        /// Host offset in bytes.
        offset: u64,
        /// The refcount is exactly 1.
        is_copied: bool,
    },
    /// The cluster has a place. With extended entries that goes for allocated subclusters only; the
    /// others have a place reserved, whose bytes mean nothing.
    Data {
        /// Host offset in bytes.
        offset: u64,
        /// The refcount is exactly 1.
        is_copied: bool,
    },
    /// The cluster is compressed.
    Compressed {
        /// Host offset in bytes of the first compressed byte, of any alignment.
        offset: u64,
        /// At most this many bytes belong to it; they may end past the end of the file.
        stored: u64,
    },
}

/// What becomes of the bytes of a cluster, or of a subcluster, when they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// They are read from where they are.
    Data,
    /// They are zeros.
    Zero,
    /// They are the backing file's; zeros if there is none.
    Below,
}

impl L2Entry {
    /// An entry for the cluster at `offset`, whose refcount is 1. `None` if no entry can name it.
    pub(super) fn for_cluster(
        layout: &Layout,
        offset: u64,
        bitmap: Option<Subclusters>,
    ) -> Option<Self> {
        // Only in an external data file is there a cluster at 0.
        let is_first = layout.has_data_file && offset == 0;
        (is_first || is_nameable(offset)).then_some(Self {
            word: offset | COPIED,
            bitmap,
        })
    }

    /// An entry for a cluster without a place, which reads as zero if `is_zero` says so, else as what
    /// is below. Version 2 has no entry that says it.
    pub(super) fn for_none(layout: &Layout, is_zero: bool) -> Option<Self> {
        let (word, bitmap) = match (layout.is_extended, is_zero) {
            (true, true) => (0, Some(Subclusters::ZERO)),
            (true, false) => (0, Some(Subclusters(0))),
            (false, true) => (ZERO, None),
            (false, false) => (0, None),
        };
        (layout.version >= 3 || !is_zero).then_some(Self { word, bitmap })
    }

    /// Takes apart the entry at host offset `at`. Where it points is not checked yet, except that
    /// it is to the start of a cluster.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] for an entry that cannot be.
    pub(super) fn decode(&self, layout: &Layout, at: u64) -> Result<Mapping> {
        if self.word & COMPRESSED != 0 {
            return self.decode_compressed(layout, at);
        }
        let offset = self.word & OFFSET_MASK;
        let is_copied = self.word & COPIED != 0;
        // In an external data file guest cluster 0 lies at offset 0.
        let has_place = offset != 0 || (layout.has_data_file && is_copied);
        // What lies there is nobody else's, whatever the entry says.
        let is_copied = is_copied || layout.has_data_file;
        if offset & low_bits(layout.cluster_bits) != 0 {
            return Err(Error::malformed(
                "qcow2 L2 entry points to no cluster boundary",
                at,
            ));
        }
        if let Some(bitmap) = self.bitmap {
            bitmap.check(has_place, at)?;
        } else if self.word & ZERO != 0 {
            if layout.version < 3 {
                return Err(Error::malformed("qcow2 version 2 has a zero cluster", at));
            }
            return Ok(match has_place {
                true => Mapping::ZeroAllocated { offset, is_copied },
                false => Mapping::ZeroPlain,
            });
        }
        Ok(match has_place {
            true => Mapping::Data { offset, is_copied },
            false => Mapping::Unallocated,
        })
    }

    fn decode_compressed(&self, layout: &Layout, at: u64) -> Result<Mapping> {
        if layout.has_data_file {
            return Err(Error::malformed(
                "qcow2 with a data file has a compressed cluster",
                at,
            ));
        }
        // 49 to 61: by the invariant of the layout nothing saturates or wraps here.
        let shift = 70u32.saturating_sub(layout.cluster_bits);
        let offset = self.word & low_bits(shift);
        let field = self.word & COMPRESSED.wrapping_sub(1);
        let sectors = field.wrapping_shr(shift).saturating_add(1);
        Ok(Mapping::Compressed {
            offset,
            stored: sectors
                .saturating_mul(SECTOR_SIZE)
                .saturating_sub(offset % SECTOR_SIZE),
        })
    }

    /// What becomes of the bytes of subcluster `index`, of the cluster itself if entries are not
    /// extended. `mapping` is what the entry says, and not that the cluster is compressed.
    pub(super) fn content(&self, mapping: Mapping, index: u32) -> Content {
        match (mapping, self.bitmap) {
            (Mapping::Unallocated | Mapping::Data { .. }, Some(bitmap)) => bitmap.content(index),
            (Mapping::Unallocated, None) => Content::Below,
            (Mapping::ZeroPlain | Mapping::ZeroAllocated { .. }, _) => Content::Zero,
            (Mapping::Data { .. } | Mapping::Compressed { .. }, _) => Content::Data,
        }
    }
}

/// The second word of an extended L2 entry; see [`L2Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subclusters(pub(super) u64);

impl Subclusters {
    /// All are allocated.
    pub(super) const ALLOCATED: Self = Self(0xffff_ffff);
    /// All read as zero.
    pub(super) const ZERO: Self = Self(0xffff_ffff << SUBCLUSTERS);

    /// The same, except that the subclusters of `mask` are allocated.
    pub(super) fn with_allocated(self, mask: u64) -> Self {
        let mask = mask & Self::ALLOCATED.0;
        Self(self.0 & !mask.wrapping_shl(SUBCLUSTERS) | mask)
    }

    /// The same, except that the subclusters of `mask` read as zero.
    pub(super) fn with_zero(self, mask: u64) -> Self {
        let mask = mask & Self::ALLOCATED.0;
        Self(self.0 & !mask | mask.wrapping_shl(SUBCLUSTERS))
    }

    /// Bit i: subcluster i is allocated.
    pub(super) fn allocated(self) -> u64 {
        self.0 & low_bits(SUBCLUSTERS)
    }

    /// Bit i: subcluster i reads as zero.
    pub(super) fn zero(self) -> u64 {
        self.0.wrapping_shr(SUBCLUSTERS)
    }

    fn check(self, has_place: bool, at: u64) -> Result {
        if self.allocated() & self.zero() != 0 {
            return Err(Error::malformed(
                "qcow2 subcluster is both allocated and zero",
                at,
            ));
        }
        if !has_place && self.allocated() != 0 {
            return Err(Error::malformed(
                "qcow2 subcluster of no cluster is allocated",
                at,
            ));
        }
        Ok(())
    }

    fn content(self, index: u32) -> Content {
        let bit = pow2(index);
        if self.zero() & bit != 0 {
            Content::Zero
        } else if self.allocated() & bit != 0 {
            Content::Data
        } else {
            Content::Below
        }
    }
}
