// SPDX-License-Identifier: GPL-2.0

//! Clusters that a reservation has to do with and that are not free when it ends.

use loop_parser::contract::Result;

use super::super::super::num::OUTSIDE;

/// Most entries: more than the driver has allocations under way.
const MAX_HELD: usize = 20;

/// Set in an entry, which is the offset of a cluster, if something that names the cluster may have
/// reached the disk although it could not be stored: it must not be handed out again. Else it has been
/// in use before, and a part of it is about to be.
const LOST: u64 = 1;

/// Set in all entries: in an external data file there is a cluster at 0.
const TAKEN: u64 = 2;

/// A short list of clusters, by host offset; 0 is no entry.
#[derive(Debug, Default)]
pub(super) struct Held([u64; MAX_HELD]);

impl Held {
    /// A part of the cluster at `offset`, which an entry names, is reserved.
    ///
    /// # Errors
    ///
    /// There are more reservations than a driver has.
    pub(super) fn hold(&mut self, offset: u64) -> Result {
        self.add(offset | TAKEN)
    }

    /// The cluster at `offset` will be given back, and is not to be used again.
    pub(super) fn lose(&mut self, offset: u64) -> Result {
        self.add(offset | TAKEN | LOST)
    }

    fn add(&mut self, entry: u64) -> Result {
        let free = self.0.iter_mut().find(|it| **it == 0);
        *free.ok_or(OUTSIDE)? = entry;
        Ok(())
    }

    /// Whether a part of the cluster at `offset` is reserved.
    pub(super) fn is_held(&self, offset: u64) -> bool {
        self.0.contains(&(offset | TAKEN))
    }

    /// Takes the cluster at `offset` off the list; says if it was there.
    pub(super) fn remove(&mut self, offset: u64) -> bool {
        let mut entries = self.0.iter_mut();
        let found = entries.find(|it| **it & !LOST == offset | TAKEN);
        found.map(|it| *it = 0).is_some()
    }
}
