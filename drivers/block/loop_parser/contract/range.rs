// SPDX-License-Identifier: GPL-2.0

//! Ranges of the disk, and of the file.

/// A range of the image file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRange {
    /// Host offset of its first byte.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

/// A range of the guest disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Guest position of its first byte.
    pub pos: u64,
    /// Its length.
    pub len: u64,
}
