// SPDX-License-Identifier: GPL-2.0

//! Recognising an image.

use loop_parser::contract::{
    Probe,
    Verdict, //
};

use super::num::MAGIC;

/// The version of an image that begins so; `None` if it is of another format.
fn version(probe: &Probe<'_>) -> Option<u32> {
    let (magic, rest) = probe.head.split_first_chunk()?;
    let version = rest.first_chunk()?;
    (*magic == MAGIC).then_some(u32::from_be_bytes(*version))
}

fn verdict(is_mine: bool) -> Verdict {
    match is_mine {
        true => Verdict::Mine,
        false => Verdict::NotMine,
    }
}

/// Answers whether a file is of version 1.
pub fn probe_qcow(probe: &Probe<'_>) -> Verdict {
    verdict(version(probe) == Some(1))
}

/// Answers whether a file is of version 2 or 3, or of one that there is not yet: that is refused, not
/// taken for raw.
pub fn probe_qcow2(probe: &Probe<'_>) -> Verdict {
    verdict(version(probe).is_some_and(|version| version != 1))
}
