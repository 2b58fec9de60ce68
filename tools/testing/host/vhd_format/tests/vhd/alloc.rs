// SPDX-License-Identifier: GPL-2.0

//! Making room in a file: where new blocks go, and what becomes of footers and reserves.

use loop_parser::contract::{Placement, Result};
use testkit::{
    device::{Begun, Device},
    store::{Failure, Op, Store, EIO, ENOSPC},
};

use crate::{
    class,
    image::{pattern, Bits, End, Spec},
    open,
    reader::{end_footer, faults, front_footer, Reader},
    Class,
};

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = 4096;

pub fn sector(n: u64) -> Vec<u8> {
    pattern(n, 99).to_vec()
}

/// Allocates a block by writing its first sector; returns where its data lies.
pub fn allocate(device: &mut Device, block: u64, block_size: u64) -> u64 {
    let pos = block * block_size;
    device.write(pos, &sector(block)).unwrap();
    match device.resolve_write(pos, 512) {
        Ok(Placement::InPlace { offset, .. }) => offset,
        other => panic!("{other:?}"),
    }
}

/// What holds for every image after it was written to.
#[track_caller]
pub fn assert_sound(store: &Store) {
    assert_eq!(faults(store), [""; 0]);
    assert!(front_footer(store).is_some());
    assert_eq!(front_footer(store), end_footer(store));
}

#[test]
fn new_data_is_aligned() {
    for block_size in [512u64, 1024, 4096, 65536, 2 * MIB, 4 * MIB] {
        for gap in 0..8 {
            let mut spec = Spec::dynamic(block_size * 8, block_size as u32);
            spec.gap = gap;
            let spec = spec.with_blocks(&[(3, Bits::Ones)]);
            let mut device = open(spec.build().store).unwrap();
            let mut last = 0;
            for block in [7, 0, 1] {
                let data = allocate(&mut device, block, block_size);
                assert_eq!(data % 4096, 0);
                assert!(data > last);
                last = data;
            }
            let store = device.close().unwrap();
            assert_sound(&store);
            assert_eq!(store.len(), last + block_size + 512);
        }
    }
}

/// In tapdisk and Windows 10 images blocks follow each other as those programs place them.
#[test]
fn first_block_follows_the_custom_of_the_image() {
    let mut spec = Spec::dynamic(16 * BLOCK, 4096).with_blocks(&[(3, Bits::Ones)]);
    spec.aligned = true;
    for gap in [0, 7] {
        spec.gap = gap;
        let image = spec.build();
        let old_end = image.starts[0] + 512 + BLOCK;
        let mut device = open(image.store).unwrap();
        assert_eq!(allocate(&mut device, 0, BLOCK), old_end + 4096);
        // Its bitmap is where the footer was in the image with 7 sectors between.
        assert_sound(&device.close().unwrap());
    }
}

/// Nothing lies lower than the end of what was there before, old footer included.
#[test]
fn free_space_begins_after_everything() {
    let plain = || Spec::dynamic(16 * BLOCK, 4096).by(b"tap\0", 0x0001_0003);
    let far = 512 * 1000;
    let mut specs = Vec::new();
    specs.push((plain().with_blocks(&[(3, Bits::Ones)]), None));
    specs.push((plain(), Some(far)));
    for (mut spec, locator) in specs {
        for batmap in [None, Some((5, false))] {
            for end in [End::Footer, End::Missing, End::Short, End::Filled(0xc7)] {
                spec.batmap = batmap;
                spec.end = end;
                let mut image = spec.build();
                if let Some(at) = locator {
                    image.store.put(at, &[0x33; 512]);
                    image.set_locator(7, 0x5732_7275, 1, 20, at);
                }
                let before = image.store.clone();
                let mut device = open(image.store).unwrap();
                allocate(&mut device, 9, BLOCK);
                let store = device.close().unwrap();
                assert_sound(&store);
                check_untouched(&before, &store, &spec);
            }
        }
    }
}

/// Everything but BAT entry 9, the copy at 0 and what was the footer is as it was.
fn check_untouched(before: &Store, after: &Store, spec: &Spec) {
    let footer_at = before.len() - before.len().min(512);
    for at in (0..footer_at / 512 * 512).step_by(4) {
        if at >= 512 && at != spec.table_at + 36 {
            assert_eq!(before.get(at, 4), after.get(at, 4), "byte {at}");
        }
    }
}

