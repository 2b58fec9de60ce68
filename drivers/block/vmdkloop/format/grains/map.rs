// SPDX-License-Identifier: GPL-2.0

//! Resolving guest ranges.

use loop_parser::contract::{
    num::{
        add,
        mul, //
    },
    Error,
    Extent,
    Map,
    Placement,
    Result,
    Tables,
    SECTOR_SIZE, //
};
use zerocopy::{
    little_endian::U32,
    IntoBytes, //
};

use super::{
    super::run::{
        self,
        Kind,
        Pieces,
        Run, //
    },
    layout::{
        Entry,
        Layout,
        Mapping,
        ENTRY_LEN, //
    },
};

/// Table entries that are loaded at a time.
const WINDOW: usize = 16;

/// Where the guest ranges of a file lie.
#[derive(Clone, Copy, Debug)]
pub struct GrainMap {
    layout: Layout,
    /// Size of the disk in bytes, at most what the header says.
    size: u64,
    capacity: Capacity,
}

/// The field of a header that has the size of the disk in sectors.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Capacity {
    /// 64 bits at this host offset.
    Long(u64),
    /// 32 bits.
    Short(u64),
}

impl Capacity {
    /// Size of the disk in bytes.
    pub(in super::super) fn load(self, tables: &dyn Tables) -> Result<u64> {
        let (sectors, at) = match self {
            Self::Long(at) => (tables.load_le64(at)?, at),
            Self::Short(at) => (u64::from(tables.load_le32(at)?), at),
        };
        mul(sectors, SECTOR_SIZE, at)
    }

    fn at(self) -> u64 {
        match self {
            Self::Long(at) | Self::Short(at) => at,
        }
    }
}

impl GrainMap {
    /// `size` is that of the disk: what the header says, or less.
    pub(in super::super) fn new(layout: Layout, size: u64, capacity: Capacity) -> Self {
        Self {
            // Where that is does not matter to find grains.
            layout: Layout {
                redundant: None,
                ..layout
            },
            size,
            capacity,
        }
    }
}

impl Map for GrainMap {
    fn resolve_read(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Extent> {
        let run = run::find(&mut Walk::new(&self.layout, tables), pos, len)?;
        Ok(run.extent())
    }

    fn resolve_write(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Placement> {
        let run = run::find(&mut Walk::new(&self.layout, tables), pos, len)?;
        Ok(match run.kind {
            Kind::Data { offset } => Placement::InPlace {
                offset,
                len: run.len,
            },
            _ => Placement::Allocate {
                pos: self.layout.grain_start(pos),
                len: self.layout.unit_len(pos, len),
            },
        })
    }

    /// The size stays what it was as long as the header's does: where extents are listed, the list
    /// counts.
    fn reread_size(&self, tables: &dyn Tables) -> Result<u64> {
        let size = self.capacity.load(tables)?;
        if size == self.layout.size {
            return Ok(self.size);
        }
        if size > self.layout.limit() {
            return Err(Error::malformed(
                "VMDK has no grain tables for a disk of this size",
                self.capacity.at(),
            ));
        }
        Ok(size)
    }
}

/// Looks up one grain after the other. Remembers the table, and some of its entries.
pub(super) struct Walk<'a, T: Tables + ?Sized> {
    layout: &'a Layout,
    tables: &'a T,
    /// The number of the table in use, and its host offset.
    table: Option<(u64, Option<u64>)>,
    /// Host offset of the first of `entries`.
    at: u64,
    /// How many of them there are.
    count: usize,
    entries: [U32; WINDOW],
}

impl<'a, T: Tables + ?Sized> Walk<'a, T> {
    pub(super) fn new(layout: &'a Layout, tables: &'a T) -> Self {
        Self {
            layout,
            tables,
            table: None,
            at: 0,
            count: 0,
            entries: [U32::ZERO; WINDOW],
        }
    }

    /// The table of guest position `pos`.
    fn table(&mut self, pos: u64) -> Result<Option<u64>> {
        let index = self.layout.table_of(pos)?;
        match self.table {
            Some((known, table)) if known == index => Ok(table),
            _ => {
                let directory = self.layout.directory;
                let table = self.layout.table(self.tables, directory, index)?;
                self.table = Some((index, table));
                Ok(table)
            }
        }
    }

    /// The entry at host offset `at`, the first of `wanted` in its table.
    fn entry(&mut self, at: u64, wanted: u64) -> Result<Entry> {
        let index = at.checked_sub(self.at).map(|skip| skip / ENTRY_LEN);
        let index = index.and_then(|index| usize::try_from(index).ok());
        if let Some(index) = index.filter(|&index| index < self.count) {
            let known = self.entries.get(index).copied().unwrap_or_default();
            return Ok(Entry(known.get()));
        }
        let count = usize::try_from(wanted).unwrap_or(WINDOW).clamp(1, WINDOW);
        self.count = 0;
        if let Some(entries) = self.entries.get_mut(..count) {
            self.tables.load(at, entries.as_mut_bytes())?;
        }
        self.at = at;
        self.count = count;
        let first = self.entries.first().copied().unwrap_or_default();
        Ok(Entry(first.get()))
    }

    /// What bytes are that the file does not have.
    fn below(&self) -> Kind {
        match self.layout.has_parent {
            true => Kind::Below,
            false => Kind::Zero,
        }
    }
}

impl<T: Tables + ?Sized> Pieces for Walk<'_, T> {
    fn piece(&mut self, pos: u64, len: u64) -> Result<Run> {
        let layout = self.layout;
        let in_table = len.min(layout.left_in_table(pos));
        let Some(table) = self.table(pos)? else {
            return Ok(Run {
                kind: self.below(),
                len: in_table,
            });
        };
        let at = layout.entry_at(table, pos)?;
        let within = layout.within(pos);
        let grains = within.saturating_add(in_table).div_ceil(layout.grain);
        let entry = self.entry(at, grains)?;
        let len = len.min(layout.left_in_grain(pos));
        let file_size = self.tables.size()?;
        match layout.decode(entry, file_size, at)? {
            Mapping::Unallocated => Ok(Run {
                kind: self.below(),
                len,
            }),
            Mapping::Zero => Ok(Run {
                kind: Kind::Zero,
                len,
            }),
            Mapping::Data(grain) => {
                let offset = add(grain, within, at)?;
                // The end of the disk, and of the file, can cut the last one.
                let there = file_size.saturating_sub(offset);
                match len.min(there & !SECTOR_SIZE.saturating_sub(1)) {
                    0 => Err(Error::malformed(
                        "VMDK table entry points past the end of the file",
                        at,
                    )),
                    len => Ok(Run {
                        kind: Kind::Data { offset },
                        len,
                    }),
                }
            }
        }
    }

    fn limit(&self) -> u64 {
        self.layout.limit()
    }
}
