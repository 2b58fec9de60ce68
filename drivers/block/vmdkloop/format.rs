// SPDX-License-Identifier: GPL-2.0

//! The VMDK format: disks of VMware, as VirtualBox, QEMU and others write them too.
//!
//! Pure logic: no kernel, no `unsafe`, no allocation, no I/O. The module is compiled into
//! `vmdkloop.ko` and, for the tests, into a host crate. Whatever comes from an image is checked
//! where it is used, with checked arithmetic: a bad image is an [`Error`], never a panic.
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

mod cowd;
mod descriptor;
mod grains;
mod parent;
mod probe;
mod read_only;
mod run;
mod sesparse;
mod set;
mod sparse;
mod stream;

use loop_parser::contract::{
    AttachRequest,
    Disk,
    Error,
    Fault,
    Result,
    Tables, //
};

use probe::Magic;

pub use cowd::attach as attach_cowd;
pub use grains::{
    GrainAllocator,
    GrainMap, //
};
pub use parent::ParentName;
pub use probe::probe;
pub use read_only::ReadOnly;
pub use sesparse::{
    attach as attach_sesparse,
    SeSparseMap, //
};
pub use set::{
    attach as attach_set,
    ListMap,
    SetAllocator,
    SetExtents, //
};
pub use sparse::attach as attach_sparse;
pub use stream::{
    attach as attach_stream,
    StreamMap, //
};

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

/// What kind of VMDK a file is: who attaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A hosted sparse extent: [`attach_sparse`].
    Sparse,
    /// A COWD file: [`attach_cowd`].
    Cowd,
    /// A stream: [`attach_stream`].
    Stream,
    /// A space-efficient sparse extent of ESX: [`attach_sesparse`].
    SeSparse,
    /// A descriptor in a file of its own, whose disk is put together from other files: [`attach_set`].
    Set,
}

/// Looks what kind of VMDK a file is. Attaching it checks it and learns its layout; neither ever writes.
///
/// # Errors
///
/// Those of attaching, too:
///
/// - [`Error::BadOption`]: there are no options.
/// - [`Error::Unsupported`]: a VMDK that this parser does not serve; the fault names the reason.
/// - [`Error::Malformed`]: the image contradicts the specification or itself.
/// - [`Error::NeedsReadOnly`]: the image can only be read, and a writable device was asked for.
/// - [`Error::Store`], [`Error::WouldBlock`]: from `tables`.
pub fn kind(tables: &dyn Tables, request: &AttachRequest<'_>) -> Result<Kind> {
    if !request.options.is_empty() {
        return Err(Error::BadOption);
    }
    match probe::magic(tables)? {
        Some(Magic::Text) => Ok(Kind::Set),
        Some(Magic::Sparse) if stream::is_stream(tables)? => Ok(Kind::Stream),
        Some(Magic::Sparse) => Ok(Kind::Sparse),
        Some(Magic::Cowd) => Ok(Kind::Cowd),
        Some(Magic::SeSparse) => Ok(Kind::SeSparse),
        None => Err(Error::malformed("file does not begin as a VMDK", 0)),
    }
}