/// A block lies between the headers, the BAT behind all blocks: free space begins after the BAT.
#[test]
fn high_table() {
    let mut spec = Spec::dynamic(16 * BLOCK, 4096);
    spec.table_at = 512 * 200;
    let mut image = spec.build();
    image.set_entry(0, 10);
    let mut device = open(image.store).unwrap();
    let data = allocate(&mut device, 5, BLOCK);
    assert!(data > 512 * 201);
    assert_sound(&device.close().unwrap());
}

#[test]
fn reserve_is_about_32_mib() {
    let mut device = open(Spec::dynamic(1 << 40, 1 << 21).build().store).unwrap();
    let before = device.image_len();
    let first = allocate(&mut device, 7, 1 << 21);
    let reserved = device.image_len() - before;
    assert!((28 * MIB..36 * MIB).contains(&reserved), "{reserved}");

    // All of it is handed out without another sync, and in order.
    let syncs = device.store.syncs();
    for i in 1..15 {
        let data = allocate(&mut device, 100 - i, 1 << 21);
        assert_eq!(data, first + i * ((1 << 21) + 4096));
    }
    assert_eq!(device.store.syncs(), syncs);
    assert_eq!(device.image_len(), before + reserved);
    assert_sound(&device.store);
}

#[test]
fn reserve_is_no_more_than_the_disk_needs() {
    let mut spec = Spec::dynamic(3 << 21, 1 << 21);
    spec.entries = Some(1000);
    let mut device = open(spec.build().store).unwrap();
    for block in 0..3 {
        allocate(&mut device, block, 1 << 21);
        assert!(device.image_len() < (3 << 21) + 32768);
        assert_sound(&device.store);
    }
    let len = device.image_len();
    assert_eq!(device.close().unwrap().len(), len);
}

#[test]
fn small_blocks_come_64_at_a_time() {
    let mut device = open(Spec::dynamic(MIB, 512).build().store).unwrap();
    let before = device.image_len();
    allocate(&mut device, 0, 512);
    let reserved = device.image_len() - before;
    let expected = 63 * 4096..=65 * 4096;
    assert!(expected.contains(&reserved), "{reserved}");
    for block in 1..2048 {
        allocate(&mut device, block, 512);
    }
    assert_sound(&device.store);
    assert!(device.store.syncs() < 2 * 2048 / 64 + 4);
}

/// A block larger than the reserve is still one block.
#[test]
fn large_blocks_come_one_at_a_time() {
    let mut device = open(Spec::dynamic(1 << 30, 64 << 20).build().store).unwrap();
    let first = allocate(&mut device, 3, 64 << 20);
    assert_eq!(device.image_len(), first + (64 << 20) + 512);
    assert_sound(&device.store);
}

#[test]
fn nothing_changes_before_the_first_allocation() {
    let spec = Spec::dynamic(16 * BLOCK, 4096).with_blocks(&[(2, Bits::Ones)]);
    for end in [End::Footer, End::Damaged, End::Missing, End::Short] {
        let mut spec = spec.clone();
        spec.end = end;
        let image = spec.build();
        let before = image.store.to_vec();
        let mut device = open(image.store).unwrap();
        device.read(0, 16 * BLOCK).unwrap();
        device.flush().unwrap();
        device.trim().unwrap();
        assert!(device.store.to_vec() == before);
        // Nor does a write in place change anything else.
        device.write(2 * BLOCK, &sector(1)).unwrap();
        assert_eq!(device.store.len() as usize, before.len());
        assert_eq!(device.store.stores(), 1);
    }
}

#[test]
fn unused_reserve_is_given_back() {
    let image = Spec::dynamic(MIB, 4096).build();
    let mut device = open(image.store).unwrap();
    let data = allocate(&mut device, 0, BLOCK);
    assert!(device.image_len() > data + BLOCK + 512);
    device.trim().unwrap();
    assert_eq!(device.image_len(), data + BLOCK + 512);
    assert_sound(&device.store);

    // The device can go on.
    let next = allocate(&mut device, 1, BLOCK);
    assert_eq!(next, data + 2 * BLOCK);
    device.trim().unwrap();
    device.trim().unwrap();
    assert_eq!(device.image_len(), next + BLOCK + 512);
    assert_sound(&device.store);
    assert_eq!(device.read(0, 512).unwrap(), sector(0));
    assert_eq!(device.read(BLOCK, 512).unwrap(), sector(1));
}

