// SPDX-License-Identifier: GPL-2.0

//! qcow, version 1.

mod alloc;
mod header;
mod layout;
mod map;
mod ondisk;

use loop_parser::contract::{
    Disk,
    Error,
    Result,
    Tables, //
};

use super::{
    name::{
        NamedFile,
        BACKING_FILE, //
    },
    num::whole_sectors,
    Attached, //
};

pub use alloc::QcowAllocator;
pub use map::QcowMap;

/// Checks an image and learns its layout. Reads a handful of sectors whatever the size of the image,
/// and never writes.
///
/// # Errors
///
/// - [`Error::BadOption`]: there are options; there is none to be had.
/// - [`Error::Unsupported`]: an image that this parser does not serve; the fault names the reason.
/// - [`Error::Malformed`]: the image contradicts itself.
/// - [`Error::Store`], [`Error::WouldBlock`]: from `tables`.
pub fn attach(tables: &dyn Tables, options: &str) -> Result<Attached<QcowMap, QcowAllocator>> {
    if !options.is_empty() {
        return Err(Error::BadOption);
    }
    let header = header::load(tables, tables.size()?)?;
    // The format of the backing file is not recorded.
    let parent = match header.backing_name {
        Some(name) => Some(NamedFile::new(tables, name, None, BACKING_FILE)?),
        None => None,
    };
    Ok(Attached {
        disk: Disk {
            size: whole_sectors(header.layout.size),
            variant: "v1",
            unit: header.layout.cluster_size(),
            ..Disk::default()
        },
        map: QcowMap::new(header.layout),
        alloc: QcowAllocator::new(header.layout),
        parent,
        data: None,
        warning: None,
    })
}
