// SPDX-License-Identifier: GPL-2.0

//! What hosted sparse extents and COWD files have in common: grains that are found through a grain
//! directory and grain tables, both of 32-bit sector numbers.

mod alloc;
pub(super) mod layout;
mod map;
mod marker;

/// What a device is told of a file that is open elsewhere, or was not closed.
pub(super) const UNCLEAN: &str = "VMDK was not closed: its primary tables are served";

pub use alloc::GrainAllocator;
pub(super) use map::Capacity;
pub use map::GrainMap;
pub(super) use marker::Marker;
