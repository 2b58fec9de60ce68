// SPDX-License-Identifier: GPL-2.0

//! Counts of 1 to 64 bits in bytes: narrower than a byte, the lowest bits come first; wider,
//! big-endian.

#[cfg(test)]
mod tests;

/// Bits in a byte, as a shift count.
const BYTE_ORDER: u32 = 3;

/// Count number `index` of those in `bytes`, which have `2^order` bits each. 0 past the end.
pub(super) fn get(bytes: &[u8], order: u32, index: usize) -> u64 {
    let (start, end) = span(order, index, index.saturating_add(1));
    let Some(bytes) = bytes.get(start..end) else {
        return 0;
    };
    let value = bytes
        .iter()
        .fold(0u64, |value, &byte| value.wrapping_shl(8) | u64::from(byte));
    match order < BYTE_ORDER {
        true => value.wrapping_shr(shift(order, index)) & narrow_mask(order),
        false => value,
    }
}

/// Sets it; bits of `count` that do not fit are dropped.
pub(super) fn set(bytes: &mut [u8], order: u32, index: usize, count: u64) {
    let (start, end) = span(order, index, index.saturating_add(1));
    let Some(bytes) = bytes.get_mut(start..end) else {
        return;
    };
    if order < BYTE_ORDER {
        let [byte] = bytes else { return };
        let shift = shift(order, index);
        let mask = narrow_mask(order);
        let cleared = u64::from(*byte) & !mask.wrapping_shl(shift);
        let value = cleared | (count & mask).wrapping_shl(shift);
        *byte = u8::try_from(value).unwrap_or(0);
        return;
    }
    let be = count.to_be_bytes();
    let skip = be.len().saturating_sub(bytes.len());
    for (to, from) in bytes.iter_mut().zip(be.iter().skip(skip)) {
        *to = *from;
    }
}

/// First byte of those that hold the counts from `start` to before `end`, and the one behind them.
pub(super) fn span(order: u32, start: usize, end: usize) -> (usize, usize) {
    match order.checked_sub(BYTE_ORDER) {
        Some(order) => {
            let width = 1usize.wrapping_shl(order);
            (start.saturating_mul(width), end.saturating_mul(width))
        }
        None => {
            let per_byte = 8usize.wrapping_shr(order).max(1);
            (start / per_byte, end.div_ceil(per_byte))
        }
    }
}

/// How far a count that is narrower than a byte is from the lowest bit.
fn shift(order: u32, index: usize) -> u32 {
    let per_byte = 8usize.wrapping_shr(order).max(1);
    u32::try_from(index % per_byte)
        .unwrap_or(0)
        .wrapping_shl(order)
}

/// The bits of such a count.
fn narrow_mask(order: u32) -> u64 {
    1u64.wrapping_shl(1u32.wrapping_shl(order)).wrapping_sub(1)
}
