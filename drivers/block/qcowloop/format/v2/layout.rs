// SPDX-License-Identifier: GPL-2.0

//! Where things lie in a qcow2 image.

use loop_parser::contract::{
    Compression,
    Error,
    Result,
    Tables, //
};

use zerocopy::{
    big_endian::U64,
    IntoBytes, //
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
    entry::{
        L1Entry,
        L2Entry,
        Subclusters, //
    },
    ondisk::*, //
};

/// The layout of an image, as its header had it when it was attached. Copied freely: kept small.
///
/// # Invariants
///
/// - `version` is 2 or 3; `cluster_bits` is between 9 and 21, at least 14 if `is_extended`;
///   `refcount_order` is at most 6.
/// - The L1 is at most [`MAX_L1_LEN`] bytes long, has entries for `size` bytes and begins at a
///   cluster, as does the refcount table, which has at least one cluster and is at most
///   [`MAX_REFTABLE_LEN`] bytes long. Both are not at 0, and their ends do not overflow.
/// - Header (the first cluster), L1, refcount table and the least that the snapshot table can be do
///   not overlap, and lay within the file when it was attached; only the last cluster of a table
///   can have been cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Version of the header.
    pub(super) version: u32,
    /// Bytes in a cluster, as a shift count.
    pub(super) cluster_bits: u32,
    /// L2 entries have a second word, for subclusters.
    pub(super) is_extended: bool,
    /// Guest data lie in another file.
    pub(super) has_data_file: bool,
    /// There is a backing file: what the image does not have itself is that one's, not zero.
    pub(super) has_parent: bool,
    /// How compressed clusters are compressed.
    pub(super) compression: Compression,
    /// Bits of a refcount, as a shift count.
    pub(super) refcount_order: u32,
    /// Number of entries in the L1; may be more than the disk needs.
    pub(super) l1_size: u32,
    /// Host offset in bytes of the L1.
    pub(super) l1_offset: u64,
    /// Size of the disk in bytes at attach.
    pub(super) size: u64,
    /// Host offset in bytes of the refcount table. The allocator can move it; where it was at attach
    /// nothing else is put before the next attach, as [`Layout::regions`] still has it there.
    pub(super) reftable_offset: u64,
    /// Clusters in the refcount table.
    pub(super) reftable_clusters: u32,
    /// Number of internal snapshots.
    pub(super) nb_snapshots: u32,
    /// Host offset in bytes of the snapshot table; of no meaning without snapshots.
    pub(super) snapshots_offset: u64,
    /// The header's incompatible feature bits. 0 in version 2.
    pub(super) incompatible: u64,
}

/// Which entries a guest position is found through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Index {
    /// Entry of the L1.
    pub(super) l1: u64,
    /// Entry of the L2 table.
    pub(super) l2: u64,
    /// Offset in the cluster in bytes.
    pub(super) within: u64,
}

/// The header-level regions that nothing else can lie in, besides the first cluster.
const REGIONS: usize = 4;

impl Layout {
    /// Bytes in a cluster, a power of two.
    pub(super) fn cluster_size(&self) -> u64 {
        pow2(self.cluster_bits)
    }

    /// Bytes in an L2 entry, as a shift count.
    fn l2_entry_bits(&self) -> u32 {
        match self.is_extended {
            true => 4,
            false => 3,
        }
    }

    /// Bytes in an L2 entry.
    pub(super) fn l2_entry_len(&self) -> u64 {
        pow2(self.l2_entry_bits())
    }

    /// Entries in an L2 table, as a shift count.
    pub(super) fn l2_bits(&self) -> u32 {
        self.cluster_bits.saturating_sub(self.l2_entry_bits())
    }

    /// Entries in an L2 table, a power of two.
    pub(super) fn l2_entries(&self) -> u64 {
        pow2(self.l2_bits())
    }

    /// Bytes of the smallest part of a cluster that can be allocated, a power of two: a subcluster,
    /// or the cluster itself.
    pub(super) fn granule(&self) -> u64 {
        match self.is_extended {
            true => self.cluster_size() / u64::from(SUBCLUSTERS),
            false => self.cluster_size(),
        }
    }

    /// Guest bytes of an L1 entry, as a shift count.
    fn l1_entry_shift(&self) -> u32 {
        self.cluster_bits.saturating_add(self.l2_bits())
    }

