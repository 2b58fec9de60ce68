// SPDX-License-Identifier: GPL-2.0

//! Tests of the VHD format code, from outside.

#![allow(missing_docs, unreachable_pub)]

mod image;
mod reader;

mod alloc;
mod attach;
mod batmap;
mod clear_bits;
mod crash;
mod defects;
mod differencing;
mod discard;
mod enospc;
mod hostile;
mod malformed;
mod on_device;
mod parents;
mod probe;
mod random;
mod refusal;
mod resize;
mod resolve;
mod samples;

use loop_parser::contract::{Error, Result};
use testkit::{device::Device, store::Store};
use vhd_format::format;

/// A read-write device over an image; its parser's warning is nobody's business.
fn open(store: Store) -> Result<Device> {
    open_as(store, "", true)
}

/// A read-write device over an image and the device below it.
fn open_over(store: Store, parent: Device) -> Result<Device> {
    let device = open(store)?;
    assert_eq!(device.disk.variant, "differencing");
    Ok(device.on_top_of(parent))
}

/// What differencing images of tests that do not care lie on.
fn common_parent() -> Store {
    image::Spec::fixed(10 * 4096).build().store
}

/// A read-write device over an image of any kind.
fn open_layers(store: Store) -> Result<Device> {
    let device = open(store)?;
    if device.disk.variant == "differencing" {
        return Ok(device.on_top_of(open(common_parent())?));
    }
    Ok(device)
}

/// The guest's disk by the second reader, for an image of any kind.
fn disk_of(store: &Store) -> Vec<u8> {
    let below = reader::Reader::open(&common_parent()).unwrap().disk();
    let is_child = matches!(attach(store), Ok(attached) if attached.parent.is_some());
    let below = if is_child { &below[..] } else { &[] };
    reader::Reader::open(store).unwrap().disk_over(below)
}

fn open_as(store: Store, options: &str, writable: bool) -> Result<Device> {
    let attached = format::attach(&store, options, writable)?;
    Ok(Device::new(
        store,
        attached.disk,
        Box::new(attached.map),
        Box::new(attached.alloc),
    ))
}

/// Attaches and forgets.
fn attach(store: &Store) -> Result<format::Attached> {
    format::attach(store, "", true)
}

/// The class of an error, without its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Malformed,
    Unsupported,
    NeedsReadOnly,
    Store,
    Other,
}

fn class(error: Error) -> Class {
    match error {
        Error::Malformed(_) => Class::Malformed,
        Error::Unsupported(_) => Class::Unsupported,
        Error::NeedsReadOnly(_) => Class::NeedsReadOnly,
        Error::Store(_) => Class::Store,
        Error::WouldBlock | Error::BadOption => Class::Other,
    }
}
