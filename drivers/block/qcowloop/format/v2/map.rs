// SPDX-License-Identifier: GPL-2.0

//! Resolving guest ranges of a qcow2 image.

use loop_parser::contract::{
    Compressed,
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
            Region,
            OUTSIDE, //
        },
        run::{
            self,
            Kind,
            Pieces,
            Run, //
        },
    },
    entry::{
        Content,
        L2Entry,
        Mapping, //
    },
    layout::Layout,
    ondisk::{
        SIZE,
        SUBCLUSTERS, //
    },
    refcount::{
        overlap,
        Refcounts, //
    }, //
};

/// Where the guest ranges of a qcow2 image lie.
#[derive(Clone, Copy, Debug)]
pub struct Qcow2Map {
    layout: Layout,
}

impl Qcow2Map {
    pub(super) fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// Whether `len` bytes at host offset `offset` lie in clusters that hold refcounts.
    // Not inlined: reads need less stack.
    #[inline(never)]
    fn is_in_refcounts(&self, tables: &dyn Tables, offset: u64, len: u64) -> Result<bool> {
        if self.layout.has_data_file {
            return Ok(false);
        }
        let range = Region::new(offset, len, offset)?;
        Refcounts::now(tables, &self.layout)?.are_in(tables, range)
    }
}

impl Map for Qcow2Map {
    fn resolve_read(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Extent> {
        let mut walk = Walk::new(&self.layout, tables, Use::Read);
        let run = run::find(&mut walk, pos, len)?;
        Ok(match run.kind {
            Kind::Data { offset, .. } => Extent::Data {
                offset,
                len: run.len,
            },
            Kind::Zero => Extent::Zero { len: run.len },
            Kind::Below => Extent::Parent { len: run.len },
            Kind::Compressed { offset, stored } => self.compressed(offset, stored, pos, run.len)?,
        })
    }

    /// In place is what has a place of its own, through a table of its own. A part of a cluster that
    /// lies past the end of the file is no place to write to: that takes an allocation, too. Nor is a
    /// table of the image, or what a malformed entry names: the allocator says what is wrong there, and
    /// marks the image corrupt.
    fn resolve_write(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Placement> {
        let mut walk = Walk::new(&self.layout, tables, Use::Write);
        let allocate = Placement::Allocate {
            pos: self.layout.cluster_start(pos),
            len: self.layout.cluster_size(),
        };
        let run = match run::find(&mut walk, pos, len) {
            Err(Error::Malformed(_)) => return Ok(allocate),
            result => result?,
        };
        if let Kind::Data {
            offset,
            is_own: true,
        } = run.kind
        {
            let first = run.len.min(self.layout.left_in_cluster(pos));
            for len in [run.len, first] {
                if !self.is_in_refcounts(tables, offset, len)? {
                    return Ok(Placement::InPlace { offset, len });
                }
            }
        }
        Ok(allocate)
    }

    fn reread_size(&self, tables: &dyn Tables) -> Result<u64> {
        let size = tables.load_be64(SIZE)?;
        if size > self.layout.limit() {
            return Err(Error::unsupported(
                "qcow2 disk has outgrown the L1 table that it was attached with",
                SIZE,
            ));
        }
        Ok(whole_sectors(size))
    }
}

impl Qcow2Map {
    fn compressed(&self, offset: u64, stored: u64, pos: u64, len: u64) -> Result<Extent> {
        let number = |value: u64| u32::try_from(value).map_err(|_| OUTSIDE);
        Ok(Extent::Compressed(Compressed {
            offset,
            // At most 2^13 sectors.
            stored: number(stored)?,
            compression: self.layout.compression,
            unit: number(self.layout.cluster_size())?,
            least: number(self.layout.cluster_size())?,
            skip: number(self.layout.within(pos))?,
            len,
        }))
    }
}

/// An L2 table in use.
#[derive(Clone, Copy)]
struct Table {
    /// Entry of the L1 that names it.
    l1: u64,
    /// Its host offset; `None` if there is none.
    offset: Option<u64>,
    /// It can be written in place.
    is_own: bool,
}

/// Looks up one cluster after the other. Remembers the L2 table.
struct Walk<'a> {
    layout: &'a Layout,
    tables: &'a dyn Tables,
    purpose: Use,
    table: Option<Table>,
}

/// What a range is looked up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

impl<'a> Walk<'a> {
    fn new(layout: &'a Layout, tables: &'a dyn Tables, purpose: Use) -> Self {
        Self {
            layout,
            tables,
            purpose,
            table: None,
        }
    }

