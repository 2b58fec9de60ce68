// SPDX-License-Identifier: GPL-2.0

//! Differencing images: what is read from where, and what a write changes.

use loop_parser::contract::{Allocate, Extent, Placement, Range, Reservation, Reserved};
use proptest::prelude::*;
use testkit::{
    device::{Begun, Device, Pending},
    store::{Failure, Store, ENOSPC},
};

use crate::{
    alloc::{assert_sound, describe, sector, BLOCK, MIB},
    attach, class,
    image::{pattern, Bits, End, Spec},
    open, open_over,
    random::bits,
    reader::{faults, Reader},
    Class,
};

/// A disk of this many bytes to lie on.
fn parent(size: u64) -> Device {
    open(Spec::fixed(size).build().store).unwrap()
}

fn over(spec: &Spec, parent_size: u64) -> Device {
    open_over(spec.build().store, parent(parent_size)).unwrap()
}

fn child() -> Spec {
    let blocks = [(2, Bits::Mixed(3)), (5, Bits::Ones), (6, Bits::Zeros)];
    Spec::differencing(16 * BLOCK, 4096).with_blocks(&blocks)
}

fn whole(device: &Device) -> Vec<u8> {
    device.read(0, device.disk.size).unwrap()
}

#[test]
fn clear_sectors_are_the_parents() {
    for parent_size in [512, 9 * BLOCK + 512, 16 * BLOCK, 20 * BLOCK] {
        let below = parent(parent_size).read(0, parent_size).unwrap();
        let device = over(&child(), parent_size);
        let expected = Reader::open(&device.store).unwrap().disk_over(&below);
        assert!(whole(&device) == expected, "{parent_size}");
        assert_eq!(device.store.stores(), 0);
    }
}

#[test]
fn runs_of_the_parents_bytes() {
    let device = over(&child(), 16 * BLOCK);
    let size = 16 * BLOCK;
    assert_eq!(
        device.resolve_read(0, size),
        Ok(Extent::Parent { len: 2 * BLOCK })
    );
    assert_eq!(
        device.resolve_read(512, 1024),
        Ok(Extent::Parent { len: 1024 })
    );
    assert_eq!(
        device.resolve_read(6 * BLOCK, size - 6 * BLOCK),
        Ok(Extent::Parent { len: BLOCK })
    );
    assert_eq!(
        device.resolve_read(7 * BLOCK, size - 7 * BLOCK),
        Ok(Extent::Parent { len: 9 * BLOCK })
    );
    let empty = over(&Spec::differencing(1 << 30, 1 << 21), 512);
    let before = empty.store.loads();
    assert_eq!(
        empty.resolve_read(0, 1 << 30),
        Ok(Extent::Parent { len: 129 << 21 })
    );
    assert!(empty.store.loads() - before <= 130);
}

/// What one writer at a time gets: the clear sectors that it wants to write.
#[test]
fn only_what_is_written_is_allocated() {
    let device = over(&child(), 512);
    for (pos, len, expected) in [
        (512, 1024, 1024),
        (512, 2 * BLOCK, BLOCK - 512),
        (6 * BLOCK + 1024, 512, 512),
        (6 * BLOCK + 1024, BLOCK, BLOCK - 1024),
    ] {
        assert_eq!(
            device.resolve_write(pos, len),
            Ok(Placement::Allocate { pos, len: expected })
        );
    }
    for index in 0..8u64 {
        let bits = Bits::Mixed(3);
        let run = (index..8)
            .take_while(|i| bits.get(*i) == bits.get(index))
            .count() as u64;
        let pos = 2 * BLOCK + index * 512;
        match device.resolve_write(pos, BLOCK - index * 512).unwrap() {
            Placement::InPlace { len, .. } => assert!(bits.get(index) && len == run * 512),
            Placement::Allocate { pos: at, len } => {
                assert!(!bits.get(index) && at == pos && len == run * 512);
            }
        }
    }
}

/// Which sectors an image has itself.
fn own(store: &Store, sectors: u64) -> Vec<bool> {
    let reader = Reader::open(store).unwrap();
    (0..sectors)
        .map(|it| reader.own_sector(it).is_some())
        .collect()
}

