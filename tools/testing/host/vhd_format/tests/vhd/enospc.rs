// SPDX-License-Identifier: GPL-2.0

//! No space left: reported, harmless, and over once there is room.

use loop_parser::contract::Discard;
use testkit::{
    device::Device,
    store::{Failure, Store, ENOSPC},
    tools,
};

use crate::{
    disk_of,
    image::{pattern, Bits, End, Spec},
    open_layers,
    reader::{end_footer, faults, front_footer},
};

const BLOCK: u64 = 4096;

/// Guest writes that need every kind of store: (sector, number of sectors).
const WRITES: [(u64, u64); 7] = [
    (40, 3),
    (9, 1),
    (0, 8),
    (70, 12),
    (25, 2),
    (100, 9),
    (41, 1),
];

/// Discards of blocks and of parts of them, in the same form.
const DISCARDS: [(u64, u64); 3] = [(40, 8), (0, 30), (66, 5)];

fn specs() -> Vec<Spec> {
    let blocks = [(3, Bits::Mixed(1)), (0, Bits::Zeros), (8, Bits::Ones)];
    let base = Spec::dynamic(20 * BLOCK, 4096).with_blocks(&blocks);
    let mut specs = vec![base.clone(), Spec::dynamic(20 * BLOCK, 4096)];
    for end in [End::Damaged, End::Missing, End::Short, End::Filled(0xc7)] {
        specs.push(Spec {
            end,
            ..base.clone()
        });
    }
    specs.push(Spec {
        front: false,
        ..base.clone()
    });
    specs.push(Spec {
        gap: 7,
        aligned: true,
        ..base
    });
    let children: Vec<Spec> = specs
        .iter()
        .map(|spec| Spec {
            disk_type: 4,
            unique_id: *b"id of the child!",
            ..spec.clone()
        })
        .collect();
    specs.extend(children);
    specs
}

fn content(first: u64, count: u64, version: u64) -> Vec<u8> {
    (first..first + count)
        .flat_map(|sector| pattern(sector, version))
        .collect()
}

/// The image is as good as it was: it can be attached, and shows what it should.
fn check(store: &Store, shadow: &[u8], torn: Option<(u64, &[u8])>, what: &str) {
    assert_eq!(faults(store), [""; 0], "{what}");
    let disk = disk_of(store);
    let device = open_layers(store.clone()).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert!(device.read(0, device.disk.size).unwrap() == disk, "{what}");
    for (i, (now, old)) in disk.chunks(512).zip(shadow.chunks(512)).enumerate() {
        let new = torn.and_then(|(first, new)| {
            let at = (i as u64).checked_sub(first)? as usize * 512;
            new.get(at..at + 512)
        });
        assert!(now == old || Some(now) == new, "{what}: sector {i}");
    }
}

/// Runs the writes, lets store number `n` fail, and tries what failed again. Returns the image, and
/// whether store `n` existed.
fn run(spec: &Spec, start: &Store, n: u64, failure: Failure) -> (Store, bool) {
    let what = format!("{:?} {:?} store {n} {failure:?}", spec.end, spec.front);
    let mut shadow = disk_of(start);
    let had_end = end_footer(start).is_some();
    let mut device = open_layers(start.clone()).unwrap();
    device.store.fail_after(n, failure);

    for (version, (first, count)) in (50..).zip(WRITES) {
        let data = content(first, count, version);
        if let Err(error) = device.write(first * 512, &data) {
            assert_eq!(error, ENOSPC, "{what}");
            check(&device.store, &shadow, Some((first, &data)), &what);
            assert!(end_footer(&device.store).is_some() || !had_end, "{what}");
            device.write(first * 512, &data).unwrap();
        }
        shadow[(first * 512) as usize..][..data.len()].copy_from_slice(&data);
        check(&device.store, &shadow, None, &what);
    }
    discard(&mut device, &mut shadow, &what);
    if let Err(error) = device.trim() {
        assert_eq!(error, ENOSPC, "{what}");
        check(&device.store, &shadow, None, &what);
        device.trim().unwrap();
    }
    check(&device.store, &shadow, None, &what);
    assert!(front_footer(&device.store).is_some(), "{what}");
    if device.store.len() != start.len() {
        assert!(end_footer(&device.store).is_some(), "{what}");
    }
    let happened = !device.store.is_failure_due();
    (device.store, happened)
}

