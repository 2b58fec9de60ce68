// SPDX-License-Identifier: GPL-2.0

//! Power failures. Power fails after any store, and any sector since the last sync is lost or not. What
//! was flushed is there, everything else is a content that the sector had since; the image attaches, and
//! nothing is wrong with it but redundant tables that differ; and those are equal after the next write.

mod mutants;

use std::rc::Rc;

use loop_parser::contract::Discard;
use testkit::{
    crash::{self, Replay, Survivors},
    mutants::without,
    oracle::{Event, Oracle},
    rng::Rng,
    store::{Op, Store},
};

use crate::{
    image::{self, disk, problem, Header, Redundant, Spec},
    open::{below, open_on},
    rules::{child, kinds},
};

const SIZE: u64 = 1 << 20;
const SECTORS: u64 = SIZE / 512;

/// Something that a guest does. In sectors.
#[derive(Clone, Copy, Debug)]
enum Action {
    Write {
        first: u64,
        count: u64,
        byte: u8,
    },
    Discard {
        first: u64,
        count: u64,
        how: Discard,
    },
    Flush,
    /// All devices go, and come back.
    Close,
}

/// A run to be recorded.
struct Scenario {
    spec: Spec,
    /// Bytes that lie below.
    under: u64,
    actions: Vec<Action>,
    is_careless: bool,
    /// The image lies on a block device.
    is_device: bool,
    /// A power failure has been there before: the redundant tables differ.
    is_damaged: bool,
}

impl Scenario {
    fn random(spec: &Spec, under: u64, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let spec = if under > 0 { child(spec) } else { spec.clone() };
        let has_discard = under == 0 || spec.has_zero_grains;
        let actions = (0..24).map(|_| {
            let first = match rng.below(3) {
                0 => rng.below(64),
                _ => rng.below(SECTORS),
            };
            let count = (1 + rng.below(24)).min(SECTORS - first);
            match rng.below(10) {
                0..=4 => Action::Write {
                    first,
                    count,
                    byte: 1 + rng.below(250) as u8,
                },
                5 | 6 if has_discard => Action::Discard {
                    first: first & !7,
                    count: 8 + (count & !7),
                    how: [Discard::Zero, Discard::ZeroInPlace, Discard::Zero]
                        [rng.below(3) as usize],
                },
                9 => Action::Close,
                _ => Action::Flush,
            }
        });
        Self {
            under,
            actions: actions.collect(),
            spec,
            is_careless: false,
            is_device: false,
            is_damaged: false,
        }
    }

    /// Does it. Returns the image as it was before, and what happened to it: a mark is the number of an
    /// action that is about to begin, plus `DONE` of one that is done.
    fn record(&self) -> (Store, Vec<Op>) {
        let mut store = self.spec.build().store;
        if self.is_damaged {
            damage(&mut store);
        }
        if self.is_device {
            let room = store.len().next_multiple_of(4096) + 3 * SIZE;
            store = store.into_device(room, 0xdb);
        }
        let mut device = open_on(&self.spec, store.clone(), self.under).unwrap();
        if self.is_careless {
            device.be_careless();
        }
        device.store.record();
        for (index, action) in self.actions.iter().enumerate() {
            device.store.mark(index);
            match *action {
                Action::Write { first, count, byte } => {
                    device
                        .write(first * 512, &vec![byte; count as usize * 512])
                        .unwrap();
                }
                Action::Discard { first, count, how } => {
                    let count = count.min(SECTORS - first);
                    device.discard(first * 512, count * 512, how).unwrap();
                }
                Action::Flush => device.flush().unwrap(),
                Action::Close => {
                    device.trim().unwrap();
                    device.flush().unwrap();
                }
            }
            device.store.mark(index + DONE);
        }
        device.trim().unwrap();
        (store, device.store.take_trace())
    }

    /// What a mark means for the sectors.
    fn event(&self, mark: usize) -> Option<Event> {
        let is_done = mark >= DONE;
        let (first, count, byte) = match self.actions[mark % DONE] {
            Action::Write { first, count, byte } => (first, count, byte),
            Action::Discard { first, count, .. } => (first, count, 0),
            Action::Flush | Action::Close => return is_done.then_some(Event::Flushed),
        };
        let count = count.min(SECTORS - first);
        let sectors = vec![Rc::new([byte; 512]); count as usize];
        Some(match is_done {
            false => Event::Begin(first, sectors),
            true => Event::Done(first, sectors),
        })
    }
}

const DONE: usize = 1000;

/// Makes the redundant tables of a sparse extent differ, as if its writer had been interrupted.
fn damage(store: &mut Store) {
    store.put(72, &[1]);
    let header = Header::load(store);
    let mut rng = Rng::new(5);
    for index in 0..header.tables() {
        let at = header.redundant.unwrap() + index * 4;
        let table = image::get32(store, at) * 512;
        match rng.below(3) {
            0 => image::put32(store, at, 0),
            1 if table > 0 => {
                let entry = table + rng.below(header.entries) * 4;
                image::put32(store, entry, rng.below(4) * 1000);
            }
            _ => {}
        }
    }
}

