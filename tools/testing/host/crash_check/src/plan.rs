// SPDX-License-Identifier: GPL-2.0

//! Which power failures to look at.

use testkit::{crash::Survivors, rng::Rng};

use crate::log::{Log, What};

/// Why a power failure is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// It is the last moment before a flush completes, and nothing since the one before it has
    /// survived. (Had everything, that would be the moment before the next flush.)
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
    /// Most flushes.
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
    let cut = |position| Cut {
        position,
        survivors: Survivors::Synced,
        seed: 0,
        class: Class::FlushPoint,
        keep: None,
    };
    positions.into_iter().take(most).map(cut).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::samples::{entry, log};

    #[test]
    fn every_flush_and_some_more() {
        let log = Log::parse(log(&[
            entry(0, 0, 1, "", &[]),
            entry(1, 1, 0, "", &[1; 512]),
            entry(0, 0, 1, "", &[]),
            entry(0, 0, 8, "1", &[]),
        ]))
        .unwrap();
        let amount = Amount {
            flushes: usize::MAX,
            random: 3,
            keep: 1,
        };
        let cuts = make(&log, amount, 1);
        let (points, random): (Vec<&Cut>, Vec<&Cut>) =
            cuts.iter().partition(|cut| cut.class == Class::FlushPoint);
        let positions: Vec<usize> = points.iter().map(|cut| cut.position).collect();
        assert_eq!(positions, [0, 2, 4]);
        assert!(random.iter().all(|cut| cut.position == 2));
        assert_eq!(random.iter().filter(|cut| cut.keep.is_some()).count(), 1);
    }
}
