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

/// What editors put in front of a text to say that it is UTF-8.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Whether a file that begins with `head`, [`Probe::HEAD`] bytes of it, is a VMDK descriptor: in front of
/// everything but blank lines and comments there is the title, which is a comment, or the version. Upper
/// and lower case are the same, and blanks do not count: VirtualBox reads the title with some more and
/// some fewer than VMware writes, and QEMU does without.
///
/// The driver asks before there is a parser, and the parser has to say the same.
pub fn is_vmdk_text(head: &[u8]) -> bool {
    let text = head.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut lines = text.split(|byte| matches!(byte, b'\n' | b'\r'));
    lines
        .find(|line| is_title(line) || !matches!(letters(line).next(), None | Some(b'#')))
        .is_some_and(|line| is_title(line) || is_version(line))
}

/// The characters of a line that count.
fn letters(line: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let letters = line.iter().filter(|byte| !matches!(byte, b' ' | b'\t'));
    letters.map(u8::to_ascii_lowercase)
}

/// Something may follow.
fn is_title(line: &[u8]) -> bool {
    const TITLE: &[u8] = b"#diskdescriptorfile";
    letters(line).take(TITLE.len()).eq(TITLE.iter().copied())
}

fn is_version(line: &[u8]) -> bool {
    const VERSIONS: [&[u8]; 3] = [b"version=1", b"version=2", b"version=3"];
    let is_same = |version: &&[u8]| letters(line).eq(version.iter().copied());
    VERSIONS.iter().any(is_same)
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
