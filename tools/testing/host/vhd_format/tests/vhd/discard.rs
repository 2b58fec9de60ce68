// SPDX-License-Identifier: GPL-2.0

//! Discards and write-zeroes: what is given back, and what the guest and other programs see then.

use loop_parser::contract::{
    Allocate, Discard, Discarded, Features, Map, Placement, Range, Reserved, Result, Unlinked,
};
use proptest::prelude::*;
use testkit::{
    device::{Device, FREED},
    store::{Failure, Store, ENOSPC},
    tools,
};

use crate::{
    alloc::{allocate, assert_sound, begin, describe, sector, BLOCK, MIB},
    attach, class,
    image::{pattern, Bits, End, Spec},
    open, open_over,
    random::bits,
    reader::{faults, Reader},
    Class,
};

const ALL: [Discard; 3] = [Discard::Forget, Discard::Zero, Discard::ZeroInPlace];

fn dynamic() -> Spec {
    let blocks = [(1, Bits::Ones), (2, Bits::Mixed(3)), (15, Bits::Ones)];
    Spec::dynamic(15 * BLOCK + 1024, 4096).with_blocks(&blocks)
}

fn child() -> Spec {
    let blocks = [(1, Bits::Ones), (2, Bits::Mixed(3)), (15, Bits::Ones)];
    Spec::differencing(15 * BLOCK + 1024, 4096).with_blocks(&blocks)
}

/// The answer to one call, without a driver.
fn answer(store: &mut Store, pos: u64, len: u64, how: Discard) -> Result<Discarded> {
    let attached = attach(store).unwrap();
    let mut alloc = attached.alloc;
    alloc.discard(store, Range { pos, len }, attached.disk.size, how)
}

/// A write to clear sectors has been resolved when its block is discarded: what it asked to be alone in is
/// what it is given.
#[test]
fn block_goes_before_its_sectors_are_ready() {
    let block = 2 << 20;
    let spec = Spec::dynamic(4 * block, block as u32).with_blocks(&[(1, Bits::Zeros)]);
    let mut store = spec.build().store;
    let attached = attach(&store).unwrap();
    let (map, mut alloc) = (attached.map, attached.alloc);
    let wanted = [block, block + MIB].map(|pos| (pos, map.resolve_write(&store, pos, 512)));
    let range = Range {
        pos: block,
        len: block,
    };
    let freed = alloc.discard(&mut store, range, 4 * block, Discard::Forget);
    assert!(matches!(freed, Ok(Discarded::Freed { .. })), "{freed:?}");
    for (pos, placement) in wanted {
        let Ok(Placement::Allocate { pos: start, len }) = placement else {
            panic!("{placement:?}");
        };
        match alloc.reserve(&mut store, pos, 512).unwrap() {
            Reserved::Space(space) => assert_eq!((space.pos, space.len), (start, len)),
            Reserved::Ready => panic!("it has a place"),
        }
    }
}

#[test]
fn features() {
    let features = |spec: &Spec| attach(&spec.build().store).unwrap().disk.features;
    let both = Features {
        discard: true,
        write_zeroes: true,
        reuses_space: false,
    };
    assert_eq!(features(&dynamic()), both);
    assert_eq!(features(&Spec::fixed(MIB)), both);
    assert_eq!(features(&child()), both);
}

#[test]
fn whole_blocks_are_given_back() {
    let image = dynamic().build();
    for how in [Discard::Forget, Discard::Zero] {
        for (block, len, place) in [(1, BLOCK, 0), (2, BLOCK, 1), (2, 3 * BLOCK, 1)] {
            let mut store = image.store.clone();
            let freed = Discarded::Freed {
                len: BLOCK,
                space: Unlinked {
                    offset: image.starts[place],
                    len: 512 + BLOCK,
                },
            };
            assert_eq!(answer(&mut store, block * BLOCK, len, how), Ok(freed));
            assert_eq!(store.get_be32(1536 + 4 * block), u32::MAX);
            assert_eq!(store.stores(), 1);
        }
        // The last one is cut by the end of the disk.
        let mut store = image.store.clone();
        let freed = Discarded::Freed {
            len: 1024,
            space: Unlinked {
                offset: image.starts[2],
                len: 512 + BLOCK,
            },
        };
        assert_eq!(answer(&mut store, 15 * BLOCK, 1024, how), Ok(freed));
    }
}

