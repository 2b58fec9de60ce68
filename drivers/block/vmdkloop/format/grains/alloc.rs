// SPDX-License-Identifier: GPL-2.0

//! Making room for guest writes, and giving it back.
//!
//! Nothing says what is free: space is appended to the file. "X before Y" below means that X was synced
//! before Y was stored.
//!
//! - The mark that the file is open comes before the first change of anything else; what it was opened
//!   for comes before the mark is taken away.
//! - A regular file is extended by a *reserve*, behind everything that an entry points to. It was never
//!   written and reads as zero, and its size is durable before anything of it is handed out. So the
//!   pointer to a new table can be stored at once, and that to a grain that read as zero before, too:
//!   losing what is in it brings back zeros.
//! - What a grain's bytes were, the parent's, is in its new place before the pointer to that.
//! - A block device does not grow, and its free space holds old bytes. So does space that comes back
//!   because a write to it failed. Both are zeroed before they are handed out.
//! - The redundant entry follows the primary one at once: they may differ after a power failure, and
//!   the primary one counts. The redundant set is made equal when a file is found marked as open, else
//!   table by table, when one is touched.
//! - A grain that is given back loses its entries; that is durable before the driver punches it. Its
//!   place is not used again, as requests may still be on their way to it: it stays a hole.
//!
//! State is a handful of cursors ([`Space`]), set after a look at all the entries: one that points past
//! the end of the file would become valid by its growth.

mod copy;
mod discard;
mod pair;
mod repair;
mod space;

use loop_parser::contract::{
    num::{
        add,
        NO_ROOM,
        OUTSIDE,
        TOO_LARGE, //
    },
    space::{
        Known,
        Rules,
        Space, //
    },
    Allocate,
    Discard,
    Discarded,
    Error,
    Range,
    Reservation,
    Reserved,
    Result,
    TablesMut,
    Unlinked, //
};

use super::{
    super::run::{
        self,
        Kind, //
    },
    layout::{
        Entry,
        Layout,
        Mapping,
        MAX_OFFSET, //
    },
    map::Walk,
    marker::Marker, //
};

/// Makes room for writes to grains that have no place of their own.
#[derive(Debug)]
pub struct GrainAllocator {
    layout: Layout,
    marker: Marker,
    /// The mark is there, and it is ours.
    is_marked: bool,
    /// Number of a table of which the redundant copy is known to be equal.
    equal: Option<u64>,
    space: Known,
    /// Number of a table the redundant copy of which must not be overwritten, and why.
    bad_copy: Option<(u64, Error)>,
    /// Number of a table with an entry that could not be stored in the redundant copy.
    behind: Option<u64>,
}

impl GrainAllocator {
    pub(in super::super) fn new(layout: Layout, marker: Marker) -> Self {
        Self {
            layout,
            marker,
            is_marked: false,
            equal: None,
            space: Known::default(),
            bad_copy: None,
            behind: None,
        }
    }

    /// The cursors, for a file as it is now.
    fn space(&mut self, tables: &mut dyn TablesMut) -> Result<&mut Space> {
        let rules = Rules {
            unit: self.layout.grain,
            limit: MAX_OFFSET,
            free_at: self.layout.free_at,
        };
        let layout = &self.layout;
        self.space.learn(tables, rules, |tables, size| {
            space::scan(tables, layout, size)
        })
    }

    /// If an entry of table `index` could not be stored, in its copy or at all, nothing is known of that.
    fn doubt(&mut self, index: u64, stored: Result<bool>) -> Result {
        if stored != Ok(true) {
            self.equal = None;
        }
        if stored == Ok(false) {
            self.behind = Some(index);
        }
        stored.map(|_| ())
    }

    /// What the tables say of the grain at guest position `pos`. It gets tables if it has none.
    fn mapping(&mut self, tables: &mut dyn TablesMut, pos: u64) -> Result<(Mapping, u64)> {
        let layout = self.layout;
        let index = layout.table_of(pos)?;
        let pair = match self.pair(tables, index)? {
            Some(pair) => pair,
            None => self.add_tables(tables, index)?,
        };
        let at = layout.entry_at(pair.primary, pos)?;
        let entry = Entry(tables.load_le32(at)?);
        Ok((layout.decode(entry, tables.size()?, at)?, at))
    }

