// SPDX-License-Identifier: GPL-2.0

//! Stands in for the crate `loop_parser` of the kernel module: its contract, and nothing else.

#![no_std]

// A file that is named by `#[path]` itself looks for its submodules beside it; one in a folder that
// is named so looks where the kernel build does.
#[path = "../../../../../drivers/block/loop_parser"]
mod kernel_side {
    pub mod contract;
}

pub use kernel_side::contract;
