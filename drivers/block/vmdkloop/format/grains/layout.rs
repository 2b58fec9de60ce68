// SPDX-License-Identifier: GPL-2.0

//! Where directories, tables and grains lie, and what their entries say.

use loop_parser::contract::{
    num::{
        add,
        mul,
        Region,
        OUTSIDE, //
    },
    Error,
    Result,
    Tables,
    SECTOR_SIZE, //
};

/// Sectors that a grain can have; a power of two.
pub(in super::super) const GRAIN_SECTORS: core::ops::RangeInclusive<u64> = 1..=65536;
/// Most entries that a grain table can have.
pub(in super::super) const MAX_TABLE_ENTRIES: u64 = 65536;
/// Largest disk in bytes: positions have to be signed 64-bit numbers.
pub(in super::super) const MAX_DISK_SIZE: u64 = (1 << 63) - SECTOR_SIZE;

/// Bytes in an entry of a directory or table.
pub(super) const ENTRY_LEN: u64 = 4;
/// No entry can point to this host offset in bytes, or behind it.
pub(super) const MAX_OFFSET: u64 = SECTOR_SIZE << 32;

/// Most bytes of grains that are given their places together, unless a grain is larger.
const MAX_UNIT: u64 = 1024 * 1024;

/// Where things lie in a file.
///
/// # Invariants
///
/// `grain` is a power of two, of [`GRAIN_SECTORS`]; `entries` is 1 to [`MAX_TABLE_ENTRIES`]; `size` is
/// at most [`MAX_DISK_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Layout {
    /// Bytes in a grain.
    pub(in super::super) grain: u64,
    /// Entries in a grain table.
    pub(in super::super) entries: u64,
    /// Host offset in bytes of the grain directory.
    pub(in super::super) directory: u64,
    /// The same of the redundant one, if there is one. It ends where there are no grains yet.
    pub(in super::super) redundant: Option<u64>,
    /// Size of the disk in bytes at attach.
    pub(in super::super) size: u64,
    /// End of the header in bytes.
    pub(in super::super) header_end: u64,
    /// Where the embedded descriptor lies.
    pub(in super::super) descriptor: Option<Region>,
    /// Host offset in bytes in front of which there are no grains.
    pub(in super::super) data_start: u64,
    /// A table entry of 1 is a grain of zeros.
    pub(in super::super) has_zero_grains: bool,
    /// What has no place is the parent's.
    pub(in super::super) has_parent: bool,
    /// Host offset of a field that says in which sector free space begins.
    pub(in super::super) free_at: Option<u64>,
}

/// An entry of a grain table.
///
/// | value | meaning |
/// |---|---|
/// | 0 | the grain has no place: it is the parent's, or reads as zero |
/// | 1 | it reads as zero, if the file has zero grains |
/// | other | sector in which it begins |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(pub(super) u32);

impl Entry {
    /// The grain has no place.
    pub(super) const NONE: Self = Self(0);
    /// The grain reads as zero.
    pub(super) const ZERO: Self = Self(1);

    /// The entry for what lies at host offset `offset`; `None` if no entry can say that.
    pub(super) fn for_offset(offset: u64) -> Option<Self> {
        let is_aligned = offset % SECTOR_SIZE == 0;
        let sector = u32::try_from(offset / SECTOR_SIZE).ok()?;
        is_aligned.then_some(Self(sector))
    }

    /// Host offset of what it points to.
    pub(super) fn offset(self) -> u64 {
        // Less than 2^41: nothing saturates.
        u64::from(self.0).saturating_mul(SECTOR_SIZE)
    }
}

/// What a table entry says of its grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// It has no place.
    Unallocated,
    /// It reads as zero, whatever the parent has.
    Zero,
    /// It lies at this host offset. The end of the file can cut it.
    Data(u64),
}

