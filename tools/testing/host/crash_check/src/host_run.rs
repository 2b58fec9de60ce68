// SPDX-License-Identifier: GPL-2.0

//! A recording without a kernel: the format code alone works on a qcow2 image, over a raw disk, on a
//! block device. Nothing may be found; and something, if a rule is broken.

use std::{fs, path::Path, process::Command};

use testkit::{
    device::Device,
    rng::Rng,
    store::{apply_fill, apply_write, Op, Sectors, Store, SECTOR},
    tools::{has_qemu_img, TempDir},
};

use crate::{
    args::Args,
    disk,
    image::{self, Attached},
    log::samples,
    plan::Amount,
    recording::Parent,
    report::Report,
    run, stamp,
};

/// Sectors of the guest's disk.
const GUEST: u64 = 1024;
const PARENT: &str = "parent.raw";
const FLUSH: u64 = 1;
const MARK: u64 = 8;

/// A guest that keeps a journal, as `tools/testing/crash/lib/workload.py` does.
struct Guest {
    device: Device,
    rng: Rng,
    events: String,
    generation: u64,
    flushes: usize,
}

impl Guest {
    fn note(&mut self, event: &str) {
        self.events += event;
        self.events.push('\n');
    }

    fn write(&mut self) {
        self.generation += 1;
        let generation = self.generation;
        let first = self.rng.below(GUEST);
        let count = 1 + self.rng.below((GUEST - first).min(24));
        self.note(&format!("write {generation} {first} {count}"));
        let stamps = (first..first + count).flat_map(|it| stamp::make(it, generation));
        let bytes: Vec<u8> = stamps.collect();
        self.device.write(first * SECTOR, &bytes).unwrap();
        self.note(&format!("done {generation}"));
    }

    fn flush(&mut self) {
        self.flushes += 1;
        let number = self.flushes;
        self.note(&format!("flush {number}"));
        self.device.flush().unwrap();
        self.device.store.mark(number);
        self.note(&format!("durable {number}"));
    }

    fn detach(&mut self) {
        self.flushes += 1;
        let number = self.flushes;
        self.note(&format!("detach {number}"));
        self.device.trim().unwrap();
        self.device.flush().unwrap();
        self.device.store.mark(number);
        self.note(&format!("durable {number}"));
    }
}

/// An empty image over `parent` on a device that is full of old bytes.
fn make_image(folder: &Path, parent: &[u8]) -> Store {
    fs::write(folder.join(PARENT), parent).unwrap();
    let made = Command::new("qemu-img")
        .current_dir(folder)
        .args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=4096"])
        .args(["-b", PARENT, "-F", "raw", "image"])
        .status();
    assert!(made.unwrap().success());
    let store = Store::new(&fs::read(folder.join("image")).unwrap());
    let size = store.len().next_multiple_of(4096);
    store.into_device(size + (2 << 20), 0x5a)
}

/// What was done to a device, as a log: in whole sectors.
fn log_of(trace: &[Op], mut sectors: Sectors) -> Vec<u8> {
    let mut entries = Vec::new();
    for op in trace {
        let (offset, len) = match op {
            Op::Sync => {
                entries.push(samples::entry(0, 0, FLUSH, "", &[]));
                continue;
            }
            Op::Mark(mark) => {
                entries.push(samples::entry(0, 0, MARK, &mark.to_string(), &[]));
                continue;
            }
            Op::Write { offset, bytes } => {
                apply_write(&mut sectors, *offset, bytes);
                (*offset, bytes.len() as u64)
            }
            Op::Fill { offset, len, byte } => {
                apply_fill(&mut sectors, *offset, *len, *byte);
                (*offset, *len)
            }
            Op::Resize(_) => panic!("a device has no other size"),
        };
        let (first, end) = (offset / SECTOR, (offset + len).div_ceil(SECTOR));
        let data: Vec<u8> = (first..end)
            .flat_map(|it| sectors.get(&it).map_or([0; 512], |bytes| **bytes))
            .collect();
        entries.push(samples::entry(first, end - first, 0, "", &data));
    }
    samples::log(&entries)
}

fn attach(store: Store, parent: &Parent) -> Device {
    match image::attach("qcow2", store.into(), Some(parent)).unwrap() {
        Attached::Whole(device) => device,
        Attached::Parts(_) => panic!("it is in one file"),
    }
}

/// Lets a guest work, and leaves a recording of that.
fn record(folder: &Path, is_careless: bool) {
    let bytes: Vec<u8> = (0..GUEST).flat_map(|it| stamp::make(it, 0)).collect();
    let store = make_image(folder, &bytes);
    fs::write(folder.join("parent"), &bytes).unwrap();
    let parent = Parent {
        name: PARENT.into(),
        bytes,
    };
    let mut guest = Guest {
        device: attach(store, &parent),
        rng: Rng::new(1),
        events: format!("init 0 {GUEST}\n"),
        generation: 0,
        flushes: 0,
    };
    if is_careless {
        guest.device.be_careless();
    }
    let (before, size) = guest.device.store.record();
    for _ in 0..80 {
        match guest.rng.below(6) {
            0 => guest.flush(),
            _ => guest.write(),
        }
    }
    guest.detach();
    let log = log_of(&guest.device.store.take_trace(), before.clone());
    disk::save(&before, size, &folder.join("base")).unwrap();
    fs::write(folder.join("log"), log).unwrap();
    fs::write(folder.join("events"), &guest.events).unwrap();
    let about = format!(
        "kind host\nformat qcow2\nbacking device\ndisk {size}\nguest {GUEST}\nparent {PARENT}\n"
    );
    fs::write(folder.join("about"), about).unwrap();
}

/// How many results were not good.
fn failures(is_careless: bool) -> u64 {
    let folder = TempDir::new();
    let path = folder.path("");
    record(&path, is_careless);
    let args = Args {
        checker: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crash/structure"),
        amount: Amount {
            flushes: 20,
            random: 60,
            keep: 0,
        },
        seed: 1,
        recordings: Vec::new(),
    };
    let report = Report::default();
    run::run(&path, &args, &report).unwrap();
    report.failed()
}

#[test]
fn qcow2_over_a_raw_disk() {
    if !has_qemu_img() {
        return;
    }
    assert_eq!(failures(false), 0);
    // A driver that does not make data durable before what points to it.
    assert_ne!(failures(true), 0);
}
