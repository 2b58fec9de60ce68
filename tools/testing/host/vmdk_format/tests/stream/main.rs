// SPDX-License-Identifier: GPL-2.0

//! Tests of streams, from outside.

#![allow(missing_docs, unreachable_pub)]

mod image;

mod attach;
mod endless;
mod malformed;
mod programs;
mod random;
mod recover;
mod resolve;

use loop_parser::contract::{AttachRequest, Error, Fault, Part, Result, Tables};
use testkit::{compressed::decompress, device::Device, store::Store};
use vmdk_format::format::{self, Attached, Kind, ReadOnly, StreamMap};

/// Attaches what has to be a stream.
fn attach(
    tables: &dyn Tables,
    request: &AttachRequest<'_>,
) -> Result<Attached<StreamMap, ReadOnly>> {
    match format::kind(tables, request)? {
        Kind::Stream => format::attach_stream(tables, request),
        other => panic!("taken for {other:?}"),
    }
}

/// A read-only device over a stream, and what is said of it.
fn open_with(store: &Store, part: Option<Part>) -> Result<(Device, Option<Fault>)> {
    let request = AttachRequest {
        part,
        ..AttachRequest::default()
    };
    let attached = attach(store, &request)?;
    let device = Device::new(
        store.clone(),
        attached.disk,
        Box::new(attached.map),
        Box::new(attached.alloc),
    );
    Ok((device.with_decompressor(decompress), attached.warning))
}

/// A read-only device over a stream that nothing is said of.
fn open(store: &Store) -> Result<Device> {
    let (device, warning) = open_with(store, None)?;
    assert_eq!(warning, None);
    Ok(device)
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