    /// Enters `offset` as the place of the grain at guest position `pos`.
    // Not inlined, for the stack.
    #[inline(never)]
    fn publish_grain(&mut self, tables: &mut dyn TablesMut, pos: u64, offset: u64) -> Result {
        let layout = self.layout;
        // The file belongs to its owner, who may have changed it in the meantime.
        let index = layout.table_of(pos)?;
        let pair = self.pair(tables, index)?.ok_or(OUTSIDE)?;
        let slot = pair.slot(&layout, pos)?;
        let old = Entry(tables.load_le32(slot.primary)?);
        let file_size = tables.size()?;
        if let Mapping::Data(_) = layout.decode(old, file_size, slot.primary)? {
            let what = "VMDK table entry changed under us";
            return Err(Error::malformed(what, slot.primary));
        }
        let new = Entry::for_offset(offset).ok_or(TOO_LARGE)?;
        match layout.decode(new, file_size, slot.primary)? {
            Mapping::Data(_) => {
                let stored = slot.point(tables, self.space.space(), old, new);
                self.doubt(index, stored)
            }
            _ => Err(NO_ROOM),
        }
    }
}

/// Length in bytes of the grains from that of `pos` on that are the parent's, of those that a write of `len`
/// bytes there is given places for.
#[inline(never)]
fn below_len(tables: &dyn TablesMut, layout: &Layout, pos: u64, len: u64) -> Result<u64> {
    let start = layout.grain_start(pos);
    let mut walk = Walk::new(layout, tables);
    let run = run::find(&mut walk, start, layout.unit_len(pos, len))?;
    match run.kind {
        Kind::Below => Ok(run.len),
        _ => Err(OUTSIDE),
    }
}

impl Allocate for GrainAllocator {
    /// Marks the file as open. The redundant tables of one that was found so are repaired: its writer
    /// may have been interrupted between an entry and its copy.
    fn begin(&mut self, tables: &mut dyn TablesMut) -> Result {
        self.marker.check_unchanged(tables, &self.layout)?;
        let is_set = self.marker.is_set(tables)?;
        if self.is_marked && is_set {
            return Ok(());
        }
        self.is_marked = false;
        self.equal = None;
        self.bad_copy = None;
        if is_set {
            self.repair(tables)?;
        }
        self.marker.set(tables)?;
        tables.sync()?;
        self.is_marked = true;
        Ok(())
    }

    /// Room is made for the whole grain of `pos`; over a parent, where a sync is needed, for those behind it
    /// as well that have no place and are written to.
    fn reserve(&mut self, tables: &mut dyn TablesMut, pos: u64, len: u64) -> Result<Reserved> {
        let (mapping, at) = self.mapping(tables, pos)?;
        let layout = self.layout;
        if let Mapping::Data(grain) = mapping {
            // The end of the file may have cut it; it must not any more.
            let end = grain.saturating_add(layout.within(pos));
            return match end < tables.size()? {
                true => Ok(Reserved::Ready),
                false => Err(Error::malformed(
                    "VMDK table entry points past the end of the file",
                    at,
                )),
            };
        }
        let has_content = mapping == Mapping::Unallocated && layout.has_parent;
        let len = match has_content {
            true => below_len(tables, &layout, pos, len)?,
            false => layout.grain,
        };
        let offset = self.space(tables)?.take(tables, len)?;
        Ok(Reserved::Space(Reservation {
            pos: layout.grain_start(pos),
            len,
            offset,
            granule: match has_content {
                true => layout.grain,
                false => 0,
            },
            sync_before_publish: has_content || !tables.can_grow(),
        }))
    }

    fn publish(
        &mut self,
        tables: &mut dyn TablesMut,
        space: &Reservation,
        written: Range,
    ) -> Result<Option<Unlinked>> {
        let layout = self.layout;
        let end = written.pos.saturating_add(written.len);
        let mut pos = written.pos;
        while pos < end {
            let skip = pos.checked_sub(space.pos).ok_or(OUTSIDE)?;
            self.publish_grain(tables, pos, add(space.offset, skip, 0)?)?;
            pos = add(pos, layout.grain, 0)?;
        }
        Ok(None)
    }

    fn release(&mut self, space: &Reservation) {
        self.space.release(space.offset, space.len);
    }

    fn discard(
        &mut self,
        tables: &mut dyn TablesMut,
        range: Range,
        size: u64,
        how: Discard,
    ) -> Result<Discarded> {
        self.discard_start(tables, range, size, how)
    }

    /// A file that somebody else has written to is left as it is.
    fn close(&mut self, tables: &mut dyn TablesMut) -> Result {
        if self.is_marked || self.space.is_learned() {
            let checked = self.marker.check_unchanged(tables, &self.layout);
            if let Err(error @ Error::NeedsReadOnly(_)) = checked {
                self.is_marked = false;
                self.space.forget();
                return Err(error);
            }
            checked?;
        }
        // The two may differ: the next one to touch the table makes them equal.
        let _ = self.catch_up(tables);
        self.space.give_back(tables)?;
        if self.is_marked {
            tables.sync()?;
            self.marker.clear(tables)?;
            tables.sync()?;
            self.is_marked = false;
        }
        Ok(())
    }
}