/// When the disk has grown, more belongs to the last block.
#[test]
fn end_of_the_disk_is_the_drivers() {
    let mut image = dynamic().build();
    let attached = attach(&image.store).unwrap();
    let mut alloc = attached.alloc;
    let range = Range {
        pos: 15 * BLOCK,
        len: 1024,
    };
    let zero = Discarded::Zero {
        offset: image.starts[2] + 512,
        len: 1024,
    };
    let got = alloc.discard(&mut image.store, range, 15 * BLOCK + 1536, Discard::Zero);
    assert_eq!(got, Ok(zero));
}

/// Of other blocks the data is zeroed, under clear bits too; nothing else changes.
#[test]
fn parts_of_blocks_are_zeroed() {
    let image = dynamic().build();
    for (pos, len, how, place, within, expected) in [
        (BLOCK + 512, BLOCK, Discard::Forget, 0, 512, BLOCK - 512),
        (BLOCK, BLOCK - 512, Discard::Zero, 0, 0, BLOCK - 512),
        (BLOCK, BLOCK, Discard::ZeroInPlace, 0, 0, BLOCK),
        (BLOCK, 4 * BLOCK, Discard::ZeroInPlace, 0, 0, BLOCK),
        (2 * BLOCK + 512, 3072, Discard::Zero, 1, 512, 3072),
        (15 * BLOCK, 512, Discard::Zero, 2, 0, 512),
        (15 * BLOCK + 512, 512, Discard::Forget, 2, 512, 512),
    ] {
        let mut store = image.store.clone();
        let zero = Discarded::Zero {
            offset: image.starts[place] + 512 + within,
            len: expected,
        };
        assert_eq!(answer(&mut store, pos, len, how), Ok(zero), "{pos} {len}");
        assert_eq!(store.stores(), 0);
    }
}

#[test]
fn nothing_to_do() {
    let mut store = dynamic().build().store;
    for how in ALL {
        for (pos, len, expected) in [
            (0, BLOCK, BLOCK),
            (512, 512, 512),
            (0, 2 * BLOCK, BLOCK),
            (3 * BLOCK + 512, 12 * BLOCK, 12 * BLOCK - 512),
        ] {
            let done = Discarded::Done { len: expected };
            assert_eq!(answer(&mut store, pos, len, how), Ok(done));
        }
    }
    assert_eq!(store.stores(), 0);
    // As far as is cheap.
    let mut large = Spec::dynamic(1 << 40, 1 << 21).build().store;
    let done = Discarded::Done { len: 129 << 21 };
    assert_eq!(answer(&mut large, 0, 1 << 40, Discard::Zero), Ok(done));
}

#[test]
fn fixed_images() {
    let mut store = Spec::fixed(MIB).build().store;
    for how in ALL {
        for (pos, len) in [(0, MIB), (512, 512), (MIB - 512, 512)] {
            let zero = Discarded::Zero { offset: pos, len };
            assert_eq!(answer(&mut store, pos, len, how), Ok(zero));
        }
        // The footer is not the guest's.
        let zero = Discarded::Zero {
            offset: 512,
            len: MIB - 512,
        };
        assert_eq!(answer(&mut store, 512, 2 * MIB, how), Ok(zero));
        assert!(answer(&mut store, MIB, 512, how).is_err());
    }
    assert_eq!(store.stores(), 0);
}

/// Nothing of the parent is uncovered, and nothing is written that the parent has.
#[test]
fn differencing_images() {
    let image = child().build();
    let mut store = image.store.clone();
    let zero = Discarded::Zero {
        offset: image.starts[0] + 512,
        len: BLOCK,
    };
    for how in ALL {
        assert_eq!(answer(&mut store, BLOCK, 2 * BLOCK, how), Ok(zero));
    }
    let done = |len| Ok(Discarded::Done { len });
    assert_eq!(
        answer(&mut store, 3 * BLOCK, 9 * BLOCK, Discard::Forget),
        done(9 * BLOCK)
    );
    let clear = (0..8).find(|it| !Bits::Mixed(3).get(*it)).unwrap();
    let pos = 2 * BLOCK + clear * 512;
    assert_eq!(answer(&mut store, pos, 512, Discard::Forget), done(512));
    for how in [Discard::Zero, Discard::ZeroInPlace] {
        for pos in [pos, 0, 3 * BLOCK] {
            let write = Discarded::Write { len: 512 };
            assert_eq!(answer(&mut store, pos, 512, how), Ok(write));
        }
    }
    assert_eq!(store.to_vec(), image.store.to_vec());
}

