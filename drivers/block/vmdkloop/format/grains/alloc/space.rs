// SPDX-License-Identifier: GPL-2.0

//! Free space behind everything else.

use loop_parser::contract::{
    num::{
        add,
        align_up,
        is_out_of_room,
        NO_ROOM,
        TOO_LARGE, //
    },
    Error,
    Result,
    TablesMut,
    SECTOR_SIZE, //
};
use zerocopy::{
    little_endian::U32,
    IntoBytes, //
};

use super::super::layout::{
    Entry,
    Layout,
    ENTRY_LEN,
    MAX_OFFSET, //
};

/// A file is extended by about this many bytes at a time.
const RESERVE_SIZE: u64 = 4 * 1024 * 1024;
/// Entries that are looked at at a time.
const SCAN_ENTRIES: usize = 32;
/// Most loads of a look at all entries: enough for 8 TiB in grains of 64 KiB. An image that needs more is
/// not written to, as everybody would have to wait for it.
pub(super) const MAX_LOADS: u64 = 1 << 22;

/// Where the next grain goes.
///
/// # Invariants
///
/// No entry points to `next` or behind it. Between `next` and `end` a file was never written, except
/// below `dirty_end`.
#[derive(Debug)]
pub(super) struct Space {
    /// Host offset of what is free, at a multiple of the grain.
    next: u64,
    /// Where it ends: the end of the file.
    end: u64,
    /// Up to here it may hold anything.
    dirty_end: u64,
    /// Up to here nothing can be released any more.
    settled: u64,
    /// Bytes in a grain.
    grain: u64,
}

impl Space {
    /// The cursors of an image, as far as the file is still as they left it; otherwise from another
    /// look at it. Nothing in front of `floor` is free.
    pub(super) fn look<'a>(
        known: &'a mut Option<Self>,
        tables: &mut dyn TablesMut,
        layout: &Layout,
        floor: &mut u64,
    ) -> Result<&'a mut Self> {
        let file_size = tables.size()?;
        let space = match known.take() {
            Some(space) if space.end == file_size => space,
            old => {
                // What was handed out does not show in the tables yet.
                *floor = (*floor).max(old.map_or(0, |old| old.next));
                Self::survey(tables, layout, file_size, *floor)?
            }
        };
        Ok(known.insert(space))
    }

    /// # Errors
    ///
    /// [`Error::Malformed`] if an entry points past the end of the file.
    #[inline(never)]
    fn survey(
        tables: &mut dyn TablesMut,
        layout: &Layout,
        file_size: u64,
        floor: u64,
    ) -> Result<Self> {
        let used = scan(tables, layout, file_size)?.max(floor);
        let mut space = Self {
            next: align_up(used, layout.grain, used)?,
            end: file_size,
            dirty_end: file_size,
            settled: 0,
            grain: layout.grain,
        };
        if tables.can_grow() {
            // In a file nothing is taken for free that somebody else has put there.
            space.next = align_up(used.max(file_size), layout.grain, used)?;
            if space.next > file_size {
                space.extend(tables, layout, space.next)?;
            }
        }
        Ok(space)
    }

    /// Takes `len` bytes in whole grains: they read as zero, and that is durable.
    #[inline(never)]
    pub(super) fn take(
        &mut self,
        tables: &mut dyn TablesMut,
        layout: &Layout,
        len: u64,
    ) -> Result<u64> {
        let start = self.next;
        let end = add(start, align_up(len, self.grain, start)?, start)?;
        if end > MAX_OFFSET {
            return Err(TOO_LARGE);
        }
        if end > self.end {
            self.grow(tables, layout, end)?;
        }
        if start < self.dirty_end {
            tables.fill(start, end.saturating_sub(start), 0)?;
            if !tables.can_grow() {
                store_free(tables, layout, end)?;
            }
            tables.sync()?;
        }
        self.next = end;
        Ok(start)
    }

    /// Makes a file large enough for what ends at `needed`, and for the reserve if there is room.
    fn grow(&mut self, tables: &mut dyn TablesMut, layout: &Layout, needed: u64) -> Result {
        if !tables.can_grow() {
            return Err(NO_ROOM);
        }
        let wanted = add(needed, RESERVE_SIZE, needed)?;
        match self.extend(tables, layout, wanted.min(MAX_OFFSET)) {
            // A nearly full file system, or a limit on the size of files.
            Err(error) if is_out_of_room(error) => self.extend(tables, layout, needed),
            result => result,
        }
    }

    /// Makes a file `size` bytes long, durably. What is new reads as zero. If that fails, the file is
    /// as it was.
    fn extend(&mut self, tables: &mut dyn TablesMut, layout: &Layout, size: u64) -> Result {
        let last = size.checked_sub(1).ok_or(NO_ROOM)?;
        let stored = tables
            .fill(last, 1, 0)
            .and_then(|()| store_free(tables, layout, size));
        if let Err(error) = stored {
            if tables.size()? > self.end {
                // If not even that works, the next call finds a file of another size.
                let _ = tables.truncate(self.end);
            }
            return Err(error);
        }
        tables.sync()?;
        self.end = size;
        Ok(())
    }

    /// What was taken at host offset `offset` is in use, or may be.
    pub(super) fn settle(&mut self, offset: u64) {
        self.settled = self.settled.max(offset.saturating_add(1));
    }

    /// What was taken there is not needed, and may hold anything. Only what was taken last can be
    /// taken again; what is below it is lost.
    pub(super) fn release(&mut self, offset: u64, len: u64) {
        let end = offset
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(self.grain));
        if offset >= self.settled && end == Some(self.next) {
            self.dirty_end = self.dirty_end.max(self.next);
            self.next = offset;
        }
    }

    /// Cuts what was reserved and not used off a file.
    pub(super) fn trim(self, tables: &mut dyn TablesMut, layout: &Layout) -> Result {
        if !tables.can_grow() || tables.size()? != self.end || self.next >= self.end {
            return Ok(());
        }
        tables.truncate(self.next)?;
        store_free(tables, layout, self.next)
    }
}

