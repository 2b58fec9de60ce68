// SPDX-License-Identifier: GPL-2.0

//! Images that other programs made.

use loop_parser::contract::{Extent, Parent, Verdict};
use testkit::{
    device::Device,
    rng::Rng,
    samples::{self, Hash, Sample},
    store::Store,
    tools,
};
use vhd_format::format;

use crate::{
    image::Spec,
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

#[test]
fn guest_content_is_right() {
    for_each(".vhd", |sample, store| {
        let name = &sample.name;
        assert_eq!(store.probe(format::probe), Verdict::Mine, "{name}");
        let attached = format::attach(&store, "", true);
        let attached = attached.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(is_differencing(sample), attached.parent.is_some(), "{name}");
        let Some(device) = open_with_parents(store) else {
            tools::say(&format!("SKIP: the parent of {name} is missing"));
            return;
        };
        assert_eq!(device.disk.size, sample.size, "{name}");

        let mut hash = Hash::default();
        let mut is_zero = true;
        let mut pos = 0;
        while pos < sample.size {
            let len = match device.resolve_read(pos, sample.size - pos).unwrap() {
                Extent::Zero { len } if sample.digest == "all zero" => len,
                Extent::Compressed(_) => unreachable!(),
                Extent::Data { len, .. } | Extent::Zero { len } | Extent::Parent { len } => {
                    let len = len.min(1 << 20);
                    is_zero = false;
                    hash.update(&device.read(pos, len).unwrap());
                    len
                }
            };
            pos += len;
        }
        if sample.digest == "all zero" {
            assert!(is_zero, "{name}");
        } else {
            assert_eq!(hash.hex(), sample.digest, "{name}");
        }
    });
}

/// Opens an image and what it names, as the driver would; `None` if a sample is missing.
fn open_with_parents(store: Store) -> Option<Device> {
    let parent = format::attach(&store, "", true).unwrap().parent;
    let device = open(store).unwrap();
    let Some(parent) = parent else {
        return Some(device);
    };
    let mut buf = [0; 4096];
    let mut index = 0;
    let mut names = Vec::new();
    while let Some(len) = parent.name(&device.store, index, &mut buf).unwrap() {
        names.push(String::from_utf8(buf[..len].to_vec()).unwrap());
        index += 1;
    }
    // MacX, W2ku, W2ru, and the name in the header say the same.
    assert_eq!(names, [&names[0][..]; 4]);
    let below = Store::new(&samples::unpack(&names[0])?);
    let below = match parent.parser() {
        Some("raw") => raw(below),
        _ => open_with_parents(below)?,
    };
    parent.check(&below.disk).unwrap();
    Some(device.on_top_of(below))
}

/// A raw disk: a fixed VHD without its footer.
fn raw(mut store: Store) -> Device {
    let size = store.len();
    store.put(size, &Spec::fixed(size).footer());
    open(store).unwrap()
}

#[test]
fn other_formats_are_not_mine() {
    if let Some(bytes) = samples::unpack("xs-rawparent.raw") {
        assert_eq!(Store::new(&bytes).probe(format::probe), Verdict::NotMine);
    }
    for suffix in [".qcow", ".qcow2", ".vmdk"] {
        for_each(suffix, |sample, store| {
            assert_eq!(
                store.probe(format::probe),
                Verdict::NotMine,
                "{}",
                sample.name
            );
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
