// SPDX-License-Identifier: GPL-2.0

//! Resolving guest ranges of an image of version 1.

use loop_parser::contract::{
    Compressed,
    Compression,
    Error,
    Extent,
    Map,
    Placement,
    Result,
    Tables, //
};

use super::{
    super::{
        num::{
            add,
            whole_sectors,
            OUTSIDE, //
        },
        run::{
            self,
            Kind,
            Pieces,
            Run, //
        },
    },
    layout::{
        L2Entry,
        Layout,
        Mapping, //
    },
    ondisk::SIZE, //
};

/// Where the guest ranges of an image of version 1 lie.
#[derive(Clone, Copy, Debug)]
pub struct QcowMap {
    layout: Layout,
}

impl QcowMap {
    pub(super) fn new(layout: Layout) -> Self {
        Self { layout }
    }
}

impl Map for QcowMap {
    fn resolve_read(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Extent> {
        let run = run::find(&mut Walk::new(&self.layout, tables), pos, len)?;
        Ok(match run.kind {
            Kind::Data { offset, .. } => Extent::Data {
                offset,
                len: run.len,
            },
            Kind::Zero => Extent::Zero { len: run.len },
            Kind::Below => Extent::Parent { len: run.len },
            Kind::Compressed { offset, stored } => {
                let number = |value: u64| u32::try_from(value).map_err(|_| OUTSIDE);
                Extent::Compressed(Compressed {
                    offset,
                    stored: number(stored)?,
                    compression: Compression::Deflate,
                    unit: number(self.layout.cluster_size())?,
                    least: number(self.layout.cluster_size())?,
                    skip: number(self.layout.within(pos))?,
                    len: run.len,
                })
            }
        })
    }

    /// A part of a cluster that lies past the end of the file is no place to write to: that takes an
    /// allocation, too.
    fn resolve_write(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Placement> {
        let run = run::find(&mut Walk::new(&self.layout, tables), pos, len)?;
        Ok(match run.kind {
            Kind::Data { offset, .. } => Placement::InPlace {
                offset,
                len: run.len,
            },
            _ => Placement::Allocate {
                pos: self.layout.cluster_start(pos),
                len: self.layout.cluster_size(),
            },
        })
    }

    fn reread_size(&self, tables: &dyn Tables) -> Result<u64> {
        let size = tables.load_be64(SIZE)?;
        if size > self.layout.limit() {
            return Err(Error::unsupported(
                "qcow disk has outgrown the L1 table that it was attached with",
                SIZE,
            ));
        }
        Ok(whole_sectors(size))
    }
}

/// Looks up one cluster after the other. Remembers the L2 table.
struct Walk<'a> {
    layout: &'a Layout,
    tables: &'a dyn Tables,
    /// Where the guest range of the L2 table in use begins, and the table's host offset.
    table: Option<(u64, Option<u64>)>,
}

impl<'a> Walk<'a> {
    fn new(layout: &'a Layout, tables: &'a dyn Tables) -> Self {
        Self {
            layout,
            tables,
            table: None,
        }
    }

    /// The L2 table of guest position `pos`.
    fn table(&mut self, pos: u64) -> Result<Option<u64>> {
        let start = pos & !self.layout.l2_covers().wrapping_sub(1);
        match self.table {
            Some((known, table)) if known == start => Ok(table),
            _ => {
                let table = self.layout.l2_table(self.tables, pos)?;
                self.table = Some((start, table));
                Ok(table)
            }
        }
    }

    /// What bytes are that the image does not have.
    fn below(&self) -> Kind {
        match self.layout.has_parent() {
            true => Kind::Below,
            false => Kind::Zero,
        }
    }
}

impl Pieces for Walk<'_> {
    fn piece(&mut self, pos: u64, len: u64) -> Result<Run> {
        let layout = self.layout;
        let Some(table) = self.table(pos)? else {
            return Ok(Run {
                kind: self.below(),
                len: len.min(layout.left_in_l2(pos)),
            });
        };
        let len = len.min(layout.left_in_cluster(pos));
        let at = layout.l2_entry_at(table, pos)?;
        let entry = L2Entry(self.tables.load_be64(at)?);
        let file_size = self.tables.size()?;
        match layout.decode(entry, file_size, at)? {
            Mapping::Unallocated => Ok(Run {
                kind: self.below(),
                len,
            }),
            Mapping::Compressed { offset, stored } => Ok(Run {
                kind: Kind::Compressed { offset, stored },
                len,
            }),
            Mapping::Data(cluster) => {
                let within = layout.within(pos);
                let kind = Kind::Data {
                    offset: add(cluster, within, at)?,
                    is_own: true,
                };
                let there = file_size.saturating_sub(cluster);
                Run { kind, len }.cut(within, there, at)
            }
        }
    }

    fn limit(&self) -> u64 {
        self.layout.limit()
    }
}
