// SPDX-License-Identifier: GPL-2.0

//! What a disk is put together from.

use loop_parser::contract::{Allocate, Discard, Error, Extents, Map, Range};

use crate::{attach, attach_writable, class, file, flat, image, zero, Class, Set, MAGIC};

#[test]
fn every_type() {
    let store = file(
        "RW 10 FLAT \"f\" 3\n\
         RW 20 SPARSE \"s\"\n\
         RW 30 ZERO\n\
         RW 40 VMFS \"v\"\n\
         RW 50 VMFSSPARSE \"vs\"\n\
         RW 60 SESPARSE \"se\"\n\
         RW 70 VMFS \"v\" 9\n\
         RW 80 FLAT \"f\"\n\
         RW 90 ZERO \"ignored\" 5\n\
         RW 1 FLAT \"/dev/sda\" 63 partitionUUID 0123-4567 device-id\n\
         RW 2 FLAT \"x y=z#\" 0 # and more\n\
         RW 3 SPARSE \"t\" # and more\n\
         RW 4 SPARSE \"t\" 0\n",
    );
    let set = attach_writable(&store, 0).unwrap();
    let expected = [
        flat(10, b"f", 3),
        image(20, b"s"),
        zero(30),
        flat(40, b"v", 0),
        image(50, b"vs"),
        image(60, b"se"),
        flat(70, b"v", 9),
        flat(80, b"f", 0),
        zero(90),
        flat(1, b"/dev/sda", 63),
        flat(2, b"x y=z#", 0),
        image(3, b"t"),
        image(4, b"t"),
    ];
    assert_eq!(set.list(&store), expected);
    let sectors: u64 = expected.iter().map(|it| it.sectors).sum();
    assert_eq!(set.image.disk.size, sectors * 512);
    // By cursors that are no answers of it, nothing is read.
    for cursor in [store.len() + 1, u64::MAX] {
        let result = set.extents.next(&store, cursor);
        assert_eq!(result, Err(loop_parser::contract::num::OUTSIDE));
    }
}

/// Zeros and what is read-only are part of the disk like everything else.
#[test]
fn access() {
    let store = file("RDONLY 1 FLAT \"a\" 0\nNOACCESS 2 ZERO\nRDONLY 3 ZERO\nRW 4 SPARSE \"b\"\nRDONLY 5 SPARSE \"c\"\n");
    let set = attach(&store).unwrap();
    assert_eq!(set.image.disk.size, 15 * 512);
    let expected = [
        flat(1, b"a", 0).read_only(),
        zero(2).read_only(),
        zero(3).read_only(),
        image(4, b"b"),
        image(5, b"c").read_only(),
    ];
    assert_eq!(set.list(&store), expected);
    match attach_writable(&store, 0) {
        Err(Error::NeedsReadOnly(fault)) => assert_eq!(fault.at, MAGIC.len() as u64),
        other => panic!("{other:?}"),
    }
    // Zeros cannot be written anyway: they do not keep the rest from it.
    let store = file("RW 1 FLAT \"a\" 0\nNOACCESS 2 ZERO\nRDONLY 3 ZERO\n");
    assert!(attach_writable(&store, 0).is_ok());
    // What is not to be read cannot be part of a disk that is read.
    let store = file("RW 1 FLAT \"a\" 0\nNOACCESS 2 FLAT \"b\" 0\n");
    let error = attach(&store).unwrap_err();
    assert_eq!(class(error), Class::Unsupported);
    assert_eq!(error.fault().unwrap().at, MAGIC.len() as u64 + 16);
}

#[test]
fn change_tracking_is_read_only() {
    let store = file("RW 1 VMFS \"a\"\nchangeTrackPath=\"a-ctk.vmdk\"\n");
    assert!(attach(&store).is_ok());
    match attach_writable(&store, 0) {
        Err(Error::NeedsReadOnly(fault)) => assert_eq!(fault.at, MAGIC.len() as u64 + 14),
        other => panic!("{other:?}"),
    }
}

