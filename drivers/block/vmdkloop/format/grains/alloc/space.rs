// SPDX-License-Identifier: GPL-2.0

//! Where free space begins: behind everything else.

use loop_parser::contract::{
    num::add,
    Error,
    Result,
    TablesMut, //
};
use zerocopy::{
    little_endian::U32,
    IntoBytes, //
};

use super::{
    super::layout::{
        Entry,
        Layout,
        ENTRY_LEN, //
    },
    copy, //
};

/// Entries that are looked at at a time.
const SCAN_ENTRIES: usize = 32;
/// Most loads of a look at all entries: enough for 8 TiB in grains of 64 KiB. An image that needs more is
/// not written to, as everybody would have to wait for it.
pub(super) const MAX_LOADS: u64 = 1 << 22;

/// Looks at every entry. Answers the end of what is in use.
///
/// # Errors
///
/// [`Error::Malformed`] if one of them points past the end of the file, or the redundant directory cannot be
/// stored to; [`Error::Unsupported`] if there are too many.
#[inline(never)]
pub(super) fn scan(tables: &dyn TablesMut, layout: &Layout, file_size: u64) -> Result<u64> {
    let mut used = layout.headers_end();
    let mut left = MAX_LOADS;
    copy::check_directory(tables, layout, &mut left)?;
    if let Some(at) = layout.free_at {
        let free = Entry(tables.load_le32(at)?).offset();
        if free <= file_size {
            used = used.max(free);
        }
    }
    // Not to look at millions of entries first that point to nothing.
    spend(&mut left, layout.count())?;
    for index in 0..layout.count() {
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
