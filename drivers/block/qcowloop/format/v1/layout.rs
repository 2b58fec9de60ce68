// SPDX-License-Identifier: GPL-2.0

//! Where things lie in an image of version 1, and its table entries.

use loop_parser::contract::{
    Error,
    Result,
    Tables,
    SECTOR_SIZE, //
};

use super::{
    super::num::{
        add,
        low_bits,
        mul,
        pow2,
        Region,
        OUTSIDE, //
    },
    ondisk::{
        HEADER_LEN,
        TABLE_ENTRY_LEN, //
    }, //
};

/// The layout of an image. Copied freely: kept small.
///
/// # Invariants
///
/// - `cluster_bits` is between 9 and 16, `l2_bits` between 6 and 13.
/// - `l1_size` entries are enough for `size` bytes, and take at most 2 GiB.
/// - Header, L1 and name do not overlap, and lay within the file when it was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes in a cluster, as a shift count.
    pub(super) cluster_bits: u32,
    /// Entries in an L2 table, as a shift count.
    pub(super) l2_bits: u32,
    /// Host offset in bytes of the L1, of any alignment.
    pub(super) l1_offset: u64,
    /// Number of entries in the L1.
    pub(super) l1_size: u64,
    /// Size of the disk in bytes at attach.
    pub(super) size: u64,
    /// Where the name of the backing file lies, if there is one.
    pub(super) name: Option<Region>,
}

/// An entry of an L2 table.
///
/// Bit 63 clear:
///
/// | bits | meaning |
/// |---|---|
/// | 0-62 | host offset of the cluster; 0: it has no place |
///
/// Bit 63 set, the cluster is compressed:
///
/// | bits | meaning |
/// |---|---|
/// | 0 to 62-`cluster_bits` | host offset in bytes, of any alignment |
/// | 63-`cluster_bits` to 62 | compressed length in bytes |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct L2Entry(pub(super) u64);

/// Bit 63: the cluster is compressed.
const COMPRESSED: u64 = 1 << 63;

/// What an L2 entry says of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// It has no place: it is the backing file's, or reads as zero.
    Unallocated,
    /// It lies at this host offset.
    Data(u64),
    /// It lies there compressed.
    Compressed {
        /// Host offset in bytes.
        offset: u64,
        /// Compressed length in bytes.
        stored: u64,
    },
}

impl Layout {
    /// There is a backing file.
    pub(super) fn has_parent(&self) -> bool {
        self.name.is_some()
    }

    /// Bytes in a cluster, a power of two.
    pub(super) fn cluster_size(&self) -> u64 {
        pow2(self.cluster_bits)
    }

    /// Bytes in an L2 table.
    pub(super) fn l2_len(&self) -> u64 {
        // At most 64 KiB: nothing saturates.
        pow2(self.l2_bits).saturating_mul(TABLE_ENTRY_LEN)
    }

    /// Guest bytes that an L2 table has entries for.
    pub(super) fn l2_covers(&self) -> u64 {
        pow2(self.cluster_bits.saturating_add(self.l2_bits))
    }

    /// Bytes in the L1.
    pub(super) fn l1_len(&self) -> u64 {
        self.l1_size.saturating_mul(TABLE_ENTRY_LEN)
    }

    /// How many guest bytes the L1 has entries for.
    pub(super) fn limit(&self) -> u64 {
        // At most 2^(28 + 29): nothing saturates.
        self.l1_size.saturating_mul(self.l2_covers())
    }

    /// Offset of guest position `pos` in its cluster.
    pub(super) fn within(&self, pos: u64) -> u64 {
        pos & low_bits(self.cluster_bits)
    }

    /// Guest position of the cluster of `pos`. The last one can reach past the end of the disk.
    pub(super) fn cluster_start(&self, pos: u64) -> u64 {
        pos.saturating_sub(self.within(pos))
    }

    /// Bytes from guest position `pos` to the end of its cluster.
    pub(super) fn left_in_cluster(&self, pos: u64) -> u64 {
        self.cluster_size().saturating_sub(self.within(pos))
    }