    /// How many guest bytes the L1 has entries for: the most that the size of the disk can be.
    pub(super) fn limit(&self) -> u64 {
        // At most 2^(22 + 39): nothing saturates.
        u64::from(self.l1_size).saturating_mul(pow2(self.l1_entry_shift()))
    }

    /// Where a guest position is found.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] with `-EIO` if no disk with this L1 has the position.
    pub(super) fn index(&self, pos: u64) -> Result<Index> {
        if pos >= self.limit() {
            return Err(OUTSIDE);
        }
        // By the invariant nothing wraps.
        Ok(Index {
            l1: pos.wrapping_shr(self.l1_entry_shift()),
            l2: pos.wrapping_shr(self.cluster_bits) & low_bits(self.l2_bits()),
            within: self.within(pos),
        })
    }

    /// Offset of guest position `pos` in its cluster.
    pub(super) fn within(&self, pos: u64) -> u64 {
        pos & low_bits(self.cluster_bits)
    }

    /// Bytes from guest position `pos` to the end of its cluster.
    pub(super) fn left_in_cluster(&self, pos: u64) -> u64 {
        self.cluster_size().saturating_sub(self.within(pos))
    }

    /// Bytes from guest position `pos` to the end of what its L2 table has entries for.
    pub(super) fn left_in_l2(&self, pos: u64) -> u64 {
        let shift = self.l1_entry_shift();
        pow2(shift).saturating_sub(pos & low_bits(shift))
    }

    /// Guest position of the cluster of `pos`. The last one can reach past the end of the disk.
    pub(super) fn cluster_start(&self, pos: u64) -> u64 {
        pos.saturating_sub(self.within(pos))
    }

    /// Subcluster of an offset in a cluster; 0 if entries are not extended.
    pub(super) fn subcluster(&self, within: u64) -> u32 {
        u32::try_from(within / self.granule().max(1)).unwrap_or(0)
    }

    /// Host offset in bytes of L1 entry `l1`.
    pub(super) fn l1_entry_at(&self, l1: u64) -> Result<u64> {
        if l1 >= u64::from(self.l1_size) {
            return Err(OUTSIDE);
        }
        let at = self.l1_offset;
        add(at, mul(l1, TABLE_ENTRY_LEN, at)?, at)
    }

    /// Host offset in bytes of entry `l2` of the L2 table at host offset `table`.
    pub(super) fn l2_entry_at(&self, table: u64, l2: u64) -> Result<u64> {
        if l2 >= self.l2_entries() {
            return Err(OUTSIDE);
        }
        add(table, mul(l2, self.l2_entry_len(), table)?, table)
    }

    /// Loads L1 entry `l1`. One that lies past the end of the file, with the rest of the table's last
    /// cluster, is 0.
    pub(super) fn load_l1<T: Tables + ?Sized>(&self, tables: &T, l1: u64) -> Result<L1Entry> {
        let at = self.l1_entry_at(l1)?;
        let [word] = load_words(self, tables, at)?;
        Ok(L1Entry::from_raw(word))
    }

    /// Loads the L2 entry at host offset `at`. One that lies past the end of the file, with the rest
    /// of its table, is 0.
    pub(super) fn load_l2<T: Tables + ?Sized>(&self, tables: &T, at: u64) -> Result<L2Entry> {
        if !self.is_extended {
            let [word] = load_words(self, tables, at)?;
            return Ok(L2Entry { word, bitmap: None });
        }
        let [word, bitmap] = load_words(self, tables, at)?;
        Ok(L2Entry {
            word,
            bitmap: Some(Subclusters(bitmap)),
        })
    }

    /// The regions that neither tables nor clusters can lie in: header, L1, refcount table, and the
    /// least that the snapshot table can be.
    pub(super) fn regions(&self) -> [Region; REGIONS] {
        let region = |start: u64, len: u64| Region {
            start,
            // By the invariant nothing saturates.
            end: start.saturating_add(len),
        };
        [
            region(0, self.cluster_size()),
            region(self.l1_offset, self.l1_len()),
            region(self.reftable_offset, self.reftable_len()),
            region(self.snapshots_offset, self.min_snapshots_len()),
        ]
    }

    /// Bytes in the L1.
    pub(super) fn l1_len(&self) -> u64 {
        u64::from(self.l1_size).saturating_mul(TABLE_ENTRY_LEN)
    }

