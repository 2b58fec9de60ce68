// SPDX-License-Identifier: GPL-2.0

//! Making room for guest writes, and giving it back.
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
//! - Bits of a dynamic image's bitmap are set after their sectors were zeroed.
//! - In a differencing image the pointer to a sector is its bit, which comes after the sector's bytes.
//!   A new block's bits are all clear, durably, before the BAT entry: it shows nothing but the parent,
//!   so the entry is stored as soon as the block is there.
//!
//! - A block is given back by its BAT entry; that is durable before the driver punches the block. Its
//!   place is not used again, as requests may still be on their way to it: it stays a hole.
//!
//! State is a handful of cursors ([`space::Space`]); whatever they say of the file is looked up
//! again when the file is not as they left it.

mod chunk;
mod discard;
mod grow;
mod sectors;
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
    TablesMut,
    Unlinked, //
};

use super::{
    layout::{
        BatEntry,
        Layout, //
    },
    map,
    num::OUTSIDE, //
};
use space::{
    Space,
    Taken, //
};

/// Makes room for writes to the unallocated blocks of a VHD.
#[derive(Debug)]
pub struct VhdAllocator(Option<Blocks>);

/// The allocator of an image with a BAT; a fixed one never needs room.
#[derive(Debug)]
struct Blocks {
    layout: Layout,
    /// Number of blocks that the disk is known to have.
    blocks: u64,
    /// End of the highest block that was given back. Up to here nothing is free, even if the file ends
    /// without a footer.
    freed_end: u64,
    /// Learned at the first allocation.
    space: Option<Space>,
}

impl VhdAllocator {
    pub(super) fn fixed() -> Self {
        Self(None)
    }

    /// `size` is that of the disk, in bytes.
    pub(super) fn blocks(layout: Layout, size: u64) -> Self {
        Self(Some(Blocks {
            layout,
            blocks: size.div_ceil(layout.block_size().max(1)),
            freed_end: 0,
            space: None,
        }))
    }
}

impl Allocate for VhdAllocator {
    /// Nothing in the header says that an image is in use.
    fn begin(&mut self, _tables: &mut dyn TablesMut) -> Result {
        Ok(())
    }

    /// In a dynamic image room is made for the whole block or chunk of `pos`, in a differencing one
    /// for the sectors asked for.
    fn reserve(&mut self, tables: &mut dyn TablesMut, pos: u64, len: u64) -> Result<Reserved> {
        match &mut self.0 {
            Some(blocks) if blocks.layout.has_parent => blocks.reserve_sectors(tables, pos, len),
            Some(blocks) => blocks.reserve_block(tables, pos),
            None => Ok(Reserved::Ready),
        }
    }

    /// In a dynamic image all of `space` becomes visible: what was not written in it reads as zero,
    /// as before. In a differencing one only what was written does.
    fn publish(
        &mut self,
        tables: &mut dyn TablesMut,
        space: &Reservation,
        written: Range,
    ) -> Result<Option<Unlinked>> {
        match &mut self.0 {
            Some(blocks) if blocks.layout.has_parent => {
                blocks.publish_sectors(tables, space, written)?;
            }
            Some(blocks) => blocks.publish_block(tables, space)?,
            None => return Err(OUTSIDE),
        }
        Ok(None)
    }

    /// The block of a differencing image's sectors stays: it shows nothing but the parent.
    fn release(&mut self, space: &Reservation) {
        match &mut self.0 {
            Some(blocks) if !blocks.layout.has_parent => blocks.release(space.offset),
            _ => {}
        }
    }

