// SPDX-License-Identifier: GPL-2.0

//! What the allocator knows of an image's free space.

use loop_parser::contract::{
    Result,
    TablesMut, //
};
use zerocopy::{
    big_endian::U32,
    IntoBytes, //
};

use super::{
    super::{
        footer::{
            self,
            Place, //
        },
        header,
        layout::{
            BatEntry,
            Layout, //
        },
        num::{
            add,
            align_up,
            Region,
            NO_ROOM, //
        },
        ondisk::{
            BAT_ENTRY_LEN,
            FOOTER_LEN, //
        },
    },
    slots::Slots, //
};

/// New data is aligned to pages, as tapdisk and Windows 10 do it.
pub(super) const DATA_ALIGN: u64 = 4096;

/// Entries of the BAT that are on the stack at a time.
const SCAN_ENTRIES: usize = 64;

/// What the allocator knows of an image's free space.
///
/// # Invariants
///
/// Behind `floor` there is nothing but the old footer and what the allocator put there.
#[derive(Debug)]
pub(super) struct Space {
    /// Size of the file when it was last looked at or changed by the allocator.
    pub(super) file_size: u64,
    /// Where free space began when the file was looked at.
    pub(super) floor: u64,
    /// What is left of the old footer, to be overwritten once the new one is durable.
    pub(super) old_footer: Region,
    /// Blocks by which the file was extended, and that are not in `slots` yet: their bitmaps have
    /// not all been written.
    pub(super) pending: u64,
    /// How many of these bitmaps have been written.
    pub(super) prepared: u64,
    /// Blocks of the disk that are not allocated, and so how many can still be needed.
    pub(super) missing: u64,
    /// Places for blocks.
    pub(super) slots: Slots,
}

/// A block that is not in the BAT yet.
pub(super) struct Taken {
    /// Host offset in bytes of its data.
    pub(super) data: u64,
    /// It lies where something else was before.
    pub(super) was_used: bool,
}

impl Space {
    /// What is known, learned now if the file is not as it was left. `blocks` is how many the disk
    /// has; nothing is free in front of `taken_end`.
    pub(super) fn look<'a>(
        known: &'a mut Option<Self>,
        tables: &mut dyn TablesMut,
        layout: &Layout,
        blocks: u64,
        taken_end: u64,
    ) -> Result<&'a mut Self> {
        let file_size = tables.size()?;
        if let Some(space) = known {
            if space.file_size != file_size && !tables.can_grow() {
                space.follow_device(tables, layout, file_size)?;
            }
        }
        let space = match known.take() {
            Some(space) if space.file_size == file_size => space,
            _ => Self::survey(tables, layout, blocks, taken_end, file_size)?,
        };
        Ok(known.insert(space))
    }

    /// Learns where free space begins, and makes both footers good.
    ///
    /// # Errors
    ///
    /// [`Malformed`](loop_parser::contract::Error::Malformed) if something lies past the end of the
    /// file or where it must not: growing the file would make it valid.
    fn survey(
        tables: &mut dyn TablesMut,
        layout: &Layout,
        blocks: u64,
        taken_end: u64,
        file_size: u64,
    ) -> Result<Self> {
        let scan = scan(tables, layout, blocks, file_size)?;
        let used = scan
            .end
            .max(taken_end)
            .max(header::structures_end(tables, layout, file_size)?);
        footer::repair_front(tables, file_size)?;

        let old_footer = if tables.can_grow() {
            old_footer(used, file_size)
        } else {
            repair_device_end(tables, used, file_size)?;
            Region {
                start: used,
                end: used,
            }
        };
        let floor = align_up(used.max(old_footer.start), FOOTER_LEN, used)?;
        // INVARIANT: it is above the header-level structures and all blocks, and at or above the
        // footer of a file.
        Ok(Self {
            file_size,
            floor,
            old_footer,
            pending: 0,
            prepared: 0,
            missing: scan.missing,
            slots: slots(layout, floor)?,
        })
    }

    /// The device has another size now. The cursor stays: blocks that are handed out do not show
    /// in the BAT.
    fn follow_device(
        &mut self,
        tables: &mut dyn TablesMut,
        layout: &Layout,
        file_size: u64,
    ) -> Result {
        let used = self.end_of_last(layout)?;
        repair_device_end(tables, used, file_size)?;
        self.file_size = file_size;
        Ok(())
    }

    /// A block that was handed out is in the BAT (or might be).
    pub(super) fn settle(&mut self, layout: &Layout, data: u64) {
        self.missing = self.missing.saturating_sub(1);
        if let Some(start) = data.checked_sub(layout.bitmap_len()) {
            self.slots.settle(start);
        }
    }

    /// A block that was handed out is not needed.
    pub(super) fn release(&mut self, layout: &Layout, data: u64) {
        if let Some(start) = data.checked_sub(layout.bitmap_len()) {
            self.slots.give_back(start);
        }
    }
}

