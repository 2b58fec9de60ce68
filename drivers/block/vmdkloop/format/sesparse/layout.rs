// SPDX-License-Identifier: GPL-2.0

//! Where things lie in a seSparse file, and what its table entries say.

use loop_parser::contract::{
    num::{
        add,
        mul,
        Region, //
    },
    Error,
    Result,
    Tables, //
};

use super::ondisk::*;

/// Bytes in a grain.
pub(super) const GRAIN: u64 = 4096;
/// Bytes in a grain table.
const TABLE: u64 = 32768;
/// Guest bytes that a table has entries for.
pub(super) const COVERS: u64 = GRAIN * (TABLE / ENTRY_LEN);
/// Largest disk in bytes: positions have to be signed 64-bit numbers.
pub(super) const MAX_SIZE: u64 = 1 << 62;

/// The layout of a file. Copied freely: kept small.
///
/// # Invariants
///
/// Directory and tables lay within the file when it was attached, behind the header, and do not
/// overlap. The directory has entries for `size` bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// The directory.
    pub(super) directory: Region,
    /// The tables, one behind the other.
    pub(super) tables: Region,
    /// Host offset in bytes of the first grain.
    pub(super) grains: u64,
}

/// An entry of the directory.
///
/// | bits | meaning |
/// |---|---|
/// | 0-31 | number of the table |
/// | 32-63 | 0x10000000 |
///
/// All zero: there is no table.
#[derive(Clone, Copy)]
struct DirectoryEntry(u64);

/// An entry of a table.
///
/// | bits | meaning |
/// |---|---|
/// | 60-63 | 0: no grain (and all other bits are 0, too); 1: given back; 2: zeros; 3: a grain |
/// | 48-59 | of a grain: low bits of its number |
/// | 0-47 | of a grain: high bits of its number |
#[derive(Clone, Copy)]
struct TableEntry(u64);

/// What an entry says of its grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// The file does not have it.
    Missing,
    /// It reads as zero, whatever lies below.
    Zero,
    /// It lies at this host offset.
    Data(u64),
}

impl DirectoryEntry {
    /// Number of the table, if there is one.
    fn table(self) -> Option<Option<u64>> {
        match (self.0, self.0.wrapping_shr(32)) {
            (0, _) => Some(None),
            (entry, 0x1000_0000) => Some(Some(entry & 0xffff_ffff)),
            _ => None,
        }
    }
}

impl TableEntry {
    /// Type of the grain.
    fn kind(self) -> u64 {
        self.0.wrapping_shr(60)
    }

    /// Number of the grain.
    fn number(self) -> u64 {
        let low = self.0.wrapping_shr(48) & 0xfff;
        let high = self.0 & 0xffff_ffff_ffff;
        high.wrapping_shl(12) | low
    }
}

impl Layout {
    /// The table that has the entry of guest position `pos`, checked; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] for an entry of no known kind, and for a table that lies elsewhere than
    /// tables do.
    pub(super) fn table(&self, tables: &dyn Tables, pos: u64) -> Result<Option<u64>> {
        let start = self.directory.start;
        let at = add(start, mul(pos / COVERS, ENTRY_LEN, start)?, start)?;
        let entry = DirectoryEntry(tables.load_le64(at)?);
        let number = entry.table().ok_or(Error::malformed(
            "seSparse directory entry is of no known type",
            at,
        ))?;
        let Some(number) = number else {
            return Ok(None);
        };
        let table = add(self.tables.start, mul(number, TABLE, at)?, at)?;
        if add(table, TABLE, at)? > self.tables.end.min(tables.size()?) {
            return Err(Error::malformed(
                "seSparse directory entry points past the grain tables",
                at,
            ));
        }
        Ok(Some(table))
    }

    /// Bytes from guest position `pos` to the end of what its table has entries for.
    pub(super) fn left_in_table(pos: u64) -> u64 {
        COVERS.saturating_sub(pos % COVERS)
    }

    /// Host offset in bytes of the entry of guest position `pos` in the table at `table`.
    pub(super) fn entry_at(table: u64, pos: u64) -> Result<u64> {
        add(table, mul(pos % COVERS / GRAIN, ENTRY_LEN, table)?, table)
    }

    /// What the entry at host offset `at` says.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] for an entry of no known kind, and for a grain past the end of the
    /// file.
    pub(super) fn mapping(&self, tables: &dyn Tables, at: u64) -> Result<Mapping> {
        let malformed = |what| Err(Error::malformed(what, at));
        let entry = TableEntry(tables.load_le64(at)?);
        match entry.kind() {
            0 if entry.0 == 0 => Ok(Mapping::Missing),
            1 | 2 => Ok(Mapping::Zero),
            3 => {
                let grain = add(self.grains, mul(entry.number(), GRAIN, at)?, at)?;
                match add(grain, GRAIN, at)? > tables.size()? {
                    true => malformed("seSparse table entry points past the end of the file"),
                    false => Ok(Mapping::Data(grain)),
                }
            }
            _ => malformed("seSparse table entry is of no known type"),
        }
    }
}
