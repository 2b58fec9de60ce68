// SPDX-License-Identifier: GPL-2.0

//! Rules that are broken on purpose: what was recorded is changed as if the allocator had left out a
//! sync, or had done things in another order. Each has to be found out.

use std::{ops, rc::Rc};

use testkit::{
    mutants::{complaint, is_sync, syncs_after, without},
    store::Op,
    tools,
};

use super::{crash_changed, has_qemu, Base, Event, Scenario, Spec, Tally};
use crate::{
    checker::{self, Header},
    guest::Guest,
};

const SEEDS: u64 = 12;

/// Fails unless a function panics with one of these words.
#[track_caller]
pub fn assert_found(expected: &[&str], function: impl FnOnce()) {
    if !has_qemu() {
        return;
    }
    let complaint = complaint(function).expect("not found out");
    tools::say(&format!("found out: {complaint}"));
    let is_expected = expected.iter().any(|it| complaint.contains(it));
    assert!(is_expected, "for another reason: {complaint}");
}

/// Where tables are in a recorded run: as at its start or at its end.
struct Places {
    header: Header,
    blocks: Vec<u64>,
}

impl Places {
    fn new(scenario: &Scenario, end: &Guest) -> Self {
        let mut blocks = checker::blocks(&scenario.store);
        blocks.extend(checker::blocks(&end.store));
        Self {
            header: Header::load(&scenario.store),
            blocks,
        }
    }

    fn write(op: &Op) -> Option<ops::Range<u64>> {
        match op {
            Op::Write { offset, bytes } => Some(*offset..offset + bytes.len() as u64),
            _ => None,
        }
    }

    fn is_within(op: &Op, start: u64, len: u64) -> bool {
        Self::write(op).is_some_and(|it| it.start >= start && it.end <= start + len)
    }

    fn is_l1(&self, op: &Op) -> bool {
        Self::is_within(op, self.header.l1_offset, self.header.l1_size * 8)
    }

    fn is_count(&self, op: &Op) -> bool {
        let mut blocks = self.blocks.iter();
        blocks.any(|&block| Self::is_within(op, block, self.header.cluster))
    }

    fn is_reftable(&self, op: &Op) -> bool {
        let len = self.header.reftable_clusters * self.header.cluster;
        Self::is_within(op, self.header.reftable, len)
    }

    fn is_header(op: &Op) -> bool {
        Self::is_within(op, 48, 12)
    }
}

/// The syncs that are the last ones before an operation of some kind.
fn syncs_before(trace: &[Op], is_kind: impl Fn(&Op) -> bool) -> Vec<usize> {
    let mut found = Vec::new();
    let mut last = None;
    for (number, op) in trace.iter().enumerate() {
        if is_sync(op) {
            last = Some(number);
        } else if is_kind(op) {
            found.extend(last.take());
        }
    }
    found
}

type Omit = fn(&Places, &[Op], &[Event]) -> Vec<usize>;

/// Leaves out operations until that is found out; fails unless it is, by what is `expected`.
#[track_caller]
fn assert_caught(scenario: impl FnOnce() -> Scenario, omit: Omit, expected: &[&str]) {
    if !has_qemu() {
        return;
    }
    let scenario = scenario();
    assert_found(expected, || {
        let mut omitted = 0;
        for seed in 0..SEEDS {
            let guest = scenario.guest(seed);
            // The same run, to know where things are at its end.
            let mut scout = scenario.guest(seed);
            for _ in 0..scenario.steps {
                scout.step();
            }
            let places = Places::new(&scenario, &scout);
            let change = |trace: Vec<Op>, events: &[Event]| {
                let numbers = omit(&places, &trace, events);
                omitted += numbers.len();
                without(trace, &numbers)
            };
            crash_changed(&scenario, guest, seed, &mut Tally::default(), change);
        }
        // Not a word of those that are expected.
        tools::say(&format!("{omitted} operations were left out"));
    });
}

fn many_blocks() -> Scenario {
    Scenario::new(Spec::new(512).with(|it| {
        it.order = 6;
        it.sectors = 400;
        it.is_filled = false;
    }))
}

/// All L2 tables are shared.
fn with_snapshot() -> Scenario {
    let mut scenario = Scenario::new(Spec::new(512).with(|it| {
        it.snapshots = 1;
        it.sectors = 300;
    }));
    let store = scenario
        .image
        .qemu_img(&scenario.store, &["snapshot", "-c", "last"]);
    scenario.store = store;
    scenario
}

#[test]
fn counts_not_durable() {
    assert_caught(
        many_blocks,
        |places, trace, _| syncs_after(trace, |op| places.is_count(op)),
        &[
            "a count of 0",
            "is not counted",
            "whose count is 0",
            "past the end",
        ],
    );
}

#[test]
fn block_after_its_entry() {
    assert_caught(
        many_blocks,
        |places, trace, _| syncs_before(trace, |op| places.is_reftable(op)),
        &[
            "a count of 0",
            "is not counted",
            "whose count is 0",
            "past the end",
        ],
    );
}

#[test]
fn l2_table_after_its_entry() {
    assert_caught(
        with_snapshot,
        |places, trace, _| syncs_before(trace, |op| places.is_l1(op)),
        &["not one of", "a count of", "copied flag", "unaligned"],
    );
}

