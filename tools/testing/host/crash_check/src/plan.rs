// SPDX-License-Identifier: GPL-2.0

//! Which power failures to look at.

use testkit::{crash::Survivors, rng::Rng};

use crate::log::{Log, What};

/// Why a power failure is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// It is the last moment before a flush completes: nothing, or everything, since the one
    /// before it has survived.
    FlushPoint,
    /// It was drawn by lot.
    Random,
}

/// A power failure.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// How many entries of the log have happened.
    pub position: usize,
    /// What survives of those since the last flush.
    pub survivors: Survivors,
    /// Of the random numbers that say what that is.
    pub seed: u64,
    /// Why.
    pub class: Class,
    /// The disk is to be kept, under this number.
    pub keep: Option<usize>,
}

/// How many.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Most flushes; two power failures each.
    pub flushes: usize,
    /// Power failures drawn by lot.
    pub random: usize,
    /// How many of the latter are kept.
    pub keep: usize,
}

const KINDS: [Survivors; 6] = [
    Survivors::All,
    Survivors::Random,
    Survivors::Random,
    Survivors::Few(4),
    Survivors::Most(4),
    Survivors::Most(20),
];

/// Power failures, in the order of the log.
pub fn make(log: &Log, amount: Amount, seed: u64) -> Vec<Cut> {
    let mut rng = Rng::new(seed);
    let mut cuts = flush_points(log, amount.flushes, &mut rng);
    cuts.extend(random(log, amount, &mut rng));
    cuts.sort_by_key(|cut| cut.position);
    cuts
}

/// The moments before flushes, and the end of the log.
fn flush_points(log: &Log, most: usize, rng: &mut Rng) -> Vec<Cut> {
    let flushes = (0..log.entries.len()).filter(|&number| log.entries[number].is_flush);
    let mut positions: Vec<usize> = flushes.chain([log.entries.len()]).collect();
    rng.shuffle(&mut positions);
    let both = |position| {
        [Survivors::Synced, Survivors::All].map(|survivors| Cut {
            position,
            survivors,
            seed: 0,
            class: Class::FlushPoint,
            keep: None,
        })
    };
    positions.into_iter().take(most).flat_map(both).collect()
}

/// Moments behind writes.
fn random(log: &Log, amount: Amount, rng: &mut Rng) -> Vec<Cut> {
    let is_write = |&number: &usize| matches!(log.entries[number].what, What::Write { .. });
    let writes: Vec<usize> = (0..log.entries.len()).filter(is_write).collect();
    let choose = |number| Cut {
        position: writes[rng.below(writes.len() as u64) as usize] + 1,
        survivors: KINDS[rng.below(KINDS.len() as u64) as usize],
        seed: rng.next_u64(),
        class: Class::Random,
        keep: (number < amount.keep).then_some(number),
    };
    let count = if writes.is_empty() { 0 } else { amount.random };
    (0..count).map(choose).collect()
}
