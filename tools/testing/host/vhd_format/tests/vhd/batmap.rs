// SPDX-License-Identifier: GPL-2.0

//! tapdisk's batmap: when it is believed, and what follows from it.

use loop_parser::contract::{Allocate, Discard, Extent, Map, Placement, Reserved};
use testkit::device::Device;
use vhd_format::format;

use crate::{
    alloc::{allocate, assert_sound, sector, BLOCK, MIB},
    attach, class,
    image::{Bits, Image, Spec},
    open, open_over, Class,
};

/// An image with a full block, one that is marked so without being so, and one with clear bits.
fn spec(disk_type: u32) -> Spec {
    let blocks = [(1, Bits::Ones), (9, Bits::Zeros), (10, Bits::Mixed(3))];
    let mut spec = Spec::differencing(16 * BLOCK, 4096)
        .with_blocks(&blocks)
        .by(b"tap\0", 0x0001_0003);
    spec.disk_type = disk_type;
    spec.aligned = true;
    spec.batmap = Some((1, false));
    spec.full = vec![1, 9];
    spec
}

/// Block 9 is marked as full; its bitmap says the opposite. Which of them is believed?
fn is_believed(image: &Image) -> bool {
    let attached = attach(&image.store).unwrap();
    let extent = attached.map.resolve_read(&image.store, 9 * BLOCK, BLOCK);
    match extent.unwrap() {
        Extent::Data { offset, len } => {
            assert_eq!((offset, len), (image.starts[1] + 512, BLOCK));
            true
        }
        Extent::Compressed(_) => unreachable!(),
        Extent::Zero { len } | Extent::Parent { len } => {
            assert_eq!(len, BLOCK);
            false
        }
    }
}

#[test]
fn full_blocks_are_taken_as_such() {
    for disk_type in [3, 4] {
        for version in [0x0001_0001, 0x0001_0002] {
            let mut spec = spec(disk_type);
            spec.batmap_version = version;
            let image = spec.build();
            assert!(is_believed(&image));
            let attached = attach(&image.store).unwrap();
            let write = |pos, len| attached.map.resolve_write(&image.store, pos, len);
            assert_eq!(
                write(9 * BLOCK + 512, 1024),
                Ok(Placement::InPlace {
                    offset: image.starts[1] + 1024,
                    len: 1024
                })
            );
            // A clear bit says nothing.
            assert!(matches!(
                attached.map.resolve_read(&image.store, 10 * BLOCK, BLOCK),
                Ok(Extent::Data { len, .. } | Extent::Zero { len } | Extent::Parent { len })
                    if len < BLOCK
            ));
            // Nor does a set one of a block that is not there.
            let read = attached.map.resolve_read(&image.store, 0, BLOCK).unwrap();
            assert!(!matches!(read, Extent::Data { .. }));
        }
    }
}

/// Its bitmap costs a load for every 64 sectors, the batmap one.
#[test]
fn bitmap_of_a_full_block_is_not_read() {
    let mut spec = Spec::dynamic(4 * MIB, 2 << 20)
        .with_blocks(&[(1, Bits::Ones)])
        .by(b"tap\0", 0x0001_0003);
    spec.batmap = Some((1, false));
    spec.full = vec![1];
    let device = open(spec.build().store).unwrap();
    let before = device.store.loads();
    let extent = device.resolve_read(2 * MIB, 2 * MIB).unwrap();
    assert!(matches!(extent, Extent::Data { len, .. } if len == 2 * MIB));
    assert_eq!(device.store.loads() - before, 2);
}

#[test]
fn damaged_batmaps_are_not_believed() {
    type Damage = fn(&mut Image);
    let damages: [(&str, Damage); 10] = [
        ("cookie", |it| put_header(it, 0, b"TDBATMAP")),
        ("version 1.3", |it| put_header(it, 20, &[0, 1, 0, 3])),
        ("version 0", |it| put_header(it, 20, &[0; 4])),
        ("signed bytes", |it| {
            it.store.put(it.table_end() + 512, &[0xc0]);
            put_header(it, 24, &(!0xffu32).to_be_bytes());
            put_header(it, 20, &[0, 1, 0, 1]);
        }),
        ("checksum", |it| put_header(it, 24, &[0; 4])),
        ("map", |it| it.store.put(it.table_end() + 1023, &[1])),
        ("offset past the end", |it| {
            let at = it.store.len() - 511;
            put_header(it, 8, &at.to_be_bytes());
        }),
        ("offset overflows", |it| put_header(it, 8, &[0xff; 8])),
        ("no sectors", |it| put_header(it, 16, &[0; 4])),
        ("creator", |it| it.edit_footers(28, b"win ")),
    ];
    for disk_type in [3, 4] {
        for (what, damage) in damages {
            let mut image = spec(disk_type).build();
            assert!(is_believed(&image));
            damage(&mut image);
            assert!(!is_believed(&image), "{what}");
        }
        // tapdisk 1.1 is the first with a batmap.
        let mut image = spec(disk_type).build();
        image.edit_footers(32, &0x0001_0001u32.to_be_bytes());
        assert!(is_believed(&image));
        image.edit_footers(32, &0x0001_0000u32.to_be_bytes());
        assert!(!is_believed(&image));
    }
}

