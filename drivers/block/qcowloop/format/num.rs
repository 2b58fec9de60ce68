// SPDX-License-Identifier: GPL-2.0

//! Arithmetic on numbers from an image, beyond what formats share, and errors that this one has.

use loop_parser::contract::SECTOR_SIZE;

pub(super) use loop_parser::contract::num::{
    add,
    align_up,
    ensure_same,
    is_out_of_room,
    load,
    mul,
    Region,
    NO_ROOM,
    OUTSIDE,
    TOO_LARGE, //
};

/// What all versions of the format begin with.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// A size in bytes without the part of a sector at its end: QEMU does not show that either.
pub(super) fn whole_sectors(size: u64) -> u64 {
    size & !SECTOR_SIZE.wrapping_sub(1)
}

/// `2^shift`; 0 if that is not a 64-bit number.
pub(super) fn pow2(shift: u32) -> u64 {
    1u64.checked_shl(shift).unwrap_or(0)
}

/// The `shift` low bits; all of them if there are no more than 64.
pub(super) fn low_bits(shift: u32) -> u64 {
    pow2(shift).wrapping_sub(1)
}

/// The bits from `start` to before `end`.
pub(super) fn bits_between(start: u32, end: u32) -> u64 {
    low_bits(end) & !low_bits(start)
}
