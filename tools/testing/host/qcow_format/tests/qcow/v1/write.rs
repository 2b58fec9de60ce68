// SPDX-License-Identifier: GPL-2.0

//! Guest writes to images of version 1.

use std::rc::Rc;

use loop_parser::contract::{Error, Extent, Map, Placement};
use proptest::prelude::*;
use qcow_format::format;
use testkit::{
    crash::{Replay, Survivors},
    device::{Begun, Device},
    mutants::without,
    oracle::{Event, Oracle},
    rng::Rng,
    store::{Failure, Op, ENOSPC},
};

use super::{
    image::{check_places, disk, places, Spec},
    open,
};

const C: u64 = 4096;

fn small() -> Spec {
    Spec::new(1 << 20, 12, 6).with_clusters(&[(0, false), (1, true), (70, true)])
}

/// A device below: full of one byte.
fn base(len: u64) -> Device {
    let mut image = Spec::new(len, 12, 6).build();
    image.store.put(24, &len.to_be_bytes());
    let mut device = open(image.store).unwrap();
    device.write(0, &vec![0xb5; len as usize]).unwrap();
    device
}

#[test]
fn extents() {
    let device = open(small().build().store).unwrap();
    let data = device.resolve_read(512, 1 << 20).unwrap();
    assert!(matches!(data, Extent::Data { len, .. } if len == C - 512));
    let unit = device.resolve_read(C + 1024, 1 << 20).unwrap();
    let is_right = |unit: &Extent| {
        matches!(unit, Extent::Compressed(it)
        if (it.skip, it.len, it.unit) == (1024, C - 1024, 4096))
    };
    assert!(is_right(&unit), "{unit:?}");
    // As far as there is no entry, and on through ranges without a table.
    assert_eq!(
        device.resolve_read(2 * C, 1 << 20),
        Ok(Extent::Zero { len: 68 * C })
    );
    assert_eq!(
        device.resolve_read(128 * C, 99 * C),
        Ok(Extent::Zero { len: 99 * C })
    );
    let allocate = Ok(Placement::Allocate { pos: C, len: C });
    assert_eq!(device.resolve_write(C + 512, 512), allocate);
}

/// The rest of a new cluster is what it was: zeros, compressed bytes, the backing file's.
/// Its L1 has entries for four tables, of 256 KiB each.
#[test]
fn size_is_read_again() {
    let mut image = small().build();
    let map = format::v1::attach(&image.store, "").unwrap().map;
    for (size, expected) in [(1 << 19, 1 << 19), (1000, 512), (1 << 20, 1 << 20)] {
        image.put64(24, size);
        assert_eq!(map.reread_size(&image.store), Ok(expected));
    }
    image.put64(24, (1 << 20) + 512);
    assert_eq!(
        map.reread_size(&image.store),
        Err(Error::unsupported(
            "qcow disk has outgrown the L1 table that it was attached with",
            24
        ))
    );
}

#[test]
fn completes_clusters() {
    for below in [0, 5 * C + 512, 1 << 20] {
        let mut spec = small();
        if below > 0 {
            spec = spec.on(b"base");
        }
        let mut device = open(spec.build().store).unwrap();
        if below > 0 {
            device = device.on_top_of(base(below));
        }
        let mut shadow = device.read(0, 1 << 20).unwrap();
        for pos in [
            512,
            C + 512,
            5 * C + 1024,
            70 * C + 3584,
            255 * C,
            200 * C + 512,
        ] {
            device.write(pos, &[1; 512]).unwrap();
            shadow[pos as usize..][..512].fill(1);
        }
        assert!(device.read(0, 1 << 20).unwrap() == shadow);
        let store = device.close().unwrap();
        check_places(&store);
        let mut under = vec![0xb5; below as usize];
        under.resize(1 << 20, 0);
        assert!(disk(&store, &under) == shadow);
    }
}

#[test]
fn reserve_is_cut_off() {
    let image = small().build();
    let before = image.store.len();
    let mut device = open(image.store).unwrap();
    device.write(9 * C, &[1; 512]).unwrap();
    assert!(device.image_len() > before + (1 << 20));
    let store = device.close().unwrap();
    assert_eq!(store.len(), before.next_multiple_of(C) + C);
    // Nothing was allocated: nothing changes.
    let before = store.to_vec();
    let mut device = open(store).unwrap();
    device.write(9 * C + 512, &[2; 512]).unwrap();
    let store = device.close().unwrap();
    assert_eq!(store.len(), before.len() as u64);
}

