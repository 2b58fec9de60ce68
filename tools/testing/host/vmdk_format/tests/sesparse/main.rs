// SPDX-License-Identifier: GPL-2.0

//! Tests of seSparse files, from outside.

#![allow(missing_docs, unreachable_pub, clippy::precedence)]

mod image;

mod attach;
mod qemu;
mod random;
mod resolve;

use loop_parser::contract::{AttachRequest, Error, Part, Result};
use testkit::{device::Device, store::Store};
use vmdk_format::format::{self, Attached, Kind, ReadOnly, SeSparseMap};

/// Attaches what has to be such a file.
fn attach(store: &Store, request: &AttachRequest<'_>) -> Result<Attached<SeSparseMap, ReadOnly>> {
    match format::kind(store, request)? {
        Kind::SeSparse => format::attach_sesparse(store, request),
        other => panic!("taken for {other:?}"),
    }
}

/// As a part of a disk, to be read.
fn part(len: u64, has_parent: bool) -> AttachRequest<'static> {
    AttachRequest {
        part: Some(Part { len, has_parent }),
        ..AttachRequest::default()
    }
}

/// A read-only device over a file.
fn open(store: &Store, has_parent: bool) -> Result<Device> {
    let attached = attach(store, &part(512, has_parent))?;
    assert!(attached.parent.is_none() && attached.warning.is_none());
    Ok(Device::new(
        store.clone(),
        attached.disk,
        Box::new(attached.map),
        Box::new(attached.alloc),
    ))
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
