// SPDX-License-Identifier: GPL-2.0

//! Disks whose size is changed, in the file, while they are attached.

use loop_parser::contract::{Map, Result};
use testkit::store::Store;
use vhd_format::format;

use crate::{
    alloc::{assert_sound, sector, BLOCK, MIB},
    attach, class,
    image::{Bits, Image, Spec},
    open,
    reader::Reader,
    Class,
};

/// A dynamic image of 16 blocks with a BAT for 64.
fn roomy() -> Image {
    let mut spec = Spec::dynamic(15 * BLOCK + 512, 4096).with_blocks(&[(15, Bits::Ones)]);
    spec.entries = Some(64);
    spec.build()
}

fn reread(image: &Image, change: impl Fn(&mut Image)) -> Result<u64> {
    let attached = attach(&image.store).unwrap();
    let mut changed = image.clone();
    change(&mut changed);
    attached.map.reread_size(&changed.store)
}

fn set_size(image: &mut Image, size: u64) {
    image.edit_footers(48, &size.to_be_bytes());
}

#[test]
fn size_that_the_table_covers() {
    let image = roomy();
    for size in [
        512,
        15 * BLOCK,
        15 * BLOCK + 512,
        16 * BLOCK,
        64 * BLOCK - 512,
        64 * BLOCK,
    ] {
        assert_eq!(reread(&image, |it| set_size(it, size)), Ok(size));
    }
    // Whole sectors, as at an attach.
    assert_eq!(reread(&image, |it| set_size(it, 1025)), Ok(1024));
    for size in [0, 511, 64 * BLOCK + 512, u64::MAX] {
        let error = reread(&image, |it| set_size(it, size)).unwrap_err();
        assert_eq!(class(error), Class::Malformed, "{size}");
    }
}

/// A larger BAT is not looked at: the one of the attach is what is used.
#[test]
fn header_is_not_read_again() {
    let error = reread(&roomy(), |it| {
        it.edit_header(28, &100u32.to_be_bytes());
        set_size(it, 65 * BLOCK);
    })
    .unwrap_err();
    assert_eq!(class(error), Class::Malformed);
    let size = reread(&roomy(), |it| it.store.put(512, &[0; 1024]));
    assert_eq!(size, Ok(15 * BLOCK + 512));
}

#[test]
fn more_than_two_tib() {
    let mut spec = Spec::dynamic(MIB, 1 << 21);
    spec.entries = Some((1 << 20) + 1);
    let image = spec.build();
    let two_tib = 1u64 << 41;
    assert_eq!(reread(&image, |it| set_size(it, two_tib)), Ok(two_tib));
    let error = reread(&image, |it| set_size(it, two_tib + 512)).unwrap_err();
    assert_eq!(class(error), Class::Unsupported);
}

/// The field that was believed at the attach is believed again.
#[test]
fn rule_stays() {
    let geometry = |it: &mut Image| it.edit_footers(56, &[0, 2, 4, 17]);
    let by_chs = 2 * 4 * 17 * 512;
    let mut spec = Spec::dynamic(100 * 4 * 17 * 512, 1 << 21);
    spec.entries = Some(100);
    for (creator, options, expected) in [
        (b"vpc ", "", by_chs),
        (b"win ", "", spec.size),
        (b"vpc ", "size=current", spec.size),
        (b"win ", "size=chs", by_chs),
    ] {
        let mut image = spec.clone().by(creator, 0).build();
        let attached = format::attach(&image.store, options, true).unwrap();
        geometry(&mut image);
        assert_eq!(attached.map.reread_size(&image.store), Ok(expected));
    }
}

