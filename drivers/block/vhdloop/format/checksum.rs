// SPDX-License-Identifier: GPL-2.0

//! The checksum of footers, headers and batmaps: the one's complement of a sum of bytes.

use loop_parser::contract::{
    Result,
    Tables, //
};

use super::num::add;

/// How much of a structure is on the stack at a time.
const PIECE: usize = 128;

/// Sum of `bytes`.
pub(super) fn sum(bytes: &[u8]) -> u32 {
    sum_by(bytes, unsigned)
}

fn sum_by(bytes: &[u8], value: fn(u8) -> u32) -> u32 {
    bytes
        .iter()
        .fold(0, |sum, &byte| sum.wrapping_add(value(byte)))
}

/// What a byte adds to a sum.
pub(super) fn unsigned(byte: u8) -> u32 {
    u32::from(byte)
}

/// What a byte adds to a sum of signed bytes.
pub(super) fn signed(byte: u8) -> u32 {
    u32::from(byte).wrapping_sub(if byte < 0x80 { 0 } else { 0x100 })
}

/// Sum of the `len` bytes at host offset `at`.
pub(super) fn sum_at<T: Tables + ?Sized>(tables: &T, at: u64, len: u64) -> Result<u32> {
    sum_at_by(tables, at, len, unsigned)
}

/// Sum of what each of the `len` bytes at host offset `at` adds to it.
#[inline(never)]
pub(super) fn sum_at_by<T: Tables + ?Sized>(
    tables: &T,
    at: u64,
    len: u64,
    value: fn(u8) -> u32,
) -> Result<u32> {
    let mut buffer = [0; PIECE];
    let mut total = 0u32;
    let mut done = 0u64;

    while done < len {
        let left = usize::try_from(len.saturating_sub(done)).unwrap_or(PIECE);
        let Some(piece) = buffer.get_mut(..left.min(PIECE)) else {
            break;
        };
        tables.load(add(at, done, at)?, piece)?;
        total = total.wrapping_add(sum_by(piece, value));
        // A piece is at most 128 bytes, so that the fallback is never taken.
        done = done.saturating_add(u64::try_from(piece.len()).unwrap_or(len));
    }
    Ok(total)
}

/// Whether `stored` is the checksum of a structure whose bytes add up to `sum`, checksum included.
pub(super) fn matches(sum: u32, stored: u32) -> bool {
    !without(sum, stored) == stored
}

/// Takes the bytes of the stored checksum out of a sum.
fn without(total: u32, stored: u32) -> u32 {
    total.wrapping_sub(sum(&stored.to_be_bytes()))
}
