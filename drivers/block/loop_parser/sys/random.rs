// SPDX-License-Identifier: GPL-2.0

//! Random numbers.

use super::bindings;

/// A number that nobody can guess.
pub(crate) fn random_u32() -> u32 {
    // SAFETY: Can be called from anywhere.
    unsafe { bindings::get_random_u32() }
}
