// SPDX-License-Identifier: GPL-2.0

//! A place for the clusters that a guest writes to.
//!
//! Either a cluster is new, or it has a place already whose bytes do not count: those of a cluster
//! that reads as zero, or of subclusters that are not allocated.

use loop_parser::contract::{
    Error,
    Range,
    Reservation,
    Reserved,
    Result,
    TablesMut,
    Unlinked, //
};

use super::{
    super::{
        super::num::{
            add,
            bits_between,
            NO_ROOM,
            OUTSIDE,
            TOO_LARGE, //
        },
        entry::{
            Content,
            L2Entry,
            Mapping,
            Subclusters, //
        },
        layout::Layout,
        ondisk::{
            SUBCLUSTERS,
            TABLE_ENTRY_LEN, //
        },
        refcount::overlap, //
    },
    header,
    Qcow2Allocator, //
};

/// Bytes in the longest L2 entry.
const MAX_ENTRY_LEN: usize = 16;

/// An L2 entry in a table that can be written in place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Host offset in bytes of the entry.
    pub(super) at: u64,
    /// What is there.
    pub(super) entry: L2Entry,
    /// What that says. A place past the end of the file, of bytes that do not count, is none.
    pub(super) mapping: Mapping,
    /// The entry names such a place.
    has_lost: bool,
}

impl Place {
    /// Looks up entry `l2` of the table at host offset `table`.
    pub(super) fn look(
        tables: &dyn TablesMut,
        layout: &Layout,
        table: u64,
        l2: u64,
    ) -> Result<Self> {
        let at = layout.l2_entry_at(table, l2)?;
        let entry = layout.load_l2(tables, at)?;
        let mut mapping = entry.decode(layout, at)?;
        let has_lost = has_lost(tables, layout, &entry, mapping)?;
        if has_lost {
            mapping = match layout.is_extended {
                true => Mapping::Unallocated,
                false => Mapping::ZeroPlain,
            };
        }
        match mapping {
            Mapping::Data { offset, .. } | Mapping::ZeroAllocated { offset, .. } => {
                layout.check_cluster(tables, offset, at)?;
                if !layout.has_data_file {
                    overlap::check(tables, layout, offset, at)?;
                }
            }
            Mapping::Compressed { offset, .. } => layout.check_compressed(tables, offset, at)?,
            Mapping::Unallocated | Mapping::ZeroPlain => {}
        }
        Ok(Self {
            at,
            entry,
            mapping,
            has_lost,
        })
    }

    /// Removes a place that is none from the entry: what the file grows by is somebody else's.
    // Not inlined, for the stack.
    #[inline(never)]
    fn without_lost(mut self, tables: &mut dyn TablesMut, layout: &Layout) -> Result<Self> {
        if !self.has_lost {
            return Ok(self);
        }
        let zero = L2Entry::for_none(layout, true).ok_or(OUTSIDE)?;
        let entry = L2Entry {
            bitmap: self.entry.bitmap,
            ..zero
        };
        self.store(tables, layout, entry)
            .map_err(|(error, _)| error)?;
        tables.sync()?;
        self.entry = entry;
        self.has_lost = false;
        Ok(self)
    }

    /// The same, of a table that others have, too: then they have what it points to, whatever the
    /// entry says.
    pub(super) fn of_others(self) -> Self {
        let mapping = match self.mapping {
            Mapping::Data { offset, .. } => Mapping::Data {
                offset,
                is_copied: false,
            },
            Mapping::ZeroAllocated { offset, .. } => Mapping::ZeroAllocated {
                offset,
                is_copied: false,
            },
            mapping => mapping,
        };
        Self { mapping, ..self }
    }

    /// Stores another entry. `true`: that failed, and the new one may have reached the disk.
    pub(super) fn store(
        &self,
        tables: &mut dyn TablesMut,
        layout: &Layout,
        entry: L2Entry,
    ) -> core::result::Result<(), (Error, bool)> {
        let stored = put(tables, self.at, entry);
        stored.map_err(|error| {
            let is_unchanged = layout.load_l2(tables, self.at) == Ok(self.entry);
            if !is_unchanged {
                // A second failure has nobody to be told: the first one is reported.
                let _ = put(tables, self.at, self.entry);
            }
            (error, !is_unchanged)
        })
    }

