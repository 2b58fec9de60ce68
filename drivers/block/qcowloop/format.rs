// SPDX-License-Identifier: GPL-2.0

//! The formats of QEMU: qcow (version 1) and qcow2 (versions 2 and 3).
//!
//! Pure logic: no kernel, no `unsafe`, no allocation, no I/O. The module is compiled into
//! `qcowloop.ko` and, for the tests, into a host crate. Whatever comes from an image is checked
//! where it is used, with checked arithmetic: a bad image is an
//! [`Error`](loop_parser::contract::Error), never a panic.

#![forbid(unsafe_code)]

mod name;
mod num;
mod probe;
mod run;
pub mod v1;
pub mod v2;

use loop_parser::contract::{
    Disk,
    Fault, //
};

pub use name::NamedFile;
pub use probe::{
    probe_qcow,
    probe_qcow2, //
};

/// An image that was attached: everything the driver needs to serve it.
#[derive(Debug)]
pub struct Attached<M, A> {
    /// What the device looks like.
    pub disk: Disk,
    /// Where guest ranges lie.
    pub map: M,
    /// Makes room for writes. Of no use to a read-only device.
    pub alloc: A,
    /// The backing file.
    pub parent: Option<NamedFile>,
    /// The file that guest data lie in, if not in the image's own.
    pub data: Option<NamedFile>,
    /// Something is wrong with the image that does not keep it from being served. Worth one line in
    /// the kernel log.
    pub warning: Option<Fault>,
}
