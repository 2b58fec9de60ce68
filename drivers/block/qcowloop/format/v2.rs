// SPDX-License-Identifier: GPL-2.0

//! qcow2, versions 2 and 3.
//!
//! The specification is `docs/interop/qcow2.rst` in the QEMU sources; section names in the comments
//! are its own.

mod alloc;
mod backing;
mod data_file;
mod entry;
mod extensions;
mod features;
mod header;
mod layout;
mod map;
mod ondisk;
mod refcount;

use loop_parser::contract::{
    Disk,
    Error,
    Fault,
    Features,
    HostRange,
    Result,
    State,
    Tables, //
};

use super::{
    num::whole_sectors,
    Attached, //
};

pub use alloc::{
    Blueprint,
    Qcow2Allocator, //
};
pub use map::Qcow2Map;

use layout::Layout;
use ondisk::{
    INCOMPATIBLE_CORRUPT,
    INCOMPATIBLE_DIRTY, //
};

/// Checks an image and learns its layout. Reads a handful of sectors whatever the size of the image,
/// and never writes. `writable` says that the device will be read-write.
///
/// # Errors
///
/// - [`Error::BadOption`]: there are options; there is none to be had.
/// - [`Error::Unsupported`]: an image that this parser does not serve; the fault names the reason.
/// - [`Error::Malformed`]: the image contradicts the specification or itself.
/// - [`Error::NeedsReadOnly`]: the image is marked dirty or corrupt, and `writable` is set.
/// - [`Error::Store`], [`Error::WouldBlock`]: from `tables`.
pub fn attach(
    tables: &dyn Tables,
    options: &str,
    writable: bool,
) -> Result<Attached<Qcow2Map, Blueprint>> {
    if !options.is_empty() {
        return Err(Error::BadOption);
    }
    let header = header::load(tables, tables.size()?)?;
    let parent = backing::load(tables, &header)?;
    let data = data_file::load(tables, &header)?;

    // Last, because a read-only attach needs everything else to be right.
    if let Some(fault) = header.damage.filter(|_| writable) {
        return Err(Error::NeedsReadOnly(fault));
    }
    Ok(Attached {
        disk: describe(&header.layout),
        map: Qcow2Map::new(header.layout),
        alloc: Blueprint::new(&header.layout),
        parent,
        data,
        warning: header.damage,
    })
}

/// Where an image that was refused for `fault` has a name for it: that of an unknown feature.
pub fn quote(tables: &dyn Tables, fault: &Fault) -> Option<HostRange> {
    header::quote(tables, fault)
}

/// The bits of an image that is not as it should be.
const DAMAGED: u64 = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT;

fn describe(layout: &Layout) -> Disk {
    Disk {
        size: whole_sectors(layout.size),
        variant: match layout.version {
            2 => "v2",
            _ => "v3",
        },
        unit: layout.cluster_size(),
        state: match layout.incompatible & DAMAGED {
            0 => State::Clean,
            _ => State::Dirty,
        },
        features: Features {
            discard: true,
            write_zeroes: true,
            reuses_space: true,
        },
        ..Disk::default()
    }
}
