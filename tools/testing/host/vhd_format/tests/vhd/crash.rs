// SPDX-License-Identifier: GPL-2.0

//! Power failures.
//!
//! A guest works on an image while everything that reaches the store is recorded. Then the run is
//! replayed, and at every step images are made of what may have survived. Each of them has to
//! attach, to be sound, to hold every flushed write, and no sector may be anything but something
//! that was written to it.

mod mutants;
mod scenarios;

use std::rc::Rc;

use loop_parser::contract::{Discard, TablesMut};
use testkit::{
    crash::{self, Replay, Survivors},
    device::{Begun, Device, Pending},
    oracle::{Event, Oracle},
    rng::Rng,
    store::{Failure, Op, Sector, Sectors, Store},
    tools,
};

use crate::{
    image::{pattern, Bits},
    reader::{end_footer, faults, front_footer, Reader},
};
use scenarios::{
    child, child_scenarios, device_scenarios, file_scenarios, scenario, small, Scenario,
};

/// A guest at work.
struct Guest {
    device: Device,
    events: Vec<Event>,
    rng: Rng,
    version: u64,
    /// What only one writer at a time can work on.
    unit_sectors: u64,
}

impl Guest {
    fn new(scenario: &Scenario, seed: u64) -> Self {
        let block_sectors = u64::from(scenario.block_size) / 512;
        Self {
            device: scenario.open(scenario.store.clone()).unwrap(),
            events: Vec::new(),
            rng: Rng::new(seed),
            version: 1000,
            // Different sectors of a block can be written first at the same time.
            unit_sectors: match scenario.parent {
                Some(_) => block_sectors.div_ceil(3),
                None => block_sectors,
            },
        }
    }

    fn sectors(&self) -> u64 {
        self.device.disk.size / 512
    }

    fn note(&mut self, event: Event) {
        self.device.store.mark(self.events.len());
        self.events.push(event);
    }

    fn new_contents(&mut self, first: u64, count: u64) -> Vec<Sector> {
        self.version += 1;
        (first..first + count)
            .map(|sector| Rc::new(pattern(sector, self.version)))
            .collect()
    }

    /// Does something.
    fn step(&mut self) {
        let may_fail = self.rng.one_in(8);
        if may_fail {
            let failure = Failure::ALL[self.rng.below(3) as usize];
            let after = self.rng.below(8);
            self.device.store.fail_after(after, failure);
        }
        match self.rng.below(20) {
            0..=6 => self.write(),
            7..=12 => self.write_many(),
            13..=14 => self.flush(),
            15..=18 => self.discard(),
            _ => self.device.trim().unwrap_or_else(|_| assert!(may_fail)),
        }
        self.device.store.never_fail();
    }

    fn write(&mut self) {
        let first = self.rng.below(self.sectors());
        let most = (self.sectors() - first).min(self.unit_sectors * 2 + 1);
        let count = 1 + self.rng.below(most);
        let contents = self.new_contents(first, count);
        self.note(Event::Begin(first, contents.clone()));
        if self
            .device
            .write(
                first * 512,
                &contents.iter().flat_map(|it| **it).collect::<Vec<_>>(),
            )
            .is_ok()
        {
            self.note(Event::Done(first, contents));
        }
    }

    /// Several writes at once, to different units, that end in another order than they began.
    fn write_many(&mut self) {
        let units = self.sectors().div_ceil(self.unit_sectors);
        let mut chosen: Vec<u64> = (0..units).collect();
        self.rng.shuffle(&mut chosen);
        let count = 1 + self.rng.below(6) as usize;
        let mut begun = Vec::new();
        for &unit in chosen.iter().take(count) {
            begun.extend(self.begin_in(unit));
        }
        // Others are discarded meanwhile.
        for &unit in chosen.iter().skip(count).take(2) {
            if self.rng.one_in(3) {
                let first = unit * self.unit_sectors;
                self.discard_range(first, (self.sectors() - first).min(self.unit_sectors));
            }
        }
        self.rng.shuffle(&mut begun);
        for (pending, first, contents) in begun {
            if self.finish(pending) {
                self.note(Event::Done(first, contents));
            }
            if self.rng.one_in(12) {
                self.flush();
            }
        }
    }

