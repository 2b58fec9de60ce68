// SPDX-License-Identifier: GPL-2.0

//! Whether redundant grain tables, and their directory, can be overwritten.
//!
//! Programs read images without a look at the redundant directory. So one that lies over something in use,
//! or points to it, goes unnoticed until something is stored there.

use loop_parser::contract::{
    num::Region,
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
    space::spend, //
};

/// Entries that are looked at at a time.
const WINDOW: usize = 32;

/// Checks that no primary table lies where the redundant directory is; grains cannot. Counts loads.
///
/// # Errors
///
/// [`Error::Malformed`] if one does; [`Error::Unsupported`] if there are too many entries.
#[inline(never)]
pub(super) fn check_directory(tables: &dyn TablesMut, layout: &Layout, left: &mut u64) -> Result {
    let region = |start| Region::new(start, layout.directory_len(), start);
    let Some(redundant) = layout.redundant else {
        return Ok(());
    };
    let redundant = region(redundant)?;
    each(tables, region(layout.directory)?, left, &mut |entry, _| {
        let table = Region::new(entry.offset(), layout.table_len(), redundant.start)?;
        match entry != Entry::NONE && table.overlaps(redundant) {
            true => Err(Error::malformed(
                "VMDK redundant grain directory lies over a grain table",
                redundant.start,
            )),
            false => Ok(()),
        }
    })
}

/// Checks that nothing that is in use lies where a redundant table is, `copy`: no primary table, and no
/// grain. The entry at host offset `at` of the redundant directory points there. Counts loads.
///
/// # Errors
///
/// [`Error::Malformed`] if something does; [`Error::Unsupported`] if there are too many entries.
#[inline(never)]
pub(super) fn check(
    tables: &dyn TablesMut,
    layout: &Layout,
    copy: Region,
    at: u64,
    left: &mut u64,
) -> Result {
    let in_use = Error::malformed(
        "VMDK redundant directory entry points to what is in use",
        at,
    );
    // In front of the first grain there are only tables.
    let can_be_grain = copy.end > layout.data_start;
    let directory = Region::new(layout.directory, layout.directory_len(), at)?;
    let file_size = tables.size()?;
    each(tables, directory, left, &mut |entry, left| {
        let table = Region::new(entry.offset(), layout.table_len(), at)?;
        if entry == Entry::NONE {
            return Ok(());
        }
        if table.overlaps(copy) {
            return Err(in_use);
        }
        match can_be_grain && table.end <= file_size {
            true => check_grains(tables, layout, table, copy, in_use, left),
            false => Ok(()),
        }
    })
}

/// Checks that no grain of the table at `table` lies at `copy`.
#[inline(never)]
fn check_grains(
    tables: &dyn TablesMut,
    layout: &Layout,
    table: Region,
    copy: Region,
    in_use: Error,
    left: &mut u64,
) -> Result {
    each(tables, table, left, &mut |entry, _| {
        let has_place = entry != Entry::NONE && !(entry == Entry::ZERO && layout.has_zero_grains);
        let grain = Region::new(entry.offset(), layout.grain, table.start)?;
        match has_place && grain.overlaps(copy) {
            true => Err(in_use),
            false => Ok(()),
        }
    })
}

/// Whether a table has no entries. Counts loads.
pub(super) fn is_empty(tables: &dyn TablesMut, table: Region, left: &mut u64) -> Result<bool> {
    let mut is_empty = true;
    each(tables, table, left, &mut |entry, _| {
        is_empty &= entry == Entry::NONE;
        Ok(())
    })?;
    Ok(is_empty)
}

/// Calls `look` for every entry in a range of the file.
#[inline(never)]
fn each(
    tables: &dyn TablesMut,
    range: Region,
    left: &mut u64,
    look: &mut dyn FnMut(Entry, &mut u64) -> Result,
) -> Result {
    let mut window = [U32::ZERO; WINDOW];
    let mut at = range.start;
    while at < range.end {
        spend(left, 1)?;
        let entries = range.end.saturating_sub(at) / ENTRY_LEN;
        let count = usize::try_from(entries).unwrap_or(WINDOW).min(WINDOW);
        let Some(piece) = window.get_mut(..count).filter(|it| !it.is_empty()) else {
            break;
        };
        tables.load(at, piece.as_mut_bytes())?;
        for raw in piece {
            look(Entry(raw.get()), left)?;
            at = at.saturating_add(ENTRY_LEN);
        }
    }
    Ok(())
}