#[test]
fn released_space_is_used_again() {
    let mut device = open(small().build().store).unwrap();
    let mut offsets = Vec::new();
    for _ in 0..3 {
        let Begun::Pending(pending, _) = device.begin(9 * C, &[1; 512]).unwrap() else {
            panic!("written in place");
        };
        // Part of it was written before it failed.
        let offset = pending.space().offset;
        device.store.put(offset, &[0xee; 512]);
        device.give_up(&pending);
        offsets.push(offset);
    }
    assert!(offsets.iter().all(|it| *it == offsets[0]));
    device.write(9 * C + 512, &[1; 512]).unwrap();
    assert_eq!(device.read(9 * C, 512).unwrap(), [0; 512]);
    check_places(&device.close().unwrap());
}

/// Two places at once, given back in either order.
#[test]
fn two_at_once() {
    for first in [0, 1] {
        let mut device = open(small().build().store).unwrap();
        let pending: Vec<_> = [9, 10]
            .iter()
            .map(|index| match device.begin(index * C, &[1; 512]).unwrap() {
                Begun::Pending(pending, _) => pending,
                Begun::Written(_) => panic!("written in place"),
            })
            .collect();
        device.give_up(&pending[first]);
        device.finish(pending[1 - first].clone()).unwrap();
        device.write(11 * C, &[3; 512]).unwrap();
        check_places(&device.close().unwrap());
    }
}

#[test]
fn cut_cluster_is_completed() {
    let image = Spec::new(1 << 20, 12, 6)
        .with_clusters(&[(0, false)])
        .build();
    let mut store = image.store.clone();
    store.put_size(image.entries[&0].1 + 1024);
    let mut device = open(store).unwrap();
    device.write(1536, &[7; 512]).unwrap();
    let mut expected = image.content(0);
    expected[1024..].fill(0);
    expected[1536..2048].fill(7);
    assert!(device.read(0, C).unwrap() == expected);
    check_places(&device.close().unwrap());
}

/// A large L1 that names one table again and again: nobody waits for ever.
#[test]
fn too_many_tables() {
    let mut image = Spec::new(1 << 40, 12, 13)
        .with_clusters(&[(0, false)])
        .build();
    let l1 = u64::from_be_bytes(image.store.get(40, 8).try_into().unwrap());
    let table = image.store.get(l1, 8);
    let count = (1u64 << 40) >> 25;
    image.store.put(l1, &table.repeat(count as usize));
    let mut device = open(image.store).unwrap();
    let before = device.store.loads();
    let error = device.write(C, &[1; 512]).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    assert!(device.store.loads() - before < 5 << 20);
    // What has a place can be written.
    device.write(0, &[1; 512]).unwrap();
}

/// A look at all entries that was refused is not repeated for every write, unless the file has another
/// size.
#[test]
fn refused_once() {
    let mut image = small().build();
    let l1 = image.store.get_be64(40);
    // Of cluster 70: tables have 64 entries.
    let entry = image.store.get_be64(l1 + 8) + 6 * 8;
    let sound = image.store.get(entry, 8);
    image.store.put(entry, &(1u64 << 40).to_be_bytes());
    let mut device = open(image.store).unwrap();
    let write = |device: &mut Device| {
        let before = device.store.loads();
        let error = device.write(9 * C, &[1; 512]).unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{error:?}");
        device.store.loads() - before
    };
    let first = write(&mut device);
    let second = write(&mut device);
    assert!(first > second, "{first} {second}");
    assert_eq!(write(&mut device), second);
    // The header is looked at each time.
    assert!(second < 10, "{second}");

    device.store.put(entry, &sound);
    let size = device.store.len();
    device.store.put_size(size + C);
    device.write(9 * C, &[1; 512]).unwrap();
    assert_eq!(device.read(9 * C, 512).unwrap(), [1; 512]);
}

#[test]
fn block_devices() {
    let image = small().build();
    let size = image.store.len().next_multiple_of(C) + 3 * C;
    let mut device = open(image.store.into_device(size, 0xdb)).unwrap();
    let mut shadow = device.read(0, 1 << 20).unwrap();
    // Three clusters fit, one of which is for a table.
    for pos in [9 * C, 128 * C + 512] {
        device.write(pos, &[1; 512]).unwrap();
        shadow[pos as usize..][..512].fill(1);
    }
    assert_eq!(device.write(10 * C, &[1; 512]), Err(ENOSPC));
    device.write(9 * C, &[2; 512]).unwrap();
    shadow[9 * C as usize..][..512].fill(2);
    assert!(device.read(0, 1 << 20).unwrap() == shadow);
    let store = device.close().unwrap();
    assert_eq!(store.len(), size);
    assert!(disk(&store, &[]) == shadow);
}

