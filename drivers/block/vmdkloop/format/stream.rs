// SPDX-License-Identifier: GPL-2.0

//! Streams: sparse extents that can be written and read from front to end ("Stream-Optimized
//! Compressed Sparse Extents"). They are what appliances are shipped in. Grains are compressed; a
//! stream can only be read.
//!
//! The directory lies in front, or behind all grains: then a copy of the header, the *footer*, says
//! where. If the end of such a stream is missing, what is there of it can be read: see `scan.rs`.

mod directory;
mod grain;
mod map;
mod ondisk;
mod scan;

use loop_parser::contract::{
    num::{
        self,
        add,
        Region, //
    },
    AttachRequest,
    Disk,
    Error,
    Fault,
    Result,
    State,
    Tables,
    SECTOR_SIZE, //
};

use super::{
    sparse::{
        self,
        header::{
            self,
            Header, //
        },
        ondisk::{
            FLAGS,
            FLAG_COMPRESSED,
            FLAG_MARKERS,
            GD_AT_END,
            GD_OFFSET,
            MAGIC, //
        },
    },
    Attached,
    ReadOnly, //
};

use directory::Directory;
use grain::Shape;
use map::Index;
use ondisk::*;
use scan::Found;

pub use map::StreamMap;

/// Checks a stream, and learns its layout. Reads a handful of sectors whatever its size, unless its
/// end is missing: then it reads the header of every grain, of up to half a million, or four million to
/// look for the directory behind them.
///
/// # Errors
///
/// - [`Error::NeedsReadOnly`]: a writable device was asked for.
/// - [`Error::Unsupported`]: a grain is larger than can be decompressed; what is said of a stream
///   without its end in `scan.rs`.
/// - [`Error::Malformed`]: the stream contradicts itself, or is smaller than a disk's list of
///   extents says.
/// - [`Error::Store`], [`Error::WouldBlock`]: from `tables`.
pub fn attach(
    tables: &dyn Tables,
    request: &AttachRequest<'_>,
) -> Result<Attached<StreamMap, ReadOnly>> {
    let front = header::load(tables, 0)?;
    let counting = counting(tables, front)?;
    let header = counting.unwrap_or(front);
    let text = match request.part {
        // What it says itself does not count.
        Some(_) => None,
        None => sparse::descriptor(tables, &front)?,
    };
    let parent = text.map_or(Ok(None), |text| text.parent())?;
    let has_parent = request
        .part
        .map_or(parent.is_some(), |part| part.has_parent);
    let size = sparse::size(&header, request, text.as_ref())?;
    let shape = shape(&header, size, has_parent)?;
    if request.writable {
        let fault = Fault::new("VMDK stream can only be read", 0);
        return Err(Error::NeedsReadOnly(fault));
    }
    let (index, warning) = match counting {
        Some(header) => (directory(tables, &front, &header, &shape)?, None),
        None => recover(tables, &front, &shape)?,
    };
    Ok(Attached {
        disk: Disk {
            size,
            variant: "streamOptimized",
            unit: shape.grain,
            identity: text.map(|text| text.identity()).unwrap_or_default(),
            state: match warning {
                Some(_) => State::Recovered,
                None => State::Clean,
            },
            ..Disk::default()
        },
        map: StreamMap::new(shape, index),
        alloc: ReadOnly,
        parent,
        warning,
    })
}

/// Whether a sparse extent is for this module: grains are compressed, or the directory is not where
/// the header in front could say.
pub(super) fn is_stream(tables: &dyn Tables) -> Result<bool> {
    if tables.size()? < SECTOR_SIZE {
        return Ok(false);
    }
    let flags = tables.load_le32(FLAGS)?;
    Ok(flags & (FLAG_COMPRESSED | FLAG_MARKERS) != 0 || tables.load_le64(GD_OFFSET)? == GD_AT_END)
}

