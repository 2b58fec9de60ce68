// SPDX-License-Identifier: GPL-2.0

//! The redundant tables: the primary ones count, and the others are made equal.

use loop_parser::contract::Error;
use testkit::store::Store;

use crate::{
    image::{check, disk, get32, problem, put32, Header, Redundant, Spec},
    open::open,
};

const G: u64 = 4096;
const SIZE: u64 = 1 << 20;

fn spec() -> Spec {
    Spec::new(SIZE / 512, 8)
        .with_entries(64)
        .with_grains(&[0, 2, 70])
}

/// Where the entry of a grain is in the redundant set.
fn redundant_entry(store: &Store, grain: u64) -> u64 {
    let header = Header::load(store);
    let directory = header.redundant.unwrap();
    let table = get32(store, directory + grain / header.entries * 4);
    table * 512 + grain % header.entries * 4
}

/// What differs in a file that was closed is repaired table by table, as they are touched.
#[test]
fn repaired_when_touched() {
    let mut store = spec().build().store;
    let before = disk(&store, &[]);
    for (grain, value) in [(2, 0), (7, 999), (70, 0), (200, 5)] {
        let at = redundant_entry(&store, grain);
        put32(&mut store, at, value);
    }
    let mut device = open(store).unwrap();
    assert!(device.read(0, SIZE).unwrap() == before);
    // In place: no table is touched.
    device.write(0, &before[..512]).unwrap();
    assert_eq!(get32(&device.store, redundant_entry(&device.store, 7)), 999);
    let stores = device.store.stores();
    device.write(9 * G, &[1; 512]).unwrap();
    assert!(device.store.stores() - stores < 10);
    let header = Header::load(&device.store);
    for grain in 0..64 {
        let entry = header.entry(&device.store, header.directory, grain);
        let at = redundant_entry(&device.store, grain);
        assert_eq!(get32(&device.store, at), entry);
    }
    assert!(problem(&device.store, Redundant::Equal).is_some());
    device.write(65 * G, &[1; 512]).unwrap();
    device
        .discard(200 * G, G, loop_parser::contract::Discard::Zero)
        .unwrap();
    device.write(199 * G, &[1; 512]).unwrap();
    check(&device.close().unwrap());
}

/// In a file that was not closed all of them are, before anything is written.
#[test]
fn repaired_at_once() {
    let mut store = spec().build().store;
    let before = disk(&store, &[]);
    store.put(72, &[1]);
    for (grain, value) in [(2, 0), (7, 999), (70, 0), (200, 5)] {
        let at = redundant_entry(&store, grain);
        put32(&mut store, at, value);
    }
    let directory = Header::load(&store).redundant.unwrap();
    put32(&mut store, directory + 8, 0);
    let mut device = open(store).unwrap();
    device.write(0, &before[..512]).unwrap();
    assert_eq!(problem(&device.store, Redundant::Equal), None);
    let store = device.close().unwrap();
    check(&store);
    assert!(disk(&store, &[]) == before);
}

/// Only the redundant directory has a table: the primary one counts.
#[test]
fn table_that_nobody_else_has() {
    for is_unclean in [false, true] {
        let spec = spec().without_tables();
        let mut store = spec.build().store;
        let directory = Header::load(&store).redundant.unwrap();
        let end = store.len();
        put32(&mut store, directory + 8, end / 512);
        store.put(end, &[7; 512]);
        store.put(72, &[u8::from(is_unclean)]);
        let before = disk(&store, &[]);
        let mut device = open(store).unwrap();
        assert!(device.read(0, SIZE).unwrap() == before);
        device.write(0, &[1; 512]).unwrap();
        assert_eq!(get32(&device.store, directory + 8) == 0, is_unclean);
        device.write(2 * 64 * G, &[1; 512]).unwrap();
        check(&device.close().unwrap());
    }
}

/// Nothing is written through a redundant directory entry that cannot be right: it may be a grain, or a
/// header, that it points to.
#[test]
fn malformed() {
    let spec = spec();
    for is_unclean in [false, true] {
        for bad in [0x7fff_ffff, 2, u64::MAX] {
            let mut store = spec.build().store;
            store.put(72, &[u8::from(is_unclean)]);
            let header = Header::load(&store);
            let at = header.redundant.unwrap();
            let bad = match bad {
                // One sector into the primary table.
                u64::MAX => get32(&store, header.directory),
                bad => bad,
            };
            put32(&mut store, at, bad);
            let shared = bad == get32(&store, header.directory);
            let mut device = open(store).unwrap();
            let before = device.read(0, SIZE).unwrap();
            device.write(0, &before[..512]).unwrap();
            let result = device.write(9 * G, &[1; 512]);
            if shared {
                // One table for both: nothing is copied.
                result.unwrap();
                assert_eq!(device.read(9 * G, 512).unwrap(), [1; 512]);
                continue;
            }
            let error = result.unwrap_err();
            assert!(
                matches!(error, Error::Malformed(it) if it.at == at),
                "{error:?}"
            );
            assert!(device.read(0, SIZE).unwrap() == before);
        }
    }
}

/// The redundant table lies partly over the primary one.
#[test]
fn overlapping() {
    let spec = spec().with_entries(256);
    let mut store = spec.build().store;
    let header = Header::load(&store);
    let at = header.redundant.unwrap();
    let primary = get32(&store, header.directory);
    put32(&mut store, at, primary + 1);
    let mut device = open(store).unwrap();
    let error = device.write(9 * G, &[1; 512]).unwrap_err();
    assert!(
        matches!(error, Error::Malformed(it) if it.at == at),
        "{error:?}"
    );
}
