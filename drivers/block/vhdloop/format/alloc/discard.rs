// SPDX-License-Identifier: GPL-2.0

//! Giving back what the guest has no use for.

use loop_parser::contract::{
    Discard,
    Discarded,
    Range,
    Result,
    TablesMut,
    Unlinked, //
};

use super::{
    super::{
        layout::{
            BatEntry,
            Block,
            MAX_DISK_SIZE, //
        },
        map::{
            self,
            Found, //
        },
        num::add, //
    },
    is_unchanged,
    space::stride,
    Blocks, //
};

impl Blocks {
    /// Dynamic images: gives back a block that is wholly covered, up to the end of a disk of `size`
    /// bytes, if its place will not be missed. Of another one the data is zeroed, under clear bits
    /// too, as QEMU would show it; bits stay as they are.
    pub(super) fn discard_block(
        &mut self,
        tables: &mut dyn TablesMut,
        range: Range,
        size: u64,
        how: Discard,
    ) -> Result<Discarded> {
        let Range { pos, len } = range;
        let layout = &self.layout;
        let index = layout.index(pos)?;
        let entry = layout.load_entry(tables, index)?;
        if entry.is_none() {
            let len = map::unallocated_len(layout, tables, pos, len)?;
            return Ok(Discarded::Done { len });
        }
        let block = layout.locate(entry, layout.entry_at(index)?, tables.size()?)?;
        let (start, block_len) = layout.guest_range(pos);
        let on_disk = block_len.min(size.saturating_sub(start));
        let is_whole = pos == start && len >= on_disk;
        if is_whole && how != Discard::ZeroInPlace && self.can_lose_places(tables)? {
            self.free(tables, index, entry, &block)?;
            return Ok(Discarded::Freed {
                len: len.min(block_len),
                space: Unlinked {
                    offset: block.bitmap,
                    len: block.end.saturating_sub(block.bitmap),
                },
            });
        }
        Ok(Discarded::Zero {
            offset: add(block.data, layout.within(pos), block.data)?,
            len: len.min(layout.left_in_block(pos)),
        })
    }

    /// Whether a place that is not used again will not be missed: no write may ever fail because of a
    /// discard. A block device has no more room than it has, nor has a file system that cannot have it
    /// back. A file has, as long as there are sector numbers left for all of the disk.
    fn can_lose_places(&self, tables: &mut dyn TablesMut) -> Result<bool> {
        let places = self.blocks.saturating_add(1);
        let disk = places.saturating_mul(stride(&self.layout));
        let end = tables.size()?.saturating_add(disk);
        Ok(end <= MAX_DISK_SIZE && tables.can_punch())
    }

    /// Removes the entry of block `index`.
    fn free(
        &mut self,
        tables: &mut dyn TablesMut,
        index: u64,
        entry: BatEntry,
        block: &Block,
    ) -> Result {
        let layout = &self.layout;
        let at = layout.entry_at(index)?;
        if let Err(error) = tables.store_be32(at, BatEntry::NONE.raw()) {
            // Either way the block stays in use.
            is_unchanged(tables, layout, index, entry);
            return Err(error);
        }
        self.freed_end = self.freed_end.max(block.end);
        if let Some(space) = &mut self.space {
            space.missing = space.missing.saturating_add(1);
        }
        Ok(())
    }

    /// Differencing images: of the sectors that are the parent's none can be made zero but by writing
    /// it; those are left alone if they may be. The others are zeroed.
    pub(super) fn discard_sectors(
        &self,
        tables: &mut dyn TablesMut,
        range: Range,
        how: Discard,
    ) -> Result<Discarded> {
        let Range { pos, len } = range;
        let layout = &self.layout;
        let len = match map::find(layout, tables, pos, len)? {
            Found::Allocated {
                offset,
                len,
                is_set: true,
            } => return Ok(Discarded::Zero { offset, len }),
            Found::Allocated { len, .. } => len,
            Found::Unallocated => map::unallocated_len(layout, tables, pos, len)?,
        };
        Ok(match how {
            Discard::Forget => Discarded::Done { len },
            Discard::Zero | Discard::ZeroInPlace => Discarded::Write { len },
        })
    }
}