    /// Bytes in the refcount table.
    pub(super) fn reftable_len(&self) -> u64 {
        u64::from(self.reftable_clusters).saturating_mul(self.cluster_size())
    }

    /// Bytes that the snapshot table has at least.
    pub(super) fn min_snapshots_len(&self) -> u64 {
        u64::from(self.nb_snapshots).saturating_mul(MIN_SNAPSHOT_LEN)
    }

    /// Whether a range of the file has a byte in common with the header or with a table of it.
    pub(super) fn is_in_header(&self, range: Region) -> bool {
        self.regions().iter().any(|region| region.overlaps(range))
    }

    /// Checks where an L1 entry points. The file may have changed since the last time: to be done at
    /// every use. `at` is where the entry was found.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if the L2 table at `offset` begins at no cluster, past the end of the
    /// file, or in the header or one of its tables.
    pub(super) fn check_l2_table<T: Tables + ?Sized>(
        &self,
        tables: &T,
        offset: u64,
        at: u64,
    ) -> Result {
        if offset & low_bits(self.cluster_bits) != 0 {
            return Err(Error::malformed(
                "qcow2 L1 entry points to no cluster boundary",
                at,
            ));
        }
        if offset >= tables.size()? {
            return Err(Error::malformed(
                "qcow2 L1 entry points past the end of the file",
                at,
            ));
        }
        if self.is_in_header(Region::new(offset, self.cluster_size(), at)?) {
            return Err(Error::malformed(
                "qcow2 L1 entry points into the headers",
                at,
            ));
        }
        Ok(())
    }

    /// The same for the cluster at `offset`, which an L2 entry at `at` names. Answers how many of its
    /// bytes are there: the end of the file can cut the last one. An external data file has nothing
    /// but clusters, and no end that would count.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if the cluster begins past the end of the file, or lies in the header or
    /// one of its tables.
    pub(super) fn check_cluster<T: Tables + ?Sized>(
        &self,
        tables: &T,
        offset: u64,
        at: u64,
    ) -> Result<u64> {
        if self.has_data_file {
            return Ok(self.cluster_size());
        }
        let left = tables.size()?.saturating_sub(offset);
        if left == 0 {
            return Err(Error::malformed(
                "qcow2 L2 entry points past the end of the file",
                at,
            ));
        }
        if self.is_in_header(Region::new(offset, self.cluster_size(), at)?) {
            return Err(Error::malformed(
                "qcow2 L2 entry points into the headers",
                at,
            ));
        }
        Ok(left.min(self.cluster_size()))
    }

    /// The same for a compressed cluster. Only where it begins counts: how long it is, is not
    /// recorded to the byte, and it can end past the end of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it begins past the end of the file, or in the header or one of its
    /// tables.
    pub(super) fn check_compressed<T: Tables + ?Sized>(
        &self,
        tables: &T,
        offset: u64,
        at: u64,
    ) -> Result {
        if offset >= tables.size()? {
            return Err(Error::malformed(
                "qcow2 compressed cluster lies past the end of the file",
                at,
            ));
        }
        if self.is_in_header(Region::new(offset, 1, at)?) {
            return Err(Error::malformed(
                "qcow2 compressed cluster lies in the headers",
                at,
            ));
        }
        Ok(())
    }
}

/// Loads an entry of `N` words from a table. Of the cluster that the file ends in, what is cut off is
/// zeros.
///
/// # Errors
///
/// [`Error::Malformed`] if all of the cluster is gone, as of a file that was cut while it was attached.
pub(super) fn load_words<T: Tables + ?Sized, const N: usize>(
    layout: &Layout,
    tables: &T,
    at: u64,
) -> Result<[u64; N]> {
    let mut words = [U64::ZERO; N];
    let bytes = words.as_mut_bytes();
    let end = at.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    let Err(error) = tables.load(at, bytes) else {
        return Ok(words.map(U64::get));
    };
    if !matches!(error, Error::Store(_)) {
        return Err(error);
    }
    let size = tables.size()?;
    let cluster = at.saturating_sub(layout.within(at));
    match end > size {
        true if cluster < size => Ok([0; N]),
        true => Err(Error::malformed(
            "qcow2 table lies past the end of the file",
            at,
        )),
        false => Err(error),
    }
}
