// SPDX-License-Identifier: GPL-2.0

//! Power failures.
//!
//! A guest works on an image while everything that reaches the store is recorded. Then the run is
//! replayed, and at every step images are made of what may have survived. Each of them has to attach
//! read-write, to have no cluster that is counted less often than it is used and no wrong copied
//! flag, and no sector may be anything but what was written to it since the last flush.

mod mutants;

use testkit::{
    crash::{self, Replay, Survivors},
    oracle::{Event, Oracle},
    rng::Rng,
    store::{Op, Sectors, Store},
    tools,
};

use crate::{
    checker::{self, Header},
    guest::{Careless, Guest},
    image::{has_qemu, Base, Image, Spec},
};

/// An image to crash.
struct Scenario {
    image: Image,
    store: Store,
    name: String,
    steps: u64,
}

impl Scenario {
    fn new(spec: Spec) -> Self {
        let image = spec.build();
        Self {
            store: image.store.clone(),
            name: spec.name(),
            image,
            steps: 40,
        }
    }

    /// The same on a block device, whose free space is full of junk.
    fn on_device(spec: Spec) -> Self {
        let mut it = Self::new(spec);
        let len = it.store.len().next_multiple_of(spec.cluster);
        it.store.put_size(len);
        it.store = it.store.into_device(len + 400 * spec.cluster, 0x5a);
        it.name += " on a device";
        it
    }

    /// With a persistent bitmap.
    fn with_bitmap(spec: Spec) -> Self {
        let mut it = Self::new(spec);
        it.image.store = it
            .image
            .qemu_img_with(&it.store, &["bitmap", "--add"], &["b0"]);
        it.store = it.image.store.clone();
        it.name += " with a bitmap";
        it
    }

    fn guest(&self, seed: u64) -> Guest {
        Guest::over(
            &self.image,
            self.store.clone(),
            self.image.disk.clone(),
            seed,
        )
    }
}

/// How many images were looked at.
#[derive(Default)]
struct Tally {
    images: u64,
    by_qemu: u64,
}

/// Runs a scenario, and crashes it everywhere.
fn crash(scenario: &Scenario, guest: Guest, seed: u64, tally: &mut Tally) {
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
    let (sectors, size) = guest.store.record();
    for _ in 0..scenario.steps {
        guest.step();
    }
    guest.flush();
    guest.close().unwrap();
    let trace = change(guest.store.take_trace(), &guest.events);
    Crashes {
        scenario,
        what: format!("{} (seed {seed})", scenario.name),
        rng: Rng::new(seed + 1_000_000),
        oracle: Oracle::new(&scenario.image.disk),
        tally,
    }
    .replay(sectors, size, &trace, &guest.events);
}

struct Crashes<'a> {
    scenario: &'a Scenario,
    what: String,
    rng: Rng,
    oracle: Oracle,
    tally: &'a mut Tally,
}

impl Crashes<'_> {
    fn replay(mut self, sectors: Sectors, size: u64, trace: &[Op], events: &[Event]) {
        use loop_parser::contract::TablesMut;
        use testkit::crash::Survivors::{All, Few, Most, Random, Synced};
        let can_grow = self.scenario.store.can_grow();
        let mut replay = Replay::new(sectors, size, can_grow);
        for op in trace {
            replay.apply(op);
            match op {
                Op::Mark(index) => self.oracle.apply(&events[*index]),
                Op::Sync => self.check(&replay, Synced),
                _ => {
                    for survivors in [Synced, All, Random, Random, Few(4), Most(4)] {
                        self.check(&replay, survivors);
                    }
                }
            }
        }
    }

    fn check(&mut self, replay: &Replay, survivors: Survivors) {
        let (store, _) = replay.crash(survivors, &mut self.rng);
        self.tally.images += 1;
        let what = &self.what;
        let report = checker::check(&store);
        assert_eq!(report.errors, [""; 0], "{what}");
        let image = &self.scenario.image;
        let disk = checker::read(&store, &image.base, &image.compressed);
        self.oracle.check(&disk, what);
        // A bitmap that is said to be right is that of an image that was not written.
        if Header::load(&store).autoclear != 0 {
            assert!(disk == image.disk, "{what}: the bitmap is wrong");
        }
        if self.rng.one_in(2000) && has_qemu() {
            self.tally.by_qemu += 1;
            image
                .qemu_finds_only_leaks(&store)
                .unwrap_or_else(|report| panic!("{what}: QEMU says {report}"));
        }
        let every = if self.scenario.image.spec.cluster > 4096 {
            60
        } else {
            20
        };
        if self.rng.one_in(every) {
            self.check_recovery(store, disk);
        }
    }

    /// The image can be worked with.
    fn check_recovery(&mut self, store: Store, disk: Vec<u8>) {
        let image = &self.scenario.image;
        let seed = self.rng.next_u64();
        let mut guest = Guest::over(image, store, disk, seed).without_failures();
        for _ in 0..4 {
            guest.step();
        }
        guest.close().unwrap();
        guest.verify();
        let report = checker::check(&guest.store);
        assert_eq!(report.errors, [""; 0], "{}: after another guest", self.what);
    }
}

