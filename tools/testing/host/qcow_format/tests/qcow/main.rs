// SPDX-License-Identifier: GPL-2.0

//! Tests of the qcow format code, from outside.

#![allow(missing_docs, unreachable_pub, clippy::precedence)]

mod image;
mod reader;

mod attach;
mod hostile;
mod malformed;
mod parents;
mod qemu;
mod random;
mod resolve;
mod samples;
mod v1;

use loop_parser::contract::{Error, Result};
use qcow_format::format;
use testkit::{
    compressed::{decompress, unpack},
    device::Device,
    store::Store,
};

/// A read-only device over a qcow2 image.
fn open(store: Store) -> Result<Device> {
    let attached = format::v2::attach(&store, "", false)?;
    let device = Device::new(
        store,
        attached.disk,
        Box::new(attached.map),
        Box::new(attached.alloc.build()),
    );
    Ok(device.with_decompressor(decompress))
}

/// Attaches read-only, and forgets.
fn attach(store: &Store) -> Result<format::Attached<format::v2::Qcow2Map, format::v2::Blueprint>> {
    format::v2::attach(store, "", false)
}

/// The class of an error, without its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Malformed,
    Unsupported,
    NeedsReadOnly,
    Other,
}

fn class(error: Error) -> Class {
    match error {
        Error::Malformed(_) => Class::Malformed,
        Error::Unsupported(_) => Class::Unsupported,
        Error::NeedsReadOnly(_) => Class::NeedsReadOnly,
        Error::Store(_) | Error::WouldBlock | Error::BadOption => Class::Other,
    }
}