/// A reservation that never came to anything leaves no trace but a new footer.
#[test]
fn reserve_of_which_nothing_was_used() {
    for end in [End::Footer, End::Short, End::Missing, End::Filled(0xc7)] {
        let mut spec = Spec::dynamic(MIB, 4096).with_blocks(&[(1, Bits::Ones)]);
        spec.end = end;
        let mut device = open(spec.build().store).unwrap();
        let block_end = device.image_len() / 512 * 512 - u64::from(end != End::Missing) * 512;
        let footer_at = if end == End::Short {
            block_end + 512
        } else {
            block_end
        };
        let Begun::Pending(pending, _) = device.begin(0, &sector(0)).unwrap() else {
            panic!("not allocated");
        };
        device.give_up(&pending);
        device.trim().unwrap();
        assert_eq!(device.image_len(), footer_at + 512, "{end:?}");
        assert_sound(&device.store);
    }
}

pub fn begin(device: &mut Device, block: u64) -> testkit::device::Pending {
    match device.begin(block * BLOCK, &sector(block)).unwrap() {
        Begun::Pending(pending, 512) => pending,
        other => panic!("{other:?}"),
    }
}

/// The exception of the crash rules: never-written space of a file.
#[test]
fn fresh_space_needs_no_sync() {
    let mut device = open(Spec::dynamic(MIB, 4096).build().store).unwrap();
    for block in 0..100 {
        let pending = begin(&mut device, block);
        assert!(!pending.space().sync_before_publish);
        device.finish(pending).unwrap();
    }
}

/// What was handed out and came back may hold anything.
#[test]
fn released_space_is_zeroed_and_needs_a_sync() {
    let mut device = open(Spec::dynamic(2 * BLOCK, 4096).build().store).unwrap();
    let pending = begin(&mut device, 0);
    let space = *pending.space();
    device.store.put(space.offset, &[0x77; 4096]);
    device.give_up(&pending);

    // Only two blocks were reserved: the other one is taken first.
    let other = begin(&mut device, 0);
    assert_ne!(other.space().offset, space.offset);
    assert!(!other.space().sync_before_publish);
    let again = begin(&mut device, 1);
    assert_eq!(again.space().offset, space.offset);
    assert!(again.space().sync_before_publish);
    assert_eq!(device.store.get(space.offset, 4096), [0; 4096]);
    device.finish(other).unwrap();
    device.finish(again).unwrap();
    assert_sound(&device.store);
    assert_eq!(
        Reader::open(&device.store).unwrap().sector(8)[..],
        sector(1)
    );
}

/// A full file system and a queue of 128 writes that all fail, again and again: the file stops
/// growing.
#[test]
fn failed_writes_do_not_leak_without_bound() {
    let mut device = open(Spec::dynamic(MIB, 4096).build().store).unwrap();
    let mut sizes = Vec::new();
    for _ in 0..50 {
        let pending: Vec<_> = (0..128).map(|block| begin(&mut device, block)).collect();
        for it in &pending {
            device.give_up(it);
        }
        sizes.push(device.image_len());
    }
    assert_eq!(sizes[1], sizes[49], "{sizes:?}");
    device.trim().unwrap();
    assert!(device.image_len() < 8192, "{}", device.image_len());
}

#[test]
fn releasing_twice_or_after_publishing_does_nothing() {
    let mut device = open(Spec::dynamic(MIB, 4096).build().store).unwrap();
    let pending = begin(&mut device, 0);
    let first = *pending.space();
    device.give_up(&pending);
    device.give_up(&pending);
    let second = begin(&mut device, 0);
    device.finish(second).unwrap();

    let third = begin(&mut device, 1);
    let space = *third.space();
    device.finish(third).unwrap();
    let mut offsets = vec![first.offset, space.offset];
    for block in 2..60 {
        let pending = begin(&mut device, block);
        offsets.push(pending.space().offset);
        device.finish(pending).unwrap();
    }
    assert_sound(&device.store);
}