fn scenarios() -> Vec<Scenario> {
    let small = |change: fn(&mut Spec)| Scenario::new(Spec::new(512).with(change));
    let four = |change: fn(&mut Spec)| Scenario::new(Spec::new(4096).with(change));
    let large = |change: fn(&mut Spec)| Scenario::new(Spec::new(1 << 14).with(change));
    vec![
        small(|_| {}),
        small(|it| it.version = 2),
        small(|it| it.order = 6),
        small(|it| it.order = 0),
        four(|_| {}),
        four(|it| it.version = 2),
        four(|it| it.is_lazy = true),
        four(|it| it.is_filled = false),
        four(|it| it.base = Base::Raw(60)),
        four(|it| {
            it.base = Base::Raw(500);
            it.version = 2;
        }),
        four(|it| it.is_compressed = true),
        four(|it| it.snapshots = 2),
        small(|it| {
            it.snapshots = 1;
            it.is_compressed = true;
            it.order = 3;
        }),
        Scenario {
            steps: 15,
            ..large(|it| it.is_extended = true)
        },
        Scenario {
            steps: 15,
            ..large(|it| {
                it.is_extended = true;
                it.base = Base::Raw(300);
                it.snapshots = 1;
            })
        },
        Scenario::on_device(Spec::new(4096)),
        Scenario::on_device(Spec::new(512).with(|it| it.order = 6)),
        Scenario::on_device(Spec::new(4096).with(|it| it.base = Base::Raw(100))),
        Scenario::with_bitmap(Spec::new(4096)),
    ]
}

#[test]
fn power_fails() {
    if !has_qemu() {
        return;
    }
    let mut tally = Tally::default();
    for scenario in scenarios() {
        for seed in 0..crash::seeds(2) {
            crash(&scenario, scenario.guest(seed), seed, &mut tally);
        }
    }
    tools::say(&format!(
        "{} crashed images, {} of them checked by qemu-img",
        tally.images, tally.by_qemu
    ));
}

/// A driver that breaks a rule is found out.
fn crash_careless(scenario: &Scenario, careless: Careless) {
    for seed in 0..20 {
        let mut guest = scenario.guest(seed);
        guest.careless = careless;
        crash(scenario, guest, seed, &mut Tally::default());
    }
}

#[test]
fn early_pointer_is_found() {
    mutants::assert_found(&["not one of"], || {
        let scenario = Scenario::new(Spec::new(4096).with(|it| it.base = Base::Raw(200)));
        let careless = Careless {
            data: true,
            ..Careless::default()
        };
        crash_careless(&scenario, careless);
    });
}

#[test]
fn early_hole_is_found() {
    mutants::assert_found(&["not one of", "a count of 0"], || {
        let scenario = Scenario::new(Spec::new(4096));
        let careless = Careless {
            reclaim: true,
            ..Careless::default()
        };
        crash_careless(&scenario, careless);
    });
}

#[test]
fn incomplete_granule_is_found() {
    mutants::assert_found(&["sector"], || {
        let spec = Spec::new(4096).with(|it| it.base = Base::Raw(200));
        let image = spec.build();
        let mut guest = Guest::new(&image, 1).without_failures();
        guest.careless.granule = true;
        for _ in 0..40 {
            guest.step();
        }
        guest.verify();
    });
}
