// SPDX-License-Identifier: GPL-2.0

//! Giving back what the guest has no use for.
//!
//! Over a backing file an entry that is removed leaves a zero flag, or what is below would show again.
//! Version 2 has no such flag: there a cluster keeps its place, and is zeroed in it; zeros over the
//! backing file's data are written.

use loop_parser::contract::{
    Discard,
    Discarded,
    Range,
    Result,
    TablesMut, //
};

use super::{
    super::{
        super::num::{
            add,
            bits_between,
            OUTSIDE, //
        },
        entry::{
            Content,
            L2Entry,
            Mapping, //
        },
        layout::{
            Index,
            Layout, //
        }, //
    },
    cluster::Place,
    Qcow2Allocator, //
};

/// Most entries that one call changes, or looks at.
const MAX_ENTRIES: u64 = 256;

/// The start of a range that is discarded: what of it lies in one cluster.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Guest position in bytes.
    pos: u64,
    /// Length in bytes.
    len: u64,
    /// It is all that the disk has of the cluster.
    is_whole: bool,
}

impl Piece {
    /// Of a disk of `size` bytes.
    fn new(layout: &Layout, range: Range, size: u64) -> Self {
        let start = layout.cluster_start(range.pos);
        let on_disk = layout.cluster_size().min(size.saturating_sub(start));
        Self {
            pos: range.pos,
            len: range.len.min(layout.left_in_cluster(range.pos)),
            is_whole: range.pos == start && range.len >= on_disk,
        }
    }
}

impl Piece {
    /// How many whole subclusters the first `run` bytes of it are. The end of the disk may cut the last
    /// one.
    fn subclusters(self, layout: &Layout, run: u64) -> u32 {
        let granule = layout.granule().max(1);
        let count = match self.is_whole && run == self.len {
            true => run.div_ceil(granule),
            false => run / granule,
        };
        u32::try_from(count).unwrap_or(0)
    }
}

impl Qcow2Allocator {
    /// Deals with the start of a range of a disk of `size` bytes.
    pub(super) fn discard_start(
        &mut self,
        tables: &mut dyn TablesMut,
        range: Range,
        size: u64,
        how: Discard,
    ) -> Result<Discarded> {
        let layout = self.layout;
        let index = layout.index(range.pos)?;
        let piece = Piece::new(&layout, range, size);
        let entry = layout.load_l1(tables, index.l1)?;
        let Some(table) = entry.table() else {
            if layout.has_parent && how != Discard::Forget {
                return self.hide_parent(tables, piece, index);
            }
            let rest = layout.l2_entries().saturating_sub(index.l2);
            let len = rest.saturating_mul(layout.cluster_size());
            let len = len.saturating_sub(index.within).min(range.len);
            return Ok(Discarded::Done { len });
        };
        layout.check_l2_table(tables, table, layout.l1_entry_at(index.l1)?)?;
        let place = Place::look(tables, &layout, table, index.l2)?;
        let place = match entry.is_copied() {
            true => place,
            false => place.of_others(),
        };
        if self.can_unlink(&place, piece, how) {
            return self.unlink(tables, range, size, index, how);
        }
        match place.mapping {
            Mapping::Compressed { .. }
            | Mapping::Data {
                is_copied: false, ..
            } if !place.is_zero_at(&layout, piece.pos) => Ok(match how {
                Discard::Forget => Discarded::Done { len: piece.len },
                Discard::Zero | Discard::ZeroInPlace => Discarded::Write { len: piece.len },
            }),
            _ => self.discard_part(tables, piece, &place, index, how),
        }
    }

    /// Whether the pointer to a cluster can go.
    fn can_unlink(&self, place: &Place, piece: Piece, how: Discard) -> bool {
        let (offset, is_copied) = match place.mapping {
            Mapping::Compressed { .. } => (None, false),
            Mapping::Data { offset, is_copied } | Mapping::ZeroAllocated { offset, is_copied } => {
                (Some(offset), is_copied)
            }
            Mapping::Unallocated | Mapping::ZeroPlain => return false,
        };
        // What others have, too, cannot be zeroed in place.
        let may_go = how != Discard::ZeroInPlace || !is_copied;
        // In an external data file all have their places for good, and are zeroed there.
        let may_go = may_go && !self.layout.has_data_file;
        let is_held = offset.is_some_and(|offset| self.held.is_held(offset));
        piece.is_whole && may_go && !is_held && self.removed().is_some()
    }

