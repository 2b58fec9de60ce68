// SPDX-License-Identifier: GPL-2.0

//! Making room for guest writes in an image of version 1.
//!
//! Nothing in the format says what is free: space is appended to the file. "X before Y" below means
//! that X was synced before Y was stored.
//!
//! - A regular file is extended by a *reserve* of several clusters, behind everything that an entry
//!   points to. It was never written and reads as zero, and its size is durable before anything of it
//!   is handed out. So the pointer to a new L2 table can be stored at once, and that to a cluster that
//!   read as zero before, too: losing what is in it brings back zeros.
//! - What the cluster's bytes were, the backing file's or compressed ones, is in its new place before
//!   the pointer to that.
//! - A block device does not grow, and its free space holds old bytes. So does space that comes back
//!   because a write to it failed. Both are zeroed before they are handed out.
//! - Space is never given back to the image: the place of compressed bytes that were replaced is lost,
//!   as it is with QEMU. What is left of the reserve is cut off in the end.
//!
//! State is a handful of cursors ([`Space`]), set after a look at all the entries: one that points
//! past the end of the file would become valid by its growth.

mod space;

use loop_parser::contract::{
    space::{
        Known,
        Rules,
        Space, //
    },
    Allocate,
    Error,
    Range,
    Reservation,
    Reserved,
    Result,
    TablesMut,
    Unlinked, //
};

use super::{
    super::num::{
        add,
        ensure_same,
        NO_ROOM,
        OUTSIDE, //
    },
    header::{
        self,
        Header, //
    },
    layout::{
        L2Entry,
        Layout,
        Mapping, //
    },
};

/// Makes room for writes to clusters that have no place of their own.
#[derive(Debug)]
pub struct QcowAllocator {
    layout: Layout,
    space: Known,
}

/// The entry of a cluster.
struct Slot {
    /// Its host offset.
    at: u64,
    /// What it says.
    entry: L2Entry,
    mapping: Mapping,
}

impl QcowAllocator {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            space: Known::default(),
        }
    }

    /// The cursors, for a file as it is now.
    fn space(&mut self, tables: &mut dyn TablesMut) -> Result<&mut Space> {
        let rules = Rules {
            unit: self.layout.cluster_size(),
            limit: u64::MAX,
            free_at: None,
        };
        let layout = &self.layout;
        self.space.learn(tables, rules, |tables, size| {
            space::scan(tables, layout, size)
        })
    }

    /// The entry of guest position `pos`; `None` if there is no L2 table.
    fn slot(&self, tables: &dyn TablesMut, pos: u64) -> Result<Option<Slot>> {
        let Some(table) = self.layout.l2_table(tables, pos)? else {
            return Ok(None);
        };
        let at = self.layout.l2_entry_at(table, pos)?;
        let entry = L2Entry(tables.load_be64(at)?);
        Ok(Some(Slot {
            at,
            entry,
            mapping: self.layout.decode(entry, tables.size()?, at)?,
        }))
    }

    /// Gives guest position `pos`, which has none, an L2 table. Its space reads as zero, durably.
    fn add_table(&mut self, tables: &mut dyn TablesMut, pos: u64) -> Result {
        let layout = self.layout;
        let at = layout.l1_entry_at(pos)?;
        let space = self.space(tables)?;
        let table = space.take(tables, layout.l2_len())?;
        let stored = point(tables, Some(&mut *space), at, 0, table);
        stored.inspect_err(|_| space.release(table, layout.l2_len()))
    }

    /// The old content of a cluster with this mapping is not just zeros.
    fn has_content(&self, mapping: Mapping) -> bool {
        mapping != Mapping::Unallocated || self.layout.has_parent()
    }
}

/// Stores `new`, the host offset of what was taken, in the entry at `at`, which was `old`. If that fails,
/// `old` is there again, and unless something else can have been there, the space can be released.
fn point(
    tables: &mut dyn TablesMut,
    space: Option<&mut Space>,
    at: u64,
    old: u64,
    new: u64,
) -> Result {
    let stored = tables.store(at, &new.to_be_bytes());
    if stored.is_ok() || tables.load_be64(at) != Ok(old) {
        if let Some(space) = space {
            space.settle(new);
        }
    }
    if stored.is_err() {
        // Whatever part of it was stored: a second failure has nobody to be told.
        let _ = tables.store(at, &old.to_be_bytes());
    }
    stored
}

/// Checks that the header says what `layout` does. The disk can have become larger.
///
/// # Errors
///
/// [`Error::NeedsReadOnly`] if it does not: somebody else has written to the image.
// Not inlined, for the stack.
#[inline(never)]
fn check_unchanged(tables: &dyn TablesMut, layout: &Layout) -> Result {
    let is_same = |Header { layout: now, .. }: Header| {
        let same = Layout {
            size: layout.size,
            l1_size: layout.l1_size,
            ..now
        };
        same == *layout && now.l1_size >= layout.l1_size
    };
    ensure_same(
        header::load(tables, tables.size()?).map(is_same),
        "qcow header was changed by somebody else after it was attached",
    )
}

impl Allocate for QcowAllocator {
    /// Nothing in the header says that an image is in use: all there is to do is to look if it is
    /// still the same.
    fn begin(&mut self, tables: &mut dyn TablesMut) -> Result {
        check_unchanged(tables, &self.layout)
    }

    /// Room is made for the whole cluster of `pos`.
    fn reserve(&mut self, tables: &mut dyn TablesMut, pos: u64, _len: u64) -> Result<Reserved> {
        let mut mapping = Mapping::Unallocated;
        match self.slot(tables, pos)? {
            Some(slot) => mapping = slot.mapping,
            None => self.add_table(tables, pos)?,
        }
        let layout = self.layout;
        let space = self.space(tables)?;
        if let Mapping::Data(cluster) = mapping {
            // The end of the file may have cut it; it does not any more.
            let end = add(cluster, layout.cluster_size(), cluster)?;
            return match end <= tables.size()? {
                true => Ok(Reserved::Ready),
                false => Err(NO_ROOM),
            };
        }
        let offset = space.take(tables, layout.cluster_size())?;
        let has_content = self.has_content(mapping);
        Ok(Reserved::Space(Reservation {
            pos: layout.cluster_start(pos),
            len: layout.cluster_size(),
            offset,
            granule: match has_content {
                true => layout.cluster_size(),
                false => 0,
            },
            sync_before_publish: has_content || !tables.can_grow(),
        }))
    }

    fn publish(
        &mut self,
        tables: &mut dyn TablesMut,
        space: &Reservation,
        _written: Range,
    ) -> Result<Option<Unlinked>> {
        // The file belongs to its owner, who may have changed it in the meantime.
        let slot = self.slot(tables, space.pos)?.ok_or(OUTSIDE)?;
        if matches!(slot.mapping, Mapping::Data(_)) {
            return Err(Error::malformed("qcow L2 entry changed under us", slot.at));
        }
        let new = L2Entry(space.offset);
        self.layout.decode(new, tables.size()?, slot.at)?;
        point(tables, self.space.space(), slot.at, slot.entry.0, new.0)?;
        Ok(None)
    }

    fn release(&mut self, space: &Reservation) {
        self.space.release(space.offset, space.len);
    }

    fn close(&mut self, tables: &mut dyn TablesMut) -> Result {
        self.space.give_back(tables)
    }
}
