// SPDX-License-Identifier: GPL-2.0

//! Images through the code of the driver's parsers.

use loop_parser::contract::{self, Allocate, AttachRequest, Disk, Identity, Map, Result as Answer};
use qcow_format::format as qcow;
use testkit::{compressed::decompress, device::Device, store::Store};
use vhd_format::format as vhd;
use vmdk_format::format as vmdk;

use crate::{assembled::Assembled, disk, files::Files, raw, recording::Parent};

/// What an image says of its parent.
type Named = Box<dyn contract::Parent>;

/// A read-write device.
pub enum Attached {
    /// Over an image in one file.
    Whole(Device),
    /// Over several.
    Parts(Assembled),
}

impl Attached {
    /// What the parser says of the disk.
    pub fn disk(&self) -> &Disk {
        match self {
            Self::Whole(it) => &it.disk,
            Self::Parts(it) => &it.disk,
        }
    }

    /// What of the disk each of the files has: position and length in bytes.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        match self {
            Self::Whole(it) => vec![(0, it.disk.size)],
            Self::Parts(it) => it.ranges(),
        }
    }

    /// All of the guest's disk.
    pub fn read(&self) -> Answer<Vec<u8>> {
        match self {
            Self::Whole(it) => it.read(0, it.disk.size),
            Self::Parts(it) => it.read(0, it.disk.size),
        }
    }

    /// Writes guest bytes.
    pub fn write(&mut self, pos: u64, data: &[u8]) -> Answer {
        match self {
            Self::Whole(it) => it.write(pos, data),
            Self::Parts(it) => it.write(pos, data),
        }
    }

    /// A guest's flush.
    pub fn flush(&mut self) -> Answer {
        match self {
            Self::Whole(it) => it.flush(),
            Self::Parts(it) => it.flush(),
        }
    }

    /// The last use of the device.
    pub fn close(self) -> Answer<Files> {
        match self {
            Self::Whole(it) => it.close().map(Files::from),
            Self::Parts(it) => it.close(),
        }
    }
}

/// A read-write device over an image, which lies on `parent` if there is one.
pub fn attach(format: &str, files: Files, parent: Option<&Parent>) -> Result<Attached, String> {
    if format == "vmdk" {
        return attach_vmdk(files, parent);
    }
    let (device, named) = open(format, files.image, true)?;
    let below = open_below(&device.store, named.as_deref(), parent)?;
    Ok(on(device, below))
}

/// A device, on the one that its image names.
fn on(device: Device, below: Option<Device>) -> Attached {
    Attached::Whole(match below {
        Some(below) => device.on_top_of(below),
        None => device,
    })
}

fn attach_vmdk(files: Files, parent: Option<&Parent>) -> Result<Attached, String> {
    let Files { image, parts } = files;
    let request = AttachRequest {
        writable: true,
        ..AttachRequest::default()
    };
    match vmdk::attach(&image, &request).map_err(said)? {
        vmdk::Image::Set(it, extents) => {
            let named = it.parent.map(|named| Box::new(named) as Named);
            let below = open_below(&image, named.as_deref(), parent)?;
            let has_parent = below.is_some();
            let disk = Assembled::open(image, it.disk, it.alloc, &extents, has_parent, parts)?;
            match below {
                Some(below) => disk.on_top_of(below).map(Attached::Parts),
                None => Ok(Attached::Parts(disk)),
            }
        }
        vmdk::Image::Sparse(it) | vmdk::Image::Cowd(it) => {
            let named = it.parent.map(|named| Box::new(named) as Named);
            let below = open_below(&image, named.as_deref(), parent)?;
            Ok(on(device(image, it.disk, it.map, it.alloc), below))
        }
        _ => Err("the image is of a kind that cannot be written to".into()),
    }
}

/// What of an image changes when the guest has written to it; zeros if nothing has to.
pub fn content_id(format: &str, disk: &Disk) -> Identity {
    match format {
        "vmdk" => disk.identity,
        _ => Identity::default(),
    }
}

/// A device over an image alone, and what that says of its parent.
fn open(format: &str, store: Store, writable: bool) -> Result<(Device, Option<Named>), String> {
    match format {
        "vhd" => {
            let it = vhd::attach(&store, "", writable).map_err(said)?;
            let device = device(store, it.disk, it.map, it.alloc);
            Ok((device, it.parent.map(|named| Box::new(named) as Named)))
        }
        "qcow" => {
            let it = qcow::v1::attach(&store, "").map_err(said)?;
            let device = device(store, it.disk, it.map, it.alloc);
            Ok((device, it.parent.map(|named| Box::new(named) as Named)))
        }
        "qcow2" => {
            let it = qcow::v2::attach(&store, "", writable).map_err(said)?;
            let device = device(store, it.disk, it.map, it.alloc.build());
            Ok((device, it.parent.map(|named| Box::new(named) as Named)))
        }
        // An image that is attached can be in several files.
        "vmdk" if !writable => {
            match vmdk::attach(&store, &AttachRequest::default()).map_err(said)? {
                vmdk::Image::Sparse(it) => {
                    let device = device(store, it.disk, it.map, it.alloc);
                    Ok((device, it.parent.map(|named| Box::new(named) as Named)))
                }
                _ => Err("the parent is no sparse VMDK".into()),
            }
        }
        // Only a parent can be that.
        "raw" if !writable => Ok((raw::open(store), None)),
        other => Err(format!("format '{other}' is not known")),
    }
}

/// A device over an image that was attached.
pub fn device(
    store: Store,
    disk: Disk,
    map: impl Map + 'static,
    alloc: impl Allocate + 'static,
) -> Device {
    Device::new(store, disk, Box::new(map), Box::new(alloc)).with_decompressor(decompress)
}

/// The parent of `image`, if it has one: that has to be among those that are named.
fn open_below(
    image: &Store,
    named: Option<&dyn contract::Parent>,
    parent: Option<&Parent>,
) -> Result<Option<Device>, String> {
    let (named, parent) = match (named, parent) {
        (None, None) => return Ok(None),
        (Some(named), Some(parent)) => (named, parent),
        (Some(_), None) => return Err("the image has got a parent".into()),
        (None, Some(_)) => return Err("the image has lost its parent".into()),
    };
    let names = names(image, named)?;
    if !names.contains(&parent.name) {
        return Err(format!("the parent is called {names:?}"));
    }
    let size = parent.bytes.len() as u64;
    let store = Store::from_parts(disk::sectors(&parent.bytes), size, true);
    match open(named.parser().unwrap_or("raw"), store, false)? {
        (below, None) => named.check(&below.disk).map_err(said).map(|()| Some(below)),
        (_, Some(_)) => Err("the parent has a parent".into()),
    }
}

/// All names that `image` has for its parent.
fn names(image: &Store, named: &dyn contract::Parent) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut name = [0; 1024];
    while let Some(len) = named.name(image, names.len(), &mut name).map_err(said)? {
        names.push(String::from_utf8_lossy(&name[..len]).into());
    }
    Ok(names)
}

/// An error as text.
pub fn said(error: contract::Error) -> String {
    format!("{error:?}")
}
