// SPDX-License-Identifier: GPL-2.0

//! Images that are damaged, or changed behind the driver's back: nothing else is lost by a write or a
//! discard, and nobody waits for ever.

use loop_parser::contract::{Discard, Error};
use testkit::store::{Failure, Store};

use crate::{
    image::{check, disk, get32, put32, Header, Spec},
    open::open,
};

const G: u64 = 4096;
const SIZE: u64 = 1 << 20;

fn spec() -> Spec {
    Spec::new(SIZE / 512, 8)
        .with_entries(64)
        .with_grains(&[0, 2, 70])
}

/// An entry points to the directory, which lies directly behind the grain of the entry in front of it.
/// The two are not given back together.
#[test]
fn directory_behind_a_grain() {
    let image = spec().with_grains(&[0]).build();
    let mut store = image.store;
    let (entry, data) = image.entries[&0];
    let header = Header::load(&store);
    let directory = store.get(header.directory, (header.tables() * 4) as usize);
    store.put_size(data + 2 * G);
    store.put(data + G, &directory);
    store.put(56, &((data + G) / 512).to_le_bytes());
    put32(&mut store, entry + 4, (data + G) / 512);
    let mut device = open(store).unwrap();
    let error = device.discard(0, 2 * G, Discard::Zero).unwrap_err();
    assert!(matches!(error, Error::Malformed(it) if it.at == entry + 4));
    let found = device.store.get(data + G, directory.len());
    assert!(found == directory, "the directory was punched");
    assert_eq!(device.read(0, 512).unwrap(), [0; 512]);
}

/// The CID cannot be changed: then the file is not marked as open either.
#[test]
fn content_id_is_gone() {
    let mut device = open(spec().build().store).unwrap();
    let text = device.store.get(512, 200);
    let line = text.windows(4).position(|it| it == b"CID=").unwrap();
    device.store.put(512 + line as u64, b"DIC=");
    let before = device.store.to_vec();
    let error = device.write(9 * G, &[1; 512]).unwrap_err();
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
    assert!(device.close().unwrap().to_vec() == before);
}

/// A look at all entries that was refused is not repeated for every write, unless the file has another
/// size.
#[test]
fn refused_once() {
    let last = 4095;
    let spec = Spec::new(4096 * 8, 8).with_entries(64);
    let image = spec.with_grains(&[last]).build();
    let mut store = image.store;
    let (entry, _) = image.entries[&last];
    put32(&mut store, entry, 0x7fff_ffff);
    let mut device = open(store).unwrap();
    let write = |device: &mut testkit::device::Device| {
        let before = device.store.loads();
        let error = device.write(9 * G, &[1; 512]).unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{error:?}");
        device.store.loads() - before
    };
    let first = write(&mut device);
    let second = write(&mut device);
    assert!(second < 20 && first > 128, "{first} {second}");
    put32(&mut device.store, entry, 0);
    let size = device.store.len();
    device.store.put_size(size + G);
    device.write(9 * G, &[1; 512]).unwrap();
    assert_eq!(device.read(9 * G, 512).unwrap(), [1; 512]);
}

/// Somebody else has written a new header to the file: nothing is put there, and nothing is cut off.
#[test]
fn header_changed_before_close() {
    let mut device = open(spec().build().store).unwrap();
    device.write(9 * G, &[1; 512]).unwrap();
    device.store.put(20, &16u64.to_le_bytes());
    let before = device.store.to_vec();
    let error = device.trim().unwrap_err();
    assert!(matches!(error, Error::NeedsReadOnly(_)), "{error:?}");
    assert!(device.store.to_vec() == before);
    device.trim().unwrap();
    assert!(device.store.to_vec() == before);
}

/// Nothing is copied over what is in use through a wrong redundant directory: a grain of the guest's, of
/// zeros as well, or the primary table of another part of the disk.
#[test]
fn redundant_over_something() {
    for is_unclean in [false, true] {
        for case in 0..3 {
            let image = spec().build();
            let mut store = image.store;
            store.put(72, &[u8::from(is_unclean)]);
            let header = Header::load(&store);
            let at = header.redundant.unwrap();
            let (_, grain) = image.entries[&70];
            if case == 1 {
                store.put(grain, &[0; G as usize]);
            }
            let wrong = match case {
                2 => get32(&store, header.directory + 4),
                _ => grain / 512,
            };
            put32(&mut store, at, wrong);
            let before = disk(&store, &[]);
            let mut device = open(store).unwrap();
            for _ in 0..2 {
                let error = device.write(9 * G, &[1; 512]).unwrap_err();
                assert!(matches!(error, Error::Malformed(it) if it.at == at));
            }
            assert!(device.read(0, SIZE).unwrap() == before, "case {case}");
            device.write(0, &[1; 512]).unwrap();
            device.write(71 * G, &[1; 512]).unwrap();
            assert_eq!(device.read(71 * G, 512).unwrap(), [1; 512]);
        }
    }
}

