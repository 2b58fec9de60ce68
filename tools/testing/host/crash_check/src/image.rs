// SPDX-License-Identifier: GPL-2.0

//! Images through the code of the driver's parsers.

use loop_parser::contract::Parent as _;
use testkit::{device::Device, store::Store};
use vhd_format::format::{self as vhd, VhdParent};

use crate::{disk, recording::Parent};

/// A read-write device over an image, which lies on `parent` if there is one.
pub fn attach(format: &str, store: Store, parent: Option<&Parent>) -> Result<Device, String> {
    let (device, named) = open(format, store, true)?;
    match (named, parent) {
        (None, None) => Ok(device),
        (Some(named), Some(parent)) => {
            let below = open_below(&device, &named, parent)?;
            Ok(device.on_top_of(below))
        }
        (Some(_), None) => Err("the image has got a parent".into()),
        (None, Some(_)) => Err("the image has lost its parent".into()),
    }
}

/// A device over an image alone, and what that says of its parent.
fn open(format: &str, store: Store, writable: bool) -> Result<(Device, Option<VhdParent>), String> {
    match format {
        "vhd" => {
            let attached = vhd::attach(&store, "", writable).map_err(said)?;
            let (map, alloc) = (Box::new(attached.map), Box::new(attached.alloc));
            let device = Device::new(store, attached.disk, map, alloc);
            Ok((device, attached.parent))
        }
        other => Err(format!("format '{other}' is not known")),
    }
}

/// The parent of `device`, which has to be the one that is named.
fn open_below(device: &Device, named: &VhdParent, parent: &Parent) -> Result<Device, String> {
    let mut name = [0; 256];
    let len = named.name(&device.store, 0, &mut name).map_err(said)?;
    let name = &name[..len.unwrap_or(0)];
    if name != parent.name().as_bytes() {
        let name = String::from_utf8_lossy(name);
        return Err(format!("the parent is called '{name}'"));
    }
    let size = parent.bytes.len() as u64;
    let store = Store::from_parts(disk::sectors(&parent.bytes), size, true);
    match open(named.parser().unwrap_or("raw"), store, false)? {
        (below, None) => named.check(&below.disk).map_err(said).map(|()| below),
        (_, Some(_)) => Err("the parent has a parent".into()),
    }
}

/// All of the guest's disk.
pub fn read(device: &Device) -> Result<Vec<u8>, String> {
    device.read(0, device.disk.size).map_err(said)
}

fn said(error: loop_parser::contract::Error) -> String {
    format!("{error:?}")
}