    /// A dynamic image gives back whole blocks. A differencing one zeroes the sectors that it has
    /// itself: it has no way to say that a sector is zero, not the parent's.
    fn discard(
        &mut self,
        tables: &mut dyn TablesMut,
        range: Range,
        size: u64,
        how: Discard,
    ) -> Result<Discarded> {
        match &mut self.0 {
            Some(blocks) if blocks.layout.has_parent => blocks.discard_sectors(tables, range, how),
            Some(blocks) => blocks.discard_block(tables, range, size, how),
            None => {
                // What is behind the disk is the footer.
                let left = size.checked_sub(range.pos).filter(|&left| left > 0);
                let len = range.len.min(left.ok_or(OUTSIDE)?);
                let (offset, len) = map::fixed(tables, range.pos, len)?;
                Ok(Discarded::Zero { offset, len })
            }
        }
    }

    fn close(&mut self, tables: &mut dyn TablesMut) -> Result {
        match &mut self.0 {
            Some(blocks) => blocks.close(tables),
            None => Ok(()),
        }
    }
}

impl Blocks {
    fn reserve_block(&mut self, tables: &mut dyn TablesMut, pos: u64) -> Result<Reserved> {
        let layout = &self.layout;
        let index = layout.index(pos)?;
        let entry = layout.load_entry(tables, index)?;
        if !entry.is_none() {
            let block = layout.locate(entry, layout.entry_at(index)?, tables.size()?)?;
            if !layout.is_full(tables, index)? {
                chunk::make_ready(tables, layout, &block, pos)?;
            }
            return Ok(Reserved::Ready);
        }
        let (pos, len) = layout.guest_range(pos);
        let taken = self.take(tables, index)?;
        Ok(Reserved::Space(Reservation {
            pos,
            len,
            offset: taken.data,
            granule: 0,
            sync_before_publish: taken.was_used,
        }))
    }

    /// Takes a place for block `index`.
    fn take(&mut self, tables: &mut dyn TablesMut, index: u64) -> Result<Taken> {
        self.count_blocks(index);
        let space = Space::look(
            &mut self.space,
            tables,
            &self.layout,
            self.blocks,
            self.freed_end,
        )?;
        space.take(tables, &self.layout)
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

    fn publish_block(&mut self, tables: &mut dyn TablesMut, space: &Reservation) -> Result {
        let index = self.layout.index(space.pos)?;
        self.point(tables, index, space.offset)
    }

    /// Stores the entry of block `index`, whose data is at host offset `data`. If that fails the
    /// place can be released, unless the entry may have reached the disk.
    fn point(&mut self, tables: &mut dyn TablesMut, index: u64, data: u64) -> Result {
        let layout = &self.layout;
        let at = layout.entry_at(index)?;
        let start = data.checked_sub(layout.bitmap_len());
        let entry = start.and_then(BatEntry::for_block).ok_or(OUTSIDE)?;

        // The file belongs to its owner, who may have changed it in the meantime.
        layout.locate(entry, at, tables.size()?)?;
        if !layout.load_entry(tables, index)?.is_none() {
            return Err(Error::malformed("VHD BAT entry changed under us", at));
        }
        let stored = tables.store_be32(at, entry.raw());
        if stored.is_err() && is_unchanged(tables, layout, index, BatEntry::NONE) {
            return stored;
        }
        if let Some(space) = &mut self.space {
            space.settle(layout, data);
        }
        stored
    }

    /// Gives back the place of a block whose data is at host offset `data`.
    fn release(&mut self, data: u64) {
        if let Some(space) = &mut self.space {
            space.release(&self.layout, data);
        }
    }

    fn close(&mut self, tables: &mut dyn TablesMut) -> Result {
        match self.space.take() {
            Some(space) => space.trim(tables, &self.layout),
            None => Ok(()),
        }
    }
}

/// Whether a failed store left the BAT entry of block `index` as it was. If it did not, what is there
/// is taken back as well as can be, and the answer is no: the page cache may have written it out
/// already.
fn is_unchanged(tables: &mut dyn TablesMut, layout: &Layout, index: u64, old: BatEntry) -> bool {
    if layout.load_entry(tables, index) == Ok(old) {
        return true;
    }
    if let Ok(at) = layout.entry_at(index) {
        // A second failure has nobody to be told: the first one is reported.
        let _ = tables.store_be32(at, old.raw());
    }
    false
}
