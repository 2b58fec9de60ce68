// SPDX-License-Identifier: GPL-2.0

//! The VMDK format: disks of VMware, as VirtualBox, QEMU and others write them too.
//!
//! Pure logic: no kernel, no `unsafe`, no allocation, no I/O. The module is compiled into
//! `vmdkloop.ko` and, for the tests, into a host crate. Whatever comes from an image is checked
//! where it is used, with checked arithmetic: a bad image is an `Error`, never a panic.
//!
//! The specification is VMware's "Virtual Disk Format 5.0" (technical note of 2011); section names in
//! the comments are its own. What it does not describe is named as such.
//!
//! Deliberately absent:
//!
//! - Names are taken as the bytes that they are: the encoding that a descriptor states is not looked at.
//! - A parent that is only known by its UUID, as VirtualBox does it, and an encrypted disk are refused.
//! - Geometry, adapter types and other settings for the virtual machine are ignored.
//! - Streams and seSparse files are read only, and so is a disk whose changes are tracked: what is
//!   written would be missing in the file that lists them.

#![forbid(unsafe_code)]

mod descriptor;
mod parent;

use loop_parser::contract::{
    Disk,
    Fault, //
};

pub use parent::ParentName;

/// A VMDK file that was attached: everything the driver needs to serve it.
#[derive(Debug)]
pub struct Attached<M, A> {
    /// What the device looks like.
    pub disk: Disk,
    /// Where guest ranges lie.
    pub map: M,
    /// Makes room for writes.
    pub alloc: A,
    /// What the file lies on.
    pub parent: Option<ParentName>,
    /// Something is wrong with the file that does not keep it from being served.
    pub warning: Option<Fault>,
}
