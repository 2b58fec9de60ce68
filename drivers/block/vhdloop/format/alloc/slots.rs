// SPDX-License-Identifier: GPL-2.0

//! Book-keeping of places for new blocks.
//!
//! Places are numbered in the order of the file, all with the same distance. The state of the last
//! [`WINDOW`] of them is known: free, handed out, or neither (in use, or lost). That is enough to
//! give back every block of a burst of failed writes; what is older and comes back is leaked.

#[cfg(test)]
mod tests;

use loop_parser::contract::Result;

use super::super::num::{
    add,
    mul, //
};

/// How many places are remembered.
const WINDOW: u64 = 128;

/// A set of places, of the last [`WINDOW`] ones.
#[derive(Clone, Copy, Debug, Default)]
struct Set([u64; 2]);

impl Set {
    /// Word and mask of the place. One place in each 128 shares them: the window knows which.
    fn bit(index: u64) -> (usize, u64) {
        let word = usize::from(index % WINDOW >= 64);
        let shift = u32::try_from(index % 64).unwrap_or(0);
        (word, 1u64.wrapping_shl(shift))
    }

    fn contains(&self, index: u64) -> bool {
        let (word, mask) = Self::bit(index);
        self.0.get(word).is_some_and(|bits| bits & mask != 0)
    }

    fn set(&mut self, index: u64, member: bool) {
        let (word, mask) = Self::bit(index);
        if let Some(bits) = self.0.get_mut(word) {
            if member {
                *bits |= mask;
            } else {
                *bits &= !mask;
            }
        }
    }

    fn len(&self) -> u64 {
        self.0.iter().map(|bits| u64::from(bits.count_ones())).sum()
    }
}

/// A place that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Its number.
    pub(super) index: u64,
    /// It may hold anything, and has to be blanked first.
    pub(super) is_dirty: bool,
}

/// Places for new blocks.
///
/// # Invariants
///
/// Only places of the window (`count - WINDOW..count`) are members of a set.
#[derive(Debug)]
pub(super) struct Slots {
    /// Host offset in bytes of place 0.
    first: u64,
    /// Bytes from one place to the next.
    stride: u64,
    /// How many places there are.
    count: u64,
    free: Set,
    /// Of the free ones, those that may hold anything.
    dirty: Set,
    taken: Set,
}

impl Slots {
    /// No places yet; the first one will be at host offset `first`.
    pub(super) fn new(first: u64, stride: u64) -> Self {
        Self {
            first,
            stride,
            count: 0,
            free: Set::default(),
            dirty: Set::default(),
            taken: Set::default(),
        }
    }

    /// Number of places, and the number of the next new one.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Bytes from one place to the next.
    pub(super) fn stride(&self) -> u64 {
        self.stride
    }

    /// How many places of the window are handed out.
    pub(super) fn taken(&self) -> u64 {
        self.taken.len()
    }

    /// Host offset in bytes of place `index`, which need not exist yet.
    pub(super) fn start_of(&self, index: u64) -> Result<u64> {
        add(self.first, mul(index, self.stride, self.first)?, self.first)
    }

    /// The place in the window that begins at host offset `start`.
    fn index_of(&self, start: u64) -> Option<u64> {
        let distance = start.checked_sub(self.first)?;
        let index = distance.checked_div(self.stride)?;
        let is_exact = index.checked_mul(self.stride) == Some(distance);
        (is_exact && self.window().contains(&index)).then_some(index)
    }

    fn window(&self) -> core::ops::Range<u64> {
        self.count.saturating_sub(WINDOW)..self.count
    }

    /// Adds `n` free places behind the last one. Those that leave the window are forgotten.
    pub(super) fn push(&mut self, n: u64, are_dirty: bool) {
        for _ in 0..n {
            let index = self.count;
            self.taken.set(index, false);
            self.free.set(index, true);
            self.dirty.set(index, are_dirty);
            self.count = self.count.saturating_add(1);
        }
    }

    /// Takes the first free place, a clean one if there is one.
    pub(super) fn take(&mut self) -> Option<Slot> {
        let clean = self
            .window()
            .find(|&index| self.free.contains(index) && !self.dirty.contains(index));
        let index = clean.or_else(|| self.window().find(|&index| self.free.contains(index)))?;

        self.free.set(index, false);
        self.taken.set(index, true);
        Some(Slot {
            index,
            is_dirty: self.dirty.contains(index),
        })
    }

    /// Whether [`Slots::take`] would find something.
    pub(super) fn has_free(&self) -> bool {
        self.free.len() > 0
    }

    /// Takes back a place that was handed out; it may hold anything now. Nothing happens if it was
    /// not handed out, or left the window.
    pub(super) fn give_back(&mut self, start: u64) {
        if let Some(index) = self.taken_index(start) {
            self.taken.set(index, false);
            self.free.set(index, true);
            self.dirty.set(index, true);
        }
    }

    /// A place that was handed out is in use: it will not come back.
    pub(super) fn settle(&mut self, start: u64) {
        if let Some(index) = self.taken_index(start) {
            self.taken.set(index, false);
        }
    }

    fn taken_index(&self, start: u64) -> Option<u64> {
        self.index_of(start)
            .filter(|&index| self.taken.contains(index))
    }

    /// Number of places up to and including the last one that is not free.
    pub(super) fn used(&self) -> u64 {
        let free = self
            .window()
            .rev()
            .take_while(|&index| self.free.contains(index))
            .fold(0u64, |free, _| free.saturating_add(1));
        self.count.saturating_sub(free)
    }
}