/// The device becomes larger while a cluster that no entry has yet is being written: the next one goes
/// elsewhere.
#[test]
fn device_grows_meanwhile() {
    let image = small().build();
    let size = image.store.len().next_multiple_of(C) + 8 * C;
    let mut device = open(image.store.into_device(size, 0xdb)).unwrap();
    let begin = |device: &mut Device, index: u64| match device.begin(index * C, &[index as u8; 512])
    {
        Ok(Begun::Pending(pending, _)) => pending,
        other => panic!("{other:?}"),
    };
    let first = begin(&mut device, 9);
    device.store.put_size(size + 8 * C);
    let second = begin(&mut device, 10);
    device.finish(second).unwrap();
    device.finish(first).unwrap();
    for index in [9, 10] {
        assert_eq!(device.read(index * C, 512).unwrap(), [index as u8; 512]);
    }
    check_places(&device.close().unwrap());
}

/// Whatever store fails, nothing is lost, and the next try succeeds.
#[test]
fn every_store_can_fail() {
    for failure in Failure::ALL {
        for n in 0..12 {
            let mut device = open(small().build().store).unwrap();
            let mut shadow = device.read(0, 1 << 20).unwrap();
            device.store.fail_after(n, failure);
            for pos in [9 * C, C, 128 * C, 129 * C] {
                let mut tries = 0;
                while device.write(pos, &[1; 512]).is_err() {
                    tries += 1;
                    assert!(tries < 2, "{failure:?} {n}");
                    assert!(
                        device.read(0, 1 << 20).unwrap() == shadow,
                        "{failure:?} {n}"
                    );
                }
                shadow[pos as usize..][..512].fill(1);
            }
            device.store.never_fail();
            let store = device.close().unwrap();
            check_places(&store);
            assert!(disk(&store, &[]) == shadow, "{failure:?} {n}");
        }
    }
}

/// Nor is space: what a failed store was for is used for the next try.
#[test]
fn failed_stores_cost_no_space() {
    let mut lens = Vec::new();
    for n in 0..20 {
        for failure in [Failure::Nothing, Failure::Torn] {
            let mut device = open(small().build().store).unwrap();
            device.store.fail_after(n, failure);
            for pos in [128 * C, 9 * C, 200 * C] {
                while device.write(pos, &[1; 512]).is_err() {}
            }
            device.store.never_fail();
            lens.push(device.close().unwrap().len());
        }
    }
    // The last ones fail too late.
    let least = lens[lens.len() - 1];
    assert!(lens.iter().all(|it| *it == least), "{lens:?}");
}

/// Another program has moved tables, or the backing file's name, since the attach.
#[test]
fn changed_in_the_meantime() {
    let spec = small().on(b"base");
    for (at, bytes) in [
        (40, 4096u64.to_be_bytes()),
        (8, 600u64.to_be_bytes()),
        (32, [13, 6, 0, 0, 0, 0, 0, 0]),
        (0, *b"QFI\xfb\0\0\0\x03"),
    ] {
        let mut device = open(spec.build().store).unwrap().on_top_of(base(C));
        device.store.put(at, &bytes);
        let before = device.store.to_vec();
        for _ in 0..2 {
            let error = device.write(9 * C, &[1; 512]).unwrap_err();
            assert!(matches!(error, Error::NeedsReadOnly(_)), "{error:?}");
        }
        assert!(device.store.to_vec() == before);
    }
}

/// Power fails after any store, and any sector since the last sync is lost or not. What was flushed is
/// there, everything else is a content that the sector had since; the image is sound.
#[test]
fn power_failures() {
    for below in [0, 100 * C] {
        assert_eq!(crashes(below, false, |_| Vec::new()), None);
        // A driver that does not care is found out.
        let needs_order = below > 0;
        let found = crashes(below, true, |_| Vec::new());
        assert_eq!(found.is_some(), needs_order);
    }
}

/// An allocator that hands space out before the size of the file is durable is found out.
#[test]
fn size_that_is_not_durable() {
    let found = crashes(0, false, |trace| {
        let grows = |op: &Op| matches!(op, Op::Fill { len: 1, .. });
        let pairs = trace.windows(2).enumerate();
        let syncs = pairs.filter(|(_, it)| grows(&it[0]) && matches!(it[1], Op::Sync));
        syncs.map(|(at, _)| at + 1).collect()
    });
    let found = found.expect("not found out");
    assert!(found.contains("past the end"), "{found}");
}