/// The BAT may lie in a hole of the file: its store can fail too.
#[test]
fn failed_publish() {
    for failure in [
        Failure::Nothing,
        Failure::Half,
        Failure::GrowOnly,
        Failure::Torn,
    ] {
        let mut device = open(Spec::dynamic(MIB, 4096).build().store).unwrap();
        let pending = begin(&mut device, 3);
        let lost = pending.space().offset;
        // The data, then the entry.
        device.store.fail_after(1, failure);
        assert_eq!(device.finish(pending), Err(ENOSPC));
        assert_eq!(device.read(3 * BLOCK, 4096), Ok(vec![0; 4096]));
        assert_sound(&device.store);

        // The block comes back, unless its entry may have reached the disk.
        let mut seen = false;
        for block in 3..67 {
            let pending = begin(&mut device, block);
            seen |= pending.space().offset == lost;
            device.finish(pending).unwrap();
        }
        assert_eq!(seen, failure != Failure::Torn, "{failure:?}");
        assert_sound(&device.store);
    }
}

/// Somebody else allocates the block between reserve and publish.
#[test]
fn entry_that_changes_under_us() {
    let mut device = open(Spec::dynamic(MIB, 4096).build().store).unwrap();
    let pending = begin(&mut device, 0);
    device.store.put(1536, &4u32.to_be_bytes());
    let error = device.finish(pending).unwrap_err();
    assert_eq!(class(error), Class::Malformed);
    assert_eq!(device.store.get_be32(1536), 4);
}

/// Somebody else cuts the file between reserve and publish.
#[test]
fn file_that_shrinks_under_us() {
    let image = Spec::dynamic(MIB, 4096).build();
    let old_len = image.store.len();
    let mut device = open(image.store).unwrap();
    let pending = begin(&mut device, 0);
    let footer = Spec::dynamic(MIB, 4096).footer();
    device.store.put(old_len - 512, &footer);
    device.store.put_size(old_len);
    let error = device.finish(pending).unwrap_err();
    assert_eq!(class(error), Class::Malformed);
    // The data was written past the end: the file is longer again, without a footer. Still, the
    // next allocation puts everything right.
    allocate(&mut device, 1, BLOCK);
    assert_sound(&device.close().unwrap());
}

/// Somebody else appends a block.
#[test]
fn file_that_grows_under_us() {
    let mut device = open(Spec::dynamic(MIB, 4096).build().store).unwrap();
    allocate(&mut device, 0, BLOCK);
    let start = device.image_len() - 512;
    let footer = Spec::dynamic(MIB, 4096).footer();
    device.store.put(start, &[0xff; 512 + 4096]);
    device.store.put(start + 512 + 4096, &footer);
    device
        .store
        .put(1536 + 4 * 200, &((start / 512) as u32).to_be_bytes());
    assert!(allocate(&mut device, 1, BLOCK) > start + 512 + 4096);
    assert_eq!(device.read(200 * BLOCK, 4096).unwrap(), [0xff; 4096]);
    assert_sound(&device.close().unwrap());
}

/// Somebody else has appended something: the reserve is not ours to cut any more.
#[test]
fn reserve_behind_which_something_lies_is_kept() {
    let mut device = open(Spec::dynamic(MIB, 4096).build().store).unwrap();
    allocate(&mut device, 0, BLOCK);
    let end = device.image_len();
    device.store.put(end, &[0x77; 512]);
    device.trim().unwrap();
    assert_eq!(device.image_len(), end + 512);
    assert_eq!(device.store.get(end, 512), [0x77; 512]);
}

#[test]
fn footers_are_repaired() {
    for front in [true, false] {
        for end in [
            End::Footer,
            End::Short,
            End::Missing,
            End::Damaged,
            End::Filled(0xc7),
        ] {
            if !front && !matches!(end, End::Footer | End::Short) {
                continue;
            }
            let mut spec = Spec::dynamic(MIB, 4096).with_blocks(&[(9, Bits::Ones)]);
            spec.front = front;
            spec.end = end;
            let expected = spec.footer();
            let mut device = open(spec.build().store).unwrap();
            allocate(&mut device, 0, BLOCK);
            assert_sound(&device.store);
            let store = device.close().unwrap();
            assert_sound(&store);
            assert_eq!(front_footer(&store).unwrap(), expected);
        }
    }
}

/// The new footer is the good one, byte for byte, whatever unknown fields it has.
#[test]
fn footer_bytes_are_kept() {
    let mut image = Spec::dynamic(MIB, 4096).build();
    image.edit_footers(86, &[0xee; 426]);
    let footer = image.store.get(0, 512);
    let mut device = open(image.store).unwrap();
    allocate(&mut device, 0, BLOCK);
    let store = device.close().unwrap();
    assert_eq!(end_footer(&store).unwrap(), footer);
}

