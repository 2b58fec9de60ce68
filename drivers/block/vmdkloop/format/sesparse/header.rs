// SPDX-License-Identifier: GPL-2.0

//! The headers of a seSparse file: the checks that make a [`Layout`] of them.

use loop_parser::contract::{
    num::{
        self,
        add,
        mul,
        Region, //
    },
    Error,
    Result,
    Tables,
    SECTOR_SIZE, //
};

use super::{
    layout::{
        Layout,
        COVERS,
        MAX_SIZE, //
    },
    ondisk::*, //
};

fn malformed<V>(what: &'static str, at: u64) -> Result<V> {
    Err(Error::malformed(what, at))
}

fn unsupported<V>(what: &'static str, at: u64) -> Result<V> {
    Err(Error::unsupported(what, at))
}

/// Reads and checks both headers of a file of `file_size` bytes.
///
/// # Errors
///
/// [`Error::Malformed`] and [`Error::Unsupported`]; the first of: magic, version, shape, limits,
/// bounds, overlaps, journal.
// Not inlined, for the stack.
#[inline(never)]
pub(super) fn load(tables: &dyn Tables, file_size: u64) -> Result<Layout> {
    if file_size < HEADER_LEN {
        return malformed("file is too short for a seSparse header", file_size);
    }
    let header: ConstHeader = num::load(tables, 0)?;
    check_shape(&header)?;
    let size = mul(header.capacity.get(), SECTOR_SIZE, CAPACITY)?;
    if size > MAX_SIZE {
        return malformed("seSparse disk is larger than any disk can be", CAPACITY);
    }
    let layout = Layout {
        size,
        directory: area(&header.directory, DIRECTORY)?,
        tables: area(&header.tables, TABLES)?,
        grains: mul(header.grains.offset.get(), SECTOR_SIZE, GRAINS)?,
    };
    let volatile = area(&header.volatile, VOLATILE)?;
    check_areas(&layout, volatile, file_size)?;
    check_volatile(tables, volatile)?;
    // INVARIANT: The checks above.
    Ok(layout)
}

/// What there is only one of, as far as is known.
fn check_shape(header: &ConstHeader) -> Result {
    if header.magic.get() != MAGIC {
        return malformed("no seSparse header", 0);
    }
    if header.version.get() != VERSION_2_1 {
        return unsupported("version of seSparse file is not 2.1", VERSION);
    }
    if header.grain_size.get() != GRAIN_SECTORS {
        return unsupported("seSparse grain is not of 8 sectors", GRAIN_SIZE);
    }
    if header.table_size.get() != TABLE_SECTORS {
        return unsupported("seSparse grain table is not of 64 sectors", TABLE_SIZE);
    }
    if header.flags.get() != 0 || header.reserved.iter().any(|field| field.get() != 0) {
        return unsupported("seSparse file has unknown flags", FLAGS);
    }
    Ok(())
}

/// An area whose fields are at offset `at`, in bytes.
fn area(area: &Area, at: u64) -> Result<Region> {
    let start = mul(area.offset.get(), SECTOR_SIZE, at)?;
    Region::new(start, mul(area.size.get(), SECTOR_SIZE, at)?, at)
}

/// What is used lies in the file, behind the header, and not over anything else; the directory is
/// large enough.
fn check_areas(layout: &Layout, volatile: Region, file_size: u64) -> Result {
    let (directory, tables) = (layout.directory, layout.tables);
    let entries = layout.size.div_ceil(COVERS);
    let needed = add(
        directory.start,
        mul(entries, ENTRY_LEN, DIRECTORY)?,
        DIRECTORY,
    )?;
    if needed > directory.end {
        return malformed(
            "seSparse grain directory is too small for the disk",
            DIRECTORY,
        );
    }
    let areas = [
        (directory, DIRECTORY),
        (tables, TABLES),
        (volatile, VOLATILE),
    ];
    for (area, at) in areas {
        if area.start < HEADER_LEN {
            return malformed("seSparse area overlaps the header", at);
        }
        if area.end > file_size {
            return malformed("seSparse area lies past the end of the file", at);
        }
    }
    if layout.grains < HEADER_LEN {
        return malformed("seSparse area overlaps the header", GRAINS);
    }
    let overlaps =
        directory.overlaps(tables) || volatile.overlaps(directory) || volatile.overlaps(tables);
    if overlaps {
        return malformed("seSparse areas overlap each other", VOLATILE);
    }
    Ok(())
}

fn check_volatile(tables: &dyn Tables, area: Region) -> Result {
    if area.end.saturating_sub(area.start) < HEADER_LEN {
        return malformed("seSparse volatile header is too short", VOLATILE);
    }
    let header: VolatileHeader = num::load(tables, area.start)?;
    if header.magic.get() != VOLATILE_MAGIC {
        return malformed("no seSparse volatile header", area.start);
    }
    if header.replay_journal.get() != 0 {
        return unsupported(
            "journal of seSparse file has to be replayed first",
            add(area.start, REPLAY_JOURNAL, area.start)?,
        );
    }
    Ok(())
}
