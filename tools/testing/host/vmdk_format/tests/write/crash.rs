// SPDX-License-Identifier: GPL-2.0

//! Power failures. Power fails after any store, and any sector since the last sync is lost or not. What
//! was flushed is there, everything else is a content that the sector had since; the image attaches, and
//! nothing is wrong with it but redundant tables that differ; and those are equal after the next write.

mod mutants;

use loop_parser::contract::Discard;
use testkit::{
    crash::{Replay, Survivors},
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

/// What sectors may contain: the last one flushed, and those since.
type Contents = Vec<Vec<[u8; 512]>>;

fn sectors(disk: &[u8]) -> impl Iterator<Item = [u8; 512]> + '_ {
    disk.chunks_exact(512).map(|it| it.try_into().unwrap())
}

/// Something that a guest does. In sectors.
#[derive(Clone, Copy, Debug)]
enum Event {
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
    events: Vec<Event>,
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
        let events = (0..24).map(|_| {
            let first = match rng.below(3) {
                0 => rng.below(64),
                _ => rng.below(SECTORS),
            };
            let count = (1 + rng.below(24)).min(SECTORS - first);
            match rng.below(10) {
                0..=4 => Event::Write {
                    first,
                    count,
                    byte: 1 + rng.below(250) as u8,
                },
                5 | 6 if has_discard => Event::Discard {
                    first: first & !7,
                    count: 8 + (count & !7),
                    how: [Discard::Zero, Discard::ZeroInPlace, Discard::Zero]
                        [rng.below(3) as usize],
                },
                9 => Event::Close,
                _ => Event::Flush,
            }
        });
        Self {
            under,
            events: events.collect(),
            spec,
            is_careless: false,
            is_device: false,
            is_damaged: false,
        }
    }

    /// Does it. Returns the image as it was before, and what happened to it: a mark is the number of an
    /// event that is about to begin, plus `DONE` of one that is done.
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
        for (index, event) in self.events.iter().enumerate() {
            device.store.mark(index);
            match *event {
                Event::Write { first, count, byte } => {
                    device
                        .write(first * 512, &vec![byte; count as usize * 512])
                        .unwrap();
                }
                Event::Discard { first, count, how } => {
                    let count = count.min(SECTORS - first);
                    device.discard(first * 512, count * 512, how).unwrap();
                }
                Event::Flush => device.flush().unwrap(),
                Event::Close => {
                    device.trim().unwrap();
                    device.flush().unwrap();
                }
            }
            device.store.mark(index + DONE);
        }
        device.trim().unwrap();
        (store, device.store.take_trace())
    }

    /// What an event makes of the sectors.
    fn apply(&self, event: &Event, contents: &mut Contents) {
        let mut put = |first: u64, count: u64, byte: u8| {
            for sector in first..(first + count).min(SECTORS) {
                contents[sector as usize].push([byte; 512]);
            }
        };
        match *event {
            Event::Write { first, count, byte } => put(first, count, byte),
            Event::Discard { first, count, .. } => put(first, count, 0),
            Event::Flush | Event::Close => {}
        }
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
    let mut contents: Contents = sectors(&disk(&store, &under)).map(|it| vec![it]).collect();
    let omitted = omit(&trace);
    let mut rng = Rng::new(seed);
    let mut replay = Replay::new(store.sectors().clone(), store.len(), !scenario.is_device);
    let kept = (0..).zip(trace).filter(|(at, _)| !omitted.contains(at));
    for (_, op) in kept {
        replay.apply(&op);
        match op {
            Op::Mark(index) if index < DONE => {
                scenario.apply(&scenario.events[index], &mut contents);
            }
            Op::Mark(index) => {
                if let Event::Flush | Event::Close = scenario.events[index - DONE] {
                    contents.iter_mut().for_each(|it| {
                        it.drain(..it.len() - 1);
                    });
                }
            }
            _ => {}
        }
        for survivors in [
            Survivors::All,
            Survivors::Synced,
            Survivors::Random,
            Survivors::Few(3),
            Survivors::Most(3),
        ] {
            let (left, _) = replay.crash(survivors, &mut rng);
            if let Some(what) = wrong(scenario, left, &under, &contents) {
                return Some(format!("{what} after {op:?}, {survivors:?}"));
            }
        }
    }
    None
}

/// What is wrong with an image that a power failure left.
fn wrong(scenario: &Scenario, left: Store, under: &[u8], contents: &Contents) -> Option<String> {
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
    for (number, sector) in sectors(&after).enumerate() {
        if !contents[number].contains(&sector) {
            return Some(format!("sector {number} has a wrong content"));
        }
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

/// How many runs of each image are crashed.
fn seeds() -> u64 {
    std::env::var("LP_CRASH_SEEDS").map_or(2, |it| it.parse().unwrap())
}

#[test]
fn power_failures() {
    for spec in kinds().iter().filter(|spec| spec.grain > 1) {
        for under in [0, 100 * 4096] {
            for seed in 0..seeds() {
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