    /// The space of the image that the entry points to.
    pub(super) fn space(&self, layout: &Layout) -> Option<Unlinked> {
        match self.mapping {
            _ if layout.has_data_file => None,
            Mapping::Data { offset, .. } | Mapping::ZeroAllocated { offset, .. } => {
                Some(Unlinked {
                    offset,
                    len: layout.cluster_size(),
                })
            }
            Mapping::Compressed { offset, stored } => Some(Unlinked {
                offset,
                len: stored,
            }),
            Mapping::Unallocated | Mapping::ZeroPlain => None,
        }
    }

    /// Whether the bytes of subcluster `index` are zeros.
    fn content_is_zero(&self, layout: &Layout, index: u32) -> bool {
        match self.entry.content(self.mapping, index) {
            Content::Data => false,
            Content::Zero => true,
            Content::Below => !layout.has_parent,
        }
    }

    /// What the cluster that is not compressed reads as at guest position `pos`, and for how many
    /// bytes from there, at most `len`.
    pub(super) fn run(&self, layout: &Layout, pos: u64, len: u64) -> (Content, u64) {
        let within = layout.within(pos);
        let first = layout.subcluster(within);
        let content = self.entry.content(self.mapping, first);
        if !layout.is_extended {
            return (content, len);
        }
        let count = (first..SUBCLUSTERS)
            .take_while(|&index| self.entry.content(self.mapping, index) == content)
            .fold(u64::from(first), |count, _| count.saturating_add(1));
        let end = count.saturating_mul(layout.granule());
        (content, len.min(end.saturating_sub(within)))
    }

    /// Whether guest position `pos` of the cluster reads as zero without anybody's help.
    pub(super) fn is_zero_at(&self, layout: &Layout, pos: u64) -> bool {
        let is_compressed = matches!(self.mapping, Mapping::Compressed { .. });
        !is_compressed && self.content_is_zero(layout, layout.subcluster(layout.within(pos)))
    }

    /// Whether all of the cluster reads as zero.
    fn is_zero(&self, layout: &Layout) -> bool {
        match self.mapping {
            Mapping::Compressed { .. } => false,
            _ if layout.is_extended => {
                (0..SUBCLUSTERS).all(|index| self.content_is_zero(layout, index))
            }
            _ => self.content_is_zero(layout, 0),
        }
    }
}

/// Stores an entry, at once.
fn put(tables: &mut dyn TablesMut, at: u64, entry: L2Entry) -> Result {
    let mut bytes = [0; MAX_ENTRY_LEN];
    let second = entry.bitmap.map_or(0, |bitmap| bitmap.0);
    let words = entry.word.to_be_bytes().into_iter();
    for (to, from) in bytes.iter_mut().zip(words.chain(second.to_be_bytes())) {
        *to = from;
    }
    let len = match entry.bitmap {
        Some(_) => MAX_ENTRY_LEN,
        None => TABLE_ENTRY_LEN as usize,
    };
    tables.store(at, bytes.get(..len).ok_or(OUTSIDE)?)
}

/// Whether an entry names a place past the end of the file although it has no bytes there: all of the
/// cluster reads as zero, or as what is below.
fn has_lost(
    tables: &dyn TablesMut,
    layout: &Layout,
    entry: &L2Entry,
    mapping: Mapping,
) -> Result<bool> {
    let offset = match (mapping, entry.bitmap) {
        (Mapping::ZeroAllocated { offset, .. }, _) => offset,
        (Mapping::Data { offset, .. }, Some(bitmap)) if bitmap.allocated() == 0 => offset,
        _ => return Ok(false),
    };
    Ok(!layout.has_data_file && offset >= tables.size()?)
}

impl Qcow2Allocator {
    /// Makes room for a write at `pos`.
    pub(super) fn reserve_cluster(
        &mut self,
        tables: &mut dyn TablesMut,
        pos: u64,
    ) -> Result<Reserved> {
        let index = self.layout.index(pos)?;
        let table = self.writable_table(tables, index.l1)?;
        let place = Place::look(tables, &self.layout, table, index.l2)?;
        let place = place.without_lost(tables, &self.layout)?;
        match place.mapping {
            Mapping::Data {
                offset,
                is_copied: true,
            } => {
                if self.layout.is_extended {
                    return self.reserve_within(tables, &place, offset, pos);
                }
                self.ready(tables, offset, place.at)
            }
            Mapping::ZeroAllocated {
                offset,
                is_copied: true,
            } => {
                let space = self.whole(pos, offset, false);
                self.clear_tail(tables, &space)?;
                self.held.hold(offset)?;
                Ok(Reserved::Space(space))
            }
            _ => self.reserve_new(tables, &place, pos),
        }
    }

