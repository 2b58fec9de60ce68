// SPDX-License-Identifier: GPL-2.0

//! Where free space begins: behind everything else.

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
        super::num::add,
        layout::{
            L2Entry,
            Layout,
            Mapping, //
        },
        ondisk::TABLE_ENTRY_LEN, //
    }, //
};

/// Entries that are looked at at a time.
const SCAN_ENTRIES: usize = 32;
/// Most loads of a look at all entries: enough for half a terabyte in clusters of 4 KiB. An image that
/// needs more is not written to, as everybody would have to wait for it.
const MAX_SCAN_LOADS: u32 = 1 << 22;

/// Looks at every entry. Answers the end of what is in use.
///
/// # Errors
///
/// [`Error::Malformed`] if one of them points past the end of the file, or to where it must not;
/// [`Error::Unsupported`] if there are too many.
#[inline(never)]
pub(super) fn scan(tables: &dyn TablesMut, layout: &Layout, file_size: u64) -> Result<u64> {
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
