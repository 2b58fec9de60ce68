// SPDX-License-Identifier: GPL-2.0

//! Making room on a block device, which does not grow and is full of old bytes.

use testkit::store::{Store, ENOSPC};

use crate::{
    alloc::{allocate, assert_sound, begin, describe, sector, BLOCK, MIB},
    image::{Bits, End, Spec},
    open,
    reader::Reader,
};

fn device_image(spec: &Spec, size: u64) -> Store {
    spec.build().store.into_device(size, 0x5a)
}

#[test]
fn block_device_keeps_its_size_and_its_footer() {
    let mut spec = Spec::dynamic(MIB, 4096).with_blocks(&[(1, Bits::Ones)]);
    for front in [true, false] {
        spec.front = front;
        // The device ends with the image's footer.
        let mut image = spec.build();
        let footer = spec.footer();
        let size = image.store.len() + 100 * 4096;
        let old = image.end_at;
        image.store.put(old, &[0x11; 512]);
        let mut store = image.store.into_device(size, 0x5a);
        store.put(size - 512, &footer);

        let mut device = open(store).unwrap();
        for block in 2..50 {
            let pending = begin(&mut device, block);
            assert!(pending.space().sync_before_publish);
            device.finish(pending).unwrap();
        }
        let store = device.close().unwrap();
        assert_eq!(store.len(), size);
        assert_sound(&store);
        for block in 2..50 {
            let reader = Reader::open(&store).unwrap();
            assert_eq!(reader.sector(block * 8)[..], sector(block));
            assert_eq!(reader.sector(block * 8 + 7), [0; 512]);
        }
    }
}

/// After a plain dd of a file to a larger volume.
#[test]
fn block_device_with_a_footer_in_the_middle() {
    let spec = Spec::dynamic(MIB, 4096).with_blocks(&[(1, Bits::Ones)]);
    let size = 2 * MIB;
    let mut device = open(device_image(&spec, size)).unwrap();
    for block in 2..256 {
        allocate(&mut device, block, BLOCK);
        assert_sound(&device.store);
    }
    assert_eq!(device.store.len(), size);
}

#[test]
fn full_block_device() {
    let spec = Spec::dynamic(MIB, 4096);
    let image_len = spec.build().store.len();
    let size = (image_len + 10 * 8192).next_multiple_of(4096);
    let mut device = open(device_image(&spec, size)).unwrap();
    let mut block = 0;
    while device.write(block * BLOCK, &sector(block)).is_ok() {
        block += 1;
    }
    assert!((9..=11).contains(&block), "{block}");
    for _ in 0..3 {
        assert_eq!(device.write(block * BLOCK, &sector(block)), Err(ENOSPC));
    }
    // What is there stays writable.
    device.write(0, &sector(1000)).unwrap();
    assert_sound(&device.store);
    assert_eq!(device.read(0, 512).unwrap(), sector(1000));
}

/// The last block ends so close to the end that no footer fits behind it.
#[test]
fn block_device_without_room_for_a_footer() {
    let mut spec = Spec::dynamic(MIB, 4096).with_blocks(&[(1, Bits::Ones)]);
    spec.end = End::Missing;
    let image = spec.build();
    let size = image.store.len();
    let before = image.store.to_vec();
    let mut device = open(image.store.into_device(size, 0)).unwrap();
    assert_eq!(device.write(0, &sector(0)), Err(ENOSPC));
    assert!(device.store.to_vec() == before);
}

#[test]
fn block_device_that_is_enlarged() {
    let spec = Spec::dynamic(MIB, 4096);
    let size = spec.build().store.len().next_multiple_of(4096) + 8192;
    let mut device = open(device_image(&spec, size)).unwrap();
    let in_flight = begin(&mut device, 100);
    let mut block = 0;
    while device.write(block * BLOCK, &sector(block)).is_ok() {
        block += 1;
    }
    device.store.put(size, &[0x5a; 32768]);
    device.write(block * BLOCK, &sector(block)).unwrap();
    device.finish(in_flight).unwrap();
    assert_sound(&device.store);
    assert_eq!(device.read(100 * BLOCK, 512).unwrap(), sector(100));
}

/// Zeros, sync, bitmap, sync, data, sync, entry: nothing less will do on old bytes.
#[test]
fn order_on_a_block_device() {
    let spec = Spec::dynamic(MIB, 4096);
    let mut device = open(device_image(&spec, MIB)).unwrap();
    allocate(&mut device, 0, BLOCK);
    device.store.record();
    let data = allocate(&mut device, 1, BLOCK);
    let order: Vec<String> = device.store.take_trace().iter().map(describe).collect();
    let expected = [
        format!("fill {data} 4096 0"),
        "sync".into(),
        format!("fill {} 512 255", data - 512),
        "sync".into(),
        format!("write {data} 512"),
        "sync".into(),
        "write 1540 4".into(),
    ];
    assert_eq!(order, expected);
}

/// On a device the old end of the image says nothing: what is known of it does.
#[test]
fn structures_behind_the_blocks_are_not_overwritten() {
    let mut spec = Spec::dynamic(MIB, 4096).by(b"tap\0", 0x0001_0003);
    spec.batmap = Some((1, false));
    let spec = spec.with_blocks(&[(1, Bits::Ones)]);
    for (locator, batmap_sectors) in [(Some(600 * 512), 1u32), (None, 700)] {
        let mut image = spec.build();
        let batmap = image.table_end();
        image.store.put(batmap + 16, &batmap_sectors.to_be_bytes());
        if let Some(at) = locator {
            image.set_locator(0, 0x5732_7275, 3, 40, at);
        }
        let end = locator.map_or(batmap + 512 + 700 * 512, |at| at + 3 * 512);
        let mut device = open(image.store.into_device(MIB, 0x5a)).unwrap();
        let data = allocate(&mut device, 0, BLOCK);
        assert!((end + 512..end + 8192).contains(&data), "{data} {end}");
        assert_sound(&device.store);
    }
}