    /// Discards something: sectors, or whole units.
    fn discard(&mut self) {
        let mut first = self.rng.below(self.sectors());
        if self.rng.one_in(2) {
            first -= first % self.unit_sectors;
        }
        let most = (self.sectors() - first).min(self.unit_sectors * 4);
        let count = match self.rng.below(3) {
            0 => most,
            _ => 1 + self.rng.below(most),
        };
        self.discard_range(first, count);
    }

    fn discard_range(&mut self, first: u64, count: u64) {
        let how = match self.rng.below(3) {
            0 if self.device.disk.features.write_zeroes => Discard::Zero,
            1 if self.device.disk.features.write_zeroes => Discard::ZeroInPlace,
            _ => Discard::Forget,
        };
        let (pos, len) = (first * 512, count * 512);
        let before = self.device.read(pos, len).unwrap();
        let zeros = (0..count).map(|_| Rc::new([0; 512])).collect();
        self.note(Event::Begin(first, zeros));
        if self.device.discard(pos, len, how).is_err() {
            return;
        }
        let after = self.device.read(pos, len).unwrap();
        for (now, old) in after.chunks(512).zip(before.chunks(512)) {
            let may_stay = how == Discard::Forget;
            assert!(now == [0; 512] || (may_stay && now == old), "{how:?}");
        }
        let contents = after
            .chunks(512)
            .map(|it| Rc::new(it.try_into().unwrap()))
            .collect();
        self.note(Event::Done(first, contents));
    }

    /// Finishes the parts of a write, or gives some of them up. Says if all of it was written.
    fn finish(&mut self, mut pending: Vec<Pending>) -> bool {
        self.rng.shuffle(&mut pending);
        let mut is_done = true;
        for it in pending {
            if self.rng.one_in(8) {
                self.device.give_up(&it);
                is_done = false;
            } else {
                is_done &= self.device.finish(it).is_ok();
            }
        }
        is_done
    }

    fn begin_in(&mut self, unit: u64) -> Option<(Vec<Pending>, u64, Vec<Sector>)> {
        let start = unit * self.unit_sectors;
        let end = (start + self.unit_sectors).min(self.sectors());
        let first = start + self.rng.below(end - start);
        let count = 1 + self.rng.below(end - first);
        let contents = self.new_contents(first, count);
        self.note(Event::Begin(first, contents.clone()));
        let bytes: Vec<u8> = contents.iter().flat_map(|it| **it).collect();
        let mut pending = Vec::new();
        let mut done = 0;
        while done < bytes.len() {
            match self.device.begin(first * 512 + done as u64, &bytes[done..]) {
                Ok(Begun::Written(len)) => done += len,
                Ok(Begun::Pending(it, len)) => {
                    pending.push(it);
                    done += len;
                }
                Err(_) => {
                    pending.iter().for_each(|it| self.device.give_up(it));
                    return None;
                }
            }
        }
        Some((pending, first, contents))
    }

    fn flush(&mut self) {
        self.device.flush().unwrap();
        self.note(Event::Flushed);
    }
}

/// How many images were looked at.
#[derive(Default)]
struct Tally {
    images: u64,
    by_qemu: u64,
}

/// Runs a scenario, and crashes it everywhere.
fn crash(scenario: &Scenario, seed: u64, tally: &mut Tally) {
    crash_guest(scenario, Guest::new(scenario, seed), seed, tally);
}

fn crash_guest(scenario: &Scenario, guest: Guest, seed: u64, tally: &mut Tally) {
    crash_changed(scenario, guest, seed, tally, |trace, _| trace);
}

