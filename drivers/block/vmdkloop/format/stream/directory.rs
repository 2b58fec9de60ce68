// SPDX-License-Identifier: GPL-2.0

//! The grain directory of a stream, and the tables that it names.

use loop_parser::contract::{
    num::{
        add,
        mul, //
    },
    Error,
    Result,
    Tables,
    SECTOR_SIZE, //
};

use super::{
    grain::{
        self,
        Grain,
        Item,
        Shape, //
    },
    ondisk::*, //
};

/// Most entries that one call looks at to lengthen a run.
const MAX_ENTRIES: u64 = 128;

/// Where a stream keeps what it has.
///
/// Entries of directory and tables are 32-bit numbers, sectors of the file:
///
/// | entry | of the directory | of a table |
/// |---|---|---|
/// | 0 | there is no table | there is no grain |
/// | 1 | | the grain is zeros, if the header says that there are such |
/// | else | the table | the grain's header |
///
/// # Invariants
///
/// `per_table` is not 0; there are entries for the whole disk, and they lay within the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Directory {
    /// Host offset in bytes of the directory.
    pub(super) at: u64,
    /// Number of entries of a table.
    pub(super) per_table: u64,
    /// There are zero grains.
    pub(super) has_zero_grains: bool,
}

/// What guest bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Part of this grain.
    Grain(Grain),
    /// So many bytes, not 0, of zeros.
    Zero(u64),
    /// So many bytes, not 0, that the stream does not have.
    Missing(u64),
}

/// A table entry that was decoded.
#[derive(Clone, Copy)]
enum Entry {
    /// The host offset of a grain's header.
    Grain(u64),
    Zero,
    Missing,
}

impl Directory {
    /// How many bytes a directory for the disk has, at least.
    pub(super) fn len(shape: &Shape, per_table: u64) -> Result<u64> {
        let grains = shape.capacity.div_ceil(shape.grain.max(1));
        mul(grains.div_ceil(per_table.max(1)), ENTRY_LEN, 0)
    }

    /// Looks up guest position `pos`, up to `len` bytes.
    pub(super) fn find(
        &self,
        tables: &dyn Tables,
        shape: &Shape,
        pos: u64,
        len: u64,
    ) -> Result<Piece> {
        let mut walk = Walk {
            directory: self,
            shape,
            tables,
            table: None,
        };
        let (entry, at, mut run) = walk.entry(pos)?;
        if let Entry::Grain(place) = entry {
            return load_grain(tables, shape, shape.start(pos), place, at).map(Piece::Grain);
        }
        for _ in 0..MAX_ENTRIES {
            if run >= len {
                break;
            }
            match walk.entry(add(pos, run, at)?) {
                Ok((next, _, more)) if next.continues(entry) => run = add(run, more, at)?,
                Err(Error::WouldBlock) => return Err(Error::WouldBlock),
                // What was found so far is right; the rest is for the next call to find out.
                _ => break,
            }
        }
        let run = run.min(len);
        Ok(match entry {
            Entry::Zero => Piece::Zero(run),
            _ => Piece::Missing(run),
        })
    }
}

impl Entry {
    fn continues(self, before: Entry) -> bool {
        matches!(
            (before, self),
            (Entry::Zero, Entry::Zero) | (Entry::Missing, Entry::Missing)
        )
    }
}

/// The grain at guest position `start`, whose header the entry at `at` says to be at `place`.
fn load_grain(
    tables: &dyn Tables,
    shape: &Shape,
    start: u64,
    place: u64,
    at: u64,
) -> Result<Grain> {
    match grain::load(tables, shape, place)? {
        Item::Grain(grain) if grain.start == start => Ok(grain),
        Item::Grain(_) => Err(Error::malformed(
            "VMDK table entry points to another place's grain",
            at,
        )),
        Item::Marker { .. } => Err(Error::malformed("VMDK table entry points to no grain", at)),
        Item::Cut => Err(Error::malformed(
            "VMDK grain does not end before the file does",
            at,
        )),
    }
}

/// Looks up one entry after the other. Remembers the table.
struct Walk<'a> {
    directory: &'a Directory,
    shape: &'a Shape,
    tables: &'a dyn Tables,
    /// Which entry of the directory names it, and its host offset.
    table: Option<(u64, Option<u64>)>,
}

impl Walk<'_> {
    /// The entry for guest position `pos`, where it is, and for how many bytes from there it
    /// counts: to the end of the grain, or of what there is no table for.
    fn entry(&mut self, pos: u64) -> Result<(Entry, u64, u64)> {
        let per_table = self.directory.per_table.max(1);
        let number = pos / self.shape.grain.max(1);
        let index = number / per_table;
        let Some(table) = self.table(index)? else {
            let covers = mul(per_table, self.shape.grain, self.directory.at)?;
            let left = covers.saturating_sub(pos % covers.max(1));
            return Ok((Entry::Missing, self.directory.at, left));
        };
        let at = add(table, mul(number % per_table, ENTRY_LEN, table)?, table)?;
        let entry = match self.tables.load_le32(at)? {
            0 => Entry::Missing,
            ZERO_GRAIN if self.directory.has_zero_grains => Entry::Zero,
            sector => Entry::Grain(mul(sector.into(), SECTOR_SIZE, at)?),
        };
        Ok((entry, at, self.shape.left(pos)))
    }

    /// The table that entry `index` of the directory names, checked; `None` if there is none.
    fn table(&mut self, index: u64) -> Result<Option<u64>> {
        if let Some((known, table)) = self.table {
            if known == index {
                return Ok(table);
            }
        }
        let start = self.directory.at;
        let at = add(start, mul(index, ENTRY_LEN, start)?, start)?;
        let table = mul(self.tables.load_le32(at)?.into(), SECTOR_SIZE, at)?;
        let len = mul(self.directory.per_table, ENTRY_LEN, at)?;
        if table != 0 && add(table, len, at)? > self.tables.size()? {
            return Err(Error::malformed(
                "VMDK grain table lies past the end of the file",
                at,
            ));
        }
        let table = (table != 0).then_some(table);
        self.table = Some((index, table));
        Ok(table)
    }
}