    /// Bytes from guest position `pos` to the end of what its L2 table has entries for.
    pub(super) fn left_in_l2(&self, pos: u64) -> u64 {
        let covers = self.l2_covers();
        covers.saturating_sub(pos & covers.wrapping_sub(1))
    }

    /// Host offset in bytes of the L1 entry of guest position `pos`.
    pub(super) fn l1_entry_at(&self, pos: u64) -> Result<u64> {
        if pos >= self.limit() {
            return Err(OUTSIDE);
        }
        let index = pos / self.l2_covers().max(1);
        let at = self.l1_offset;
        add(at, mul(index, TABLE_ENTRY_LEN, at)?, at)
    }

    /// Host offset in bytes of the entry of guest position `pos` in the L2 table at `table`.
    pub(super) fn l2_entry_at(&self, table: u64, pos: u64) -> Result<u64> {
        let index = pos.wrapping_shr(self.cluster_bits) & low_bits(self.l2_bits);
        add(table, mul(index, TABLE_ENTRY_LEN, table)?, table)
    }

    /// The L2 table of guest position `pos`, checked; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it does not lie within the file, or over the header or the L1.
    pub(super) fn l2_table<T: Tables + ?Sized>(&self, tables: &T, pos: u64) -> Result<Option<u64>> {
        let at = self.l1_entry_at(pos)?;
        let table = tables.load_be64(at)?;
        if table == 0 {
            return Ok(None);
        }
        let region = Region::new(table, self.l2_len(), at)?;
        if region.end > tables.size()? {
            return Err(Error::malformed(
                "qcow L1 entry points past the end of the file",
                at,
            ));
        }
        if self.is_in_header(region) {
            return Err(Error::malformed(
                "qcow L1 entry points into the headers",
                at,
            ));
        }
        Ok(Some(table))
    }

    /// Takes apart an L2 entry at host offset `at`. Where it points is checked: that is to be done at
    /// every use, as the file may have changed. The end of the file can cut a cluster.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it begins past the end of the file, within a sector or in the header or
    /// the L1.
    pub(super) fn decode(&self, entry: L2Entry, file_size: u64, at: u64) -> Result<Mapping> {
        let malformed = |what| Err(Error::malformed(what, at));
        let is_compressed = entry.0 & COMPRESSED != 0;
        let (offset, len) = match is_compressed {
            // 47 to 54: by the invariant nothing wraps.
            true => {
                let shift = 63u32.saturating_sub(self.cluster_bits);
                let len = entry.0.wrapping_shr(shift) & low_bits(self.cluster_bits);
                (entry.0 & low_bits(shift), len)
            }
            false => (entry.0, self.cluster_size()),
        };
        if entry.0 == 0 {
            return Ok(Mapping::Unallocated);
        }
        if len == 0 {
            return malformed("qcow compressed cluster has no bytes");
        }
        if offset >= file_size {
            return malformed("qcow L2 entry points past the end of the file");
        }
        if self.is_in_header(Region::new(offset, len, at)?) {
            return malformed("qcow L2 entry points into the headers");
        }
        if is_compressed {
            return Ok(Mapping::Compressed {
                offset,
                stored: len,
            });
        }
        if offset % SECTOR_SIZE != 0 {
            return malformed("qcow L2 entry points to no sector boundary");
        }
        Ok(Mapping::Data(offset))
    }

    /// Whether a range of the file has a byte in common with the header, the name or the L1.
    fn is_in_header(&self, range: Region) -> bool {
        // By the invariant nothing saturates.
        let l1 = Region {
            start: self.l1_offset,
            end: self.l1_offset.saturating_add(self.l1_len()),
        };
        range.start < HEADER_LEN
            || range.overlaps(l1)
            || self.name.is_some_and(|name| range.overlaps(name))
    }

    /// End of header, name and L1.
    pub(super) fn headers_end(&self) -> u64 {
        let l1 = self.l1_offset.saturating_add(self.l1_len());
        l1.max(HEADER_LEN).max(self.name.map_or(0, |name| name.end))
    }
}