/// Discards some of it, and tries again what failed.
fn discard(device: &mut Device, shadow: &mut [u8], what: &str) {
    for (first, count) in DISCARDS {
        let (pos, len) = (first * 512, count * 512);
        if let Err(error) = device.discard(pos, len, Discard::Forget) {
            assert_eq!(error, ENOSPC, "{what}");
            let zeros = vec![0; len as usize];
            check(&device.store, shadow, Some((first, &zeros)), what);
            device.discard(pos, len, Discard::Forget).unwrap();
        }
        let after = device.read(pos, len).unwrap();
        let range = &mut shadow[pos as usize..][..len as usize];
        let is_child = device.disk.variant == "differencing";
        for (now, old) in after.chunks(512).zip(range.chunks(512)) {
            assert!(now == [0; 512] || (is_child && now == old), "{what}");
        }
        range.copy_from_slice(&after);
        check(&device.store, shadow, None, what);
    }
}

fn every_store_fails_once(prepare: impl Fn(&Spec) -> Store) {
    let mut runs = 0;
    for spec in specs() {
        let start = prepare(&spec);
        let (clean, _) = run(&spec, &start, u64::MAX, Failure::Nothing);
        for failure in Failure::ALL {
            let mut n = 0;
            loop {
                let (store, happened) = run(&spec, &start, n, failure);
                // What a failure costs in space is bounded.
                assert!(store.len() <= clean.len() + 20 * (BLOCK + 4096));
                if !happened {
                    break;
                }
                n += 1;
                runs += 1;
            }
            assert!(n > 10, "only {n} stores");
        }
    }
    tools::say(&format!("{runs} failed stores"));
}

#[test]
fn every_store_of_a_file_fails_once() {
    every_store_fails_once(|spec| spec.build().store);
}

#[test]
fn every_store_of_a_device_fails_once() {
    every_store_fails_once(|spec| {
        let image = spec.build().store;
        let size = image.len().next_multiple_of(4096) + (1 << 20);
        let mut store = image.into_device(size, 0x5a);
        // Somebody has moved the footer to where it belongs.
        store.put(size - 512, &spec.footer());
        store
    });
}

/// A file system that stays full for a while, and a guest that does not give up.
#[test]
fn full_file_system() {
    for spec in specs() {
        for spare in 0..24 {
            let start = spec.build().store;
            let mut shadow = disk_of(&start);
            let mut device = open_layers(start).unwrap();
            let capacity = device.store.sectors().len() + spare;
            device.store.set_capacity(Some(capacity));
            fill_up(&mut device, &mut shadow);
            let len = device.image_len();

            device.store.set_capacity(None);
            for sector in 0..160 {
                let data = content(sector, 1, 3000 + sector);
                device.write(sector * 512, &data).unwrap();
                shadow[(sector * 512) as usize..][..512].copy_from_slice(&data);
            }
            check(&device.store, &shadow, None, "with room");
            assert!(device.image_len() <= len + 20 * (BLOCK + 4096));
            device.trim().unwrap();
            check(&device.store, &shadow, None, "trimmed");
        }
    }
}

fn fill_up(device: &mut Device, shadow: &mut [u8]) {
    let mut lens = Vec::new();
    for round in 0..20 {
        for sector in (0..160).step_by(7) {
            let data = content(sector, 1, 1000 + round);
            match device.write(sector * 512, &data) {
                Ok(()) => shadow[(sector * 512) as usize..][..512].copy_from_slice(&data),
                Err(error) => assert_eq!(error, ENOSPC),
            }
        }
        check(&device.store, shadow, None, "full");
        lens.push(device.image_len());
    }
    assert_eq!(
        lens[2], lens[19],
        "the file grows with every failure: {lens:?}"
    );
}
