// SPDX-License-Identifier: GPL-2.0

//! Version 1.

mod image;
mod malformed;
mod others;
mod write;

use loop_parser::contract::Result;
use qcow_format::format;
use testkit::{device::Device, store::Store};

fn open(store: Store) -> Result<Device> {
    let attached = format::v1::attach(&store, "")?;
    let device = Device::new(
        store,
        attached.disk,
        Box::new(attached.map),
        Box::new(attached.alloc),
    );
    Ok(device.with_decompressor(crate::decompress))
}