#[test]
fn discarded_parts_of_a_child() {
    let below = open(Spec::fixed(MIB).build().store).unwrap();
    let mut device = open_over(child().build().store, below).unwrap();
    let size = device.disk.size;
    let mut shadow = device.read(0, size).unwrap();
    let reader = Reader::open(&device.store).unwrap();
    for (sector, bytes) in (0..).zip(shadow.chunks_exact_mut(512)) {
        if reader.own_sector(sector).is_some() {
            bytes.fill(0);
        }
    }
    device.discard(0, size, Discard::Forget).unwrap();
    assert!(device.read(0, size).unwrap() == shadow);
    assert_sound(&device.store);
}

/// What was zeroed is zero for QEMU too, which does not look at bitmaps.
#[test]
fn qemu_sees_zeros() {
    if !tools::has_qemu_img() {
        return;
    }
    for how in ALL {
        let blocks = [(1, Bits::Ones), (2, Bits::Zeros), (3, Bits::Mixed(3))];
        let spec = Spec::dynamic(16 * BLOCK, 4096).with_blocks(&blocks);
        let mut device = open(spec.build().store).unwrap();
        device.discard(0, 16 * BLOCK - 512, how).unwrap();
        let store = device.close().unwrap();
        let theirs = tools::qemu_img_read(&store, "vpc").unwrap();
        assert!(theirs.iter().all(|&byte| byte == 0), "{how:?}");
    }
}

/// A place that was given back is not used again, as requests may be on their way to it.
#[test]
fn places_are_not_used_again() {
    for end in [End::Footer, End::Missing, End::Short] {
        let mut spec = dynamic();
        spec.end = end;
        let mut device = open(spec.build().store).unwrap();
        let mut freed: Vec<u64> = Vec::new();
        let free = |device: &mut Device, freed: &mut Vec<u64>, block: u64| {
            let entry = device.store.get_be32(1536 + 4 * block);
            let len = BLOCK.min(device.disk.size - block * BLOCK);
            device.discard(block * BLOCK, len, Discard::Zero).unwrap();
            freed.push(u64::from(entry) * 512);
        };
        // Before anything is known of free space, and after.
        free(&mut device, &mut freed, 1);
        free(&mut device, &mut freed, 15);
        free(&mut device, &mut freed, 2);
        for round in 0..3 {
            for block in 3..10 {
                let data = allocate(&mut device, block, BLOCK);
                assert!(!freed.contains(&(data - 512)), "{end:?} {round}");
            }
            for block in 3..10 {
                free(&mut device, &mut freed, block);
            }
            device.trim().unwrap();
        }
        for start in freed {
            assert_eq!(device.store.get(start, 4608), [FREED; 4608], "{end:?}");
        }
        assert_eq!(faults(&device.store), [""; 0]);
    }
}

/// A block device has no other place for the block when it is written to again: it keeps the one it
/// has, however often that happens.
#[test]
fn blocks_on_a_device_keep_their_places() {
    let spec = Spec::dynamic(16 * BLOCK, 4096);
    let size = spec.build().store.len().next_multiple_of(4096) + 17 * 8192;
    let mut device = open(spec.build().store.into_device(size, 0x5a)).unwrap();
    for round in 0..20 {
        for block in 0..16 {
            device.write(block * BLOCK, &sector(round)).unwrap();
        }
        let how = ALL[round as usize % 3];
        device.discard(0, 16 * BLOCK, how).unwrap();
        let disk = device.read(0, 16 * BLOCK).unwrap();
        assert!(disk.iter().all(|it| *it == 0));
        assert_sound(&device.store);
    }
    assert_ne!(device.store.get_be32(1536), u32::MAX);
}

