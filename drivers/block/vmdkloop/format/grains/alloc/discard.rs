// SPDX-License-Identifier: GPL-2.0

//! Giving back what the guest has no use for.
//!
//! Over a parent an entry that is removed leaves a zero grain, or what is below would show again. Where
//! the file cannot have those, the device has no discard.

use loop_parser::contract::{
    num::{
        add,
        OUTSIDE, //
    },
    Discard,
    Discarded,
    Range,
    Result,
    TablesMut,
    Unlinked,
    SECTOR_SIZE, //
};

use super::{
    super::{
        super::run::{
            self,
            Kind, //
        },
        layout::{
            Entry,
            Layout,
            Mapping,
            ENTRY_LEN,
            MAX_OFFSET, //
        },
        map::Walk,
    },
    pair::Slot,
    GrainAllocator, //
};

/// Most entries that one call changes.
const MAX_ENTRIES: u64 = 256;

impl Layout {
    /// Whether [`GrainAllocator`] can be asked to discard anything.
    pub(in super::super::super) fn has_discard(&self) -> bool {
        self.has_zero_grains || !self.has_parent
    }

    /// What the entry of a grain becomes that is given back.
    fn removed(&self) -> Entry {
        match self.has_zero_grains {
            true => Entry::ZERO,
            false => Entry::NONE,
        }
    }

    /// Most bytes that a file can have to grow by to have a place for every grain and table.
    fn most_growth(&self) -> u64 {
        let table = self.table_len().next_multiple_of(SECTOR_SIZE);
        let tables = table.saturating_mul(2).saturating_add(self.grain);
        self.limit()
            .saturating_add(self.count().saturating_mul(tables))
    }
}

/// The start of a range that is discarded: what of it lies in one grain.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Length in bytes.
    len: u64,
    /// It is all that the disk has of the grain.
    is_whole: bool,
}

impl Piece {
    /// Of a disk of `size` bytes.
    fn new(layout: &Layout, range: Range, size: u64) -> Self {
        let start = layout.grain_start(range.pos);
        let on_disk = layout.grain.min(size.saturating_sub(start));
        Self {
            len: range.len.min(layout.left_in_grain(range.pos)),
            is_whole: range.pos == start && range.len >= on_disk,
        }
    }
}

impl GrainAllocator {
    /// Deals with the start of a range of a disk of `size` bytes.
    pub(super) fn discard_start(
        &mut self,
        tables: &mut dyn TablesMut,
        range: Range,
        size: u64,
        how: Discard,
    ) -> Result<Discarded> {
        let layout = self.layout;
        if !layout.has_discard() {
            return Err(OUTSIDE);
        }
        let run = run::find(&mut Walk::new(&layout, &*tables), range.pos, range.len)?;
        let piece = Piece::new(&layout, range, size);
        let Kind::Data { offset } = run.kind else {
            return match run.kind == Kind::Below && how != Discard::Forget {
                true => self.hide_parent(tables, range.pos, piece),
                false => Ok(Discarded::Done { len: run.len }),
            };
        };
        if !piece.is_whole {
            return Ok(match how {
                Discard::Forget => Discarded::Done { len: piece.len },
                _ => Discarded::Zero {
                    offset,
                    len: run.len.min(piece.len),
                },
            });
        }
        if how != Discard::ZeroInPlace && self.can_lose_places(tables)? {
            return self.unlink(tables, range, size);
        }
        Ok(Discarded::Zero {
            offset,
            len: run.len,
        })
    }

    /// Whether a place that is not used again will not be missed: no write may ever fail because of a
    /// discard. A block device has no more room than it has, nor has a file system that cannot have it
    /// back. A file has, as long as there are sector numbers.
    fn can_lose_places(&self, tables: &dyn TablesMut) -> Result<bool> {
        let most = tables.size()?.saturating_add(self.layout.most_growth());
        Ok(most <= MAX_OFFSET && tables.can_punch())
    }

    /// Removes the entry of the grain at the start of `range`, and those behind it that are covered by
    /// `range` as well and whose grains follow each other.
    #[inline(never)]
    fn unlink(&mut self, tables: &mut dyn TablesMut, range: Range, size: u64) -> Result<Discarded> {
        let layout = self.layout;
        let index = layout.table_of(range.pos)?;
        let pair = self.pair(tables, index)?.ok_or(OUTSIDE)?;
        let mut slot = pair.slot(&layout, range.pos)?;
        let mut old = Entry(tables.load_le32(slot.primary)?);
        let Mapping::Data(offset) = layout.decode(old, tables.size()?, slot.primary)? else {
            return Err(OUTSIDE);
        };
        let mut space = Unlinked {
            offset,
            len: layout.grain,
        };
        let stored = slot.store(tables, old, layout.removed());
        self.doubt(index, stored)?;
        let mut done = Piece::new(&layout, range, size).len;
        let in_table = layout
            .entries
            .saturating_sub(layout.index_in_table(range.pos));
        for _ in 1..in_table.min(MAX_ENTRIES) {
            let left = Range {
                pos: add(range.pos, done, slot.primary)?,
                len: range.len.saturating_sub(done),
            };
            let piece = Piece::new(&layout, left, size);
            slot = slot.next()?;
            if left.len == 0 || !piece.is_whole {
                break;
            }
            old = Entry(tables.load_le32(slot.primary)?);
            // An entry that is not checked may point to anything, and that would be punched.
            let next = Mapping::Data(space.offset.saturating_add(space.len));
            if layout.decode(old, tables.size()?, slot.primary) != Ok(next) {
                break;
            }
            let stored = slot.store(tables, old, layout.removed());
            if self.doubt(index, stored).is_err() {
                break;
            }
            space.len = space.len.saturating_add(layout.grain);
            done = done.saturating_add(piece.len);
        }
        self.space.keep_out(space.offset.saturating_add(space.len));
        Ok(Discarded::Freed { len: done, space })
    }

    /// Makes the grain at guest position `pos`, which is the parent's, read as zero. Zeros have to be
    /// written to a part of one.
    #[inline(never)]
    fn hide_parent(
        &mut self,
        tables: &mut dyn TablesMut,
        pos: u64,
        piece: Piece,
    ) -> Result<Discarded> {
        let layout = self.layout;
        if !piece.is_whole {
            return Ok(Discarded::Write { len: piece.len });
        }
        let index = layout.table_of(pos)?;
        let pair = match self.pair(tables, index)? {
            Some(pair) => pair,
            None => self.add_tables(tables, index)?,
        };
        let slot = pair.slot(&layout, pos)?;
        let stored = slot.store(tables, Entry::NONE, Entry::ZERO);
        self.doubt(index, stored)?;
        Ok(Discarded::Done { len: piece.len })
    }
}

impl Slot {
    /// Where the entry behind this one is, of the same table.
    fn next(&self) -> Result<Self> {
        Ok(Self {
            primary: add(self.primary, ENTRY_LEN, self.primary)?,
            redundant: match self.redundant {
                Some(at) => Some(add(at, ENTRY_LEN, at)?),
                None => None,
            },
        })
    }
}
