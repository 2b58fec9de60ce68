// SPDX-License-Identifier: GPL-2.0

//! Images through the code of the driver's parsers.

use testkit::{device::Device, store::Store};
use vhd_format::format as vhd;

/// A read-write device over an image.
pub fn attach(format: &str, store: Store) -> Result<Device, String> {
    match format {
        "vhd" => {
            let attached = vhd::attach(&store, "", true).map_err(|it| format!("{it:?}"))?;
            let (map, alloc) = (Box::new(attached.map), Box::new(attached.alloc));
            Ok(Device::new(store, attached.disk, map, alloc))
        }
        other => Err(format!("format '{other}' is not known")),
    }
}

/// All of the guest's disk.
pub fn read(device: &Device) -> Result<Vec<u8>, String> {
    device
        .read(0, device.disk.size)
        .map_err(|it| format!("{it:?}"))
}
