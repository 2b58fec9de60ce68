// SPDX-License-Identifier: GPL-2.0

//! Images that can be read, and written in place, but that must not grow: something in them lies
//! where growth would turn it into another block.

use crate::{
    alloc::{allocate, sector, BLOCK},
    class,
    image::{Bits, Image, Spec},
    open, Class,
};

#[test]
fn locators_past_the_end_stop_allocation_only() {
    for (space, length, offset, is_fine) in [
        (1u32, 20, 2048, true),
        // Space is in sectors below 512, else in bytes; the length counts too.
        (511, 20, 2048, false),
        (512, 20, 2048, true),
        (512, 1_000_000, 2048, false),
        (1, 20, u64::MAX - 100, false),
        (0, 0, u64::MAX, true),
    ] {
        let mut image = Spec::dynamic(16 * BLOCK, 4096)
            .with_blocks(&[(0, Bits::Ones)])
            .build();
        image.set_locator(3, 0x5732_7275, space, length, offset);
        check_refusal(image, is_fine);
    }
    // An unused locator says nothing.
    let mut image = Spec::dynamic(16 * BLOCK, 4096)
        .with_blocks(&[(0, Bits::Ones)])
        .build();
    image.set_locator(3, 0, 1, 20, 1 << 40);
    check_refusal(image, true);
}

/// Reading and writing in place work; allocation is refused, and changes nothing.
fn check_refusal(image: Image, is_fine: bool) {
    let before = image.store.to_vec();
    let mut device = open(image.store).unwrap();
    assert!(device.read(0, 16 * BLOCK).is_ok());
    let result = device.write(5 * BLOCK, &sector(1));
    if is_fine {
        assert_eq!(result, Ok(()));
        return;
    }
    assert_eq!(class(result.unwrap_err()), Class::Malformed);
    assert!(device.store.to_vec() == before, "the image was changed");
    device.write(0, &sector(1)).unwrap();
}

#[test]
fn batmap_past_the_end_stops_allocation_only() {
    for (sectors, is_fine) in [(5u32, true), (6, true), (200, false), (u32::MAX, false)] {
        let mut spec = Spec::dynamic(16 * BLOCK, 4096).by(b"tap\0", 0x0001_0003);
        spec.batmap = Some((5, false));
        let mut image = spec.with_blocks(&[(0, Bits::Ones)]).build();
        let at = image.table_end() + 16;
        image.store.put(at, &sectors.to_be_bytes());
        check_refusal(image, is_fine);
    }
}

/// Growing the file would make a bad entry point to somebody's block.
#[test]
fn entries_past_the_end_stop_allocation_only() {
    let build = || {
        Spec::dynamic(16 * BLOCK, 4096)
            .with_blocks(&[(0, Bits::Ones)])
            .build()
    };
    let end = (build().store.len() / 512) as u32;
    for (entry, is_fine) in [
        (end - 9, true),
        (end - 8, false),
        (end + 100, false),
        (2, false),
    ] {
        let mut image = build();
        image.set_entry(15, entry);
        // The whole disk cannot be read with a bad entry: look at block 0 only.
        let before = image.store.to_vec();
        let mut device = open(image.store).unwrap();
        let result = device.write(5 * BLOCK, &sector(1));
        assert_eq!(result.is_ok(), is_fine, "{entry}");
        if !is_fine {
            assert_eq!(class(result.unwrap_err()), Class::Malformed);
            assert!(device.store.to_vec() == before, "the image was changed");
            device.write(0, &sector(1)).unwrap();
        }
    }
}

/// The same in entries that the disk does not need.
#[test]
fn surplus_entries_are_looked_at() {
    let mut spec = Spec::dynamic(16 * BLOCK, 4096);
    spec.entries = Some(300);
    let mut image = spec.build();
    image.set_entry(299, 1 << 20);
    let mut device = open(image.store.clone()).unwrap();
    let error = device.write(0, &sector(1)).unwrap_err();
    assert_eq!(class(error), Class::Malformed);
    assert_eq!(error.fault().unwrap().at, 1536 + 4 * 299);

    // One that is fine is not allocated over.
    let at = image.store.len() + 5 * 512;
    image.set_entry(299, (at / 512) as u32);
    image.store.put(at, &[0xff; 512 + 4096]);
    let mut device = open(image.store).unwrap();
    assert!(allocate(&mut device, 0, BLOCK) >= at + 4096 + 512);
    assert_eq!(device.store.get(at, 4608), [0xff; 4608]);
}