/// A file would grow for ever if what it cannot give back were not used again.
#[test]
fn blocks_without_holes_keep_their_places() {
    let spec = Spec::dynamic(16 * BLOCK, 4096).with_blocks(&[(3, Bits::Ones)]);
    let mut device = open(spec.build().store.without_holes()).unwrap();
    device.write(3 * BLOCK, &sector(1)).unwrap();
    let size = device.store.len();
    for round in 0..20 {
        device.write(3 * BLOCK, &sector(round)).unwrap();
        let how = ALL[round as usize % 3];
        device.discard(0, 16 * BLOCK, how).unwrap();
        let disk = device.read(0, 16 * BLOCK).unwrap();
        assert!(disk.iter().all(|it| *it == 0));
        assert_sound(&device.store);
    }
    assert_eq!(device.store.len(), size);
}

/// Nor has a file one, where there are not enough sector numbers left for the whole disk.
#[test]
fn blocks_at_the_end_of_the_format_keep_their_places() {
    const TIB: u64 = 1 << 40;
    let spec = Spec::dynamic(TIB, 1 << 21).with_blocks(&[(3, Bits::Ones)]);
    let pos = 3 << 21;
    // The BAT has half a million entries: each place takes 2 MiB and 4 KiB.
    let most = 2 * TIB - (TIB / (1 << 21) + 1) * ((1 << 21) + 4096);
    for (len, is_freed) in [(most, true), (most + 512, false)] {
        let mut image = spec.build();
        image.store.put(image.end_at, &[0; 512]);
        image.store.put(len - 512, &spec.footer());
        let got = answer(&mut image.store, pos, 1 << 21, Discard::Forget).unwrap();
        assert_eq!(matches!(got, Discarded::Freed { .. }), is_freed);
        assert_eq!(matches!(got, Discarded::Zero { .. }), !is_freed);
    }
}

/// Another program has given back the highest block of a device: its place is free space, full of old
/// bytes like all of it.
#[test]
fn places_that_others_gave_back_are_blanked() {
    let spec = dynamic();
    let store = spec.build().store.into_device(MIB, 0x5a);
    let mut device = open(store).unwrap();
    let data = allocate(&mut device, 9, BLOCK);
    let mut store = device.close().unwrap();
    store.put(1536 + 4 * 9, &[0xff; 4]);

    let mut device = open(store).unwrap();
    device.store.record();
    assert_eq!(allocate(&mut device, 10, BLOCK), data);
    let order: Vec<String> = device.store.take_trace().iter().map(describe).collect();
    let expected = [
        format!("fill {data} 4096 0"),
        "sync".into(),
        format!("fill {} 512 255", data - 512),
        "sync".into(),
        format!("write {data} 512"),
        "sync".into(),
        format!("write {} 4", 1536 + 4 * 10),
    ];
    assert_eq!(order, expected);
    assert_eq!(device.read(10 * BLOCK + 512, 512).unwrap(), [0; 512]);
    assert_sound(&device.store);
}

/// A block that waits for its entry is not in the way of a discard, nor the other way round.
#[test]
fn discard_of_a_block_that_is_being_allocated() {
    let mut device = open(dynamic().build().store).unwrap();
    let pending = begin(&mut device, 5);
    device.discard(5 * BLOCK, BLOCK, Discard::Zero).unwrap();
    device.finish(pending).unwrap();
    assert_eq!(device.read(5 * BLOCK, 512).unwrap(), sector(5));
    device.discard(5 * BLOCK, BLOCK, Discard::Zero).unwrap();
    assert_eq!(device.read(5 * BLOCK, 512).unwrap(), [0; 512]);
    device.write(5 * BLOCK, &sector(6)).unwrap();
    assert_eq!(device.read(5 * BLOCK, 512).unwrap(), sector(6));
    assert_sound(&device.close().unwrap());
}

/// Removing an entry fails: the block is what it was.
#[test]
fn entry_that_cannot_be_removed() {
    for failure in [
        Failure::Nothing,
        Failure::Half,
        Failure::GrowOnly,
        Failure::Torn,
    ] {
        let mut store = dynamic().build().store;
        let before = store.to_vec();
        store.fail_after(0, failure);
        assert_eq!(answer(&mut store, BLOCK, BLOCK, Discard::Zero), Err(ENOSPC));
        assert!(store.to_vec() == before, "{failure:?}");
    }
}

#[test]
fn bad_entries_are_not_followed() {
    let mut image = dynamic().build();
    for entry in [0, 1, 3, 1 << 30, u32::MAX - 1] {
        image.set_entry(1, entry);
        let before = image.store.to_vec();
        for how in ALL {
            let error = answer(&mut image.store, BLOCK, BLOCK, how).unwrap_err();
            assert_eq!(class(error), Class::Malformed);
        }
        assert!(image.store.to_vec() == before);
    }
}

