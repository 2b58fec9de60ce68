// SPDX-License-Identifier: GPL-2.0

//! What a parser sees of a file when it is asked whether the file is its own.

/// The first and last bytes of a file.
///
/// The driver reads them once for all parsers, so a probe cannot fail: an I/O error has ended the
/// attach before any parser was asked.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The first [`Probe::HEAD`] bytes, fewer if the file is shorter.
    pub head: &'a [u8],
    /// The last [`Probe::TAIL`] bytes, fewer if the file is shorter.
    pub tail: &'a [u8],
    /// Size of the file or block device in bytes.
    pub size: u64,
}

impl Probe<'_> {
    /// How many bytes of the start of a file a parser sees.
    pub const HEAD: usize = 512;
    /// How many bytes of the end of a file a parser sees: two sectors, because a VHD footer can be
    /// one byte short and a VMDK footer lies one sector before the end.
    pub const TAIL: usize = 1024;
}

/// A parser's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not a file of this format.
    NotMine,
    /// A file of this format, whether or not it can be served: if it cannot, the attach fails. It
    /// is never attached as raw instead.
    Mine,
}
