// SPDX-License-Identifier: GPL-2.0

//! Taking a block from free space, and giving back what was not used.

use loop_parser::contract::{
    Result,
    TablesMut, //
};

use super::{
    super::{
        footer::{
            self,
            Place, //
        },
        layout::{
            BatEntry,
            Layout, //
        },
        num::{
            add,
            is_out_of_room,
            Region,
            NO_ROOM, //
        },
        ondisk::FOOTER_LEN,
    },
    space::{
        Space,
        Taken, //
    },
};

/// A file is extended by about this many bytes at a time.
const RESERVE_SIZE: u64 = 32 * 1024 * 1024;
/// A file is extended by at most this many blocks at a time.
const RESERVE_BLOCKS: u64 = 64;

impl Space {
    /// Takes a block; all that is said of it is durable. In a dynamic image its data reads as zero
    /// and its bitmap is all ones; in a differencing one its bitmap is all zeros.
    ///
    /// A failed call changed nothing that another one could not go on from.
    pub(super) fn take(&mut self, tables: &mut dyn TablesMut, layout: &Layout) -> Result<Taken> {
        if !self.slots.has_free() {
            if tables.can_grow() {
                self.grow_file(tables, layout)?;
            } else {
                self.grow_into_device(layout)?;
            }
        }
        let slot = self.slots.take().ok_or(NO_ROOM)?;
        let start = self.slots.start_of(slot.index)?;
        if slot.is_dirty {
            if let Err(error) = blank(tables, layout, start) {
                self.slots.give_back(start);
                return Err(error);
            }
        }
        Ok(Taken {
            data: add(start, layout.bitmap_len(), start)?,
            was_used: slot.is_dirty,
        })
    }

    /// Adds one place on a block device, in front of the footer. It holds old bytes.
    fn grow_into_device(&mut self, layout: &Layout) -> Result {
        let end = self.end_of(layout, self.slots.count())?;
        let home = self.file_size.saturating_sub(FOOTER_LEN);
        if end > home || self.addressable(1) == 0 {
            return Err(NO_ROOM);
        }
        self.slots.push(1, true);
        Ok(())
    }

    /// Extends a file. Goes on where a call that failed half-way stopped.
    fn grow_file(&mut self, tables: &mut dyn TablesMut, layout: &Layout) -> Result {
        if self.pending == 0 {
            self.extend(tables, layout)?;
        }
        self.prepare(tables, layout)?;

        self.slots.push(self.pending, false);
        self.pending = 0;
        let footer = self.end_of_last(layout)?;
        self.old_footer = Region::new(footer, FOOTER_LEN, footer)?;
        Ok(())
    }

    /// First half: a larger file with a footer at its end, durably. The old footer stays.
    fn extend(&mut self, tables: &mut dyn TablesMut, layout: &Layout) -> Result {
        let mut blocks = self.batch();
        if blocks == 0 {
            return Err(NO_ROOM);
        }
        if let Err(error) = self.put_footer(tables, layout, blocks) {
            // A nearly full file system, or a limit on the size of files.
            if blocks == 1 || !is_out_of_room(error) {
                return Err(error);
            }
            blocks = 1;
            self.put_footer(tables, layout, blocks)?;
        }
        tables.sync()?;

        let footer = self.end_of(
            layout,
            self.slots.count().saturating_add(blocks.saturating_sub(1)),
        )?;
        self.file_size = add(footer, FOOTER_LEN, footer)?;
        self.pending = blocks;
        self.prepared = 0;
        Ok(())
    }

    /// Puts a footer behind `blocks` new blocks. If that fails, the file is as it was.
    fn put_footer(&self, tables: &mut dyn TablesMut, layout: &Layout, blocks: u64) -> Result {
        let last = self.slots.count().saturating_add(blocks.saturating_sub(1));
        let footer = self.end_of(layout, last)?;
        let result = footer::copy(tables, Place::FRONT, footer);
        let is_longer = || matches!(tables.size(), Ok(size) if size > self.file_size);
        if result.is_err() && is_longer() {
            // The old footer is untouched: let it be the end of the file again. If not even that
            // works, the next call finds a file of another size and looks at it afresh.
            let _ = tables.truncate(self.file_size);
        }
        result
    }