/// An empty table is equal to much that is none of its copies: to another empty table, or to a grain of
/// zeros.
#[test]
fn redundant_of_an_empty_table() {
    for is_unclean in [false, true] {
        for case in 0..2 {
            let image = spec().build();
            let mut store = image.store;
            store.put(72, &[u8::from(is_unclean)]);
            let header = Header::load(&store);
            let at = header.redundant.unwrap() + 8;
            let (_, grain) = image.entries[&70];
            store.put(grain, &[0; G as usize]);
            let wrong = match case {
                0 => get32(&store, header.directory + 12),
                _ => grain / 512,
            };
            put32(&mut store, at, wrong);
            let before = disk(&store, &[]);
            let mut device = open(store).unwrap();
            for _ in 0..2 {
                let error = device.write(130 * G, &[1; 512]).unwrap_err();
                assert!(matches!(error, Error::Malformed(it) if it.at == at));
            }
            assert!(device.read(0, SIZE).unwrap() == before, "case {case}");
            device.write(9 * G, &[1; 512]).unwrap();
            assert_eq!(device.read(9 * G, 512).unwrap(), [1; 512]);
        }
    }
}

/// Tables that are empty in front of all grains, as programs make them, cost a look at the directory: not
/// at all entries.
#[test]
fn empty_tables_cost_little() {
    let cost = |tables: u64| {
        let spec = Spec::new(tables * 64 * 8, 8).with_entries(64);
        let mut device = open(spec.build().store).unwrap();
        device.write(0, &[1; 512]).unwrap();
        let before = device.store.loads();
        device.write(64 * G, &[1; 512]).unwrap();
        device.store.loads() - before
    };
    let (few, many) = (cost(64), cost(512));
    assert!(many < few + 512, "{few} {many}");
}

/// No copy can be made as an entry is damaged: that is found out once, not for every table.
#[test]
fn repair_is_linear() {
    let cost = |tables: u64| {
        let spec = Spec::new(tables * 64 * 8, 8)
            .with_entries(64)
            .with_grains(&[0]);
        let mut store = spec.build().store;
        let header = Header::load(&store);
        store.put(72, &[1]);
        let none = vec![0; (header.tables() * 4) as usize];
        store.put(header.redundant.unwrap(), &none);
        let last = get32(&store, header.directory + (tables - 1) * 4) * 512;
        put32(&mut store, last, 0x7fff_ffff);
        let size = store.len();
        let mut device = open(store).unwrap();
        let before = device.store.loads();
        device.write(0, &[1; 512]).unwrap();
        assert_eq!(device.store.len(), size);
        device.store.loads() - before
    };
    let (few, many) = (cost(64), cost(512));
    assert!(many < 9 * few, "{few} {many}");
}

/// All copies are missing in an image that was not closed. The first write does not wait for all of
/// them; the others are made when their table is touched.
#[test]
fn missing_copies() {
    let syncs = |size: u64| {
        let spec = Spec::new(size / 512, 8).with_entries(2).with_grains(&[0]);
        let mut store = spec.build().store;
        store.put(72, &[1]);
        let header = Header::load(&store);
        let none = vec![0; (header.tables() * 4) as usize];
        store.put(header.redundant.unwrap(), &none);
        let mut device = open(store).unwrap();
        device.write(0, &[1; 512]).unwrap();
        let syncs = device.store.syncs();
        device.write(0, &vec![2; size as usize]).unwrap();
        check(&device.close().unwrap());
        syncs
    };
    assert_eq!(syncs(SIZE), syncs(2 * SIZE));
}

/// There is no room for the redundant entry. The primary one was seen by then: a write to the grain that
/// it points to was acknowledged. It stays, and the copy is made equal later.
#[test]
fn no_room_for_the_copy() {
    let mut failed = 0;
    for n in 0..8 {
        let mut device = open(spec().build().store).unwrap();
        device.write(8 * G, &[1; 512]).unwrap();
        let header = Header::load(&device.store);
        let entry = |store: &Store, directory| header.entry(store, directory, 9);
        let redundant = header.redundant.unwrap();
        device.store.fail_after(n, Failure::Nothing);
        let result = device.write(9 * G, &[2; 512]);
        device.store.never_fail();
        let place = entry(&device.store, header.directory);
        assert_eq!(result.is_ok(), place != 0, "{n}");
        failed += u32::from(place != entry(&device.store, redundant));
        assert_eq!(
            device.read(9 * G, 512).unwrap(),
            [[0; 512], [2; 512]][usize::from(place != 0)]
        );
        let mut again = device;
        again.write(200 * G, &[3; 512]).unwrap();
        assert_eq!(entry(&again.store, redundant), place);
        check(&again.close().unwrap());
    }
    assert_eq!(failed, 1);
}

/// The redundant directory lies over a primary table. Programs that do not look at it read such an image;
/// storing an entry in it would make a grain of the guest's something else.
#[test]
fn redundant_directory_over_a_table() {
    for is_unclean in [false, true] {
        let image = spec().build();
        let mut store = image.store;
        let header = Header::load(&store);
        let last = get32(&store, header.directory + 12);
        store.put(48, &u64::from(last).to_le_bytes());
        if is_unclean {
            store.put(72, &[1]);
            // The entry of the redundant directory that lies where this one's is would be taken away.
            put32(&mut store, header.directory + 4, 0);
        }
        let table = |store: &Store| store.get(u64::from(last) * 512, 256);
        let before = table(&store);
        let content = open(store.clone()).unwrap().read(192 * G, 64 * G).unwrap();
        let mut device = open(store).unwrap();
        let error = device.write(9 * G, &[1; 512]).unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{error:?}");
        assert!(device.read(192 * G, 64 * G).unwrap() == content);
        device.write(0, &[1; 512]).unwrap();
        assert_eq!(device.read(0, 512).unwrap(), [1; 512], "in place");
        let store = device.close().unwrap();
        assert!(table(&store) == before, "a primary table was overwritten");
    }
}
