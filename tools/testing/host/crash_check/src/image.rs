// SPDX-License-Identifier: GPL-2.0

//! Images through the code of the driver's parsers.

use loop_parser::contract::{self, Allocate, Disk, Map};
use qcow_format::format as qcow;
use testkit::{compressed::decompress, device::Device, store::Store};
use vhd_format::format as vhd;

use crate::{disk, raw, recording::Parent};

/// What an image says of its parent.
type Named = Box<dyn contract::Parent>;

/// A read-write device over an image, which lies on `parent` if there is one.
pub fn attach(format: &str, store: Store, parent: Option<&Parent>) -> Result<Device, String> {
    let (device, named) = open(format, store, true)?;
    match (named, parent) {
        (None, None) => Ok(device),
        (Some(named), Some(parent)) => {
            let below = open_below(&device, &*named, parent)?;
            Ok(device.on_top_of(below))
        }
        (Some(_), None) => Err("the image has got a parent".into()),
        (None, Some(_)) => Err("the image has lost its parent".into()),
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
        // Only a parent can be that.
        "raw" if !writable => Ok((raw::open(store), None)),
        other => Err(format!("format '{other}' is not known")),
    }
}

fn device(
    store: Store,
    disk: Disk,
    map: impl Map + 'static,
    alloc: impl Allocate + 'static,
) -> Device {
    Device::new(store, disk, Box::new(map), Box::new(alloc)).with_decompressor(decompress)
}

/// The parent of `device`, which has to be among those that are named.
fn open_below(
    device: &Device,
    named: &dyn contract::Parent,
    parent: &Parent,
) -> Result<Device, String> {
    let names = names(device, named)?;
    if !names.contains(&parent.name) {
        return Err(format!("the parent is called {names:?}"));
    }
    let size = parent.bytes.len() as u64;
    let store = Store::from_parts(disk::sectors(&parent.bytes), size, true);
    match open(named.parser().unwrap_or("raw"), store, false)? {
        (below, None) => named.check(&below.disk).map_err(said).map(|()| below),
        (_, Some(_)) => Err("the parent has a parent".into()),
    }
}

/// All names that `device` has for its parent.
fn names(device: &Device, named: &dyn contract::Parent) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut name = [0; 1024];
    while let Some(len) = named
        .name(&device.store, names.len(), &mut name)
        .map_err(said)?
    {
        names.push(String::from_utf8_lossy(&name[..len]).into());
    }
    Ok(names)
}

/// All of the guest's disk.
pub fn read(device: &Device) -> Result<Vec<u8>, String> {
    device.read(0, device.disk.size).map_err(said)
}

fn said(error: contract::Error) -> String {
    format!("{error:?}")
}