#[test]
fn no_bits_but_those_of_what_was_written() {
    for block_size in [512u32, 1024, 2048, 4096, 32768, 1 << 20] {
        let sectors = 4 * u64::from(block_size) / 512;
        for (first, count) in [
            (0, 1),
            (1, 1),
            (3, 9),
            (7, 17),
            (0, sectors),
            (sectors - 1, 1),
        ] {
            let count = count.min(sectors.saturating_sub(first));
            let mut device = over(&Spec::differencing(sectors * 512, block_size), MIB);
            let data = vec![7; (count * 512) as usize];
            device.write(first * 512, &data).unwrap();
            let expected: Vec<bool> = (0..sectors)
                .map(|it| (first..first + count).contains(&it))
                .collect();
            assert!(
                own(&device.store, sectors) == expected,
                "{block_size} {first} {count}"
            );
            assert_sound(&device.store);
            assert_sound(&device.close().unwrap());
        }
    }
}

fn begin(device: &mut Device, pos: u64, data: &[u8]) -> Pending {
    match device.begin(pos, data).unwrap() {
        Begun::Pending(pending, len) => {
            assert_eq!(len, data.len());
            pending
        }
        other => panic!("{other:?}"),
    }
}

/// Two first writers of different sectors of a block, in all orders.
#[test]
fn first_writers_of_one_block() {
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        for given_up in [None, Some(0), Some(1), Some(2)] {
            let mut device = over(&Spec::differencing(4 * BLOCK, 4096), MIB);
            let mut shadow = whole(&device);
            let data = [vec![1; 512], vec![2; 1024], vec![3; 512]];
            let at = [BLOCK, BLOCK + 512, BLOCK + 2048];
            let mut pending: Vec<_> = (0..3)
                .map(|i| Some(begin(&mut device, at[i], &data[i])))
                .collect();
            // Nothing of it shows yet.
            assert!(whole(&device) == shadow);
            for i in order {
                let it = pending[i].take().unwrap();
                if given_up == Some(i) {
                    device.give_up(&it);
                    continue;
                }
                device.finish(it).unwrap();
                shadow[at[i] as usize..][..data[i].len()].copy_from_slice(&data[i]);
                assert!(whole(&device) == shadow, "{order:?} {given_up:?}");
            }
            // What was given up can be written again.
            device.write(BLOCK, &[9; 4096]).unwrap();
            shadow[BLOCK as usize..][..4096].fill(9);
            assert!(whole(&device) == shadow);
            assert_sound(&device.store);
        }
    }
}

/// Less was written than there was space for: no other bit is set, and the rest can be had again.
#[test]
fn part_of_a_reservation() {
    let mut store = Spec::differencing(4 * BLOCK, 4096).build().store;
    let mut alloc = attach(&store).unwrap().alloc;
    let reserved = alloc.reserve(&mut store, 512, 3072).unwrap();
    let Reserved::Space(space) = reserved else {
        panic!("{reserved:?}");
    };
    assert_eq!((space.pos, space.len, space.granule), (512, 3072, 512));
    assert!(space.sync_before_publish);
    for (pos, len, is_right) in [
        (512, 3584, false),
        (0, 512, false),
        (1024, 256, false),
        (1100, 512, false),
        (3584, 512, false),
        (1024, u64::MAX, false),
        (u64::MAX - 511, 512, false),
        (1024, 1024, true),
        (3072, 512, true),
    ] {
        let written = Range { pos, len };
        let result = alloc.publish(&mut store, &space, written);
        assert_eq!(result.is_ok(), is_right, "{pos} {len}");
    }
    let mut expected = vec![false; 32];
    for sector in [2, 3, 6] {
        expected[sector] = true;
    }
    assert_eq!(own(&store, 32), expected);
    alloc.release(&space);
    let again = alloc.reserve(&mut store, 512, 3072).unwrap();
    assert_eq!(again, Reserved::Space(Reservation { len: 512, ..space }));
    let ready = alloc.reserve(&mut store, 1024, 512);
    assert_eq!(ready, Ok(Reserved::Ready));
}