    /// The L2 table that entry `l1` of the L1 names, checked.
    fn table(&mut self, l1: u64) -> Result<Table> {
        if let Some(table) = self.table.filter(|table| table.l1 == l1) {
            return Ok(table);
        }
        let entry = self.layout.load_l1(self.tables, l1)?;
        let offset = entry.table();
        if let Some(offset) = offset {
            let at = self.layout.l1_entry_at(l1)?;
            self.layout.check_l2_table(self.tables, offset, at)?;
        }
        let table = Table {
            l1,
            offset,
            is_own: entry.is_copied(),
        };
        self.table = Some(table);
        Ok(table)
    }

    /// The run at guest position `pos`, at most `len` bytes: in one cluster, or as far as there is no
    /// L2 table.
    fn in_cluster(&mut self, pos: u64, len: u64) -> Result<Run> {
        let layout = self.layout;
        let index = layout.index(pos)?;
        let table = self.table(index.l1)?;
        let Some(offset) = table.offset else {
            return Ok(Run {
                kind: self.below(),
                len: len.min(layout.left_in_l2(pos)),
            });
        };
        let at = layout.l2_entry_at(offset, index.l2)?;
        let entry = layout.load_l2(self.tables, at)?;
        let len = len.min(layout.left_in_cluster(pos));
        match entry.decode(layout, at)? {
            Mapping::Compressed { offset, stored } => {
                layout.check_compressed(self.tables, offset, at)?;
                Ok(Run {
                    kind: Kind::Compressed { offset, stored },
                    len,
                })
            }
            mapping => self.part(&entry, mapping, at, index.within, len, table.is_own),
        }
    }

    /// The run at offset `within` of a cluster that is not compressed; `entry` at host offset `at` is
    /// its entry. `is_own` is about the table. The place of what reads as zero is not looked at: its
    /// bytes are not, either.
    fn part(
        &self,
        entry: &L2Entry,
        mapping: Mapping,
        at: u64,
        within: u64,
        len: u64,
        is_own: bool,
    ) -> Result<Run> {
        let (content, len) = self.alike(entry, mapping, within, len);
        let kind = match (content, mapping) {
            (Content::Data, Mapping::Data { offset, is_copied }) => {
                let there = self.layout.check_cluster(self.tables, offset, at)?;
                let kind = Kind::Data {
                    offset: add(offset, within, at)?,
                    is_own: self.purpose == Use::Write
                        && is_own
                        && is_copied
                        && !self.is_own_table(offset, at),
                };
                return Run { kind, len }.cut(within, there, at);
            }
            (Content::Below, _) => self.below(),
            _ => Kind::Zero,
        };
        Ok(Run { kind, len })
    }

    /// Whether the cluster at `offset` is the L2 table that has the entry at `at`.
    fn is_own_table(&self, offset: u64, at: u64) -> bool {
        !self.layout.has_data_file && overlap::is_around(self.layout, offset, at)
    }

    /// What the bytes at offset `within` of a cluster are, and how many of the next `len` are so, too.
    fn alike(&self, entry: &L2Entry, mapping: Mapping, within: u64, len: u64) -> (Content, u64) {
        let layout = self.layout;
        let first = layout.subcluster(within);
        let content = entry.content(mapping, first);
        if entry.bitmap.is_none() {
            return (content, len);
        }
        let rest = first.saturating_add(1)..SUBCLUSTERS;
        let end = rest
            .into_iter()
            .find(|&index| entry.content(mapping, index) != content)
            .unwrap_or(SUBCLUSTERS);
        // At most 2 MiB: nothing saturates.
        let end = u64::from(end).saturating_mul(layout.granule());
        (content, len.min(end.saturating_sub(within)))
    }

    /// What bytes are that the image does not have.
    fn below(&self) -> Kind {
        match self.layout.has_parent {
            true => Kind::Below,
            false => Kind::Zero,
        }
    }
}

impl Pieces for Walk<'_> {
    fn piece(&mut self, pos: u64, len: u64) -> Result<Run> {
        self.in_cluster(pos, len)
    }

    fn limit(&self) -> u64 {
        self.layout.limit()
    }
}
