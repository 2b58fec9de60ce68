// SPDX-License-Identifier: GPL-2.0

//! The pure half of the contract between the loop driver and a parser.
//!
//! A parser never moves data. It *resolves* a guest range to an extent of the image file and leaves
//! the bytes to the driver. Everything in this module is plain `core` Rust: no kernel, no `unsafe`,
//! no allocation, no I/O. The same files are compiled into `loop_parser.ko` and into the host test
//! workspace (`tools/testing/host`), so that a format can be tested, fuzzed and crash-tested
//! without a kernel.
//!
//! All positions and lengths are bytes (`u64`) unless a name says `sector` (512 bytes). *Guest*
//! positions count from the start of the virtual disk, *host* offsets from the start of the image
//! file.

mod alloc;
mod attach;
mod disk;
mod error;
mod extents;
mod map;
pub mod num;
mod parent;
mod probe;
mod range;
pub mod space;
mod tables;
mod vmdk_text;

pub use alloc::{
    Allocate,
    Discard,
    Discarded,
    Reservation,
    Reserved,
    Unlinked, //
};
pub use attach::{
    AttachRequest,
    Part, //
};
pub use disk::{
    Disk,
    Features,
    Identity,
    State, //
};
pub use error::{
    Error,
    Fault,
    Result, //
};
pub use extents::{
    Backing,
    Extents,
    ListedExtent,
    MAX_EXTENTS, //
};
pub use map::{
    Compressed,
    Compression,
    Extent,
    Map,
    Placement, //
};
pub use parent::Parent;
pub use probe::{
    Probe,
    Verdict, //
};
pub use range::{
    HostRange,
    Range, //
};
pub use tables::{
    Tables,
    TablesMut, //
};
pub use vmdk_text::{
    is_vmdk_text,
    BYTE_ORDER_MARK, //
};

/// Bytes in a sector, the unit in which all three format families count.
pub const SECTOR_SIZE: u64 = 512;
