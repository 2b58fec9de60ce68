// SPDX-License-Identifier: GPL-2.0

//! Images that other programs made.

use loop_parser::contract::{Error, Extent, Probe, Verdict};
use testkit::{
    rng::Rng,
    samples::{self, Hash, Sample},
    store::Store,
    tools,
};
use vhd_format::format;

use crate::{
    open,
    reader::{end_footer, faults, front_footer, Reader},
};

/// Runs a test on every sample, and says how many are missing.
fn for_each(suffix: &str, mut test: impl FnMut(&Sample, Store)) {
    let list = samples::list(suffix);
    if list.is_empty() {
        tools::say(&format!(
            "SKIP: all {suffix} samples: none in {} (set LP_SHARED_IMAGES)",
            samples::folder().display()
        ));
        return;
    }
    let mut skipped = 0;
    for sample in &list {
        match samples::unpack(&sample.name) {
            Some(bytes) => test(sample, Store::new(&bytes)),
            None => {
                tools::say(&format!("SKIP: {} cannot be unpacked", sample.name));
                skipped += 1;
            }
        }
    }
    if skipped > 0 {
        tools::say(&format!(
            "SKIP: {skipped} of {} {suffix} samples",
            list.len()
        ));
    }
}

fn is_differencing(sample: &Sample) -> bool {
    sample.what.starts_with("differencing")
}

fn probe(store: &Store) -> Verdict {
    let size = store.len();
    let head = store.get(0, size.min(Probe::HEAD as u64) as usize);
    let tail_len = size.min(Probe::TAIL as u64);
    let tail = store.get(size - tail_len, tail_len as usize);
    format::probe(&Probe {
        head: &head,
        tail: &tail,
        size,
    })
}

#[test]
fn guest_content_is_right() {
    for_each(".vhd", |sample, store| {
        let name = &sample.name;
        assert_eq!(probe(&store), Verdict::Mine, "{name}");
        if is_differencing(sample) {
            return;
        }
        let device = open(store).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(device.disk.size, sample.size, "{name}");

        let mut hash = Hash::default();
        let mut is_zero = true;
        let mut pos = 0;
        while pos < sample.size {
            match device.resolve_read(pos, sample.size - pos).unwrap() {
                Extent::Data { offset, len } => {
                    is_zero = false;
                    hash.update(&device.store.get(offset, len as usize));
                    pos += len;
                }
                Extent::Zero { len } => {
                    if sample.digest != "all zero" {
                        hash.update(&vec![0; len as usize]);
                    }
                    pos += len;
                }
                Extent::Parent { .. } => panic!("{name}: no parent"),
            }
        }
        if sample.digest == "all zero" {
            assert!(is_zero, "{name}");
        } else {
            assert_eq!(hash.hex(), sample.digest, "{name}");
        }
    });
}

#[test]
fn differencing_ones_are_refused_by_name() {
    let mut seen = 0;
    for_each(".vhd", |sample, store| {
        if !is_differencing(sample) {
            return;
        }
        seen += 1;
        match format::attach(&store, "", false) {
            Err(Error::Unsupported(fault)) => {
                assert!(fault.what.starts_with("differencing VHD"), "{fault:?}");
            }
            other => panic!("{}: {other:?}", sample.name),
        }
    });
    assert!(seen == 3 || samples::list(".vhd").is_empty());
}

#[test]
fn other_formats_are_not_mine() {
    if let Some(bytes) = samples::unpack("xs-rawparent.raw") {
        assert_eq!(probe(&Store::new(&bytes)), Verdict::NotMine);
    }
    for suffix in [".qcow", ".qcow2", ".vmdk"] {
        for_each(suffix, |sample, store| {
            assert_eq!(probe(&store), Verdict::NotMine, "{}", sample.name);
        });
    }
}

/// Writes all over a sample, and lets others read it.
#[test]
fn written_samples_stay_sound() {
    let mut rng = Rng::new(1);
    for_each(".vhd", |sample, store| {
        if is_differencing(sample) || sample.size > 1 << 28 {
            return;
        }
        let is_fixed = store.get(0, 8) != b"conectix";
        let original_len = store.len();
        let mut shadow = Reader::open(&store).unwrap().disk();
        let mut device = open(store).unwrap();

        for _ in 0..40 {
            let sectors = sample.size / 512;
            let first = rng.below(sectors);
            let n = (1 + rng.below(300)).min(sectors - first);
            let data: Vec<u8> = (0..n)
                .flat_map(|i| crate::image::pattern(first + i, rng.next_u64()))
                .collect();
            device.write(first * 512, &data).unwrap();
            let at = (first * 512) as usize;
            shadow[at..at + data.len()].copy_from_slice(&data);
        }
        device.flush().unwrap();
        assert!(
            device.read(0, sample.size).unwrap() == shadow,
            "before close"
        );
        let store = device.close().unwrap();
        check_written(sample, &store, &shadow, is_fixed);
        assert!(!is_fixed || store.len() == original_len, "{}", sample.name);
    });
}

fn check_written(sample: &Sample, store: &Store, shadow: &[u8], is_fixed: bool) {
    let name = &sample.name;
    assert!(Reader::open(store).unwrap().disk() == *shadow, "{name}");
    assert!(end_footer(store).is_some(), "{name}");
    if !is_fixed {
        assert_eq!(front_footer(store), end_footer(store), "{name}");
        assert_eq!(faults(store), [""; 0], "{name}");
    }
    if tools::has_qemu_img() {
        let theirs = tools::qemu_img_read(store, "vpc").unwrap();
        // QEMU lets the geometry count more often than others do.
        let len = theirs.len().min(shadow.len());
        assert!(theirs[..len] == shadow[..len], "{name}: qemu-img differs");
        assert!(len > shadow.len() / 100 * 99, "{name}");
    }
}
