// SPDX-License-Identifier: GPL-2.0

//! What fuzz targets do with an input: each is a function of bytes that panics if the format code does
//! what it must not. No fuzzer is needed to call them: a test of this crate puts all seeds through.

pub mod compressed;
mod explore;
pub mod guest;
pub mod input;
pub mod qcow;
pub mod seeds;
pub mod vhd;
pub mod vmdk;
pub mod vmdk_compressed;

// Builders and checkers of the tests; not all of what they have is used here.
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../qcow_format/tests/write/checker.rs"]
mod checker;
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../qcow_format/tests/write/image.rs"]
mod qemu_image;
#[allow(dead_code, missing_docs, unreachable_pub, clippy::precedence)]
#[path = "../../vmdk_format/tests/sesparse/image.rs"]
mod sesparse_image;
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../vmdk_format/tests/stream/image.rs"]
mod stream_image;
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../qcow_format/tests/qcow/v1/image.rs"]
mod v1_image;
#[allow(dead_code, missing_docs, unreachable_pub, clippy::precedence)]
#[path = "../../qcow_format/tests/qcow/image.rs"]
mod v2_image;
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../vhd_format/tests/vhd/image.rs"]
mod vhd_image;
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../vhd_format/tests/vhd/reader.rs"]
mod vhd_reader;
#[allow(dead_code, missing_docs, unreachable_pub, clippy::precedence)]
#[path = "../../vmdk_format/tests/sparse/image.rs"]
mod vmdk_image;

use testkit::compressed::unpack;

/// Where the files above look for each other.
mod image {
    pub(crate) use crate::{v2_image::pattern, vhd_image::checksum};
}

/// A target: its name, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 10] = [
    ("qcow1", qcow::version_1),
    ("qcow2_header", qcow::header),
    ("qcow2_map", qcow::map),
    ("qcow2_write", qcow::write),
    ("qcow2_compressed", compressed::run),
    ("vhd", vhd::run),
    ("vmdk_descriptor", vmdk::descriptor),
    ("vmdk_header", vmdk::header),
    ("vmdk_map", vmdk::map),
    ("vmdk_compressed", vmdk_compressed::run),
];