/// A disk that is written to and discarded as a whole, over and over, has a file that stays small
/// but for its holes.
#[test]
fn freed_blocks_count_as_missing() {
    let mut device = open(Spec::dynamic(4 * BLOCK, 4096).build().store).unwrap();
    for round in 0..20u64 {
        let syncs = device.store.syncs();
        for block in 0..4 {
            device.write(block * BLOCK, &sector(round)).unwrap();
        }
        assert!(device.store.syncs() - syncs <= 2, "one block at a time");
        device.discard(0, 4 * BLOCK, Discard::Forget).unwrap();
        assert_sound(&device.store);
    }
    let attached = attach(&device.store).unwrap();
    assert!(matches!(
        attached.map.resolve_write(&device.store, 0, 512),
        Ok(Placement::Allocate { .. })
    ));
}

/// What to do, where (modulo the size), and with how many sectors.
type Step = (u8, u64, u64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec((0u8..8, any::<u64>(), 1u64..80), 1..40)
}

/// Writes, discards and trims; the shadow takes part.
fn work(device: &mut Device, shadow: &mut [u8], steps: &[Step], own: &mut [bool]) {
    let sectors = device.disk.size / 512;
    let is_child = device.disk.variant == "differencing";
    for (version, (what, at, count)) in (10..).zip(steps) {
        let first = at % sectors;
        let count = (*count).min(sectors - first);
        let (pos, len) = (first * 512, count * 512);
        let whole = &mut shadow[pos as usize..][..len as usize];
        let mine = &mut own[first as usize..][..count as usize];
        match what {
            0..=3 => {
                for (sector, bytes) in (first..).zip(whole.chunks_exact_mut(512)) {
                    bytes.copy_from_slice(&pattern(sector, version));
                }
                device.write(pos, whole).unwrap();
                mine.fill(true);
            }
            4 => device.trim().unwrap(),
            _ => {
                let how = if is_child {
                    Discard::Forget
                } else {
                    ALL[usize::from(what % 3)]
                };
                device.discard(pos, len, how).unwrap();
                for (bytes, mine) in whole.chunks_exact_mut(512).zip(mine.iter()) {
                    if *mine || !is_child {
                        bytes.fill(0);
                    }
                }
            }
        }
        assert!(device.read(pos, len).unwrap() == shadow[pos as usize..][..len as usize]);
    }
    assert!(device.read(0, device.disk.size).unwrap() == shadow);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_discards(
        (kind, shift, sectors) in (2u32..=4, 9u32..=15, 1u64..200),
        blocks in proptest::collection::btree_map(0u32..24, bits(), 0..6),
        steps in steps(),
        is_device in any::<bool>(),
    ) {
        let mut spec = Spec::differencing(sectors * 512, 1 << shift);
        spec.disk_type = kind;
        let needed = spec.entry_count();
        spec.blocks = blocks.into_iter().filter(|it| it.0 < needed).collect();
        let mut store = spec.build().store;
        if is_device && kind != 2 {
            let size = store.len() + (16 << 20);
            store = store.into_device(size, 0xdb);
        }
        let mut device = open(store).unwrap();
        let mut below = Vec::new();
        if kind == 4 {
            let parent = open(Spec::fixed(50 * 512).build().store).unwrap();
            below = parent.read(0, 50 * 512).unwrap();
            device = device.on_top_of(parent);
        }
        let reader = Reader::open(&device.store).unwrap();
        let mut own: Vec<bool> = (0..sectors).map(|it| reader.own_sector(it).is_some()).collect();
        let mut shadow = reader.disk_over(&below);
        work(&mut device, &mut shadow, &steps, &mut own);
        let store = device.close().unwrap();
        if kind != 2 {
            prop_assert_eq!(faults(&store), [""; 0]);
        }
        let reader = Reader::open(&store).unwrap();
        prop_assert!(reader.disk_over(&below) == shadow);
        if kind == 4 {
            for (sector, is_own) in (0..).zip(own) {
                prop_assert_eq!(reader.own_sector(sector).is_some(), is_own);
            }
        }
    }
}
