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

/// How many bytes of the start of a file [`is_vmdk_text`] looks at.
pub const VMDK_TEXT_HEAD: usize = 64;

/// Whether a file that begins with `head` is a VMDK descriptor. Upper and lower case are the same, and blanks
/// do not count: VirtualBox reads the first line with some more and some fewer than VMware writes.
///
/// The driver asks before there is a parser, and the parser has to say the same.
pub fn is_vmdk_text(head: &[u8]) -> bool {
    const TITLE: &[u8] = b"#diskdescriptorfile";
    let start = head.iter().take(VMDK_TEXT_HEAD);
    start
        .filter(|byte| **byte != b' ')
        .take(TITLE.len())
        .map(u8::to_ascii_lowercase)
        .eq(TITLE.iter().copied())
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
