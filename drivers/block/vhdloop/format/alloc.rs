// SPDX-License-Identifier: GPL-2.0

//! Making room for guest writes.
//!
//! Power may fail after any sector, and the page cache writes what it likes in any order; "X before
//! Y" below means that X was synced before Y was stored. The orders that keep an image sound:
//!
//! - A regular file is extended by a *reserve* of several blocks. The footer at the new end of the
//!   file comes before anything that overwrites the old footer, which comes before the blocks are
//!   handed out. So whatever was synced ends in a footer. Only a file that was just growing can be
//!   found without one; it has the copy at 0, which is repaired before everything else.
//! - The reserve lies behind the old footer. It was never written, reads as zero, and its bitmaps
//!   are all ones and durable before a BAT entry can name a block of it. So a guest's bytes need
//!   not be durable before the BAT entry is stored: losing them brings back zeros, the old content.
//! - A block device does not grow, and its free space holds old bytes: a block is zeroed, then gets
//!   its bitmap, one at a time; both are durable before it is handed out. The footer stays in the
//!   last sector.
//! - Bits of a bitmap are set after their sectors were zeroed.
//!
//! State is a handful of cursors ([`space::Space`]); whatever they say of the file is looked up
//! again when the file is not as they left it.

mod chunk;
mod grow;
mod slots;
mod space;

use loop_parser::contract::{
    Allocate,
    Discard,
    Discarded,
    Error,
    Range,
    Reservation,
    Reserved,
    Result,
    TablesMut, //
};

use super::{
    layout::{
        BatEntry,
        Layout, //
    },
    num::OUTSIDE,
};
use space::Space;

/// Makes room for writes to the unallocated blocks of a VHD.
#[derive(Debug)]
pub struct VhdAllocator(Option<Dynamic>);

/// The allocator of a dynamic image; a fixed one never needs room.
#[derive(Debug)]
struct Dynamic {
    layout: Layout,
    /// Number of blocks that the disk is known to have.
    blocks: u64,
    /// Learned at the first allocation.
    space: Option<Space>,
}

impl VhdAllocator {
    pub(super) fn fixed() -> Self {
        Self(None)
    }

    /// `size` is that of the disk, in bytes.
    pub(super) fn dynamic(layout: Layout, size: u64) -> Self {
        Self(Some(Dynamic {
            layout,
            blocks: size.div_ceil(layout.block_size().max(1)),
            space: None,
        }))
    }
}

impl Allocate for VhdAllocator {
    /// `len` is of no interest: room is made for the whole block or chunk of `pos`.
    fn reserve(&mut self, tables: &mut dyn TablesMut, pos: u64, _len: u64) -> Result<Reserved> {
        match &mut self.0 {
            Some(dynamic) => dynamic.reserve(tables, pos),
            None => Ok(Reserved::Ready),
        }
    }

    /// All of `space` becomes visible: what was not written in it reads as zero, as before.
    fn publish(
        &mut self,
        tables: &mut dyn TablesMut,
        space: &Reservation,
        _written: Range,
    ) -> Result {
        match &mut self.0 {
            Some(dynamic) => dynamic.publish(tables, space),
            None => Err(OUTSIDE),
        }
    }

    fn release(&mut self, space: &Reservation) {
        if let Some(dynamic) = &mut self.0 {
            dynamic.release(space);
        }
    }

    /// Never called: no image has the feature.
    fn discard(
        &mut self,
        _tables: &mut dyn TablesMut,
        _range: Range,
        _size: u64,
        _how: Discard,
    ) -> Result<Discarded> {
        Err(OUTSIDE)
    }

    fn close(&mut self, tables: &mut dyn TablesMut) -> Result {
        match &mut self.0 {
            Some(dynamic) => dynamic.close(tables),
            None => Ok(()),
        }
    }
}

impl Dynamic {
    fn reserve(&mut self, tables: &mut dyn TablesMut, pos: u64) -> Result<Reserved> {
        let layout = &self.layout;
        let index = layout.index(pos)?;
        let entry = layout.load_entry(tables, index)?;
        if !entry.is_none() {
            let block = layout.locate(entry, layout.entry_at(index)?, tables.size()?)?;
            chunk::make_ready(tables, layout, &block, pos)?;
            return Ok(Reserved::Ready);
        }

        self.count_blocks(index);
        let layout = &self.layout;
        let space = Space::look(&mut self.space, tables, layout, self.blocks)?;
        let taken = space.take(tables, layout)?;
        let (pos, len) = layout.guest_range(pos);
        Ok(Reserved::Space(Reservation {
            pos,
            len,
            offset: taken.data,
            granule: 0,
            sync_before_publish: taken.was_used,
        }))
    }

    /// Notices that the disk has grown. Nobody says how far: it can have as many blocks as the BAT.
    fn count_blocks(&mut self, index: u64) {
        let blocks = self.layout.blocks();
        if index < self.blocks {
            return;
        }
        if let Some(space) = &mut self.space {
            let more = blocks.saturating_sub(self.blocks);
            space.missing = space.missing.saturating_add(more);
        }
        self.blocks = blocks;
    }

    fn publish(&mut self, tables: &mut dyn TablesMut, reservation: &Reservation) -> Result {
        let layout = &self.layout;
        let index = layout.index(reservation.pos)?;
        let at = layout.entry_at(index)?;
        let start = reservation.offset.checked_sub(layout.bitmap_len());
        let entry = start.and_then(BatEntry::for_block).ok_or(OUTSIDE)?;

        // The file belongs to its owner, who may have changed it in the meantime.
        layout.locate(entry, at, tables.size()?)?;
        if !layout.load_entry(tables, index)?.is_none() {
            return Err(Error::malformed("VHD BAT entry changed under us", at));
        }
        let stored = tables.store_be32(at, entry.raw());
        if stored.is_err() && is_still_none(tables, layout, index) {
            // Nothing points to the block: the caller can release it.
            return stored;
        }
        if let Some(space) = &mut self.space {
            space.settle(layout, reservation.offset);
        }
        stored
    }

    fn release(&mut self, reservation: &Reservation) {
        if let Some(space) = &mut self.space {
            space.release(&self.layout, reservation.offset);
        }
    }

    fn close(&mut self, tables: &mut dyn TablesMut) -> Result {
        match self.space.take() {
            Some(space) => space.trim(tables, &self.layout),
            None => Ok(()),
        }
    }
}

/// Whether a failed store left the BAT entry of block `index` as it was. If it did not, what is
/// there is taken back as well as can be, and the answer is no: the page cache may have written it
/// out already, so the block is lost.
fn is_still_none(tables: &mut dyn TablesMut, layout: &Layout, index: u64) -> bool {
    if matches!(layout.load_entry(tables, index), Ok(BatEntry::NONE)) {
        return true;
    }
    if let Ok(at) = layout.entry_at(index) {
        // A second failure has nobody to be told: the first one is reported.
        let _ = tables.store_be32(at, BatEntry::NONE.raw());
    }
    false
}