    /// [`Reserved::Ready`] for the cluster at host offset `offset`, which an entry at `at` names. The
    /// map does not take what lies past the end of the file for a place to write to: if a file has
    /// been cut there, it gets its end back.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] with `-ENOSPC` if the end of a device cuts the cluster.
    fn ready(&self, tables: &mut dyn TablesMut, offset: u64, at: u64) -> Result<Reserved> {
        let layout = &self.layout;
        let there = layout.check_cluster(tables, offset, at)?;
        if there < layout.cluster_size() && !header::complete(tables, layout)? {
            return Err(NO_ROOM);
        }
        Ok(Reserved::Ready)
    }

    /// Space for the whole cluster of `pos` at host offset `offset`. `is_zero`: it reads as zero
    /// durably, as the cluster does.
    fn whole(&self, pos: u64, offset: u64, is_zero: bool) -> Reservation {
        let size = self.layout.cluster_size();
        Reservation {
            pos: self.layout.cluster_start(pos),
            len: size,
            offset,
            granule: match is_zero {
                true => 0,
                false => size,
            },
            sync_before_publish: !is_zero,
        }
    }

    /// The subclusters from `pos` on that are not allocated, of a cluster that has a place.
    fn reserve_within(
        &mut self,
        tables: &mut dyn TablesMut,
        place: &Place,
        offset: u64,
        pos: u64,
    ) -> Result<Reserved> {
        let layout = &self.layout;
        let first = layout.subcluster(layout.within(pos));
        let is_data = |index: u32| place.entry.content(place.mapping, index) == Content::Data;
        if is_data(first) {
            return self.ready(tables, offset, place.at);
        }
        let count = (first..SUBCLUSTERS)
            .take_while(|&index| !is_data(index))
            .fold(0u64, |count, _| count.saturating_add(1));
        let granule = layout.granule();
        let skip = u64::from(first).saturating_mul(granule);
        let space = Reservation {
            pos: add(layout.cluster_start(pos), skip, place.at)?,
            len: count.saturating_mul(granule),
            offset: add(offset, skip, place.at)?,
            granule,
            sync_before_publish: true,
        };
        self.clear_tail(tables, &space)?;
        self.held.hold(offset)?;
        Ok(Reserved::Space(space))
    }

    /// A new cluster.
    fn reserve_new(
        &mut self,
        tables: &mut dyn TablesMut,
        place: &Place,
        pos: u64,
    ) -> Result<Reserved> {
        if self.layout.has_data_file {
            return Ok(Reserved::Space(self.in_data_file(place, pos)));
        }
        let (counts, layout) = (&mut self.counts, &self.layout);
        let is_zero = place.is_zero(layout);
        let taken = self.space.take(tables, counts, layout, is_zero)?;
        let mut space = self.whole(pos, taken.offset, is_zero && taken.is_clean);
        self.set_granule(&mut space, place);
        if !taken.is_clean {
            self.clear_tail(tables, &space)
                .inspect_err(|_| self.space.put_back(&self.layout, taken.offset))?;
        }
        Ok(Reserved::Space(space))
    }

    /// Space for the cluster of `pos` in the external data file: at the same place, which may have any
    /// bytes.
    fn in_data_file(&self, place: &Place, pos: u64) -> Reservation {
        let mut space = self.whole(pos, self.layout.cluster_start(pos), false);
        self.set_granule(&mut space, place);
        space
    }

    /// Parts of a new cluster can be published if it had no place so far.
    fn set_granule(&self, space: &mut Reservation, place: &Place) {
        if space.granule != 0 && place.mapping == Mapping::Unallocated {
            space.granule = self.layout.granule();
        }
    }

    /// Zeroes `space` if the disk may end in it: what lies past that end reads as zero if the disk
    /// grows, and nobody else writes it. An external data file ends with the disk.
    fn clear_tail(&self, tables: &mut dyn TablesMut, space: &Reservation) -> Result {
        let is_within = space.pos.saturating_add(space.len) <= self.layout.size;
        if is_within || self.layout.has_data_file {
            return Ok(());
        }
        tables.fill(space.offset, space.len, 0)
    }

