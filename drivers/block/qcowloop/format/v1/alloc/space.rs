// SPDX-License-Identifier: GPL-2.0

//! Free space behind everything else.

use loop_parser::contract::{
    Error,
    Result,
    TablesMut, //
};
use zerocopy::{
    big_endian::U64,
    IntoBytes, //
};

use super::{
    super::{
        super::num::{
            add,
            align_up,
            is_out_of_room,
            NO_ROOM, //
        },
        layout::{
            L2Entry,
            Layout,
            Mapping, //
        },
        ondisk::TABLE_ENTRY_LEN, //
    }, //
};

/// A file is extended by about this many bytes at a time.
const RESERVE_SIZE: u64 = 4 * 1024 * 1024;
/// Entries that are looked at at a time.
const SCAN_ENTRIES: usize = 32;
/// Most loads of a look at all entries: enough for half a terabyte in clusters of 4 KiB. An image that
/// needs more is not written to, as everybody would have to wait for it.
const MAX_SCAN_LOADS: u32 = 1 << 22;

/// Where the next cluster goes.
///
/// # Invariants
///
/// No entry points to `next` or behind it. Between `next` and `end` a file was never written, except
/// below `dirty_end`.
#[derive(Debug)]
pub(super) struct Space {
    /// Host offset of what is free, at a cluster.
    next: u64,
    /// Where it ends: the end of the file.
    end: u64,
    /// Up to here it may hold anything.
    dirty_end: u64,
    /// Up to here nothing can be released any more.
    settled: u64,
    /// Bytes in a cluster.
    cluster: u64,
}

impl Space {
    /// The cursors of an image, as far as the file is still as they left it; otherwise from another
    /// look at it.
    pub(super) fn look<'a>(
        known: &'a mut Option<Self>,
        tables: &mut dyn TablesMut,
        layout: &Layout,
    ) -> Result<&'a mut Self> {
        let file_size = tables.size()?;
        let space = match known.take() {
            Some(space) if space.end == file_size => space,
            _ => Self::survey(tables, layout, file_size)?,
        };
        Ok(known.insert(space))
    }

    /// # Errors
    ///
    /// [`Error::Malformed`] if an entry points past the end of the file.
    fn survey(tables: &mut dyn TablesMut, layout: &Layout, file_size: u64) -> Result<Self> {
        let used = scan(tables, layout, file_size)?;
        let cluster = layout.cluster_size();
        let mut space = Self {
            next: align_up(used, cluster, used)?,
            end: file_size,
            dirty_end: file_size,
            settled: 0,
            cluster,
        };
        if tables.can_grow() {
            // In a file nothing is taken for free that somebody else has put there.
            space.next = align_up(used.max(file_size), cluster, used)?;
            if space.next > file_size {
                space.extend(tables, space.next)?;
            }
        }
        Ok(space)
    }

    /// Takes `len` bytes in whole clusters: they read as zero, and that is durable.
    pub(super) fn take(&mut self, tables: &mut dyn TablesMut, len: u64) -> Result<u64> {
        let start = self.next;
        let end = add(start, align_up(len, self.cluster, start)?, start)?;
        if end > self.end {
            self.grow(tables, end)?;
        }
        if start < self.dirty_end {
            tables.fill(start, end.saturating_sub(start), 0)?;
            tables.sync()?;
        }
        self.next = end;
        Ok(start)
    }

    /// Makes a file large enough for what ends at `needed`, and for the reserve if there is room.
    fn grow(&mut self, tables: &mut dyn TablesMut, needed: u64) -> Result {
        if !tables.can_grow() {
            return Err(NO_ROOM);
        }
        let wanted = add(needed, RESERVE_SIZE, needed)?;
        match self.extend(tables, wanted) {
            // A nearly full file system, or a limit on the size of files.
            Err(error) if is_out_of_room(error) => self.extend(tables, needed),
            result => result,
        }
    }

    /// Makes a file `size` bytes long, durably. What is new reads as zero. If that fails, the file is
    /// as it was.
    fn extend(&mut self, tables: &mut dyn TablesMut, size: u64) -> Result {
        let last = size.checked_sub(1).ok_or(NO_ROOM)?;
        if let Err(error) = tables.fill(last, 1, 0) {
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
            .and_then(|end| end.checked_next_multiple_of(self.cluster));
        if offset >= self.settled && end == Some(self.next) {
            self.dirty_end = self.dirty_end.max(self.next);
            self.next = offset;
        }
    }

    /// Cuts what was reserved and not used off a file.
    pub(super) fn trim(self, tables: &mut dyn TablesMut) -> Result {
        if !tables.can_grow() || tables.size()? != self.end || self.next >= self.end {
            return Ok(());
        }
        tables.truncate(self.next)
    }
}

/// Looks at every entry. Answers the end of what is in use.
///
/// # Errors
///
/// [`Error::Malformed`] if one of them points past the end of the file, or to where it must not;
/// [`Error::Unsupported`] if there are too many.
#[inline(never)]
fn scan(tables: &dyn TablesMut, layout: &Layout, file_size: u64) -> Result<u64> {
    let mut used = layout.headers_end();
    let mut pos = 0;
    let mut left = MAX_SCAN_LOADS;
    while pos < layout.limit() {
        spend(&mut left)?;
        if let Some(table) = layout.l2_table(tables, pos)? {
            used = used.max(add(table, layout.l2_len(), table)?);
            used = used.max(scan_table(tables, layout, table, file_size, &mut left)?);
        }
        pos = add(pos, layout.l2_covers(), pos)?;
    }
    Ok(used)
}

/// The same for one L2 table.
#[inline(never)]
fn scan_table(
    tables: &dyn TablesMut,
    layout: &Layout,
    table: u64,
    file_size: u64,
    left: &mut u32,
) -> Result<u64> {
    let mut buffer = [U64::ZERO; SCAN_ENTRIES];
    let mut used = 0;
    let mut at = table;
    let end = add(table, layout.l2_len(), table)?;
    while at < end {
        spend(left)?;
        // The number of entries in a table is a multiple of that of the buffer.
        tables.load(at, buffer.as_mut_bytes())?;
        for raw in &buffer {
            let end = match layout.decode(L2Entry(raw.get()), file_size, at)? {
                Mapping::Unallocated => 0,
                Mapping::Data(offset) => add(offset, layout.cluster_size(), at)?,
                Mapping::Compressed { offset, stored } => add(offset, stored, at)?,
            };
            used = used.max(end);
            at = add(at, TABLE_ENTRY_LEN, at)?;
        }
    }
    Ok(used)
}

/// Counts a load.
fn spend(left: &mut u32) -> Result {
    let too_many = Error::unsupported("qcow image has too many tables to be written to", 0);
    *left = left.checked_sub(1).ok_or(too_many)?;
    Ok(())
}