/// Both footers are gone by the time the first block is needed.
#[test]
fn footers_that_vanish_after_attach() {
    let image = Spec::dynamic(MIB, 4096).build();
    let end = image.end_at;
    let mut device = open(image.store).unwrap();
    device.store.put(0, &[0; 512]);
    device.store.put(end, &[0; 512]);
    let error = device.write(0, &sector(0)).unwrap_err();
    assert_eq!(class(error), Class::Malformed);
    assert_eq!(device.image_len(), end + 512);
}

/// New footer, sync, old footer and bitmaps, sync, data, entry.
#[test]
fn order_in_a_file() {
    let image = Spec::dynamic(2 * BLOCK, 4096).build();
    let old = image.end_at;
    let mut device = open(image.store).unwrap();
    device.store.record();
    let data = allocate(&mut device, 1, BLOCK);
    let order: Vec<String> = device.store.take_trace().iter().map(describe).collect();
    let expected = [
        format!("write {} 512", data + 8192 + BLOCK),
        "sync".into(),
        format!("fill {old} 512 0"),
        format!("fill {} 512 255", data - 512),
        format!("fill {} 512 255", data + 8192 - 512),
        "sync".into(),
        format!("write {data} 512"),
        "write 1540 4".into(),
    ];
    assert_eq!(order, expected);
}

pub fn describe(op: &Op) -> String {
    match op {
        Op::Write { offset, bytes } => format!("write {offset} {}", bytes.len()),
        Op::Fill { offset, len, byte } => format!("fill {offset} {len} {byte}"),
        Op::Resize(size) => format!("resize {size}"),
        Op::Sync => "sync".into(),
        Op::Mark(_) => "mark".into(),
    }
}

/// An entry has 32 bits: the file ends where the format ends.
#[test]
fn file_of_two_tib() {
    let mut image = Spec::dynamic(MIB, 4096).build();
    let footer = image.spec.footer();
    // Room for two more blocks that begin at sectors an entry can name.
    let end = (u64::from(u32::MAX) * 512) / 8192 * 8192 - 8192;
    image.store.put(image.end_at, &[0; 512]);
    image.store.put(end - 512, &footer);
    let mut device = open(image.store).unwrap();
    let mut block = 0;
    let result: Result = loop {
        match device.write(block * BLOCK, &sector(block)) {
            Ok(()) => block += 1,
            error => break error,
        }
    };
    assert_eq!(result, Err(ENOSPC));
    assert!((1..=3).contains(&block), "{block}");
    assert_sound(&device.store);
    assert_eq!(device.read(0, 512).unwrap(), sector(0));
}

/// A sync that fails is passed on, and nothing is published after it.
#[test]
fn failed_sync() {
    let mut device = open(Spec::dynamic(MIB, 4096).build().store).unwrap();
    device.store.set_sync_fails(true);
    assert_eq!(device.write(0, &sector(0)), Err(EIO));
    assert_eq!(device.store.get_be32(1536), u32::MAX);
    assert!(front_footer(&device.store).is_some());
}

/// A limit on the size of files: less than a whole reserve fits.
#[test]
fn smaller_steps_when_a_reserve_does_not_fit() {
    let mut device = open(Spec::dynamic(MIB, 4096).build().store).unwrap();
    device.store.fail_after(0, Failure::GrowOnly);
    let before = device.image_len();
    allocate(&mut device, 0, BLOCK);
    assert!(device.image_len() <= before + 3 * 4096);
    assert_sound(&device.store);
}

#[test]
fn disk_is_filled_completely() {
    let spec = Spec::dynamic(200 * BLOCK + 512, 4096).with_blocks(&[(7, Bits::Mixed(4))]);
    let mut device = open(spec.build().store).unwrap();
    let data: Vec<u8> = (0..1601).flat_map(|s| pattern(s, 4)).collect();
    device.write(0, &data).unwrap();
    assert!(device.read(0, data.len() as u64).unwrap() == data);
    let len = device.image_len();
    let store = device.close().unwrap();
    assert_sound(&store);
    assert!(Reader::open(&store).unwrap().disk() == data);
    assert_eq!(store.len(), len, "nothing was left over");
}