impl Layout {
    /// Checks that the directories are in the file, and that nothing overlaps them. `at` and `redundant_at`
    /// are the host offsets of the header's fields for them.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if they are not, or something does.
    pub(in super::super) fn check(&self, file_size: u64, at: u64, redundant_at: u64) -> Result {
        let directory = Region::new(self.directory, self.directory_len(), at)?;
        self.check_directory(directory, file_size, at)?;
        let Some(start) = self.redundant else {
            return Ok(());
        };
        let redundant = Region::new(start, self.directory_len(), redundant_at)?;
        self.check_directory(redundant, file_size, redundant_at)?;
        if redundant.overlaps(directory) {
            return Err(Error::malformed(
                "VMDK grain directories overlap",
                redundant_at,
            ));
        }
        // What it has is not needed to read, so it may be wrong. Where grains can be it is not written to.
        if redundant.end > self.data_start {
            return Err(Error::malformed(
                "VMDK redundant grain directory lies where grains are",
                redundant_at,
            ));
        }
        Ok(())
    }

    fn check_directory(&self, directory: Region, file_size: u64, at: u64) -> Result {
        if directory.end > file_size {
            return Err(Error::malformed(
                "VMDK grain directory lies past the end of the file",
                at,
            ));
        }
        let is_in_text = self.descriptor.is_some_and(|text| directory.overlaps(text));
        if directory.start < self.header_end || is_in_text {
            return Err(Error::malformed(
                "VMDK grain directory lies in the header or the descriptor",
                at,
            ));
        }
        Ok(())
    }

    /// Guest bytes that a table has entries for.
    pub(super) fn covers(&self) -> u64 {
        // At most 2^41: nothing saturates.
        self.grain.saturating_mul(self.entries).max(1)
    }

    /// Entries in a directory.
    pub(in super::super) fn count(&self) -> u64 {
        self.size.div_ceil(self.covers())
    }

    /// Bytes in a directory.
    pub(super) fn directory_len(&self) -> u64 {
        // At most 2^56: nothing saturates.
        self.count().saturating_mul(ENTRY_LEN)
    }

    /// Bytes in a table.
    pub(super) fn table_len(&self) -> u64 {
        // At most 256 KiB: nothing saturates.
        self.entries.saturating_mul(ENTRY_LEN)
    }

    /// How many guest bytes the directory has entries for.
    pub(super) fn limit(&self) -> u64 {
        // Less than 2^63 + 2^41: nothing saturates.
        self.count().saturating_mul(self.covers())
    }

    /// Offset of guest position `pos` in its grain.
    pub(super) fn within(&self, pos: u64) -> u64 {
        pos & self.grain.saturating_sub(1)
    }

    /// Guest position of the grain of `pos`. The last one can reach past the end of the disk.
    pub(super) fn grain_start(&self, pos: u64) -> u64 {
        pos.saturating_sub(self.within(pos))
    }

    /// Bytes from guest position `pos` to the end of its grain.
    pub(super) fn left_in_grain(&self, pos: u64) -> u64 {
        self.grain.saturating_sub(self.within(pos))
    }

    /// Length in bytes of the grains, from that of `pos` on, that are given their places together for a
    /// write of `len` bytes there: all of them, up to a limit, as far as one table has their entries. It
    /// does not depend on the entries, as only one writer at a time may change these.
    ///
    /// Without a parent it is one grain: that needs no sync.
    pub(super) fn unit_len(&self, pos: u64, len: u64) -> u64 {
        if !self.has_parent {
            return self.grain;
        }
        let end = self.within(pos).saturating_add(len);
        let grains = end.div_ceil(self.grain.max(1)).max(1);
        grains
            .saturating_mul(self.grain)
            .min(MAX_UNIT.max(self.grain))
            .min(self.left_in_table(self.grain_start(pos)))
    }

    /// Which table has the entry of guest position `pos`.
    pub(super) fn table_of(&self, pos: u64) -> Result<u64> {
        match pos < self.limit() {
            true => Ok(pos / self.covers()),
            false => Err(OUTSIDE),
        }
    }

