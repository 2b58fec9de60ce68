// SPDX-License-Identifier: GPL-2.0

//! Making the clear sectors of an allocated block writable.
//!
//! tapdisk and VirtualBox set a sector's bit when it is first written; the bytes of the others mean
//! nothing. Before their bits are set they have to be zeroed, durably.

use loop_parser::contract::{
    Result,
    TablesMut,
    SECTOR_SIZE, //
};

use super::super::{
    bitmap,
    layout::{
        Block,
        Layout, //
    },
    map::chunk_within,
    num::{
        add,
        mul, //
    },
};

/// Sets all bits of the chunk of guest position `pos`. Sectors whose bits are set are not touched.
pub(super) fn make_ready(
    tables: &mut dyn TablesMut,
    layout: &Layout,
    block: &Block,
    pos: u64,
) -> Result {
    let (within, len) = chunk_within(layout, pos);
    let first = within / SECTOR_SIZE;
    let count = len / SECTOR_SIZE;

    if zero_clear_sectors(tables, block, first, count)? {
        tables.sync()?;
        bitmap::set(tables, block.bitmap, first, count)?;
    }
    Ok(())
}

/// Zeroes those of the `count` sectors from `first` whose bits are clear. Says if there were any.
fn zero_clear_sectors(
    tables: &mut dyn TablesMut,
    block: &Block,
    first: u64,
    count: u64,
) -> Result<bool> {
    let mut found_any = false;
    let mut done = 0u64;

    while done < count {
        let sector = add(first, done, block.bitmap)?;
        let run = bitmap::run(tables, block.bitmap, sector, count.saturating_sub(done))?;
        if !run.is_set {
            let offset = mul(sector, SECTOR_SIZE, block.data)?;
            let len = mul(run.sectors, SECTOR_SIZE, block.data)?;
            tables.fill(add(block.data, offset, block.data)?, len, 0)?;
            found_any = true;
        }
        // A run has at least one sector: the loop ends.
        done = done.saturating_add(run.sectors);
    }
    Ok(found_any)
}