/// The header that counts, if it is there: in front, or at the end.
fn counting(tables: &dyn Tables, front: Header) -> Result<Option<Header>> {
    if !front.is_compressed {
        return Err(Error::malformed(
            "VMDK has its grain directory at the end, but grains that are not compressed",
            FLAGS,
        ));
    }
    if front.directory.is_some() {
        return Ok(Some(front));
    }
    let Some(at) = footer(tables)? else {
        return Ok(None);
    };
    let footer = header::load(tables, at)?;
    if !footer.is_compressed || footer.directory.is_none() {
        return Err(Error::malformed(
            "VMDK footer does not say where the grain directory is",
            at,
        ));
    }
    Ok(Some(footer))
}

/// The host offset of the footer, if there is one where it has to be: between its marker and that
/// of the end of the stream.
fn footer(tables: &dyn Tables) -> Result<Option<u64>> {
    let file_size = tables.size()?;
    let before_end = |len| file_size.checked_sub(len);
    let (Some(marker), Some(footer), Some(end)) = (
        before_end(FOOTER_MARKER_TO_END),
        before_end(FOOTER_TO_END),
        before_end(SECTOR_SIZE),
    ) else {
        return Ok(None);
    };
    let is_there = file_size % SECTOR_SIZE == 0
        && is_marker(tables, marker, FOOTER)?
        && is_marker(tables, end, END_OF_STREAM)?
        && tables.load_le32(footer)? == u32::from_le_bytes(MAGIC);
    Ok(is_there.then_some(footer))
}

/// Whether there is a marker of a type at host offset `at`.
fn is_marker(tables: &dyn Tables, at: u64, kind: u32) -> Result<bool> {
    let header: GrainHeader = num::load(tables, at)?;
    Ok(header.size.get() == 0 && tables.load_le32(add(at, MARKER_TYPE, at)?)? == kind)
}

/// What all grains have in common.
fn shape(header: &Header, size: u64, has_parent: bool) -> Result<Shape> {
    if header.grain > MAX_GRAIN {
        return Err(Error::unsupported(
            "VMDK grain is too large to be decompressed",
            header.at,
        ));
    }
    // INVARIANT: Checked here, and when the header was loaded.
    Ok(Shape {
        grain: header.grain,
        capacity: header.size,
        size,
        has_parent,
    })
}

/// The index of a stream whose header says where the directory is.
fn directory(tables: &dyn Tables, front: &Header, header: &Header, shape: &Shape) -> Result<Index> {
    let at = header.directory.unwrap_or(0);
    let region = Region::new(at, Directory::len(shape, header.entries)?, header.at)?;
    if region.end > tables.size()? {
        return Err(Error::malformed(
            "VMDK grain directory lies past the end of the file",
            header.at,
        ));
    }
    if region.start < headers_end(front) {
        return Err(Error::malformed(
            "VMDK grain directory overlaps header or descriptor",
            header.at,
        ));
    }
    // INVARIANT: The checks above, and those of the header.
    Ok(Index::Directory(Directory {
        at,
        per_table: header.entries,
        has_zero_grains: header.has_zero_grains,
    }))
}

/// Where header and descriptor end, in bytes.
fn headers_end(front: &Header) -> u64 {
    front.descriptor.map_or(0, |text| text.end).max(SECTOR_SIZE)
}

/// The index of a stream whose end is missing, and what is to be said of it.
fn recover(tables: &dyn Tables, front: &Header, shape: &Shape) -> Result<(Index, Option<Fault>)> {
    let at = tables.size()?;
    if front.overhead < headers_end(front) {
        return Err(Error::malformed(
            "VMDK stream has no footer, and header or descriptor where grains should be",
            at,
        ));
    }
    if front.has_zero_grains && shape.has_parent {
        // Zero grains are in the tables only.
        return Err(Error::malformed("VMDK stream has no footer", at));
    }
    Ok(match scan::scan(tables, shape, front.entries, front.overhead)? {
        Found::Directory(start) => (
            Index::Directory(Directory {
                at: start,
                per_table: front.entries,
                has_zero_grains: front.has_zero_grains,
            }),
            Some(Fault::new(
                "VMDK stream has no footer where it ends; its grain directory was found by its marker",
                start,
            )),
        ),
        Found::Grains(scanned) => {
            let warning = Fault::new(
                "VMDK stream breaks off: only what lies in front of that can be read",
                scanned.end,
            );
            (Index::Scanned(scanned), Some(warning))
        }
    })
}
