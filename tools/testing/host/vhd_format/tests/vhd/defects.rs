// SPDX-License-Identifier: GPL-2.0

//! The defects of the parsers of 2011 that format code can have, one test each. Those that only a
//! driver can have (errors of all but the last segment lost, loop on a loop device crashed,
//! offset/sizelimit ignored) are tested with the driver.

use loop_parser::contract::{Extent, Probe, Verdict};
use testkit::store::{Op, Store, SECTOR};
use vhd_format::format;

use crate::{
    attach, class,
    image::{pattern, Bits, Spec},
    open, open_over,
    reader::{end_footer, front_footer},
    Class,
};

/// "A write into a new cluster of a child zero-filled the rest instead of taking the parent's
/// bytes."
#[test]
fn rest_of_a_new_block_is_the_parents() {
    let parent = open(Spec::fixed(1 << 20).build().store).unwrap();
    let mut shadow = parent.read(0, 1 << 20).unwrap();
    let child = Spec::differencing(1 << 20, 4096).build().store;
    let mut device = open_over(child, parent).unwrap();
    device.write(4096 + 512, &pattern(9, 9)).unwrap();
    shadow[4096 + 512..][..512].copy_from_slice(&pattern(9, 9));
    assert!(device.read(0, 1 << 20).unwrap() == shadow);
}

/// "32-bit `<< 9` past 4 GiB": reads and writes on both sides of it.
#[test]
fn sector_numbers_past_four_gib() {
    const FOUR_GIB: u64 = 1 << 32;
    let spec = Spec::dynamic(1 << 20, 4096);
    let mut image = spec.build();
    // The old end of the file is moved to just under 4 GiB.
    let footer = spec.footer();
    image.store.put(image.end_at, &[0; 512]);
    image.store.put(FOUR_GIB - 8192, &footer);
    let mut device = open(image.store).unwrap();
    for block in 0..40u64 {
        device.write(block * 4096, &pattern(block, 5)).unwrap();
    }
    let mut offsets = Vec::new();
    for block in 0..40u64 {
        assert_eq!(device.read(block * 4096, 512).unwrap(), pattern(block, 5));
        match device.resolve_read(block * 4096, 512).unwrap() {
            Extent::Data { offset, .. } => offsets.push(offset),
            _ => panic!("block {block} was lost"),
        }
    }
    assert!(offsets[0] < FOUR_GIB + 8192 && offsets[39] > FOUR_GIB);
    // Nothing was written to where a 32-bit shift would have it.
    assert_eq!(device.store.get(0, 512), footer);
    assert!(device.store.sectors().range(21..1000).next().is_none());
}

/// "Pointers written before the block was zeroed."
#[test]
fn block_is_zero_and_durable_before_its_pointer() {
    let spec = Spec::dynamic(1 << 20, 4096);
    let store = spec.build().store.into_device(1 << 20, 0x5a);
    let mut device = open(store).unwrap();
    device.store.record();
    device.write(4096 + 512, &pattern(9, 9)).unwrap();
    let trace = device.store.take_trace();

    let pointer = 1536 + 4;
    let last = trace.len() - 1;
    assert!(matches!(&trace[last], Op::Write { offset, .. } if *offset == pointer));
    assert!(matches!(trace[last - 1], Op::Sync));
    let data = device.store.get_be32(pointer);
    let data = u64::from(data) * SECTOR + 512;
    let zeroed = trace
        .iter()
        .position(|op| matches!(op, Op::Fill { offset, len: 4096, byte: 0 } if *offset == data))
        .unwrap();
    let written = trace
        .iter()
        .position(|op| matches!(op, Op::Write { offset, .. } if *offset == data + 512))
        .unwrap();
    assert!(trace[zeroed..written]
        .iter()
        .any(|op| matches!(op, Op::Sync)));
    assert_eq!(device.read(4096, 512).unwrap(), [0; 512]);
}

/// "Tables re-read per 512 bytes": one entry and 32 words for a megabyte.
#[test]
fn tables_are_read_once_per_run() {
    let spec = Spec::dynamic(2 << 20, 2 << 20).with_blocks(&[(0, Bits::Ones)]);
    let device = open(spec.build().store).unwrap();
    let before = device.store.loads();
    device.resolve_read(0, 1 << 20).unwrap();
    let for_read = device.store.loads() - before;
    device.resolve_write(0, 1 << 20).unwrap();
    let for_write = device.store.loads() - before - for_read;
    assert_eq!((for_read, for_write), (33, 33));

    // A fixed image has no tables.
    let device = open(Spec::fixed(1 << 20).build().store).unwrap();
    let before = device.store.loads();
    device.resolve_read(0, 1 << 20).unwrap();
    assert_eq!(device.store.loads(), before);
}

/// "Footer required at attach but only rewritten at sync": the file ends in a footer after every
/// single step of an allocation, and at every sync.
#[test]
fn file_always_ends_in_a_footer() {
    let spec = Spec::dynamic(1 << 20, 4096);
    let mut device = open(spec.build().store).unwrap();
    for block in 0..256u64 {
        device.write(block * 4096, &pattern(block, 5)).unwrap();
        // Not even a sync has happened since.
        assert!(end_footer(&device.store).is_some(), "block {block}");
        assert_eq!(front_footer(&device.store), end_footer(&device.store));
        assert!(open(device.store.clone()).is_ok());
    }
}

/// "Files under 512 bytes read at a negative offset."
#[test]
fn files_smaller_than_a_footer() {
    let footer = Spec::fixed(0).footer();
    for size in 0..=511 {
        for bytes in [&[0; 512], &footer] {
            let store = Store::new(&bytes[..size]);
            let probe = Probe {
                head: &bytes[..size],
                tail: &bytes[..size],
                size: size as u64,
            };
            // Only the cookie in front makes it a VHD.
            let is_mine = size >= 8 && bytes.starts_with(b"conectix");
            assert_eq!(format::probe(&probe) == Verdict::Mine, is_mine, "{size}");
            assert_eq!(class(attach(&store).unwrap_err()), Class::Malformed);
        }
    }
}

/// "Unvalidated shift counts": a block size is not one.
#[test]
fn block_sizes_that_are_no_powers_of_two() {
    for block_size in [
        0u32,
        1,
        2,
        3,
        256,
        511,
        513,
        1000,
        4097,
        0x20_0001,
        u32::MAX,
    ] {
        let mut image = Spec::dynamic(4096, 4096).build();
        image.edit_header(32, &block_size.to_be_bytes());
        let error = attach(&image.store).unwrap_err();
        assert_eq!(class(error), Class::Malformed, "{block_size}");
        assert_eq!(error.fault().unwrap().at, 512 + 32);
    }
}

/// "Errors lost": each of the stores that an allocation needs is reported when it fails.
#[test]
fn every_failed_store_is_reported() {
    for n in 0.. {
        let spec = Spec::dynamic(3 * 4096, 4096);
        let mut device = open(spec.build().store).unwrap();
        device.store.fail_after(n, testkit::store::Failure::Nothing);
        let results: Vec<_> = (0..3u64)
            .map(|block| device.write(block * 4096, &pattern(block, 5)))
            .collect();
        if device.store.is_failure_due() {
            assert!(n > 8);
            break;
        }
        let failed = results.iter().filter(|it| it.is_err()).count();
        // Store 0 has a second chance: with less than the whole reserve.
        assert_eq!(failed, usize::from(n != 0), "store {n}");
    }
}
