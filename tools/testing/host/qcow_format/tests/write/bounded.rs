// SPDX-License-Identifier: GPL-2.0

//! Refcounts that name one block again and again: no call looks at all of what they count.

use loop_parser::contract::{Discard, Error};

use crate::{
    checker::OFFSET,
    guest::Guest,
    image::{has_qemu, Image, Spec},
};

const CLUSTER: u64 = 2 << 20;
/// Clusters that a block counts.
const PER_BLOCK: u64 = CLUSTER * 8;
/// Loads of any one call: a few searches of 2^16 pieces, each a piece or an entry of the table.
const MAX_LOADS: u64 = 1 << 19;

/// An image whose refcount table has 2^20 entries. The first names the block that it has always
/// named, the others one that is full of `byte`; the first does, too, if `is_all`. The file is of
/// `size` bytes, most of them a hole.
fn hostile(byte: u8, is_all: bool, size: u64) -> Option<(Image, Guest)> {
    if !has_qemu() {
        return None;
    }
    let image = Spec::new(CLUSTER)
        .with(|it| {
            it.order = 0;
            it.sectors = 10 * CLUSTER / 512;
        })
        .build();
    let mut store = image.store.clone();
    let first = store.get_be64(store.get_be64(48));
    let table = store.len().next_multiple_of(CLUSTER);
    let block = table + 4 * CLUSTER;
    let entry = |index| if index == 0 && !is_all { first } else { block };
    let entries: Vec<u8> = (0..CLUSTER / 2)
        .flat_map(|index| entry(index).to_be_bytes())
        .collect();
    store.put(table, &entries);
    store.put(block, &vec![byte; CLUSTER as usize]);
    // The new table and block are in use.
    let host = block / CLUSTER + 1;
    store.put(first, &vec![0xff; (host / 8) as usize + 1]);
    store.put(48, &table.to_be_bytes());
    store.put(56, &4u32.to_be_bytes());
    store.put_size(size);
    let guest = Guest::over(&image, store, image.disk.clone(), 1);
    Some((image, guest))
}

/// A place in the disk that has none in the image.
fn hole(image: &Image) -> u64 {
    let (l1, cluster) = (image.store.get_be64(40), CLUSTER);
    let table = image.store.get_be64(l1) & OFFSET;
    let is_free = |index: &u64| image.store.get_be64(table + index * 8) == 0;
    (0..10).find(is_free).unwrap() * cluster
}

#[track_caller]
fn is_bounded<R>(guest: &mut Guest, what: &str, call: impl FnOnce(&mut Guest) -> R) -> R {
    let before = guest.store.loads();
    let result = call(guest);
    let loads = guest.store.loads() - before;
    assert!(loads < MAX_LOADS, "{what}: {loads} loads");
    result
}

/// Everything is in use, within the file and behind it.
#[test]
fn nothing_is_free() {
    for size in [1 << 50, 1 << 60] {
        let Some((image, mut guest)) = hostile(0xff, true, size) else {
            return;
        };
        let pos = hole(&image);
        for _ in 0..2 {
            let result = is_bounded(&mut guest, "write", |it| it.write(pos, &[1; 512]));
            assert_eq!(result, Err(Error::Store(-28)));
        }
        is_bounded(&mut guest, "close", Guest::close).unwrap();
    }
}

/// What was free at the end of the file before is left alone, and not looked at.
#[test]
fn everything_is_free() {
    let Some((_, mut guest)) = hostile(0, false, 1 << 55) else {
        return;
    };
    let used = guest.disk.size;
    guest.discard(0, used, Discard::Forget).unwrap();
    guest.give_back().unwrap();
    let result = is_bounded(&mut guest, "close", Guest::close);
    result.unwrap();
    assert_eq!(guest.store.len(), 1 << 55);
}

/// On a device a search goes on where the one before it ended, and finds what is free in the end.
#[test]
fn search_goes_on() {
    let Some((image, guest)) = hostile(0xff, false, 1 << 50) else {
        return;
    };
    // The sixth block is free.
    let mut store = guest.store.clone();
    let table = store.get_be64(48);
    let free = table + 5 * CLUSTER;
    store.put(free, &vec![0; CLUSTER as usize]);
    store.put(table + 6 * 8, &free.to_be_bytes());
    let first = store.get_be64(table);
    store.put(first, &vec![0xff; CLUSTER as usize]);
    let size = 8 * PER_BLOCK * CLUSTER;
    store.put_size(size);
    let store = store.into_device(size, 0);
    let mut guest = Guest::over(&image, store, image.disk.clone(), 1);
    let pos = hole(&image);
    let mut tries = 1;
    while is_bounded(&mut guest, "write", |it| it.write(pos, &[1; 512])).is_err() {
        tries += 1;
        assert!(tries < 5);
    }
    assert!(tries > 1);
    guest.shadow[pos as usize..][..512].fill(1);
    guest.verify();
}

/// The largest L1 there can be is looked through once for all clusters that are handed out again.
#[test]
fn largest_l1() {
    if !has_qemu() {
        return;
    }
    let spec = Spec::new(CLUSTER).with(|it| it.sectors = 10 * CLUSTER / 512);
    let image = spec.build();
    let mut store = image.store.clone();
    let entry = store.get_be64(store.get_be64(40));
    let l1 = store.len().next_multiple_of(CLUSTER);
    store.put_size(l1 + (32 << 20));
    store.put(l1, &entry.to_be_bytes());
    store.put(36, &(4u32 << 20).to_be_bytes());
    store.put(40, &l1.to_be_bytes());
    let block = store.get_be64(store.get_be64(48));
    for cluster in l1 / CLUSTER..l1 / CLUSTER + 16 {
        store.put(block + cluster * 2, &[0, 1]);
    }
    let size = store.len() + 40 * CLUSTER;
    let store = store.into_device(size, 0);
    let mut guest = Guest::over(&image, store, image.disk.clone(), 1);
    let pos = hole(&image);
    let before = guest.store.loads();
    is_bounded(&mut guest, "write", |it| it.write(pos, &[1; 512])).unwrap();
    // 2^22 entries, 16 at a time.
    assert!(guest.store.loads() - before >= 1 << 18);
    let next = pos + CLUSTER;
    let before = guest.store.loads();
    guest.write(next, &[1; 512]).unwrap();
    assert!(guest.store.loads() - before < 1 << 10);
}