/// What is wrong with what a power failure left, if anything is. The operations that `omit` names are
/// left out of what was recorded.
fn crashes(below: u64, is_careless: bool, omit: fn(&[Op]) -> Vec<usize>) -> Option<String> {
    let mut spec = small();
    spec.clusters.truncate(1);
    if below > 0 {
        spec = spec.on(b"base");
    }
    let mut under = vec![0xb5; below as usize];
    under.resize(1 << 20, 0);
    let mut device = open(spec.build().store).unwrap();
    let mut oracle = Oracle::new(&disk(&device.store, &under));
    if below > 0 {
        device = device.on_top_of(base(below));
    }
    if is_careless {
        device.be_careless();
    }
    let (before, size) = device.store.record();
    let mut events = Vec::new();
    let mut note = |device: &mut Device, event: Event| {
        device.store.mark(events.len());
        events.push(event);
    };
    let writes = [9 * C, C + 512, 128 * C, 9 * C + 1024, 129 * C, 200 * C];
    for (byte, pos) in (1..).zip(writes) {
        let sectors = vec![Rc::new([byte; 512])];
        note(&mut device, Event::Begin(pos / 512, sectors.clone()));
        device.write(pos, &[byte; 512]).unwrap();
        note(&mut device, Event::Done(pos / 512, sectors));
        if byte % 2 == 0 {
            device.flush().unwrap();
            note(&mut device, Event::Flushed);
        }
    }
    device.trim().unwrap();

    let mut rng = Rng::new(3);
    let mut replay = Replay::new(before, size, true);
    let trace = device.store.take_trace();
    let omitted = omit(&trace);
    for op in without(trace, &omitted) {
        replay.apply(&op);
        if let Op::Mark(index) = op {
            oracle.apply(&events[index]);
        }
        for survivors in [
            Survivors::All,
            Survivors::Synced,
            Survivors::Random,
            Survivors::Few(3),
        ] {
            let (store, _) = replay.crash(survivors, &mut rng);
            open(store.clone()).unwrap();
            if let Err(what) = places(&store) {
                return Some(format!("{what} after {op:?}"));
            }
            if let Some(what) = oracle.complaint(&disk(&store, &under)) {
                return Some(format!("{what} after {op:?}"));
            }
        }
    }
    None
}

/// What a read in one cluster costs: an entry of the L1, and one of the L2 table.
#[test]
fn two_loads() {
    for (bits, l2_bits) in (9..=16).flat_map(|bits| (6..=13).map(move |l2| (bits, l2))) {
        for is_compressed in [false, true] {
            let image = Spec::new(1 << 30, bits, l2_bits).with_clusters(&[(77, is_compressed)]);
            let device = open(image.build().store).unwrap();
            let loads = device.store.loads();
            let extent = device.resolve_read(77 << bits, 512).unwrap();
            assert_eq!(matches!(extent, Extent::Compressed(_)), is_compressed);
            assert!(is_compressed || matches!(extent, Extent::Data { len: 512, .. }));
            assert_eq!(device.store.loads() - loads, 2, "2^{bits}, 2^{l2_bits}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random(
        (bits, l2_bits, sectors) in (9u8..=16, 6u8..=13, 1u64..3000),
        clusters in proptest::collection::vec((0u64..400, any::<bool>()), 0..20),
        below in proptest::option::of(1u64..3000),
        writes in proptest::collection::vec((any::<u64>(), 1u64..30, any::<u8>()), 1..30),
    ) {
        let mut spec = Spec::new(sectors * 512, bits, l2_bits);
        let count = spec.size.div_ceil(spec.cluster());
        let mut seen = std::collections::BTreeSet::new();
        spec.clusters = clusters.into_iter().map(|it| (it.0 % count, it.1)).collect();
        spec.clusters.retain(|it| seen.insert(it.0));
        if below.is_some() {
            spec.backing = Some(b"base".to_vec());
        }
        let under = vec![0xb5; below.unwrap_or(0) as usize * 512];
        let mut device = open(spec.build().store).unwrap();
        if let Some(below) = below {
            device = device.on_top_of(base(below * 512));
        }
        let mut shadow = disk(&device.store, &under);
        prop_assert!(device.read(0, spec.size).unwrap() == shadow);
        for (index, (at, len, byte)) in writes.into_iter().enumerate() {
            let first = at % sectors;
            let len = len.min(sectors - first) * 512;
            device.write(first * 512, &vec![byte; len as usize]).unwrap();
            shadow[first as usize * 512..][..len as usize].fill(byte);
            if index == 15 {
                device.trim().unwrap();
            }
        }
        prop_assert!(device.read(0, spec.size).unwrap() == shadow);
        let store = device.close().unwrap();
        check_places(&store);
        prop_assert!(disk(&store, &under) == shadow);
    }
}
