// SPDX-License-Identifier: GPL-2.0

//! How the text of a VMDK begins, which is no signature.

/// What editors put in front of a text to say that it is UTF-8.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Whether a file that begins with `head`, [`Probe::HEAD`](super::Probe::HEAD) bytes of it, is a VMDK
/// descriptor: in front of everything but blank lines and comments there is the title, which is a comment,
/// or the version. Upper and lower case are the same, and blanks do not count: VirtualBox reads the title
/// with some more and some fewer than VMware writes, and QEMU does without.
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
