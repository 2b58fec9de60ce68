// SPDX-License-Identifier: GPL-2.0

//! The format code of `qcowloop.ko`, compiled on the host.

#![no_std]

// See loop_parser/src/lib.rs for why this is a folder.
#[path = "../../../../../drivers/block/qcowloop"]
mod kernel_side {
    pub mod format;
}

pub use kernel_side::format;
