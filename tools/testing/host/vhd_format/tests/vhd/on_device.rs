// SPDX-License-Identifier: GPL-2.0

//! Making room on a block device, which does not grow and is full of old bytes.

use loop_parser::contract::Discard;
use testkit::{
    device::Device,
    store::{Store, ENOSPC},
};

use crate::{
    alloc::{allocate, assert_sound, begin, describe, sector, BLOCK, MIB},
    image::{Bits, End, Spec},
    open, open_over,
    reader::{end_footer, Reader},
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

/// Where the footer can be on a volume.
#[derive(Clone, Copy, Debug)]
enum Footer {
    /// In the last sector, as XenServer has it.
    Last,
    /// Behind the last block, after a plain dd of a file.
    Middle,
    /// Nowhere but at 0.
    Front,
    /// In the last sector there is that of an image which was on the volume before.
    Stale,
}

fn volume(spec: &Spec, footer: Footer, size: u64) -> Store {
    let mut spec = spec.clone();
    spec.end = match footer {
        Footer::Middle => End::Footer,
        _ => End::Missing,
    };
    let mut store = device_image(&spec, size);
    match footer {
        Footer::Last => store.put(size - 512, &spec.footer()),
        Footer::Stale => store.put(size - 512, &Spec::fixed(size - 512).footer()),
        Footer::Middle | Footer::Front => {}
    }
    store
}

/// Blocks in a volume of 1 MiB, each with 4 KiB of data at a multiple of that.
fn open_volume(spec: &Spec, store: Store) -> Device {
    if spec.disk_type == 3 {
        return open(store).unwrap();
    }
    let parent = open(Spec::fixed(2 * MIB).build().store).unwrap();
    open_over(store, parent).unwrap()
}

/// Wherever the footer was: nothing changes before the first write, the disk grows into free space up
/// to the footer's home in the last sector, and no further.
#[test]
fn volumes_are_filled() {
    for base in [Spec::dynamic, Spec::differencing] {
        let mut spec = base(2 * MIB, 4096).with_blocks(&[(1, Bits::Ones), (7, Bits::Mixed(3))]);
        // Room for the BAT to grow.
        spec.entries = Some(1000);
        for footer in [Footer::Last, Footer::Middle, Footer::Front, Footer::Stale] {
            let store = volume(&spec, footer, MIB);
            let before = store.to_vec();
            let mut device = open_volume(&spec, store);
            let mut shadow = device.read(0, 2 * MIB).unwrap();
            device.trim().unwrap();
            assert!(device.store.to_vec() == before, "{footer:?}");
            fill_volume(&mut device, &mut shadow);
            let store = device.close().unwrap();
            assert_eq!(store.len(), MIB);
            assert_sound(&store);
            let mut device = open_volume(&spec, store);
            assert!(device.read(0, 2 * MIB).unwrap() == shadow);

            // A device that is full stays so.
            device
                .discard(100 * BLOCK, 10 * BLOCK, Discard::Forget)
                .unwrap();
            let end = 100 * BLOCK as usize;
            let range = end..end + 10 * BLOCK as usize;
            if spec.disk_type == 3 {
                shadow[range].fill(0);
            } else {
                shadow[range].copy_from_slice(&device.read(100 * BLOCK, 10 * BLOCK).unwrap());
            }
            assert_eq!(device.write(511 * BLOCK, &sector(1)), Err(ENOSPC));
            assert!(device.read(0, 2 * MIB).unwrap() == shadow);
            assert_sound(&device.close().unwrap());
        }
    }
}

/// Writes to blocks until there is no room.
fn fill_volume(device: &mut Device, shadow: &mut [u8]) {
    let mut written = 0;
    for block in 8..512 {
        let pos = block * BLOCK + 1024;
        match device.write(pos, &sector(block)) {
            Ok(()) => {
                shadow[pos as usize..][..512].copy_from_slice(&sector(block));
                written += 1;
            }
            Err(error) => assert_eq!(error, ENOSPC),
        }
        assert!(end_footer(&device.store).is_some());
    }
    // Of 1 MiB, 8 KiB for each.
    assert!((124..=127).contains(&written), "{written}");
    assert!(device.read(0, 2 * MIB).unwrap() == shadow);
}

/// A fixed disk fills its volume up to the footer in the last sector.
#[test]
fn fixed_disk_on_a_volume() {
    let spec = Spec::fixed(MIB - 512);
    let mut device = open(device_image(&spec, MIB)).unwrap();
    device.write(0, &vec![7; MIB as usize - 512]).unwrap();
    for how in [Discard::Forget, Discard::Zero, Discard::ZeroInPlace] {
        device.discard(MIB / 2, MIB / 2 - 512, how).unwrap();
    }
    let store = device.close().unwrap();
    assert_eq!(store.get(MIB - 512, 512), spec.footer());
    assert_eq!(store.get(MIB / 2 - 512, 512), [7; 512]);
    assert!(store
        .get(MIB / 2, MIB as usize / 2 - 512)
        .iter()
        .all(|it| *it == 0));
}