    /// What an entry becomes that is removed. `None`: the version has nothing that hides the parent.
    fn removed(&self) -> Option<L2Entry> {
        L2Entry::for_none(&self.layout, self.layout.has_parent)
    }

    /// Removes the entry at `index`, and those behind it that are covered by `range` as well and whose
    /// clusters follow each other.
    fn unlink(
        &mut self,
        tables: &mut dyn TablesMut,
        range: Range,
        size: u64,
        index: Index,
        how: Discard,
    ) -> Result<Discarded> {
        let layout = self.layout;
        let removed = self.removed().ok_or(OUTSIDE)?;
        let table = self.writable_table(tables, index.l1)?;
        let place = Place::look(tables, &layout, table, index.l2)?;
        let mut space = place.space(&layout).ok_or(OUTSIDE)?;
        place
            .store(tables, &layout, removed)
            .map_err(|(error, _)| error)?;
        let mut done = Piece::new(&layout, range, size).len;
        let end = index.l2.saturating_add(MAX_ENTRIES);
        for l2 in index.l2.saturating_add(1)..end.min(layout.l2_entries()) {
            let left = Range {
                pos: add(range.pos, done, table)?,
                len: range.len.saturating_sub(done),
            };
            let piece = Piece::new(&layout, left, size);
            let next = add(space.offset, space.len, table)?;
            let place = self.follower(tables, table, l2, next);
            match place.filter(|place| left.len > 0 && self.can_unlink(place, piece, how)) {
                Some(place) if place.store(tables, &layout, removed).is_ok() => {}
                _ => break,
            }
            space.len = space.len.saturating_add(layout.cluster_size());
            done = done.saturating_add(piece.len);
        }
        Ok(Discarded::Freed { len: done, space })
    }

    /// The entry `l2`, if its cluster is the one at host offset `next`, and nobody else's.
    fn follower(&self, tables: &dyn TablesMut, table: u64, l2: u64, next: u64) -> Option<Place> {
        let place = Place::look(tables, &self.layout, table, l2).ok()?;
        match place.mapping {
            Mapping::Data {
                offset,
                is_copied: true,
            } if offset == next => Some(place),
            _ => None,
        }
    }

    /// Deals with what cannot be unlinked: by subclusters, if there are any.
    fn discard_part(
        &mut self,
        tables: &mut dyn TablesMut,
        piece: Piece,
        place: &Place,
        index: Index,
        how: Discard,
    ) -> Result<Discarded> {
        let layout = self.layout;
        let (content, len) = place.run(&layout, piece.pos, piece.len);
        match (content, place.mapping) {
            (Content::Data, Mapping::Data { offset, .. }) => Ok(Discarded::Zero {
                offset: add(offset, index.within, place.at)?,
                len,
            }),
            (Content::Below, _) if layout.has_parent && how != Discard::Forget => {
                self.hide_parent(tables, piece, index)
            }
            _ => Ok(Discarded::Done { len }),
        }
    }

    /// Makes what is the parent's read as zero: a cluster, or all whole subclusters of `piece` up to
    /// one that is allocated. Zeros have to be written to less than one, and in version 2.
    fn hide_parent(
        &mut self,
        tables: &mut dyn TablesMut,
        piece: Piece,
        index: Index,
    ) -> Result<Discarded> {
        let layout = self.layout;
        let granule = layout.granule();
        let is_aligned = piece.is_whole || piece.pos % granule == 0 && piece.len >= granule;
        let Some(zero) = L2Entry::for_none(&layout, true).filter(|_| is_aligned) else {
            let left = granule.saturating_sub(piece.pos % granule.max(1));
            return Ok(Discarded::Write {
                len: piece.len.min(left),
            });
        };
        let table = self.writable_table(tables, index.l1)?;
        let place = Place::look(tables, &layout, table, index.l2)?;
        let (_, run) = place.run(&layout, piece.pos, piece.len);
        let (entry, len) = match place.entry.bitmap {
            None => (zero, piece.len),
            Some(bitmap) => {
                let count = piece.subclusters(&layout, run);
                let first = layout.subcluster(index.within);
                let mask = bits_between(first, first.saturating_add(count));
                let entry = L2Entry {
                    word: place.entry.word,
                    bitmap: Some(bitmap.with_zero(mask)),
                };
                (entry, run.min(u64::from(count).saturating_mul(granule)))
            }
        };
        place
            .store(tables, &layout, entry)
            .map_err(|(error, _)| error)?;
        Ok(Discarded::Done { len })
    }
}
