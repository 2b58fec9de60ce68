// SPDX-License-Identifier: GPL-2.0

//! Resolving guest ranges of a seSparse file.

use loop_parser::contract::{
    num::{
        add,
        OUTSIDE, //
    },
    Extent,
    Map,
    Placement,
    Result,
    Tables, //
};

use super::{
    super::run::{
        self,
        Kind,
        Pieces,
        Run, //
    },
    layout::{
        Layout,
        Mapping,
        COVERS,
        GRAIN, //
    },
};

/// Where the guest ranges of a seSparse file lie.
#[derive(Clone, Copy, Debug)]
pub struct SeSparseMap {
    layout: Layout,
    has_parent: bool,
}

impl SeSparseMap {
    /// `has_parent` says that what the file does not have is the parent's.
    pub(super) fn new(layout: Layout, has_parent: bool) -> Self {
        Self { layout, has_parent }
    }
}

impl Map for SeSparseMap {
    fn resolve_read(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Extent> {
        if pos >= self.layout.size {
            return Err(OUTSIDE);
        }
        let mut walk = Walk {
            map: self,
            tables,
            table: None,
        };
        Ok(run::find(&mut walk, pos, len)?.extent())
    }

    /// Nothing is written, be it in place.
    fn resolve_write(&self, _tables: &dyn Tables, pos: u64, _len: u64) -> Result<Placement> {
        Ok(Placement::Allocate {
            pos: pos.saturating_sub(pos % GRAIN),
            len: GRAIN,
        })
    }

    /// The size is that of a line in the descriptor.
    fn reread_size(&self, _tables: &dyn Tables) -> Result<u64> {
        Ok(self.layout.size)
    }
}

/// Looks up one grain after the other. Remembers the table.
struct Walk<'a> {
    map: &'a SeSparseMap,
    tables: &'a dyn Tables,
    /// The number of the directory's entry that names it, and its host offset.
    table: Option<(u64, Option<u64>)>,
}

impl Walk<'_> {
    /// The table of guest position `pos`.
    fn table(&mut self, pos: u64) -> Result<Option<u64>> {
        let index = pos / COVERS;
        match self.table {
            Some((known, table)) if known == index => Ok(table),
            _ => {
                let table = self.map.layout.table(self.tables, pos)?;
                self.table = Some((index, table));
                Ok(table)
            }
        }
    }

    /// What bytes are that the file does not have.
    fn below(&self) -> Kind {
        match self.map.has_parent {
            true => Kind::Below,
            false => Kind::Zero,
        }
    }
}

impl Pieces for Walk<'_> {
    fn piece(&mut self, pos: u64, len: u64) -> Result<Run> {
        let layout = &self.map.layout;
        let Some(table) = self.table(pos)? else {
            return Ok(Run {
                kind: self.below(),
                len: len.min(Layout::left_in_table(pos)),
            });
        };
        let at = Layout::entry_at(table, pos)?;
        let within = pos % GRAIN;
        let kind = match layout.mapping(self.tables, at)? {
            Mapping::Missing => self.below(),
            Mapping::Zero => Kind::Zero,
            Mapping::Data(grain) => Kind::Data {
                offset: add(grain, within, at)?,
            },
        };
        Ok(Run {
            kind,
            len: len.min(GRAIN.saturating_sub(within)),
        })
    }

    fn limit(&self) -> u64 {
        self.map.layout.size
    }
}
