// SPDX-License-Identifier: GPL-2.0

//! Rules broken on purpose: each has to be found out.
//!
//! A sync, or a zeroing, that the allocator had left out is missing in what was recorded, and
//! nothing else is different: so it is taken out of that. What the format code does not do, moving
//! and reusing blocks, is written out by hand.

use testkit::mutants::{complaint, is_sync, without};

use super::*;

/// Runs of each scenario that a mutant may take to be found out.
const SEEDS: u64 = 8;

/// Where the BAT lies.
#[derive(Clone, Copy)]
struct Table {
    start: u64,
    end: u64,
}

impl Table {
    fn of(store: &Store) -> Self {
        let start = store.get_be64(512 + 16);
        let len = u64::from(store.get_be32(512 + 28)) * 4;
        Self {
            start,
            end: start + len,
        }
    }

    /// Whether this stores a pointer.
    fn is_pointer(self, op: &Op) -> bool {
        matches!(op, Op::Write { offset, .. } if (self.start..self.end).contains(offset))
    }
}

/// What is left out: from a trace, the numbers of operations.
type Omit = fn(&Scenario, &[Op], &[Event]) -> Vec<usize>;

/// The last operation in front of `number` that is no mark.
fn before(trace: &[Op], number: usize) -> Option<usize> {
    (0..number).rfind(|&it| !matches!(trace[it], Op::Mark(_)))
}

/// The next `count` syncs behind each operation that `is_it` says.
fn syncs_behind(trace: &[Op], count: usize, is_it: impl Fn(usize) -> bool) -> Vec<usize> {
    let behind = |number| (number..trace.len()).filter(|&it| is_sync(&trace[it]));
    let numbers = (0..trace.len()).filter(|&it| is_it(it));
    numbers.flat_map(|it| behind(it).take(count)).collect()
}

/// Numbers of the operations that extend the file by a footer.
fn extensions(scenario: &Scenario, trace: &[Op]) -> Vec<usize> {
    let mut size = scenario.store.len();
    let mut found = Vec::new();
    for (number, op) in trace.iter().enumerate() {
        match op {
            Op::Write { offset, bytes } => {
                let end = offset + bytes.len() as u64;
                if end > size && bytes.starts_with(b"conectix") {
                    found.push(number);
                }
                size = size.max(end);
            }
            Op::Resize(new) => size = *new,
            Op::Fill { .. } | Op::Sync | Op::Mark(_) => {}
        }
    }
    found
}

/// A BAT entry is stored when the new size is not durable. The old footer is let alone: that it is
/// lost would be found out first.
fn size_not_durable(scenario: &Scenario, trace: &[Op], events: &[Event]) -> Vec<usize> {
    let extensions = extensions(scenario, trace);
    let mut omitted = syncs_behind(trace, 2, |it| extensions.contains(&it));
    omitted.extend(footer_as_bitmap(scenario, trace, events));
    omitted
}

/// The old footer is overwritten when the new one is not durable.
fn footer_not_durable(scenario: &Scenario, trace: &[Op], _: &[Event]) -> Vec<usize> {
    let extensions = extensions(scenario, trace);
    syncs_behind(trace, 1, |it| extensions.contains(&it))
}

/// What was a footer becomes a block's bitmap as it is.
fn footer_as_bitmap(scenario: &Scenario, trace: &[Op], _: &[Event]) -> Vec<usize> {
    let mut footer = scenario.store.len() - 512;
    let extensions = extensions(scenario, trace);
    let mut omitted = Vec::new();
    for (number, op) in trace.iter().enumerate() {
        match op {
            Op::Fill { offset, .. } if *offset == footer => omitted.push(number),
            Op::Write { offset, .. } if extensions.contains(&number) => {
                // The next one is overwritten after the next extension.
                let next = extensions.iter().find(|&&it| it > number);
                omitted.extend(fills_at(
                    trace,
                    footer,
                    number..*next.unwrap_or(&trace.len()),
                ));
                footer = *offset;
            }
            _ => {}
        }
    }
    omitted
}

/// Operations of a range that fill what begins at `at`.
fn fills_at(trace: &[Op], at: u64, range: std::ops::Range<usize>) -> Vec<usize> {
    let is_it = |&it: &usize| matches!(trace[it], Op::Fill { offset, .. } if offset == at);
    range.filter(is_it).collect()
}

/// Bits are set when the zeros below them are not durable.
fn bits_before_data(_: &Scenario, trace: &[Op], _: &[Event]) -> Vec<usize> {
    let is_fill =
        |number: usize, with: u8| matches!(trace[number], Op::Fill { byte, .. } if byte == with);
    let is_it = |&it: &usize| {
        is_sync(&trace[it])
            && before(trace, it).is_some_and(|before| is_fill(before, 0))
            && trace.get(it + 1).is_some()
            && is_fill(it + 1, 0xff)
    };
    (0..trace.len()).filter(is_it).collect()
}

