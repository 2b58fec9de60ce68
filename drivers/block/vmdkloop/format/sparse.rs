// SPDX-License-Identifier: GPL-2.0

//! Hosted sparse extents ("Hosted Sparse Extents"), read and written: a disk in one file, with an
//! embedded descriptor, or a part of a disk that a descriptor lists.

pub(super) mod header;
pub(super) mod ondisk;

use loop_parser::contract::{
    AttachRequest,
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
    descriptor::{
        CreateType,
        Descriptor,
        Place, //
    },
    grains::{
        self,
        layout::Layout,
        Capacity,
        GrainAllocator,
        GrainMap,
        Marker, //
    },
    Attached, //
};
use header::Header;
use ondisk::*;

/// Checks a sparse extent that is not compressed, and learns its layout.
///
/// # Errors
///
/// As for [`kind`](super::kind). [`Error::Malformed`] also for an extent that is smaller than the
/// list says that it is part of, and [`Error::Unsupported`] for one of several that is attached alone.
pub fn attach(
    tables: &dyn Tables,
    request: &AttachRequest<'_>,
) -> Result<Attached<GrainMap, GrainAllocator>> {
    let header = header::load(tables, 0)?;
    let text = match request.part {
        // What it says itself does not count.
        Some(_) => None,
        None => descriptor(tables, &header)?,
    };
    let has_parent = match (request.part, &text) {
        (Some(part), _) => part.has_parent,
        (None, text) => text.is_some_and(|text| text.parent_cid.is_some()),
    };
    let mut layout = layout_of(&header, has_parent)?;
    check(&mut layout, tables.size()?, request.writable)?;
    let read_only = read_only(&header, text.as_ref());
    if let (Some(fault), true) = (read_only, request.writable) {
        return Err(Error::NeedsReadOnly(fault));
    }
    put_together(&header, &layout, request, text.as_ref())
}

// Not inlined, for the stack.
#[inline(never)]
fn put_together(
    header: &Header,
    layout: &Layout,
    request: &AttachRequest<'_>,
    text: Option<&Descriptor>,
) -> Result<Attached<GrainMap, GrainAllocator>> {
    let size = size(header, request, text)?;
    let marker = Marker {
        unclean: HostRange {
            offset: UNCLEAN,
            len: 1,
        },
        content: text.and_then(|text| text.content),
        random: request.random,
        load: |tables, has_parent| layout_of(&header::load(tables, 0)?, has_parent),
    };
    Ok(Attached {
        disk: disk(header, layout, size, text),
        map: GrainMap::new(*layout, size, Capacity::Long(CAPACITY)),
        alloc: GrainAllocator::new(*layout, marker),
        parent: text.map_or(Ok(None), Descriptor::parent)?,
        warning: header
            .is_unclean
            .then_some(Fault::new(grains::UNCLEAN, UNCLEAN)),
    })
}

/// Checks where the directories lie. Only the one that counts is needed to read: without `writable`, a
/// layout whose other one is wrong loses that.
///
/// # Errors
///
/// [`Error::Malformed`] at the field of that one; [`Error::NeedsReadOnly`] at that of the redundant one, if
/// `writable`.
#[inline(never)]
fn check(layout: &mut Layout, file_size: u64, writable: bool) -> Result {
    let alone = Layout {
        redundant: None,
        ..*layout
    };
    alone.check(file_size, GD_OFFSET, RGD_OFFSET)?;
    match layout.check(file_size, GD_OFFSET, RGD_OFFSET) {
        Err(Error::Malformed(fault)) if writable => Err(Error::NeedsReadOnly(fault)),
        Err(Error::Malformed(_)) => {
            layout.redundant = None;
            Ok(())
        }
        result => result,
    }
}

/// What the device looks like.
fn disk(header: &Header, layout: &Layout, size: u64, text: Option<&Descriptor>) -> Disk {
    let has_discard = layout.has_discard();
    Disk {
        size,
        variant: text.map_or("sparse", |text| text.create_type.name()),
        unit: header.grain,
        identity: text.map(Descriptor::identity).unwrap_or_default(),
        state: match header.is_unclean {
            true => State::Dirty,
            false => State::Clean,
        },
        features: Features {
            discard: has_discard,
            write_zeroes: has_discard,
            reuses_space: false,
        },
        ..Disk::default()
    }
}

/// The embedded descriptor; `None` if there is none, or an empty one.
// Not inlined, for the stack.
#[inline(never)]
pub(super) fn descriptor(tables: &dyn Tables, header: &Header) -> Result<Option<Descriptor>> {
    let Some(room) = header.descriptor else {
        return Ok(None);
    };
    let mut first = [0];
    tables.load(room.start, &mut first)?;
    if first == [0] {
        return Ok(None);
    }
    let text = HostRange {
        offset: room.start,
        len: room.end.saturating_sub(room.start),
    };
    Descriptor::load(tables, text, Place::Embedded).map(Some)
}

/// Size in bytes of the disk, or of the extent.
pub(super) fn size(
    header: &Header,
    request: &AttachRequest<'_>,
    text: Option<&Descriptor>,
) -> Result<u64> {
    if let Some(part) = request.part {
        return match part.len <= header.size {
            true => Ok(header.size),
            false => Err(Error::malformed(
                "VMDK extent is smaller than its line in the descriptor says",
                CAPACITY,
            )),
        };
    }
    let Some(Descriptor {
        extents,
        create_type,
        ..
    }) = text
    else {
        return Ok(header.size);
    };
    let is_alone = matches!(
        create_type,
        CreateType::MonolithicSparse | CreateType::StreamOptimized
    );
    match extents.count {
        0 => Ok(header.size),
        2.. if !is_alone => Err(Error::unsupported(
            "VMDK file is one of several extents: attach the descriptor",
            DESC_OFFSET,
        )),
        // Some programs round the capacity up.
        _ => Ok(header.size.min(extents.size)),
    }
}

/// Why the file can only be read, if so.
fn read_only(header: &Header, text: Option<&Descriptor>) -> Option<Fault> {
    // What is written would be missing in a list of changes that lies beside the disk.
    let tracked = (header.version == VERSION_3).then_some(Fault::new(
        "VMDK is of version 3, of which changes are tracked",
        VERSION,
    ));
    tracked.or(text.and_then(|text| text.read_only))
}

/// Where things lie, by the header.
///
/// # Errors
///
/// [`Error::Malformed`] if grains are compressed, or the directory is at the end of the file: that is for
/// streams.
fn layout_of(header: &Header, has_parent: bool) -> Result<Layout> {
    let stream = Error::malformed("VMDK grain directory is that of a stream", GD_OFFSET);
    let directory = header.directory.filter(|_| !header.is_compressed);
    Ok(Layout {
        grain: header.grain,
        entries: header.entries,
        directory: directory.ok_or(stream)?,
        redundant: header.redundant,
        size: header.size,
        header_end: HEADER_LEN,
        descriptor: header.descriptor,
        data_start: header.overhead,
        has_zero_grains: header.has_zero_grains,
        has_parent,
        free_at: None,
    })
}