/// What is wrong with what a power failure left, if anything is. The operations that `omit` names are
/// left out of what was recorded.
fn crashes(scenario: &Scenario, seed: u64, omit: &dyn Fn(&[Op]) -> Vec<usize>) -> Option<String> {
    let (store, trace) = scenario.record();
    let under = below(scenario.under, SIZE);
    let mut oracle = Oracle::new(&disk(&store, &under));
    let omitted = omit(&trace);
    let mut rng = Rng::new(seed);
    let mut replay = Replay::new(store.sectors().clone(), store.len(), !scenario.is_device);
    for op in without(trace, &omitted) {
        replay.apply(&op);
        if let Op::Mark(mark) = op {
            scenario.event(mark).iter().for_each(|it| oracle.apply(it));
        }
        for survivors in [
            Survivors::All,
            Survivors::Synced,
            Survivors::Random,
            Survivors::Few(3),
            Survivors::Most(3),
        ] {
            let (left, _) = replay.crash(survivors, &mut rng);
            if let Some(what) = wrong(scenario, left, &under, &oracle) {
                return Some(format!("{what} after {op:?}, {survivors:?}"));
            }
        }
    }
    None
}

/// What is wrong with an image that a power failure left.
fn wrong(scenario: &Scenario, left: Store, under: &[u8], oracle: &Oracle) -> Option<String> {
    if let Some(what) = problem(&left, Redundant::MayDiffer) {
        return Some(what);
    }
    if let (false, Some(what)) = (
        Header::load(&left).is_unclean,
        problem(&left, Redundant::Equal),
    ) {
        return Some(format!("closed, but {what}"));
    }
    let after = disk(&left, under);
    if let Some(what) = oracle.complaint(&after) {
        return Some(what);
    }
    // The next one who writes finds it in order, and leaves it so.
    let mut device = open_on(&scenario.spec, left, scenario.under).unwrap();
    let before = device.read(0, SIZE).unwrap();
    if before != after {
        return Some("two readers differ".into());
    }
    device.write(0, &before[..512]).unwrap();
    if let Some(what) = problem(&device.store, Redundant::Equal) {
        return Some(format!("not repaired: {what}"));
    }
    let store = device.close().unwrap();
    match problem(&store, Redundant::Equal) {
        None if disk(&store, under) == after => None,
        what => Some(format!("after the next write: {what:?}")),
    }
}

#[test]
fn power_failures() {
    for spec in kinds().iter().filter(|spec| spec.grain > 1) {
        for under in [0, 100 * 4096] {
            for seed in 0..crash::seeds(2) {
                let scenario = Scenario::random(spec, under, seed);
                assert_eq!(crashes(&scenario, seed, &|_| Vec::new()), None, "{spec:?}");
            }
        }
    }
}

/// Grains that reach past the end of the disk, and are smaller than a table.
#[test]
fn small_grains() {
    for spec in [
        Spec::cowd(SECTORS, 1),
        Spec::new(SECTORS, 1).with_entries(16).without_tables(),
        Spec::new(SECTORS, 128)
            .with_grains(&[0, 3])
            .without_tables(),
    ] {
        for under in [0, 100 * 4096] {
            let scenario = Scenario::random(&spec, under, 1);
            assert_eq!(crashes(&scenario, 1, &|_| Vec::new()), None, "{spec:?}");
        }
    }
}

/// Power fails once more while the tables are repaired, or later.
#[test]
fn second_failures() {
    for spec in kinds().iter().filter(|spec| spec.has_redundant) {
        for under in [0, 100 * 4096] {
            let mut scenario = Scenario::random(spec, under, 6);
            scenario.is_damaged = true;
            assert_eq!(crashes(&scenario, 6, &|_| Vec::new()), None, "{spec:?}");
        }
    }
}

#[test]
fn block_devices() {
    for spec in kinds().iter().filter(|spec| spec.grain > 1) {
        for under in [0, 100 * 4096] {
            let mut scenario = Scenario::random(spec, under, 2);
            scenario.is_device = true;
            assert_eq!(crashes(&scenario, 2, &|_| Vec::new()), None, "{spec:?}");
        }
    }
}

/// Both sets of tables are equal in an image that was found unclean and written to, even if there was
/// nothing in the redundant one.
#[test]
fn redundant_set_from_nothing() {
    let spec = Spec::new(SECTORS, 8)
        .with_entries(64)
        .with_grains(&[0, 100]);
    let mut store = spec.build().store;
    let header = Header::load(&store);
    for index in 0..header.tables() {
        image::put32(&mut store, header.redundant.unwrap() + index * 4, 0);
    }
    store.put(72, &[1]);
    let before = disk(&store, &[]);
    let mut device = open_on(&spec, store, 0).unwrap();
    device.write(0, &before[..512]).unwrap();
    let store = device.close().unwrap();
    image::check(&store);
    assert!(disk(&store, &[]) == before);
}
