// SPDX-License-Identifier: GPL-2.0

//! Numbers in bytes.

/// The little-endian 64-bit number at `at`, if the bytes reach that far.
pub fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(word.try_into().ok()?))
}
