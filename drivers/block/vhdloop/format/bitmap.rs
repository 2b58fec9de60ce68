// SPDX-License-Identifier: GPL-2.0

//! A block's bitmap: one bit for each sector of its data.
//!
//! Bit of sector `s`: byte `s / 8`, mask `0x80 >> (s % 8)`. A sector whose bit is clear reads as zero
//! in a dynamic image, and as the parent's bytes in a differencing one, whatever its own are.

use loop_parser::contract::{
    Result,
    Tables,
    TablesMut, //
};

use super::num::{
    add,
    mul, //
};

/// Bits in a loaded word; since it is loaded big-endian, the first sector is its highest bit.
const WORD_BITS: u64 = 64;
/// Bits in a byte.
const BYTE_BITS: u64 = 8;
/// Bytes in a loaded word.
const WORD_LEN: u64 = 8;
/// Most words that one call loads: bits for 4 MiB.
const MAX_WORDS: u64 = 128;

/// Sectors with equal bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Their bits.
    pub(super) is_set: bool,
    /// How many there are, at least 1.
    pub(super) sectors: u64,
}

/// The run of sectors that begins with sector `first` of a block, cut at `max` sectors. `bitmap` is
/// the host offset of the block's bitmap. One load for every 64 sectors; the caller sees to it that
/// `first + max` is within the block.
pub(super) fn run<T: Tables + ?Sized>(
    tables: &T,
    bitmap: u64,
    first: u64,
    max: u64,
) -> Result<Run> {
    let mut word_index = first / WORD_BITS;
    let mut skip = first % WORD_BITS;
    let mut is_set = None;
    let mut sectors = 0u64;

    for _ in 0..MAX_WORDS {
        let at = add(bitmap, mul(word_index, WORD_LEN, bitmap)?, bitmap)?;
        // `skip` is less than 64: nothing wraps.
        let word = tables.load_be64(at)?.wrapping_shl(bits(skip));
        let want_set = *is_set.get_or_insert(word.leading_ones() > 0);
        let equal = if want_set {
            word.leading_ones()
        } else {
            word.leading_zeros()
        };
        let left = WORD_BITS.saturating_sub(skip);
        let equal = u64::from(equal).min(left);
        sectors = sectors.saturating_add(equal);
        if equal < left || sectors >= max {
            break;
        }
        word_index = word_index.saturating_add(1);
        skip = 0;
    }
    Ok(Run {
        is_set: is_set.unwrap_or(false),
        sectors: sectors.clamp(1, max.max(1)),
    })
}

/// A number of bits within a word as a shift count.
fn bits(count: u64) -> u32 {
    u32::try_from(count % WORD_BITS).unwrap_or(0)
}

/// Sets the bits of sectors `first..first + count`, all of which are in the bitmap at host offset
/// `bitmap`. If that fails, some of them may be set.
pub(super) fn set<T: TablesMut + ?Sized>(
    tables: &mut T,
    bitmap: u64,
    first: u64,
    count: u64,
) -> Result {
    let end = add(first, count, bitmap)?;
    // Whole bytes in the middle, if there are any.
    let start = first.next_multiple_of(BYTE_BITS).min(end);
    let bytes = end.saturating_sub(start) / BYTE_BITS;

    set_in_byte(tables, bitmap, first, start)?;
    if bytes > 0 {
        tables.fill(add(bitmap, start / BYTE_BITS, bitmap)?, bytes, 0xff)?;
    }
    let rest = add(start, mul(bytes, BYTE_BITS, bitmap)?, bitmap)?;
    set_in_byte(tables, bitmap, rest, end)
}

/// Sets the bits of sectors `first..end`, which share a byte.
fn set_in_byte<T: TablesMut + ?Sized>(tables: &mut T, bitmap: u64, first: u64, end: u64) -> Result {
    if first >= end {
        return Ok(());
    }
    let at = add(bitmap, first / BYTE_BITS, bitmap)?;
    let mut byte = [0];
    tables.load(at, &mut byte)?;
    for sector in first..end {
        let mask = 0x80u8.wrapping_shr(bits(sector % BYTE_BITS));
        byte = byte.map(|byte| byte | mask);
    }
    tables.store(at, &byte)
}