/// The same; but what was recorded is changed first, as if the allocator did something else.
fn crash_changed(
    scenario: &Scenario,
    mut guest: Guest,
    seed: u64,
    tally: &mut Tally,
    change: impl FnOnce(Vec<Op>, &[Event]) -> Vec<Op>,
) {
    let (sectors, size) = guest.device.store.record();
    let disk = scenario.disk(&scenario.store);
    for _ in 0..scenario.steps {
        guest.step();
    }
    guest.flush();
    guest.device.trim().unwrap();

    let trace = change(guest.device.store.take_trace(), &guest.events);
    Crashes {
        scenario,
        what: format!("{} (seed {seed})", scenario.name),
        rng: Rng::new(seed + 1_000_000),
        oracle: Oracle::new(&disk),
        had_front: front_footer(&scenario.store).is_some(),
        has_end: end_footer(&scenario.store).is_some(),
        tally,
    }
    .replay(sectors, size, &trace, &guest.events);
}

struct Crashes<'a> {
    scenario: &'a Scenario,
    what: String,
    rng: Rng,
    oracle: Oracle,
    /// The copy at 0 was good from the beginning: it never may be anything else.
    had_front: bool,
    /// The last durable image had a good footer at its end: so must every later one.
    has_end: bool,
    tally: &'a mut Tally,
}

impl Crashes<'_> {
    fn replay(mut self, sectors: Sectors, size: u64, trace: &[Op], events: &[Event]) {
        let mut replay = Replay::new(sectors, size, self.scenario.store.can_grow());
        for op in trace {
            replay.apply(op);
            match op {
                Op::Mark(index) => self.oracle.apply(&events[*index]),
                Op::Sync => self.check_durable(&replay),
                _ => self.check_all(&replay),
            }
        }
    }

    fn check_durable(&mut self, replay: &Replay) {
        let (store, _) = replay.crash(Survivors::Synced, &mut self.rng);
        let has_end = end_footer(&store).is_some();
        assert!(
            has_end || !self.has_end,
            "{}: no footer at the end",
            self.what
        );
        self.has_end = has_end;
        self.check(store);
    }

    fn check_all(&mut self, replay: &Replay) {
        use Survivors::{All, Few, Most, Random, Synced};
        if self.scenario.block_size > 1 << 20 && !self.rng.one_in(8) {
            return;
        }
        for survivors in [Synced, All, Random, Random, Few(4), Most(4)] {
            let (store, is_old_size) = replay.crash(survivors, &mut self.rng);
            // Only a file that has grown may have lost its end: its new footer is not durable yet.
            let has_end = end_footer(&store).is_some();
            let may_lack_it = replay.has_grown() && !is_old_size;
            let is_lost = self.has_end && !has_end && !may_lack_it;
            assert!(!is_lost, "{}: no footer at the end", self.what);
            self.check(store);
        }
    }

    fn check(&mut self, store: Store) {
        self.tally.images += 1;
        let what = &self.what;
        assert_eq!(faults(&store), [""; 0], "{what}");
        assert!(front_footer(&store).is_some() || !self.had_front, "{what}");
        let disk = self.scenario.disk(&store);
        self.oracle.check(&disk, what);

        if self.scenario.suits_qemu && front_footer(&store).is_some() && self.rng.one_in(400) {
            self.check_with_qemu(&store, &disk);
        }
        let opened = self.scenario.open(store);
        let mut device = opened.unwrap_or_else(|error| panic!("{}: {error:?}", self.what));
        let ours = device.read(0, device.disk.size).unwrap();
        assert!(ours == disk, "{}: readers differ", self.what);
        if self.rng.one_in(12) {
            self.check_recovery(&mut device, disk);
        }
    }

    /// The image can be worked with, and both footers are good once something is allocated.
    fn check_recovery(&mut self, device: &mut Device, mut disk: Vec<u8>) {
        let sectors = device.disk.size / 512;
        for _ in 0..4 {
            let sector = self.rng.below(sectors);
            let content = pattern(sector, 1 << 30);
            let before = device.store.syncs();
            match device.write(sector * 512, &content) {
                Ok(()) => {}
                Err(error) => {
                    // Only a device can be full here.
                    assert!(!self.scenario.store.can_grow(), "{}: {error:?}", self.what);
                    continue;
                }
            }
            disk[(sector * 512) as usize..][..512].copy_from_slice(&content);
            if device.store.syncs() > before && device.store.len() > 512 {
                assert!(
                    front_footer(&device.store).is_some() || end_footer(&device.store).is_some()
                );
            }
        }
        device.trim().unwrap();
        assert!(
            device.read(0, device.disk.size).unwrap() == disk,
            "{}",
            self.what
        );
        assert!(self.scenario.disk(&device.store) == disk, "{}", self.what);
        assert_eq!(faults(&device.store), [""; 0], "{}", self.what);
    }

    fn check_with_qemu(&mut self, store: &Store, disk: &[u8]) {
        if tools::has_qemu_img() {
            self.tally.by_qemu += 1;
            let theirs = tools::qemu_img_read(store, "vpc");
            match theirs {
                Ok(theirs) => assert!(theirs == disk, "{}: qemu-img differs", self.what),
                Err(error) => panic!("{}: {error}", self.what),
            }
        }
    }
}

