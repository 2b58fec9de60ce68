// SPDX-License-Identifier: GPL-2.0

//! What an attach asks of a parser.

/// What an attach asks of a parser.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttachRequest<'a> {
    /// What follows the parser's name and a comma in `/sys/block/loopN/loop/parser`; empty if
    /// nothing does.
    pub options: &'a str,
    /// The device will be writable.
    pub writable: bool,
    /// The file is an extent of a disk, of which another file says what belongs to it.
    pub part: Option<Part>,
    /// A random number, for what is to be different after the image was written to.
    pub random: u32,
}

/// What the list of a disk's extents says of one that is a file of the image's own format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Length in bytes. The file's own idea of it may be larger, not smaller.
    pub len: u64,
    /// What the file does not have is the parent's: the list names one. What the file says itself
    /// does not count.
    pub has_parent: bool,
}