fn put_header(image: &mut Image, offset: u64, bytes: &[u8]) {
    let at = image.table_end();
    image.store.put(at + offset, bytes);
}

/// Bits that the checksum does not cover count for nothing: it is made for blocks of 2 MiB.
#[test]
fn only_what_is_summed_is_believed() {
    let mut spec = Spec::dynamic(5000 * BLOCK, 4096)
        .with_blocks(&[(4095, Bits::Zeros), (4096, Bits::Zeros)])
        .by(b"tap\0", 0x0001_0003);
    spec.batmap = Some((2, false));
    spec.full = vec![4095, 4096];
    let image = spec.build();
    let attached = attach(&image.store).unwrap();
    let is_data = |block: u64| {
        let extent = attached
            .map
            .resolve_read(&image.store, block * BLOCK, BLOCK);
        matches!(extent, Ok(Extent::Data { .. }))
    };
    assert!(is_data(4095));
    assert!(!is_data(4096));
}

/// 128 KiB at most, however large the disk is said to be.
#[test]
fn attach_is_bounded() {
    let mut spec = Spec::dynamic(1 << 41, 1 << 21).by(b"tap\0", 0x0001_0003);
    spec.batmap = Some((256, false));
    spec.full = vec![0, 1 << 19];
    let mut image = spec.build();
    let before = image.store.loaded_bytes();
    attach(&image.store).unwrap();
    let loaded = image.store.loaded_bytes() - before;
    assert!((131072..131072 + 4096).contains(&loaded), "{loaded}");

    image.edit_footers(48, &u64::MAX.to_be_bytes());
    let before = image.store.loaded_bytes();
    format::attach(&image.store, "size=chs", true).unwrap();
    assert!(image.store.loaded_bytes() - before < 4096);
}

#[test]
fn never_written() {
    for disk_type in [3, 4] {
        let image = spec(disk_type).build();
        let at = image.table_end();
        let before = image.store.get(at, 1024);
        let mut device = device_over(&image, disk_type);
        for block in [1, 2, 9, 10, 11] {
            device.write(block * BLOCK, &[7; 4096]).unwrap();
            device
                .discard(block * BLOCK, BLOCK, Discard::Forget)
                .unwrap();
            device.write(block * BLOCK + 512, &[8; 512]).unwrap();
        }
        let mut expected = vec![0; 4096];
        expected[512..1024].fill(8);
        assert_eq!(device.read(9 * BLOCK, BLOCK).unwrap(), expected);
        let store = device.close().unwrap();
        assert_eq!(store.get(at, 1024), before);
        assert_sound(&store);
    }
}

fn device_over(image: &Image, disk_type: u32) -> Device {
    if disk_type == 3 {
        return open(image.store.clone()).unwrap();
    }
    let parent = open(Spec::fixed(MIB).build().store).unwrap();
    open_over(image.store.clone(), parent).unwrap()
}

/// A new block of a differencing image would hide all of the parent's; a dynamic one's is zeros.
#[test]
fn full_block_that_is_not_there() {
    let mut spec = spec(4);
    spec.full = vec![1, 5];
    let image = spec.build();
    let mut device = device_over(&image, 4);
    let expected = device.read(0, 16 * BLOCK).unwrap();
    let error = device.write(5 * BLOCK, &sector(1)).unwrap_err();
    assert_eq!(class(error), Class::Malformed);
    assert_eq!(error.fault().unwrap().at, 1536 + 4 * 5);
    assert_eq!(device.store.to_vec(), image.store.to_vec());
    assert!(device.read(0, 16 * BLOCK).unwrap() == expected);
    device.write(6 * BLOCK, &sector(1)).unwrap();

    spec.disk_type = 3;
    let mut device = open(spec.build().store).unwrap();
    allocate(&mut device, 5, BLOCK);
    let mut expected = sector(5);
    expected.resize(4096, 0);
    assert_eq!(device.read(5 * BLOCK, BLOCK).unwrap(), expected);
}

/// Another writer, or a resolve of long ago, asks for room in a full block.
#[test]
fn nothing_to_reserve_in_a_full_block() {
    for disk_type in [3, 4] {
        let mut image = spec(disk_type).build();
        let mut alloc = attach(&image.store).unwrap().alloc;
        let before = image.store.to_vec();
        let ready = alloc.reserve(&mut image.store, 9 * BLOCK, 512);
        assert_eq!(ready, Ok(Reserved::Ready));
        assert!(image.store.to_vec() == before);
    }
}

/// tapdisk rewrites the 4 KiB in front of a full block's data: nothing else may be there.
#[test]
fn alignment_is_kept() {
    for disk_type in [3, 4] {
        let mut device = device_over(&spec(disk_type).build(), disk_type);
        let mut ends: Vec<u64> = Vec::new();
        for block in [2u64, 3, 4] {
            device.write(block * BLOCK, &sector(block)).unwrap();
            let data = u64::from(device.store.get_be32(1536 + 4 * block)) * 512 + 512;
            assert_eq!(data % 4096, 0);
            assert!(ends.iter().all(|end| *end <= data - 4096));
            ends.push(data + BLOCK);
        }
    }
}
