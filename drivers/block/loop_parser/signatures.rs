// SPDX-License-Identifier: GPL-2.0

//! What the driver itself knows about formats: how their files begin or end.
//!
//! Only enough to know which parser to load. A match without a parser refuses the attach, so a file
//! never attaches as raw because its parser was not loaded yet; what the file really is, the
//! parser's probe decides.

use kernel::prelude::*;

use crate::contract::{
    is_vmdk_text,
    Probe, //
};

/// A format whose parser can be loaded.
struct Format {
    /// Name of the parser; its module has the alias `loop-parser-NAME`.
    name: &'static CStr,
    matches: fn(&Probe<'_>) -> bool,
}

const FORMATS: [Format; 4] = [
    Format {
        name: c"vhd",
        matches: is_vhd,
    },
    Format {
        name: c"qcow",
        matches: |probe| is_qcow(probe, |version| version == 1),
    },
    Format {
        name: c"qcow2",
        matches: |probe| is_qcow(probe, |version| version != 1),
    },
    Format {
        name: c"vmdk",
        matches: is_vmdk,
    },
];

/// Parsers of the formats that a file looks like.
pub(crate) fn matches<'a>(probe: &'a Probe<'_>) -> impl Iterator<Item = &'static CStr> + 'a {
    FORMATS
        .iter()
        .filter(|format| (format.matches)(probe))
        .map(|format| format.name)
}

/// The static copy of a parser's name, if the driver knows the format.
pub(crate) fn static_name(name: &[u8]) -> Option<&'static CStr> {
    FORMATS
        .iter()
        .map(|format| format.name)
        .find(|known| known.to_bytes() == name)
}

/// A footer copy in front, or a footer at the end: 512 bytes, or 511 as before 2004.
fn is_vhd(probe: &Probe<'_>) -> bool {
    let ends_with_footer = |len: usize| {
        let at = probe.tail.len().checked_sub(len);
        at.and_then(|at| probe.tail.get(at..))
            .is_some_and(is_vhd_cookie)
    };
    is_vhd_cookie(probe.head)
        || ends_with_footer(512)
        || (probe.size % 512 == 511 && ends_with_footer(511))
}

fn is_vhd_cookie(bytes: &[u8]) -> bool {
    bytes.starts_with(b"conectix") || bytes.starts_with(b"v_poison")
}

fn is_qcow(probe: &Probe<'_>, version: fn(u32) -> bool) -> bool {
    let Some((magic, rest)) = probe.head.split_first_chunk::<4>() else {
        return false;
    };
    let number = rest
        .first_chunk::<4>()
        .map(|bytes| u32::from_be_bytes(*bytes));
    magic == b"QFI\xfb" && number.is_some_and(version)
}

/// Hosted sparse, COWD, seSparse, or a descriptor file.
fn is_vmdk(probe: &Probe<'_>) -> bool {
    const BINARY: [&[u8]; 3] = [b"KDMV", b"COWD", b"\xbe\xba\xfe\xca\0\0\0\0"];
    BINARY.iter().any(|magic| probe.head.starts_with(magic)) || is_vmdk_text(probe.head)
}