    /// The entry for guest position `pos`, to be pointed to the cluster at `offset`.
    fn place_of(&self, tables: &dyn TablesMut, pos: u64, offset: u64) -> Result<Place> {
        let layout = &self.layout;
        let index = layout.index(pos)?;
        let entry = layout.load_l1(tables, index.l1)?;
        let at = layout.l1_entry_at(index.l1)?;
        // The file belongs to its owner, who may have changed it in the meantime.
        let table = entry.table().filter(|_| entry.is_copied());
        let table = table.ok_or(Error::malformed("qcow2 L1 entry changed under us", at))?;
        layout.check_l2_table(tables, table, at)?;
        overlap::check(tables, layout, table, at)?;
        layout.check_cluster(tables, offset, at)?;
        Place::look(tables, layout, table, index.l2)
    }

    /// Makes what was `written` of `space` visible. Answers what is not any more.
    pub(super) fn publish_part(
        &mut self,
        tables: &mut dyn TablesMut,
        space: &Reservation,
        written: Range,
    ) -> Result<Option<Unlinked>> {
        let layout = &self.layout;
        let mask = granules(layout, space, written).ok_or(OUTSIDE)?;
        let offset = space.offset.checked_sub(layout.within(space.pos));
        let offset = offset.ok_or(OUTSIDE)?;
        let place = self.place_of(tables, written.pos, offset)?;
        let changed = Error::malformed("qcow2 L2 entry changed under us", place.at);

        let is_held = self.held.is_held(offset);
        let bitmap = match is_held {
            true if !place.is_at(offset) => return Err(changed),
            false if place.is_at(offset) => return Err(changed),
            _ => place.bitmap_with(layout, space, mask).ok_or(changed)?,
        };
        let entry = L2Entry::for_cluster(layout, offset, bitmap).ok_or(TOO_LARGE)?;
        if let Err((error, may_be_there)) = place.store(tables, layout, entry) {
            if may_be_there && !is_held {
                self.held.lose(offset)?;
            }
            return Err(error);
        }
        if is_held {
            self.held.remove(offset);
            return Ok(None);
        }
        Ok(place.space(&self.layout))
    }

    /// Gives back space that was not published.
    pub(super) fn release_cluster(&mut self, space: &Reservation) {
        let within = self.layout.within(space.pos);
        let offset = space.offset.saturating_sub(within);
        if !self.held.remove(offset) && !self.layout.has_data_file {
            self.space.put_back(&self.layout, offset);
        }
    }
}

impl Place {
    /// Whether the entry says that the cluster is at `offset`, and nobody else's.
    fn is_at(&self, wanted: u64) -> bool {
        matches!(
            self.mapping,
            Mapping::Data { offset, is_copied: true }
            | Mapping::ZeroAllocated { offset, is_copied: true } if offset == wanted
        )
    }

    /// The second word of an extended entry when the subclusters of `mask` were written; `Some(None)`
    /// for an entry that is not extended. `None`: they cannot be published by themselves.
    fn bitmap_with(
        &self,
        layout: &Layout,
        space: &Reservation,
        mask: u64,
    ) -> Option<Option<Subclusters>> {
        let Some(old) = self.entry.bitmap else {
            return Some(None);
        };
        if space.granule != layout.granule() {
            return Some(Some(Subclusters::ALLOCATED));
        }
        let has_rest = match self.mapping {
            Mapping::Unallocated => true,
            Mapping::Data { offset, .. } => {
                offset == space.offset.saturating_sub(layout.within(space.pos))
            }
            _ => false,
        };
        has_rest.then_some(Some(old.with_allocated(mask)))
    }
}

/// The subclusters that were `written` of `space`, as bits; any bit if there is but the cluster.
/// `None` if it is not in it, or no whole granules.
fn granules(layout: &Layout, space: &Reservation, written: Range) -> Option<u64> {
    let skip = written.pos.checked_sub(space.pos)?;
    let end = skip.checked_add(written.len)?;
    let space_end = space.pos.checked_add(space.len)?;
    let is_in_cluster = space_end
        <= layout
            .cluster_start(space.pos)
            .checked_add(layout.cluster_size())?;
    let unit = match space.granule {
        0 => layout.cluster_size(),
        granule => granule,
    };
    let unit = unit.max(1);
    let is_whole = skip % unit == 0 && end % unit == 0;
    if end > space.len || written.len == 0 || !is_whole || !is_in_cluster {
        return None;
    }
    let first = layout.subcluster(layout.within(written.pos));
    let last = layout
        .within(written.pos)
        .checked_add(written.len)?
        .checked_sub(1)?;
    Some(bits_between(first, layout.subcluster(last).checked_add(1)?))
}