    /// Second half: the old footer is overwritten, and the new blocks get their bitmaps, durably.
    fn prepare(&mut self, tables: &mut dyn TablesMut, layout: &Layout) -> Result {
        let Region { start, end } = self.old_footer;
        if self.prepared == 0 && start < end {
            tables.fill(start, end.saturating_sub(start), 0)?;
        }
        // A differencing image's bitmaps are zeros, as the new space is.
        while self.prepared < self.pending && !layout.has_parent {
            let index = self.slots.count().saturating_add(self.prepared);
            let bitmap = self.slots.start_of(index)?;
            tables.fill(bitmap, layout.bitmap_len(), 0xff)?;
            self.prepared = self.prepared.saturating_add(1);
        }
        tables.sync()
    }

    /// How many blocks to extend a file by; 0 if no entry could name another one.
    fn batch(&self) -> u64 {
        let by_size = RESERVE_SIZE.checked_div(self.slots.stride()).unwrap_or(1);
        let by_need = self.missing.saturating_sub(self.slots.taken());
        let wanted = by_size.min(RESERVE_BLOCKS).min(by_need).max(1);
        self.addressable(wanted)
    }

    /// How many of the next `wanted` places a BAT entry can name.
    fn addressable(&self, wanted: u64) -> u64 {
        let is_addressable = |&offset: &u64| {
            let start = self
                .slots
                .start_of(self.slots.count().saturating_add(offset));
            start.is_ok_and(|start| BatEntry::for_block(start).is_some())
        };
        (0..wanted)
            .take_while(is_addressable)
            .fold(0u64, |n, _| n.saturating_add(1))
    }

    /// Host offset of the end of the block in place `index`.
    fn end_of(&self, layout: &Layout, index: u64) -> Result<u64> {
        let start = self.slots.start_of(index)?;
        let data = add(start, layout.bitmap_len(), start)?;
        add(data, layout.block_size(), start)
    }

    /// Host offset of the end of the block in the last place; `floor` if there is none.
    pub(super) fn end_of_last(&self, layout: &Layout) -> Result<u64> {
        self.end_of_first(layout, self.slots.count())
    }

    /// Host offset of the end of the first `n` places; `floor` for none of them.
    fn end_of_first(&self, layout: &Layout, n: u64) -> Result<u64> {
        match n.checked_sub(1) {
            Some(last) => self.end_of(layout, last),
            None => Ok(self.floor),
        }
    }

    /// Cuts what was reserved and not used off a file. The footer is in its new place, durably,
    /// before the file ends there.
    pub(super) fn trim(self, tables: &mut dyn TablesMut, layout: &Layout) -> Result {
        if !tables.can_grow() || tables.size()? != self.file_size {
            return Ok(());
        }
        let footer = self.end_of_first(layout, self.slots.used())?;
        let size = add(footer, FOOTER_LEN, footer)?;
        if size >= self.file_size {
            return Ok(());
        }
        footer::copy(tables, Place::FRONT, footer)?;
        tables.sync()?;
        tables.truncate(size)
    }
}

/// Makes a block of space that holds old bytes. Data is zeroed durably before any bit is set; in a
/// differencing image no bit is, so nobody sees it.
fn blank(tables: &mut dyn TablesMut, layout: &Layout, start: u64) -> Result {
    if layout.has_parent {
        tables.fill(start, layout.bitmap_len(), 0)?;
        return tables.sync();
    }
    let data = add(start, layout.bitmap_len(), start)?;
    tables.fill(data, layout.block_size(), 0)?;
    tables.sync()?;
    tables.fill(start, layout.bitmap_len(), 0xff)?;
    tables.sync()
}
