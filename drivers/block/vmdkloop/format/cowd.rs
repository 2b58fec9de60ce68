// SPDX-License-Identifier: GPL-2.0

//! COWD files ("ESX Server Sparse Extents"), read and written: extents of `vmfsSparse` disks, which are
//! snapshots on ESX servers. There are no redundant tables, and no grains of zeros.
//!
//! The file has no descriptor. Alone it is a disk without a parent; only a descriptor says where one is. One
//! whose header says that it has one is not served alone.

mod ondisk;

use loop_parser::contract::{
    num,
    AttachRequest,
    Disk,
    Error,
    Fault,
    Features,
    HostRange,
    Result,
    State,
    Tables,
    SECTOR_SIZE, //
};

use super::{
    grains::{
        self,
        layout::{
            Layout,
            GRAIN_SECTORS, //
        },
        Capacity,
        GrainAllocator,
        GrainMap,
        Marker, //
    },
    Attached, //
};
use ondisk::*;

/// Checks a COWD file and learns its layout.
///
/// # Errors
///
/// As for [`kind`](super::kind). [`Error::Malformed`] also for an extent that is smaller than the
/// list says that it is part of, and [`Error::Unsupported`] for a child that is attached alone.
pub fn attach(
    tables: &dyn Tables,
    request: &AttachRequest<'_>,
) -> Result<Attached<GrainMap, GrainAllocator>> {
    let has_parent = request.part.is_some_and(|part| part.has_parent);
    let layout = load(tables, has_parent)?;
    if request.part.is_some_and(|part| part.len > layout.size) {
        return Err(Error::malformed(
            "VMDK extent is smaller than its line in the descriptor says",
            CAPACITY,
        ));
    }
    if request.part.is_none() && is_child(tables)? {
        return Err(Error::unsupported(
            "COWD file has a parent: attach the descriptor",
            PARENT_NAME,
        ));
    }
    let is_unclean = tables.load_le32(UNCLEAN)? != 0;
    let marker = Marker {
        unclean: HostRange {
            offset: UNCLEAN,
            len: 4,
        },
        content: None,
        random: request.random,
        load: |tables, has_parent| load(tables, has_parent),
    };
    let has_discard = layout.has_discard();
    Ok(Attached {
        disk: Disk {
            size: layout.size,
            variant: "COWD",
            unit: layout.grain,
            state: match is_unclean {
                true => State::Dirty,
                false => State::Clean,
            },
            features: Features {
                discard: has_discard,
                write_zeroes: has_discard,
                reuses_space: false,
            },
            ..Disk::default()
        },
        map: GrainMap::new(layout, layout.size, Capacity::Short(CAPACITY)),
        alloc: GrainAllocator::new(layout, marker),
        parent: None,
        warning: is_unclean.then_some(Fault::new(grains::UNCLEAN, UNCLEAN)),
    })
}

/// Whether the header names a parent. No disk of this format is so large that the number of its cylinders
/// is without a zero byte, and a file name is not shorter than that.
fn is_child(tables: &dyn Tables) -> Result<bool> {
    let name = tables.load_le32(PARENT_NAME)?.to_le_bytes();
    Ok(!name.contains(&0) || tables.load_le32(PARENT_GENERATION)? != 0)
}

fn malformed<V>(what: &'static str, at: u64) -> Result<V> {
    Err(Error::malformed(what, at))
}

/// Reads and checks the header.
///
/// # Errors
///
/// [`Error::Malformed`] and [`Error::Unsupported`]; the first of: magic, version, limits, bounds,
/// overlaps.
// Not inlined, for the stack.
#[inline(never)]
fn load<T: Tables + ?Sized>(tables: &T, has_parent: bool) -> Result<Layout> {
    let file_size = tables.size()?;
    if file_size < HEADER_LEN {
        return malformed("file is too short for a COWD header", file_size);
    }
    let fields: HeaderFields = num::load(tables, 0)?;
    if fields.magic != MAGIC {
        return malformed("no COWD header", 0);
    }
    if fields.version.get() != VERSION_1 {
        return Err(Error::unsupported("COWD version is not 1", VERSION));
    }
    let grain = u64::from(fields.grain_size.get());
    if !GRAIN_SECTORS.contains(&grain) || !grain.is_power_of_two() {
        return malformed(
            "COWD grain is not of 1 to 65536 sectors, a power of two",
            GRAIN_SIZE,
        );
    }
    // Less than 2^41: nothing saturates.
    let sectors = |count: u32| u64::from(count).saturating_mul(SECTOR_SIZE);
    let layout = Layout {
        grain: grain.saturating_mul(SECTOR_SIZE),
        entries: TABLE_ENTRIES,
        directory: sectors(fields.gd_offset.get()),
        redundant: None,
        size: sectors(fields.capacity.get()),
        header_end: HEADER_LEN,
        descriptor: None,
        data_start: HEADER_LEN,
        has_zero_grains: false,
        has_parent,
        free_at: Some(NEXT_FREE),
    };
    if u64::from(fields.gd_entries.get()) < layout.count() {
        return malformed("COWD grain directory is too small for the disk", GD_ENTRIES);
    }
    layout.check(file_size, GD_OFFSET, GD_OFFSET)?;
    Ok(layout)
}