/// The second of two writers of the same sector finds it allocated.
#[test]
fn second_writer_of_a_sector() {
    let mut device = over(&Spec::differencing(4 * BLOCK, 4096), MIB);
    let first = begin(&mut device, 512, &sector(1));
    device.finish(first).unwrap();
    assert!(matches!(
        device.begin(512, &sector(2)),
        Ok(Begun::Written(512))
    ));
    assert_eq!(device.read(512, 512).unwrap(), sector(2));
}

/// New footer, sync, zeros over the old one, sync, entry, data, sync, bits.
#[test]
fn order_in_a_file() {
    let image = Spec::differencing(2 * BLOCK, 4096).build();
    let old = image.end_at;
    let mut device = open_over(image.store, parent(MIB)).unwrap();
    device.store.record();
    device.write(BLOCK + 512, &[5; 1024]).unwrap();
    let order: Vec<String> = device.store.take_trace().iter().map(describe).collect();
    let start = u64::from(device.store.get_be32(1540)) * 512;
    let expected = [
        format!("write {} 512", start + 512 + 8192 + BLOCK),
        "sync".into(),
        format!("fill {old} 512 0"),
        "sync".into(),
        "write 1540 4".into(),
        format!("write {} 1024", start + 512 + 512),
        "sync".into(),
        format!("write {start} 1"),
    ];
    assert_eq!(order, expected);
    assert_eq!(device.store.get(start, 2), [0b0110_0000, 0]);
}

/// On a block device the bitmap is cleared first; old bytes under clear bits are nobody's business.
#[test]
fn order_on_a_device() {
    let spec = Spec::differencing(MIB, 4096);
    let store = spec.build().store.into_device(MIB, 0x5a);
    let mut device = open_over(store, parent(MIB)).unwrap();
    device.write(0, &sector(1)).unwrap();
    device.store.record();
    device.write(BLOCK, &sector(2)).unwrap();
    let order: Vec<String> = device.store.take_trace().iter().map(describe).collect();
    let start = u64::from(device.store.get_be32(1540)) * 512;
    let expected = [
        format!("fill {start} 512 0"),
        "sync".into(),
        "write 1540 4".into(),
        format!("write {} 512", start + 512),
        "sync".into(),
        format!("write {start} 1"),
    ];
    assert_eq!(order, expected);
    assert_eq!(device.store.get(start + 1024, 512), [0x5a; 512]);
    let expected = parent(MIB).read(BLOCK + 512, 512).unwrap();
    assert_eq!(device.read(BLOCK + 512, 512).unwrap(), expected);
}

/// Somebody else moves the block between reserve and publish.
#[test]
fn entry_that_changes_under_us() {
    let mut device = over(&child(), MIB);
    let pending = begin(&mut device, 0, &sector(1));
    let other = device.store.get_be32(1536 + 4 * 5);
    for entry in [other, u32::MAX, 0, 1 << 30] {
        device.store.put(1536, &entry.to_be_bytes());
        let before = device.store.get(u64::from(other) * 512, 512);
        let error = device.finish(pending.clone()).unwrap_err();
        assert_eq!(class(error), Class::Malformed);
        assert_eq!(device.store.get(u64::from(other) * 512, 512), before);
    }
}

/// The store of the entry fails: the block is used for another one, or lost.
#[test]
fn entry_that_cannot_be_stored() {
    for failure in [
        Failure::Nothing,
        Failure::Half,
        Failure::GrowOnly,
        Failure::Torn,
    ] {
        let mut device = over(&Spec::differencing(MIB, 4096), MIB);
        device.write(0, &sector(1)).unwrap();
        let expected = whole(&device);
        device.store.fail_after(0, failure);
        assert_eq!(device.write(3 * BLOCK, &sector(2)), Err(ENOSPC));
        assert!(whole(&device) == expected);
        device.write(3 * BLOCK, &sector(2)).unwrap();
        device.trim().unwrap();
        assert_sound(&device.store);
    }
}