fn crash_all(scenarios: &[Scenario], seeds: u64) {
    let mut tally = Tally::default();
    for scenario in scenarios {
        for seed in 0..seeds {
            crash(scenario, seed, &mut tally);
        }
    }
    tools::say(&format!(
        "{} crashed images, {} of them read by qemu-img",
        tally.images, tally.by_qemu
    ));
}

#[test]
fn files() {
    crash_all(&file_scenarios(), crash::seeds(16));
}

#[test]
fn children() {
    crash_all(&child_scenarios(), crash::seeds(16));
}

/// A driver that does not sync a sector before its bit is found out.
#[test]
#[should_panic(expected = "not one of")]
fn early_bit_is_found() {
    let scenario = scenario("careless", &child());
    for seed in 0..20 {
        let mut guest = Guest::new(&scenario, seed);
        guest.device.be_careless();
        crash_guest(&scenario, guest, seed, &mut Tally::default());
    }
}

/// So is one that punches a block whose entry may still be there after a power failure.
#[test]
#[should_panic(expected = "not one of")]
fn early_hole_is_found() {
    let blocks = [(3, Bits::Ones), (0, Bits::Ones), (7, Bits::Ones)];
    let scenario = scenario("careless", &small().with_blocks(&blocks));
    for seed in 0..20 {
        let mut guest = Guest::new(&scenario, seed);
        guest.device.be_careless();
        crash_guest(&scenario, guest, seed, &mut Tally::default());
    }
}

#[test]
fn devices() {
    crash_all(&device_scenarios(), crash::seeds(24));
}

/// The replay itself: it would find a pointer that is stored too early.
#[test]
#[should_panic(expected = "not one of")]
fn early_pointer_is_found() {
    let spec = small();
    let image = spec.build();
    let mut store = image.store.clone();
    let (sectors, size) = store.record();
    let events = vec![Event::Flushed];
    // A block device's old bytes, and an entry that points to them.
    store.store(size - 512, &[0x5a; 8192]).unwrap();
    store.sync().unwrap();
    store.store(size - 512, &[0xff; 512]).unwrap();
    store.store_be32(1536, ((size - 512) / 512) as u32).unwrap();
    let scenario = scenario("early", &spec);
    let disk = Reader::open(&image.store).unwrap().disk();
    let trace = store.take_trace();
    Crashes {
        scenario: &scenario,
        what: "early".into(),
        rng: Rng::new(1),
        oracle: Oracle::new(&disk),
        had_front: true,
        has_end: false,
        tally: &mut Tally::default(),
    }
    .replay(sectors, size, &trace, &events);
}