/// Bits of a child are set when the sectors that hide the parent's are not durable.
fn bits_of_a_child_first(_: &Scenario, trace: &[Op], _: &[Event]) -> Vec<usize> {
    let sets_bits = |op: &Op| match op {
        Op::Write { bytes, .. } => bytes.len() == 1,
        Op::Fill { byte, .. } => *byte == 0xff,
        _ => false,
    };
    let next = |number: usize| {
        let mut behind = trace[number + 1..].iter();
        behind.find(|it| !matches!(it, Op::Mark(_)))
    };
    (0..trace.len())
        .filter(|&it| is_sync(&trace[it]) && next(it).is_some_and(sets_bits))
        .collect()
}

/// A block of a device is not zeroed.
fn old_bytes(scenario: &Scenario, trace: &[Op], _: &[Event]) -> Vec<usize> {
    let len = u64::from(scenario.block_size);
    let is_it = |&it: &usize| matches!(trace[it], Op::Fill { len: it, byte: 0, .. } if it == len);
    (0..trace.len()).filter(is_it).collect()
}

/// The bitmap of a child's new block keeps the device's old bytes.
fn old_bytes_as_bitmap(scenario: &Scenario, trace: &[Op], _: &[Event]) -> Vec<usize> {
    let table = Table::of(&scenario.store);
    let is_zeroing = |op: &Op| matches!(op, Op::Fill { byte: 0, .. });
    let pointers = (0..trace.len()).filter(|&it| table.is_pointer(&trace[it]));
    pointers
        .filter_map(|it| before(trace, it).filter(|&it| is_sync(&trace[it])))
        .filter_map(|it| before(trace, it).filter(|&it| is_zeroing(&trace[it])))
        .collect()
}

/// A BAT entry is stored when nothing behind it is durable: neither zeros, nor bitmap, nor data.
fn pointer_first(scenario: &Scenario, trace: &[Op], events: &[Event]) -> Vec<usize> {
    let table = Table::of(&scenario.store);
    let zeroed = old_bytes(scenario, trace, events);
    let mut omitted = Vec::new();
    for &start in &zeroed {
        let end = (start..trace.len()).find(|&it| table.is_pointer(&trace[it]));
        let end = end.unwrap_or(trace.len());
        omitted.extend((start..end).filter(|&it| is_sync(&trace[it])));
    }
    omitted
}

/// A guest's flush does nothing.
fn flush_without_sync(_: &Scenario, trace: &[Op], events: &[Event]) -> Vec<usize> {
    let is_flush = |op: &Op| matches!(op, Op::Mark(it) if matches!(events[*it], Event::Flushed));
    let flushes = (0..trace.len()).filter(|&it| is_flush(&trace[it]));
    flushes
        .filter_map(|it| before(trace, it))
        .filter(|&it| is_sync(&trace[it]))
        .collect()
}

/// Breaks a rule until that is found out; fails unless it is, by what is `expected`.
#[track_caller]
fn assert_caught(scenarios: &[Scenario], omit: Omit, expected: &[&str]) {
    let mut omitted = 0;
    for scenario in scenarios {
        for seed in 0..SEEDS {
            let change = |trace: Vec<Op>, events: &[Event]| {
                let numbers = omit(scenario, &trace, events);
                omitted += numbers.len();
                without(trace, &numbers)
            };
            let guest = Guest::new(scenario, seed);
            let run = || crash_changed(scenario, guest, seed, &mut Tally::default(), change);
            if let Some(complaint) = complaint(run) {
                tools::say(&format!("found out in '{}': {complaint}", scenario.name));
                let is_expected = expected.iter().any(|it| complaint.contains(it));
                assert!(is_expected, "for another reason: {complaint}");
                return;
            }
        }
    }
    panic!("not found out, with {omitted} operations left out");
}

fn named(scenarios: Vec<Scenario>, name: &str) -> Vec<Scenario> {
    let found: Vec<_> = scenarios.into_iter().filter(|it| it.name == name).collect();
    assert_eq!(found.len(), 1, "no scenario '{name}'");
    found
}

fn file(name: &str) -> Vec<Scenario> {
    named(file_scenarios(), name)
}

fn device() -> Vec<Scenario> {
    named(device_scenarios(), "device")
}

#[test]
fn entry_past_the_durable_size() {
    assert_caught(&file("some blocks"), size_not_durable, &["ends at"]);
}

#[test]
fn footer_lost() {
    assert_caught(
        &file("some blocks"),
        footer_not_durable,
        &["no footer at the end"],
    );
}

#[test]
fn place_of_the_old_footer() {
    assert_caught(&file_scenarios(), footer_as_bitmap, &["not one of"]);
}

#[test]
fn place_of_the_old_footer_of_a_child() {
    let child = named(child_scenarios(), "child");
    assert_caught(&child, footer_as_bitmap, &["not one of", "bitmap"]);
}