/// A bit that cannot be stored: the old bytes are still there, and a second try works.
#[test]
fn bits_that_cannot_be_stored() {
    let mut device = over(&child(), MIB);
    let expected = whole(&device);
    for n in 0..3 {
        for failure in Failure::ALL {
            let pos = 6 * BLOCK + 512;
            let it = begin(&mut device, pos, &[7; 2048]);
            device.store.fail_after(n, failure);
            if device.finish(it).is_ok() {
                assert!(device.store.is_failure_due() && n > 1);
                return;
            }
            // No sector is anything but old or new.
            let now = whole(&device);
            for (sector, (now, old)) in now.chunks(512).zip(expected.chunks(512)).enumerate() {
                assert!(now == old || (now == [7; 512] && (49..53).contains(&sector)));
            }
        }
    }
    panic!("never succeeded");
}

#[test]
fn footers_are_repaired() {
    for (front, end) in [
        (true, End::Missing),
        (true, End::Damaged),
        (true, End::Filled(0xc7)),
        (true, End::Short),
        (false, End::Footer),
        (false, End::Short),
    ] {
        let mut spec = child();
        spec.front = front;
        spec.end = end;
        let mut device = over(&spec, MIB);
        device.write(0, &sector(1)).unwrap();
        assert_sound(&device.store);
        assert_sound(&device.close().unwrap());
    }
}

/// A chain: each layer has its own block size and its own size.
#[test]
fn chain_of_sixteen() {
    let mut device = parent(MIB);
    let mut shadow = whole(&device);
    for layer in 1..=16u64 {
        let size = 200 * 512 + layer * 7 * 512;
        let spec = Spec::differencing(size, 512 << (layer % 6));
        device = open_over(spec.build().store, device).unwrap();
        // Past the end of the disk below there are zeros, whatever lies below that one.
        if layer > 1 {
            shadow.truncate((size - 7 * 512) as usize);
        }
        shadow.resize(size as usize, 0);
        for sector in (layer..200).step_by(17) {
            device.write(sector * 512, &pattern(sector, layer)).unwrap();
            shadow[(sector * 512) as usize..][..512].copy_from_slice(&pattern(sector, layer));
        }
        assert!(whole(&device) == shadow, "{layer}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Random images over random parents, written to at random: against a shadow, and one bit at a
    /// time.
    #[test]
    fn children(
        (shift, sectors, below) in (9u32..=16, 1u64..200, 1u64..300),
        blocks in proptest::collection::btree_map(0u32..24, bits(), 0..6),
        writes in proptest::collection::vec((any::<u64>(), 1u64..40), 1..30),
        is_device in any::<bool>(),
    ) {
        let mut spec = Spec::differencing(sectors * 512, 1 << shift);
        let needed = spec.entry_count();
        spec.blocks = blocks.into_iter().filter(|it| it.0 < needed).collect();
        let mut store = spec.build().store;
        if is_device {
            let size = store.len() + (8 << 20);
            store = store.into_device(size, 0xdb);
        }
        let below_disk = parent(below * 512).read(0, below * 512).unwrap();
        let mut shadow = Reader::open(&store).unwrap().disk_over(&below_disk);
        let mut have = own(&store, sectors);
        let mut device = open_over(store, parent(below * 512)).unwrap();
        prop_assert!(whole(&device) == shadow);
        for (version, (at, count)) in (10..).zip(writes) {
            let first = at % sectors;
            let count = count.min(sectors - first);
            let data: Vec<u8> = (first..first + count).flat_map(|it| pattern(it, version)).collect();
            device.write(first * 512, &data).unwrap();
            shadow[(first * 512) as usize..][..data.len()].copy_from_slice(&data);
            have[first as usize..(first + count) as usize].fill(true);
        }
        prop_assert!(whole(&device) == shadow);
        let store = device.close().unwrap();
        prop_assert_eq!(faults(&store), [""; 0]);
        prop_assert!(Reader::open(&store).unwrap().disk_over(&below_disk) == shadow);
        prop_assert!(own(&store, sectors) == have);
    }
}
