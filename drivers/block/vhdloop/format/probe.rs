// SPDX-License-Identifier: GPL-2.0

//! Recognising a VHD.

use loop_parser::contract::{
    Probe,
    Verdict, //
};

use super::{
    footer::{
        Candidate,
        Place, //
    },
    ondisk::{
        FOOTER_COOKIE,
        POISON_COOKIE, //
    }, //
};

/// Answers whether a file is a VHD.
///
/// A cookie at offset 0 is proof enough: that is what a dynamic image begins with, and no boot
/// sector does. A cookie at the end can also be the work of a guest that wrote to the last sector of
/// its raw disk; there the rest has to look like a footer too.
pub fn probe(probe: &Probe<'_>) -> Verdict {
    let is_mine = has_cookie_in_front(probe.head)
        || end_candidate(probe).is_some_and(|end| is_footer(&end, probe.size));

    if is_mine {
        Verdict::Mine
    } else {
        Verdict::NotMine
    }
}

fn has_cookie_in_front(head: &[u8]) -> bool {
    head.starts_with(&FOOTER_COOKIE) || head.starts_with(&POISON_COOKIE)
}

/// The bytes where the footer would be.
fn end_candidate(probe: &Probe<'_>) -> Option<Candidate> {
    let place = Place::end(probe.size)?;
    let len = usize::try_from(place.len).ok()?;
    let start = probe.tail.len().checked_sub(len)?;
    Candidate::from_bytes(place, probe.tail.get(start..)?)
}

/// Whether the bytes at the end were meant as a footer, damaged or not.
fn is_footer(end: &Candidate, size: u64) -> bool {
    if end.is_intact() {
        // A right checksum and a size that does not fit: the footer of another file, left behind
        // at the end of a raw disk.
        return end.fits_in_front();
    }
    (end.has_cookie() || end.is_poisoned()) && end.is_plausible(size)
}