/// VMware splits disks into parts of 2 GiB.
#[test]
fn thousands_of_extents() {
    let mut lines = String::from("CID=1\ncreateType=\"twoGbMaxExtentSparse\"\n");
    let mut expected = Vec::new();
    for part in 1..=2000 {
        let name = format!("A disk with a long name-s{part:03}.vmdk");
        lines += &format!("RW 4192256 SPARSE \"{name}\"\n");
        expected.push(image(4192256, name.as_bytes()));
    }
    let store = file(lines + "ddb.adapterType = \"lsilogic\"\n");
    let set = attach(&store).unwrap();
    assert_eq!(set.image.disk.size, 2000 * 4192256 * 512);
    let loads = store.loads();
    assert_eq!(set.list(&store), expected);
    // Every extent costs what its line is long, not what the descriptor is.
    assert!(store.loads() - loads < 3 * 2000);
    assert!(loads < 3 * 2000, "{loads}");
}

/// More extents than anybody has.
#[test]
fn number_of_extents_is_limited() {
    let lines = |count: usize| file("RW 1 ZERO\n".repeat(count));
    let set = attach(&lines(8192)).unwrap();
    assert_eq!(set.image.disk.size, 8192 * 512);
    let error = attach(&lines(8193)).unwrap_err();
    assert_eq!(class(error), Class::Unsupported);
    assert_eq!(error.fault().unwrap().at, (MAGIC.len() + 8192 * 10) as u64);
}

#[test]
fn size_is_limited() {
    let most = (1u64 << 62) / 512;
    let set = attach(&file(format!("RW {} ZERO\nRW 1 ZERO\n", most - 1))).unwrap();
    assert_eq!(set.image.disk.size, 1 << 62);
    for (lines, expected) in [
        (format!("RW {most} ZERO\nRW 1 ZERO\n"), Class::Unsupported),
        (format!("RW {} ZERO\n", most + 1), Class::Unsupported),
        (format!("RW {} ZERO\n", 1u64 << 55), Class::Malformed),
        (format!("RW {} ZERO\n", u64::MAX), Class::Malformed),
        (
            "RW 18446744073709551616 ZERO\n".to_owned(),
            Class::Malformed,
        ),
        (
            "RW 99999999999999999999999999 ZERO\n".to_owned(),
            Class::Malformed,
        ),
        (
            format!("RW {0} ZERO\nRW {0} ZERO\n", most - 1),
            Class::Unsupported,
        ),
        (
            format!("RW 1 FLAT \"x\" {}\n", 1u64 << 55),
            Class::Malformed,
        ),
    ] {
        assert_eq!(
            attach(&file(&lines)).map_err(class).err(),
            Some(expected),
            "{lines}"
        );
    }
}

/// The driver does not ask the image where something lies. If it did, it would be told nothing.
#[test]
fn map_and_allocator_do_nothing() {
    let mut store = file("CID=1\nRW 10 ZERO\n");
    let set = attach(&store).unwrap();
    let Set { image, .. } = set;
    assert!(image.map.resolve_read(&store, 0, 512).is_err());
    assert!(image.map.resolve_write(&store, 0, 512).is_err());
    assert_eq!(image.map.reread_size(&store), Ok(5120));
    let mut alloc = image.alloc;
    assert!(alloc.reserve(&mut store, 0, 512).is_err());
    let range = Range { pos: 0, len: 512 };
    assert!(alloc
        .discard(&mut store, range, 5120, Discard::Zero)
        .is_err());
    assert_eq!((store.stores(), store.syncs()), (0, 0));
}

/// The file may change after it was attached.
#[test]
fn descriptor_changes_under_us() {
    let mut store = file("CID=1\nRW 10 FLAT \"aa\" 0\nRW 20 FLAT \"bb\" 0\n");
    let set = attach(&store).unwrap();
    let (_, cursor) = set.extents.next(&store, 0).unwrap().unwrap();
    let second = MAGIC.len() as u64 + 6 + 18;
    for (bytes, expected) in [
        (&b"RW xx"[..], Class::Malformed),
        (b"XW 20", Class::Malformed),
        (b"RW 00", Class::Malformed),
    ] {
        store.put(second, bytes);
        let error = set.extents.next(&store, cursor).unwrap_err();
        assert_eq!(class(error), expected);
        assert_eq!(error.fault().map(|it| it.at >= second), Some(true));
    }
    store.put(second, b"#W 20");
    assert_eq!(set.extents.next(&store, cursor), Ok(None));
    store.put_size(second + 3);
    assert_eq!(set.extents.next(&store, cursor), Err(Error::Store(-5)));
}
