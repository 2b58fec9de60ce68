// SPDX-License-Identifier: GPL-2.0

//! Space-efficient sparse extents (seSparse) of VMFS 6: what ESXi keeps snapshots in, and large
//! disks of desktops.
//!
//! There is no specification; names and layout are those of `block/vmdk.c` in the QEMU sources. As
//! there, such a file can only be read, and only if its journal has nothing that the tables do not
//! have yet. It is an extent of a disk: only the disk's descriptor says what lies below it.

mod header;
mod layout;
mod map;
mod ondisk;

use loop_parser::contract::{
    AttachRequest,
    Disk,
    Error,
    Fault,
    Result,
    Tables, //
};

use super::{
    Attached,
    ReadOnly, //
};

pub use map::SeSparseMap;

/// Checks an extent, and learns its layout. Reads two sectors, whatever its size.
///
/// # Errors
///
/// - [`Error::NeedsReadOnly`]: a writable device was asked for.
/// - [`Error::Unsupported`]: the file was to be attached by itself; the journal is not empty;
///   another version or another shape than ESXi makes.
/// - [`Error::Malformed`]: the file contradicts itself, or is smaller than the disk's list of
///   extents says.
/// - [`Error::Store`], [`Error::WouldBlock`]: from `tables`.
pub fn attach(
    tables: &dyn Tables,
    request: &AttachRequest<'_>,
) -> Result<Attached<SeSparseMap, ReadOnly>> {
    let layout = header::load(tables, tables.size()?)?;
    let Some(part) = request.part else {
        return Err(Error::unsupported(
            "seSparse file is an extent of a disk: attach its descriptor",
            0,
        ));
    };
    if layout.size < part.len {
        return Err(Error::malformed(
            "seSparse file is smaller than its line in the descriptor says",
            ondisk::CAPACITY,
        ));
    }
    if request.writable {
        return Err(Error::NeedsReadOnly(Fault::new(
            "seSparse files can only be read",
            0,
        )));
    }
    Ok(Attached {
        disk: Disk {
            size: layout.size,
            variant: "seSparse",
            unit: layout::GRAIN,
            ..Disk::default()
        },
        map: SeSparseMap::new(layout, part.has_parent),
        alloc: ReadOnly,
        parent: None,
        warning: None,
    })
}