#[test]
fn bitmap_bit_before_data() {
    assert_caught(&file("clear bits"), bits_before_data, &["not one of"]);
}

#[test]
fn bit_of_a_child_before_its_data() {
    let child = named(child_scenarios(), "child");
    assert_caught(&child, bits_of_a_child_first, &["not one of"]);
}

#[test]
fn old_bytes_of_a_device() {
    assert_caught(&device(), old_bytes, &["not one of"]);
}

#[test]
fn old_bytes_as_bitmap_of_a_child() {
    let child = named(device_scenarios(), "device, child");
    assert_caught(&child, old_bytes_as_bitmap, &["not one of", "bitmap"]);
}

#[test]
fn pointer_before_what_it_points_to() {
    assert_caught(&device(), pointer_first, &["not one of"]);
}

#[test]
fn flush_that_does_nothing() {
    for scenarios in [file("some blocks"), device()] {
        assert_caught(&scenarios, flush_without_sync, &["not one of"]);
    }
}

/// An image on a device with two blocks; of the first one, guest block 3, the place is freed.
struct Freed {
    store: Store,
    trace: Vec<Op>,
    events: Vec<Event>,
    place: u64,
    next: u64,
}

const BLOCK: u64 = 4096;
const WHOLE: u64 = 512 + BLOCK;

impl Freed {
    fn new() -> Self {
        let image = small()
            .with_blocks(&[(3, Bits::Ones), (0, Bits::Ones)])
            .build();
        let next = image.store.len().next_multiple_of(4096) + 4096 - 512;
        Self {
            place: image.starts[0],
            next,
            store: image.store.into_device(next + 8 * BLOCK, 0x5a),
            trace: Vec::new(),
            events: vec![Event::Flushed],
        }
    }

    fn event(&mut self, event: Event) {
        self.trace.push(Op::Mark(self.events.len()));
        self.events.push(event);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let bytes = bytes.into();
        self.trace.push(Op::Write { offset, bytes });
    }

    fn point(&mut self, block: u64, entry: u32) {
        let table = Table::of(&self.store);
        self.write(table.start + block * 4, &entry.to_be_bytes());
    }

    fn sync(&mut self) {
        self.trace.push(Op::Sync);
    }

    /// What comes of it.
    fn complaint(mut self, seed: u64) -> Option<String> {
        let mut scenario = scenario("freed", &small());
        scenario.store = self.store.clone();
        let (sectors, size) = self.store.record();
        let disk = Reader::open(&self.store).unwrap().disk();
        let crashes = Crashes {
            scenario: &scenario,
            what: "freed".into(),
            rng: Rng::new(seed),
            oracle: Oracle::new(&disk),
            had_front: true,
            has_end: false,
            tally: &mut Tally::default(),
        };
        complaint(|| crashes.replay(sectors, size, &self.trace, &self.events))
    }
}

/// A block moves, and its old place is punched.
fn moved(with_sync: bool, seed: u64) -> Option<String> {
    let mut it = Freed::new();
    let (from, to) = (it.place, it.next);
    let bytes = it.store.get(from, WHOLE as usize);
    it.write(to, &bytes);
    it.sync();
    it.point(3, (to / 512) as u32);
    if with_sync {
        it.sync();
    }
    it.trace.push(Op::Fill {
        offset: from,
        len: WHOLE,
        byte: 0,
    });
    it.sync();
    it.complaint(seed)
}

/// A block is freed, and its place given to another one.
fn reused(with_sync: bool, seed: u64) -> Option<String> {
    let mut it = Freed::new();
    let place = it.place;
    let zeros: Vec<Sector> = vec![Rc::new([0; 512]); 8];
    it.event(Event::Begin(3 * 8, zeros.clone()));
    it.point(3, u32::MAX);
    it.event(Event::Done(3 * 8, zeros));
    if with_sync {
        it.sync();
    }
    let new: Vec<Sector> = (5 * 8..6 * 8).map(|it| Rc::new(pattern(it, 99))).collect();
    it.event(Event::Begin(5 * 8, new.clone()));
    let bytes: Vec<u8> = new.iter().flat_map(|it| **it).collect();
    it.write(place + 512, &bytes);
    it.sync();
    it.point(5, (place / 512) as u32);
    it.event(Event::Done(5 * 8, new));
    it.complaint(seed)
}

#[test]
fn freed_space_before_its_pointer_is_gone() {
    for (what, scenario) in [("punched", moved as fn(bool, u64) -> _), ("reused", reused)] {
        for seed in 0..SEEDS {
            assert_eq!(scenario(true, seed), None, "{what} in the right order");
        }
        let complaint = (0..SEEDS).find_map(|seed| scenario(false, seed));
        let complaint = complaint.unwrap_or_else(|| panic!("{what}: not found out"));
        tools::say(&format!("{what}: found out: {complaint}"));
        assert!(complaint.contains("not one of"), "{complaint}");
    }
}