/// What a file ends with, if it is not in use: its footer, or what remains of it. `used` is the end
/// of what is.
///
/// In front of the footer nothing is taken for free, even if neither the BAT nor a header names it.
fn old_footer(used: u64, file_size: u64) -> Region {
    let footer = Place::end(file_size).map_or(0, |place| place.at);
    Region {
        start: used.max(footer).min(file_size),
        end: file_size,
    }
}

/// Places for blocks from `floor` on: their data is aligned, their bitmaps lie in front of it.
fn slots(layout: &Layout, floor: u64) -> Result<Slots> {
    let data = align_up(add(floor, layout.bitmap_len(), floor)?, DATA_ALIGN, floor)?;
    let first = data.saturating_sub(layout.bitmap_len());
    Ok(Slots::new(first, stride(layout)))
}

/// Bytes that a place takes, with what aligns it.
pub(super) fn stride(layout: &Layout) -> u64 {
    // Less than 2^32: nothing saturates.
    let len = layout.bitmap_len().saturating_add(layout.block_size());
    len.next_multiple_of(DATA_ALIGN)
}

/// Makes the footer in a device's last sector good. `used` is the end of what must not be
/// overwritten.
fn repair_device_end(tables: &mut dyn TablesMut, used: u64, size: u64) -> Result {
    match size.checked_sub(FOOTER_LEN) {
        Some(home) if used <= home => footer::repair_end(tables, home),
        _ => Err(NO_ROOM),
    }
}

/// What the BAT says of the whole file.
struct Scan {
    /// End of the highest block, 0 if there is none.
    end: u64,
    /// Blocks of the disk that are not allocated.
    missing: u64,
}

/// Looks at every entry of the BAT, also at those that the disk does not need.
#[inline(never)]
fn scan(tables: &dyn TablesMut, layout: &Layout, blocks: u64, file_size: u64) -> Result<Scan> {
    let mut buffer = [U32::ZERO; SCAN_ENTRIES];
    let entries = u64::from(layout.entries);
    let mut scan = Scan { end: 0, missing: 0 };
    let mut index = 0u64;

    while index < entries {
        let left = usize::try_from(entries.saturating_sub(index)).unwrap_or(SCAN_ENTRIES);
        let Some(piece) = buffer.get_mut(..left.min(SCAN_ENTRIES)) else {
            break;
        };
        let mut at = layout.entry_at(index)?;
        tables.load(at, piece.as_mut_bytes())?;

        for raw in piece {
            let entry = BatEntry::from_raw(raw.get());
            if !entry.is_none() {
                scan.end = scan.end.max(layout.locate(entry, at, file_size)?.end);
            } else if index < blocks {
                scan.missing = scan.missing.saturating_add(1);
            }
            index = index.saturating_add(1);
            at = at.saturating_add(BAT_ENTRY_LEN);
        }
    }
    Ok(scan)
}