/// Stores where free space begins, in a file that says so.
fn store_free(tables: &mut dyn TablesMut, layout: &Layout, end: u64) -> Result {
    let Some(at) = layout.free_at else {
        return Ok(());
    };
    // There is no sector number behind the last sector.
    let sector = u32::try_from(end / SECTOR_SIZE).unwrap_or(u32::MAX);
    tables.store(at, &sector.to_le_bytes())
}

/// Looks at every entry. Answers the end of what is in use.
///
/// # Errors
///
/// [`Error::Malformed`] if one of them points past the end of the file; [`Error::Unsupported`] if there
/// are too many.
#[inline(never)]
fn scan(tables: &dyn TablesMut, layout: &Layout, file_size: u64) -> Result<u64> {
    let mut used = layout.headers_end();
    let mut left = MAX_LOADS;
    if let Some(at) = layout.free_at {
        let free = Entry(tables.load_le32(at)?).offset();
        if free <= file_size {
            used = used.max(free);
        }
    }
    for index in 0..layout.count() {
        spend(&mut left, 1)?;
        if let Some(table) = table_at(tables, layout, layout.directory, index, file_size)? {
            used = used.max(table.saturating_add(layout.table_len()));
            used = used.max(scan_table(tables, layout, table, file_size, &mut left)?);
        }
        let Some(directory) = layout.redundant else {
            continue;
        };
        if let Some(table) = table_at(tables, layout, directory, index, file_size)? {
            used = used.max(table.saturating_add(layout.table_len()));
        }
    }
    Ok(used)
}

/// Table `index` of a directory. Where it lies does not matter, as long as it is in the file.
fn table_at(
    tables: &dyn TablesMut,
    layout: &Layout,
    directory: u64,
    index: u64,
    file_size: u64,
) -> Result<Option<u64>> {
    let at = layout.directory_entry_at(directory, index)?;
    let entry = Entry(tables.load_le32(at)?);
    if entry == Entry::NONE {
        return Ok(None);
    }
    match entry.offset().saturating_add(layout.table_len()) > file_size {
        true => Err(Error::malformed(
            "VMDK directory entry points past the end of the file",
            at,
        )),
        false => Ok(Some(entry.offset())),
    }
}

/// Looks at every entry of a table. Answers the end of the last grain.
#[inline(never)]
fn scan_table(
    tables: &dyn TablesMut,
    layout: &Layout,
    table: u64,
    file_size: u64,
    left: &mut u64,
) -> Result<u64> {
    let mut buffer = [U32::ZERO; SCAN_ENTRIES];
    let mut used = 0;
    let mut at = table;
    let end = add(table, layout.table_len(), table)?;
    while at < end {
        spend(left, 1)?;
        let entries = end.saturating_sub(at) / ENTRY_LEN;
        let count = usize::try_from(entries).unwrap_or(SCAN_ENTRIES);
        let Some(piece) = buffer.get_mut(..count.min(SCAN_ENTRIES)) else {
            break;
        };
        tables.load(at, piece.as_mut_bytes())?;
        for raw in piece {
            used = used.max(grain_end(layout, Entry(raw.get()), file_size, at)?);
            at = at.saturating_add(ENTRY_LEN);
        }
    }
    Ok(used)
}

/// End of the grain of an entry at host offset `at`, 0 if it has none.
fn grain_end(layout: &Layout, entry: Entry, file_size: u64, at: u64) -> Result<u64> {
    let is_none = entry == Entry::NONE || entry == Entry::ZERO && layout.has_zero_grains;
    match entry.offset() {
        _ if is_none => Ok(0),
        offset if offset >= file_size => Err(Error::malformed(
            "VMDK table entry points past the end of the file",
            at,
        )),
        offset => Ok(offset.saturating_add(layout.grain)),
    }
}

/// Counts loads.
pub(super) fn spend(left: &mut u64, loads: u64) -> Result {
    let too_many = Error::unsupported("VMDK has too many tables to be written to", 0);
    *left = left.checked_sub(loads).ok_or(too_many)?;
    Ok(())
}
