// SPDX-License-Identifier: GPL-2.0

//! Rules that are broken on purpose: what was recorded is changed as if the allocator had left out a
//! sync or a store. Each has to be found out.

use testkit::{
    mutants::{is_sync, syncs_after},
    store::Op,
};

use super::{crashes, Scenario, Spec};
use crate::rules::kinds;

const SEEDS: u64 = 20;

fn is_growth(op: &Op) -> bool {
    matches!(op, Op::Fill { len: 1, .. })
}

/// The mark that a sparse extent is open is stored, or taken away.
fn is_mark(op: &Op, value: u8) -> bool {
    matches!(op, Op::Write { offset: 72, bytes } if bytes[..] == [value])
}

/// A rule is broken in one image after the other until that is found out.
#[track_caller]
fn assert_found(expected: &[&str], specs: &[Spec], under: u64, omit: &dyn Fn(&[Op]) -> Vec<usize>) {
    let runs = specs
        .iter()
        .flat_map(|spec| (0..SEEDS).map(move |seed| (spec, seed)));
    let mut complaints = runs.filter_map(|(spec, seed)| {
        let scenario = Scenario::random(spec, under, seed);
        crashes(&scenario, seed, omit)
    });
    let is_expected = |complaint: &String| expected.iter().any(|it| complaint.contains(it));
    let found = complaints.find(is_expected);
    testkit::tools::say(&format!("found out: {}", found.expect("not found out")));
}

/// Space is handed out before the size of the file is durable.
#[test]
fn size_that_is_not_durable() {
    assert_found(&["past the end"], &kinds()[..4], 0, &|trace| {
        syncs_after(trace, is_growth)
    });
}

/// The data of the parent is not durable when the pointer is stored.
#[test]
fn careless_driver() {
    let found = (0..SEEDS).find_map(|seed| {
        let mut scenario = Scenario::random(&kinds()[0], 1 << 19, seed);
        scenario.is_careless = true;
        crashes(&scenario, seed, &|_| Vec::new())
    });
    assert!(found.expect("not found out").contains("not one of"));
}

/// Old bytes of a block device are not zeroed durably.
#[test]
fn careless_on_a_block_device() {
    let found = (0..SEEDS).find_map(|seed| {
        let mut scenario = Scenario::random(&kinds()[0], 0, seed);
        scenario.is_device = true;
        crashes(&scenario, seed, &|trace| {
            syncs_after(trace, |op| matches!(op, Op::Fill { byte: 0, .. }))
        })
    });
    assert!(found.expect("not found out").contains("not one of"));
}

/// A grain is punched while a durable entry still points to it.
#[test]
fn punched_too_early() {
    let found = (0..SEEDS).find_map(|seed| {
        let mut scenario = Scenario::random(&kinds()[0], 0, seed);
        scenario.is_careless = true;
        crashes(&scenario, seed, &|_| Vec::new())
    });
    assert!(found.expect("not found out").contains("not one of"));
}

/// Entries are stored before the mark is durable: nobody would compare the tables.
#[test]
fn mark_that_is_not_durable() {
    assert_found(
        &["closed, but", "not repaired"],
        &kinds()[..4],
        0,
        &|trace| syncs_after(trace, |op| is_mark(op, 1)),
    );
}

/// The mark is taken away before all is durable.
#[test]
fn mark_taken_away_too_early() {
    assert_found(
        &["closed, but", "not repaired"],
        &kinds()[..4],
        0,
        &|trace| {
            let clears = (1..trace.len()).filter(|&at| is_mark(&trace[at], 0));
            clears
                .map(|at| at - 1)
                .filter(|&at| is_sync(&trace[at]))
                .collect()
        },
    );
}

/// The redundant entry is forgotten.
#[test]
fn redundant_entry_forgotten() {
    assert_found(&["differs"], &kinds()[..1], 0, &|trace| {
        let is_entry = |op: &Op| matches!(op, Op::Write { bytes, .. } if bytes.len() == 4);
        let pairs = (1..trace.len()).filter(|&at| is_entry(&trace[at - 1]) && is_entry(&trace[at]));
        pairs.collect()
    });
}
