// SPDX-License-Identifier: GPL-2.0

//! The reserve: clusters that are counted and that nothing uses yet.

use super::super::refcount::Clusters;

/// Most runs that are remembered. What does not fit is lost until a tool finds it.
const MAX_RUNS: usize = 16;

/// Consecutive clusters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Which.
    pub(super) clusters: Clusters,
    /// They were never written, and lie within a durable size of a regular file: they read as zero.
    pub(super) is_clean: bool,
}

/// The same, kept small; empty if `len` is 0.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    start: u64,
    len: u32,
    is_clean: bool,
}

impl Slot {
    fn end(self) -> u64 {
        self.start.saturating_add(self.len.into())
    }

    fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// A set of clusters.
#[derive(Debug, Default)]
pub(super) struct Runs([Slot; MAX_RUNS]);

impl Runs {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|it| it.is_empty())
    }

    /// Whether a run that touches no other one would not fit.
    pub(super) fn is_full(&self) -> bool {
        self.0.iter().all(|it| !it.is_empty())
    }

    /// Adds clusters that are not in the set.
    pub(super) fn put(&mut self, new: Run) {
        let Clusters { start, end } = new.clusters;
        let is_clean = new.is_clean;
        let Ok(len) = u32::try_from(new.clusters.len()) else {
            return;
        };
        let used = self.0.iter_mut().filter(|it| !it.is_empty());
        for slot in used.filter(|it| it.is_clean == is_clean) {
            let Some(sum) = slot.len.checked_add(len) else {
                continue;
            };
            if slot.end() == start || slot.start == end {
                slot.start = slot.start.min(start);
                slot.len = sum;
                return;
            }
        }
        if let Some(slot) = self.0.iter_mut().find(|it| it.is_empty()) {
            *slot = Slot {
                start,
                len,
                is_clean,
            };
        }
    }

    /// The runs.
    pub(super) fn iter(&self) -> impl Iterator<Item = Clusters> + Clone + '_ {
        let used = self.0.iter().filter(|it| !it.is_empty());
        used.map(|it| Clusters {
            start: it.start,
            end: it.end(),
        })
    }

    /// Forgets all but the first `count` runs.
    pub(super) fn keep(&mut self, count: usize) {
        let used = self.0.iter_mut().filter(|it| !it.is_empty());
        used.skip(count).for_each(|it| *it = Slot::default());
    }

    /// Takes the first cluster of a run, if there is one of that kind.
    pub(super) fn take(&mut self, is_clean: bool) -> Option<u64> {
        let mut slots = self.0.iter_mut();
        let slot = slots.find(|it| !it.is_empty() && it.is_clean == is_clean)?;
        let cluster = slot.start;
        slot.start = cluster.saturating_add(1);
        slot.len = slot.len.saturating_sub(1);
        Some(cluster)
    }

    /// Takes out a run.
    pub(super) fn pop(&mut self) -> Option<Run> {
        let slot = self.0.iter_mut().find(|it| !it.is_empty())?;
        let run = Run {
            clusters: Clusters {
                start: slot.start,
                end: slot.end(),
            },
            is_clean: slot.is_clean,
        };
        *slot = Slot::default();
        Some(run)
    }
}
