// SPDX-License-Identifier: GPL-2.0

//! Random images, random guest writes: what is read is what was written, here and by others.

use proptest::prelude::*;
use testkit::{device::Device, store::Store, tools};

use crate::{
    image::{pattern, Bits, End, Spec},
    open,
    reader::{end_footer, faults, front_footer, Reader},
};

/// Bitmaps of all kinds.
pub fn bits() -> impl Strategy<Value = Bits> {
    prop_oneof![
        3 => Just(Bits::Ones),
        1 => Just(Bits::Zeros),
        3 => any::<u64>().prop_map(Bits::Mixed),
    ]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        6 => Just(End::Footer),
        1 => Just(End::Short),
        1 => Just(End::Missing),
        1 => any::<u8>().prop_map(End::Filled),
        1 => Just(End::Damaged),
    ]
}

/// Sound dynamic images of many shapes.
fn dynamic() -> impl Strategy<Value = Spec> {
    let shape = (9u32..=17, 1u64..200, any::<bool>(), 0u64..9, any::<bool>());
    let blocks = proptest::collection::vec((0u32..24, bits()), 0..6);
    (
        shape,
        blocks,
        end(),
        0u32..40,
        proptest::option::of(1u32..4),
    )
        .prop_map(
            |((shift, sectors, aligned, gap, is_tapdisk), mut blocks, end, surplus, batmap)| {
                let block_size = 1u32 << shift;
                let mut spec = Spec::dynamic(sectors * 512, block_size);
                let needed = spec.entry_count();
                blocks.sort_by_key(|it| it.0);
                blocks.dedup_by_key(|it| it.0);
                blocks.retain(|it| it.0 < needed);
                // In the order of the file, which is not that of the disk.
                blocks.reverse();
                spec.blocks = blocks;
                spec.entries = Some(needed + surplus);
                spec.aligned = aligned;
                spec.gap = gap;
                spec.end = end;
                if is_tapdisk {
                    spec = spec.by(b"tap\0", 0x0001_0003);
                    spec.batmap = batmap.map(|sectors| (sectors, false));
                }
                spec
            },
        )
}

/// Guest writes: where (to be taken modulo the size), and how many sectors.
fn writes() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((any::<u64>(), 1u64..40), 1..40)
}

fn write_all(device: &mut Device, shadow: &mut [u8], writes: &[(u64, u64)]) {
    let sectors = device.disk.size / 512;
    for (version, (at, count)) in (10..).zip(writes) {
        let first = at % sectors;
        let count = (*count).min(sectors - first);
        let data: Vec<u8> = (first..first + count)
            .flat_map(|sector| pattern(sector, version))
            .collect();
        device.write(first * 512, &data).unwrap();
        shadow[(first * 512) as usize..][..data.len()].copy_from_slice(&data);
    }
}

fn check(store: &Store, shadow: &[u8]) {
    assert_eq!(faults(store), [""; 0]);
    assert!(Reader::open(store).unwrap().disk() == shadow);
    let device = open(store.clone()).unwrap();
    assert!(device.read(0, device.disk.size).unwrap() == shadow);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn files(spec in dynamic(), first in writes(), second in writes()) {
        let store = spec.build().store;
        let mut shadow = Reader::open(&store).unwrap().disk();
        let mut device = open(store).unwrap();
        prop_assert!(device.read(0, device.disk.size).unwrap() == shadow);

        write_all(&mut device, &mut shadow, &first);
        check(&device.store, &shadow);
        let had_allocated = device.store.syncs() > 0;
        device.trim().unwrap();
        check(&device.store, &shadow);
        write_all(&mut device, &mut shadow, &second);
        let store = device.close().unwrap();
        check(&store, &shadow);
        if had_allocated && spec.end == End::Footer {
            prop_assert_eq!(front_footer(&store), end_footer(&store));
        }
    }

    #[test]
    fn devices(spec in dynamic(), writes in writes(), room in 0u64..100) {
        let image = spec.build();
        let size = image.store.len().next_multiple_of(512) + room * 4096 + 512;
        let mut shadow = Reader::open(&image.store).unwrap().disk();
        let mut device = open(image.store.into_device(size, 0xdb)).unwrap();
        let sectors = device.disk.size / 512;
        for (at, _) in writes {
            // A full device is fine.
            let sector = at % sectors;
            if device.write(sector * 512, &pattern(sector, 6)).is_ok() {
                shadow[(sector * 512) as usize..][..512].copy_from_slice(&pattern(sector, 6));
            }
        }
        prop_assert_eq!(device.store.len(), size);
        check(&device.close().unwrap(), &shadow);
    }

    #[test]
    fn fixed_images(sectors in 1u64..300, writes in writes(), is_short in any::<bool>()) {
        let mut spec = Spec::fixed(sectors * 512);
        if is_short {
            spec.end = End::Short;
        }
        let store = spec.build().store;
        let footer = store.get(sectors * 512, 511);
        let mut shadow = Reader::open(&store).unwrap().disk();
        let mut device = open(store).unwrap();
        write_all(&mut device, &mut shadow, &writes);
        prop_assert!(device.read(0, sectors * 512).unwrap() == shadow);
        prop_assert_eq!(device.store.get(sectors * 512, 511), footer);
        prop_assert_eq!(device.store.syncs(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// QEMU ignores bitmaps, wants a copy at 0, and miscounts the bitmaps of small blocks.
    #[test]
    fn qemu_agrees(mut spec in dynamic(), writes in writes()) {
        spec.blocks.iter_mut().for_each(|it| it.1 = Bits::Ones);
        spec.block_size = spec.block_size.max(4096);
        spec.entries = None;
        let needed = spec.entry_count();
        spec.blocks.retain(|it| it.0 < needed);
        let store = spec.build().store;
        let mut shadow = Reader::open(&store).unwrap().disk();
        let mut device = open(store).unwrap();
        write_all(&mut device, &mut shadow, &writes);
        let before_close = device.store.clone();
        let closed = device.close().unwrap();
        if tools::has_qemu_img() {
            for store in [before_close, closed] {
                match tools::qemu_img_read(&store, "vpc") {
                    Ok(theirs) => prop_assert!(theirs == shadow),
                    Err(error) => prop_assert!(false, "{}", error),
                }
            }
        }
    }
}
