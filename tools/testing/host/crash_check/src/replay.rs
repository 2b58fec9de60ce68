// SPDX-License-Identifier: GPL-2.0

//! The device at any point of a log, had the power failed there.

use testkit::{
    crash::Survivors,
    rng::Rng,
    store::{apply_fill, apply_write, Sectors, SECTOR},
};

use crate::log::{Entry, Log, What};

/// How often a write that could have been torn is.
const TORN: u64 = 3;

/// A log that is being replayed.
#[derive(Debug)]
pub struct Replay<'a> {
    log: &'a Log,
    /// What is durable.
    durable: Sectors,
    /// Numbers of the entries since the last flush.
    since: Vec<usize>,
    position: usize,
}

impl<'a> Replay<'a> {
    /// Begins with what the device held before.
    pub fn new(log: &'a Log, before: Sectors) -> Self {
        Self {
            log,
            durable: before,
            since: Vec::new(),
            position: 0,
        }
    }

    /// How many entries were replayed.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Replays the next entry; the mark that it is, if it is one.
    pub fn step(&mut self) -> Option<u64> {
        let entry = &self.log.entries[self.position];
        if entry.is_flush {
            for number in std::mem::take(&mut self.since) {
                apply(&mut self.durable, self.log, &self.log.entries[number]);
            }
        }
        let mark = match entry.what {
            What::Mark(mark) => Some(mark),
            What::Nothing => None,
            What::Write { .. } | What::Discard { .. } => {
                self.since.push(self.position);
                None
            }
        };
        self.position += 1;
        mark
    }

    /// What the device holds after a power failure at this point. What was written since the last
    /// flush may be lost, in any order. A torn write survives in part, sector by sector; the file
    /// system's own writes are not torn, as it takes their atomicity for granted.
    pub fn crash(&self, survivors: Survivors, rng: &mut Rng) -> Sectors {
        let mut disk = self.durable.clone();
        for &number in &self.since {
            let entry = &self.log.entries[number];
            let can_tear = !entry.is_metadata && !entry.is_fua;
            if can_tear && rng.one_in(TORN) {
                apply_torn(&mut disk, self.log, entry, || survives(survivors, rng));
            } else if entry.is_fua || survives(survivors, rng) {
                apply(&mut disk, self.log, entry);
            }
        }
        disk
    }
}

fn survives(survivors: Survivors, rng: &mut Rng) -> bool {
    match survivors {
        Survivors::Synced => false,
        Survivors::All => true,
        Survivors::Random => rng.one_in(2),
        Survivors::Few(n) => rng.one_in(n),
        Survivors::Most(n) => !rng.one_in(n),
    }
}

fn apply(disk: &mut Sectors, log: &Log, entry: &Entry) {
    match &entry.what {
        What::Write { sector, data } => apply_write(disk, sector * SECTOR, log.data(data)),
        What::Discard { sector, count } => apply_fill(disk, sector * SECTOR, count * SECTOR, 0),
        What::Nothing | What::Mark(_) => {}
    }
}

fn apply_torn(disk: &mut Sectors, log: &Log, entry: &Entry, mut survives: impl FnMut() -> bool) {
    match &entry.what {
        What::Write { sector, data } => {
            for (number, bytes) in (*sector..).zip(log.data(data).chunks(512)) {
                if survives() {
                    apply_write(disk, number * SECTOR, bytes);
                }
            }
        }
        _ => {
            if survives() {
                apply(disk, log, entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::samples::{entry, log};

    const METADATA: u64 = 16;

    /// Sectors 1 and 2 are written, and flushed; then 1, 3 and 4 are, and 5 with FUA; then a mark.
    fn sample() -> Log {
        Log::parse(log(&[
            entry(1, 2, 0, "", &[1; 1024]),
            entry(0, 0, 1, "", &[]),
            entry(1, 1, METADATA, "", &[2; 512]),
            entry(3, 2, METADATA, "", &[3; 1024]),
            entry(5, 1, 2, "", &[4; 512]),
            entry(0, 0, 8, "9", &[]),
        ]))
        .unwrap()
    }

    fn bytes(disk: &Sectors) -> [u8; 6] {
        [0, 1, 2, 3, 4, 5].map(|sector| disk.get(&sector).map_or(0, |bytes| bytes[0]))
    }

    fn crash_at(position: usize, survivors: Survivors, seed: u64) -> [u8; 6] {
        let log = sample();
        let mut replay = Replay::new(&log, Sectors::new());
        let marks: Vec<u64> = (0..position).filter_map(|_| replay.step()).collect();
        assert_eq!(marks, if position == 6 { vec![9] } else { vec![] });
        bytes(&replay.crash(survivors, &mut Rng::new(seed)))
    }

    #[test]
    fn flushed_and_fua_writes_are_durable() {
        for (position, nothing_else, all) in [
            (0, [0; 6], [0; 6]),
            (1, [0; 6], [0, 1, 1, 0, 0, 0]),
            (2, [0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]),
            (4, [0, 1, 1, 0, 0, 0], [0, 2, 1, 3, 3, 0]),
            (6, [0, 1, 1, 0, 0, 4], [0, 2, 1, 3, 3, 4]),
        ] {
            assert_eq!(crash_at(position, Survivors::Synced, 1), nothing_else);
            assert_eq!(crash_at(position, Survivors::All, 1), all);
        }
    }

    #[test]
    fn any_of_the_others_may_survive() {
        let found = |position| {
            let crash = |seed| crash_at(position, Survivors::Random, seed);
            (0..200)
                .map(crash)
                .collect::<std::collections::BTreeSet<_>>()
        };
        // The file system's writes are not torn; a guest's are.
        let expected = [[1, 0], [2, 0], [1, 3], [2, 3]].map(|[a, b]| [0, a, 1, b, b, 4]);
        assert_eq!(found(6), expected.into());
        let expected = [[0, 0], [1, 0], [0, 1], [1, 1]].map(|[a, b]| [0, a, b, 0, 0, 0]);
        assert_eq!(found(1), expected.into());
    }
}