    /// Bytes from guest position `pos` to the end of what its table has entries for.
    pub(super) fn left_in_table(&self, pos: u64) -> u64 {
        self.covers().saturating_sub(pos % self.covers())
    }

    /// Which entry of its table that of guest position `pos` is.
    pub(super) fn index_in_table(&self, pos: u64) -> u64 {
        (pos % self.covers()) / self.grain.max(1)
    }

    /// Host offset in bytes of the entry of guest position `pos` in the table at `table`.
    pub(super) fn entry_at(&self, table: u64, pos: u64) -> Result<u64> {
        add(
            table,
            mul(self.index_in_table(pos), ENTRY_LEN, table)?,
            table,
        )
    }

    /// Host offset in bytes of entry `index` of the directory at `directory`.
    pub(super) fn directory_entry_at(&self, directory: u64, index: u64) -> Result<u64> {
        add(directory, mul(index, ENTRY_LEN, directory)?, directory)
    }

    /// Table `index` of the directory at `directory`, checked; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it does not lie within the file, or over the header or a directory.
    pub(super) fn table<T: Tables + ?Sized>(
        &self,
        tables: &T,
        directory: u64,
        index: u64,
    ) -> Result<Option<u64>> {
        let at = self.directory_entry_at(directory, index)?;
        match Entry(tables.load_le32(at)?) {
            Entry::NONE => Ok(None),
            entry => {
                self.check_table(entry.offset(), tables.size()?, at)?;
                Ok(Some(entry.offset()))
            }
        }
    }

    /// Checks that a table can lie at host offset `table`; the entry at `at` says so.
    pub(super) fn check_table(&self, table: u64, file_size: u64, at: u64) -> Result {
        let region = Region::new(table, self.table_len(), at)?;
        if region.end > file_size {
            return Err(Error::malformed(
                "VMDK directory entry points past the end of the file",
                at,
            ));
        }
        if self.is_in_headers(region) {
            return Err(Error::malformed(
                "VMDK directory entry points into the headers",
                at,
            ));
        }
        Ok(())
    }

    /// Takes apart a table entry at host offset `at`. Where it points is checked: that is to be done at
    /// every use, as the file may have changed.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it points past the end of the file, to where tables are, or to the header
    /// or a directory.
    pub(super) fn decode(&self, entry: Entry, file_size: u64, at: u64) -> Result<Mapping> {
        match entry {
            Entry::NONE => return Ok(Mapping::Unallocated),
            Entry::ZERO if self.has_zero_grains => return Ok(Mapping::Zero),
            _ => {}
        }
        let offset = entry.offset();
        let region = Region::new(offset, self.grain, at)?;
        if offset >= file_size {
            return Err(Error::malformed(
                "VMDK table entry points past the end of the file",
                at,
            ));
        }
        if offset < self.data_start || self.is_in_headers(region) {
            return Err(Error::malformed(
                "VMDK table entry points into the headers",
                at,
            ));
        }
        Ok(Mapping::Data(offset))
    }

    /// Whether a range of the file has a byte in common with the header, the descriptor or a directory.
    fn is_in_headers(&self, range: Region) -> bool {
        let is_in_directory = |start: u64| {
            range.overlaps(Region {
                start,
                end: start.saturating_add(self.directory_len()),
            })
        };
        range.start < self.header_end
            || self.descriptor.is_some_and(|text| range.overlaps(text))
            || is_in_directory(self.directory)
            || self.redundant.is_some_and(is_in_directory)
    }

    /// End of header, descriptor and directories.
    pub(super) fn headers_end(&self) -> u64 {
        let end_of = |start: u64| start.saturating_add(self.directory_len());
        self.header_end
            .max(self.data_start)
            .max(self.descriptor.map_or(0, |text| text.end))
            .max(end_of(self.directory))
            .max(self.redundant.map_or(0, end_of))
    }
}