/// The footers are found and checked as at an attach.
#[test]
fn footers_are_checked_again() {
    let image = roomy();
    let old = Ok(15 * BLOCK + 512);
    assert_eq!(reread(&image, |it| it.store.put(0, &[0; 512])), old);
    let end = image.end_at;
    assert_eq!(reread(&image, |it| it.store.put(end, &[0; 512])), old);
    let both = |it: &mut Image| {
        it.store.put(0, &[0; 512]);
        it.store.put(end, &[0; 512]);
    };
    assert_eq!(class(reread(&image, both).unwrap_err()), Class::Malformed);
    let other = |it: &mut Image| it.edit_footers(60, &2u32.to_be_bytes());
    assert!(reread(&image, other).is_err());
    let tiny = |it: &mut Image| it.store.put_size(100);
    assert!(reread(&image, tiny).is_err());
}

#[test]
fn fixed_disk() {
    let image = Spec::fixed(MIB).build();
    let attached = attach(&image.store).unwrap();
    let resized = |size: u64, footer_at: u64| {
        let mut store = image.store.clone();
        store.put_size(footer_at);
        store.put(footer_at, &Spec::fixed(size).footer());
        attached.map.reread_size(&store)
    };
    assert_eq!(resized(2 * MIB, 2 * MIB), Ok(2 * MIB));
    assert_eq!(resized(2 * MIB, 3 * MIB), Ok(2 * MIB));
    assert_eq!(resized(MIB / 2, MIB), Ok(MIB / 2));
    assert!(resized(2 * MIB + 512, 2 * MIB).is_err());
    // The file is longer, but its footer is in the middle now.
    let mut store = image.store.clone();
    store.put(2 * MIB, &[0; 512]);
    assert!(attached.map.reread_size(&store).is_err());
    // It is a dynamic one now.
    let other = Spec::dynamic(MIB, 4096).build().store;
    assert_eq!(
        class(attached.map.reread_size(&other).unwrap_err()),
        Class::Malformed
    );
}

/// A guest uses what was added: the rest of the last block, and new ones.
#[test]
fn grown_disk_is_written_to() {
    let mut image = roomy();
    let mut device = open(image.store.clone()).unwrap();
    device.write(0, &sector(0)).unwrap();
    let mut shadow = device.read(0, 15 * BLOCK + 512).unwrap();
    // A tool changes the footers, wherever the end is now.
    image.store = device.store.clone();
    image.end_at = image.store.len() - 512;
    set_size(&mut image, 64 * BLOCK);
    device.store = image.store;
    device.reread_size().unwrap();
    assert_eq!(device.disk.size, 64 * BLOCK);

    // What lay behind the end in the last block is visible now, as for any other program.
    shadow.extend(Reader::open(&device.store).unwrap().disk()[shadow.len()..].iter());
    for block in [15, 16, 40, 63] {
        device.write(block * BLOCK + 1024, &sector(block)).unwrap();
        let at = (block * BLOCK + 1024) as usize;
        shadow[at..at + 512].copy_from_slice(&sector(block));
    }
    assert!(device.read(0, 64 * BLOCK).unwrap() == shadow);
    let store = device.close().unwrap();
    assert_sound(&store);
    assert!(Reader::open(&store).unwrap().disk() == shadow);
}

/// Once the disk is seen to have grown, blocks come in batches again.
#[test]
fn grown_disk_gets_reserves() {
    let syncs = |store: Store, size: u64| {
        let mut device = open(store).unwrap();
        for block in 0..size {
            device.write(block * BLOCK, &sector(block)).unwrap();
        }
        device.store.syncs()
    };
    let mut spec = Spec::dynamic(64 * BLOCK, 4096);
    let expected = syncs(spec.build().store, 64);
    spec.size = BLOCK;
    spec.entries = Some(64);
    let mut image = spec.build();
    let mut device = open(image.store.clone()).unwrap();
    set_size(&mut image, 64 * BLOCK);
    device.store = image.store;
    device.reread_size().unwrap();
    for block in 0..64 {
        device.write(block * BLOCK, &sector(block)).unwrap();
    }
    assert!(device.store.syncs() <= expected + 2);
    assert_sound(&device.store);
}