/// A device, whose free space is full of junk: a new table is zeroed there.
#[test]
fn zeros_of_an_l2_table_after_its_entry() {
    assert_caught(
        || {
            Scenario::on_device(Spec::new(512).with(|it| {
                it.sectors = 400;
                it.is_filled = false;
            }))
        },
        |places, trace, _| syncs_before(trace, |op| places.is_l1(op)),
        &["not one of", "a count of", "unaligned", "past the end"],
    );
}

#[test]
fn count_dropped_before_the_pointer() {
    assert_caught(
        with_snapshot,
        |places, trace, _| {
            // Of a sync and what is counted right behind it.
            let is_early = |it: &[Op]| is_sync(&it[0]) && places.is_count(&it[1]);
            let pairs = trace.windows(2).enumerate();
            pairs
                .filter(|(_, it)| is_early(it))
                .map(|(at, _)| at)
                .collect()
        },
        &["a count of", "copied flag", "not one of"],
    );
}

#[test]
fn flush_that_does_nothing() {
    assert_caught(
        || Scenario::new(Spec::new(4096)),
        |_, trace, events| {
            let is_flush =
                |op: &Op| matches!(op, Op::Mark(it) if matches!(events[*it], Event::Flushed));
            let marks = (0..trace.len()).filter(|&it| is_flush(&trace[it]));
            marks
                .filter_map(|it| it.checked_sub(1))
                .filter(|&it| is_sync(&trace[it]))
                .collect()
        },
        &["not one of"],
    );
}

#[test]
fn autoclear_bit_not_durably_cleared() {
    assert_caught(
        || Scenario::with_bitmap(Spec::new(4096)),
        |_, trace, _| {
            let is_autoclear = |op: &Op| Places::is_within(op, 88, 8);
            syncs_after(trace, is_autoclear)
        },
        &["the bitmap is wrong"],
    );
}

/// A run in which the refcount table moves.
fn growing() -> Scenario {
    let mut scenario = Scenario::new(Spec::new(512).with(|it| {
        it.order = 6;
        it.sectors = 4300;
        it.is_filled = false;
    }));
    // Nearly all that the first table can count is there.
    let mut guest = scenario.guest(1);
    let bytes = vec![0x11; 3500 * 512];
    guest.write(0, &bytes).unwrap();
    guest.close().unwrap();
    scenario.store = guest.store.clone();
    scenario.image.disk = guest.shadow_after(0, &bytes);
    scenario
}

/// Moves the table, and crashes around that only: the image is large.
fn crash_growth(omit: impl Fn(&[Op], usize) -> Vec<usize>) {
    let scenario = growing();
    for seed in 0..4 {
        let mut guest = scenario.guest(seed);
        let (sectors, size) = guest.store.record();
        let data: Rc<[u8]> = vec![0x22; 600 * 512].into();
        guest.write(3500 * 512, &data).unwrap();
        guest.flush();
        let trace = guest.store.take_trace();
        let moved = trace.iter().position(Places::is_header);
        let moved = moved.expect("the table has not moved");
        let numbers = omit(&trace, moved);
        let from = moved.saturating_sub(40);
        let mut replay = testkit::crash::Replay::new(sectors, size, true);
        let mut rng = testkit::rng::Rng::new(seed);
        for (number, op) in trace.iter().enumerate().take(moved + 40) {
            if numbers.contains(&number) {
                continue;
            }
            replay.apply(op);
            if number < from {
                continue;
            }
            for survivors in [
                testkit::crash::Survivors::Random,
                testkit::crash::Survivors::Few(3),
                testkit::crash::Survivors::Most(3),
            ] {
                let (store, _) = replay.crash(survivors, &mut rng);
                let report = checker::check(&store);
                assert_eq!(report.errors, [""; 0], "operation {number}");
            }
        }
    }
}

#[test]
fn table_moves() {
    if has_qemu() {
        crash_growth(|_, _| Vec::new());
    }
}

#[test]
fn table_after_the_header() {
    assert_found(&["count"], || {
        crash_growth(|trace, moved| {
            let before = &trace[..moved];
            before.iter().rposition(is_sync).into_iter().collect()
        });
    });
}

#[test]
fn old_table_freed_before_the_header() {
    assert_found(&["count"], || {
        crash_growth(|trace, moved| {
            let after = trace[moved..].iter().position(is_sync);
            after.map(|it| moved + it).into_iter().collect()
        });
    });
}

/// Entries that do not say that the count is 1.
#[test]
fn copied_flag_missing() {
    assert_found(&["copied flag"], || {
        let scenario = Scenario::new(Spec::new(4096).with(|it| it.base = Base::Raw(9)));
        let header = Header::load(&scenario.store);
        let guest = scenario.guest(1);
        crash_changed(
            &scenario,
            guest,
            1,
            &mut Tally::default(),
            |mut trace, _| {
                for op in &mut trace {
                    if let Op::Write { offset, bytes } = op {
                        let is_entry = bytes.len() == 8 && bytes[0] == 0x80;
                        if is_entry && *offset > header.cluster {
                            let mut new = bytes.to_vec();
                            new[0] = 0;
                            *bytes = new.into();
                        }
                    }
                }
                trace
            },
        );
    });
}
