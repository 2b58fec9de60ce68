// SPDX-License-Identifier: GPL-2.0

//! Images of version 1 that must not be served, or not all of them.

use qcow_format::format;

use super::{
    image::{Image, Spec},
    open,
};
use crate::{
    class,
    Class::{self, Malformed, Unsupported},
};

struct Case {
    name: &'static str,
    expected: Class,
    what: &'static str,
    damage: fn(&mut Image),
}

const fn case(
    name: &'static str,
    expected: Class,
    what: &'static str,
    damage: fn(&mut Image),
) -> Case {
    Case {
        name,
        expected,
        what,
        damage,
    }
}

fn sound() -> Image {
    Spec::new(1 << 20, 12, 6)
        .on(b"base.img")
        .with_clusters(&[(0, false), (1, true), (70, false)])
        .build()
}

const REFUSED: &[Case] = &[
    case("47 bytes", Malformed, "too short", |it| {
        it.store.put_size(47)
    }),
    case("no magic", Malformed, "no qcow header", |it| {
        it.store.put(3, &[0])
    }),
    case("version 2", Unsupported, "parser qcow2", |it| {
        it.store.put(7, &[2])
    }),
    case("version 3", Unsupported, "parser qcow2", |it| {
        it.store.put(7, &[3])
    }),
    case("version 0", Unsupported, "not 1, 2 or 3", |it| {
        it.store.put(7, &[0])
    }),
    case("AES", Unsupported, "encrypted with AES", |it| {
        it.store.put(39, &[1])
    }),
    case("encryption 2", Unsupported, "in an unknown way", |it| {
        it.store.put(39, &[2])
    }),
    case("clusters of 2^8", Malformed, "not of 512 bytes", |it| {
        it.store.put(32, &[8])
    }),
    case("clusters of 2^17", Malformed, "not of 512 bytes", |it| {
        it.store.put(32, &[17])
    }),
    case("clusters of 2^255", Malformed, "not of 512 bytes", |it| {
        it.store.put(32, &[255])
    }),
    case("32 entries", Malformed, "not of 64", |it| {
        it.store.put(33, &[5])
    }),
    case("16384 entries", Malformed, "not of 64", |it| {
        it.store.put(33, &[14])
    }),
    case("no size", Malformed, "less than 2 bytes", |it| {
        it.put64(24, 0)
    }),
    case("a byte", Malformed, "less than 2 bytes", |it| {
        it.put64(24, 1)
    }),
    case("2^64-1 bytes", Unsupported, "larger than 2 GiB", |it| {
        it.put64(24, u64::MAX)
    }),
    case("too many entries", Malformed, "L1 table lies past", |it| {
        it.put64(24, 1 << 40)
    }),
    case("L1 past the end", Malformed, "L1 table lies past", |it| {
        it.put64(40, 1 << 40)
    }),
    case("L1 at 2^64-1", Malformed, "offset overflows", |it| {
        it.put64(40, u64::MAX)
    }),
    case(
        "L1 over the header",
        Malformed,
        "overlaps the header",
        |it| it.put64(40, 40),
    ),
    case("L1 over the name", Malformed, "overlaps the name", |it| {
        it.put64(40, 48)
    }),
    case("name of 1024 bytes", Malformed, "is too long", |it| {
        it.store.put(16, &[0, 0, 4, 0])
    }),
    case(
        "name in the header",
        Malformed,
        "backing file overlaps",
        |it| it.put64(8, 47),
    ),
    case(
        "name past the end",
        Malformed,
        "backing file lies past",
        |it| it.put64(8, 1 << 32),
    ),
    case("name at 2^64-1", Malformed, "offset overflows", |it| {
        it.put64(8, u64::MAX)
    }),
    case("name of a protocol", Unsupported, "URL or json:", |it| {
        it.store.put(48, b"ssh:")
    }),
];

const ENTRIES: &[Case] = &[
    case(
        "L2 table past the end",
        Malformed,
        "L1 entry points past",
        |it| it.put64(it.l1_at, 1 << 40),
    ),
    case(
        "L2 table runs past the end",
        Malformed,
        "L1 entry points past",
        |it| it.put64(it.l1_at, it.store.len() - 8),
    ),
    case("L2 table at 2^64-1", Malformed, "offset overflows", |it| {
        it.put64(it.l1_at, u64::MAX)
    }),
    case(
        "L2 table in the header",
        Malformed,
        "L1 entry points into",
        |it| it.put64(it.l1_at, 8),
    ),
    case(
        "L2 table is the L1",
        Malformed,
        "L1 entry points into",
        |it| it.put64(it.l1_at, it.l1_at),
    ),
    case(
        "cluster past the end",
        Malformed,
        "L2 entry points past",
        |it| it.put64(it.entries[&0].0, 1 << 40),
    ),
    case(
        "cluster at 2^63-1",
        Malformed,
        "L2 entry points past",
        |it| it.put64(it.entries[&0].0, u64::MAX >> 1),
    ),
    case(
        "cluster in the header",
        Malformed,
        "L2 entry points into",
        |it| it.put64(it.entries[&0].0, 1),
    ),
    case(
        "cluster over the L1",
        Malformed,
        "L2 entry points into",
        |it| it.put64(it.entries[&0].0, it.l1_at),
    ),
    case(
        "cluster at no sector",
        Malformed,
        "no sector boundary",
        |it| it.put64(it.entries[&0].0, it.entries[&0].1 + 1),
    ),
    case("compressed of no bytes", Malformed, "has no bytes", |it| {
        it.put64(it.entries[&0].0, 1 << 63 | it.entries[&1].1)
    }),
    case(
        "compressed past the end",
        Malformed,
        "L2 entry points past",
        |it| it.put64(it.entries[&0].0, u64::MAX),
    ),
    case(
        "compressed in the header",
        Malformed,
        "L2 entry points into",
        |it| it.put64(it.entries[&0].0, 1 << 63 | 1 << 51 | 8),
    ),
    case(
        "compressed is cut",
        Malformed,
        "compressed unit is damaged",
        |it| it.put64(it.entries[&0].0, 1 << 63 | 5 << 51 | it.entries[&1].1),
    ),
    case(
        "compressed is garbage",
        Malformed,
        "compressed unit is damaged",
        |it| {
            let (at, place) = it.entries[&0];
            it.store.put(place, &[0xff; 64]);
            it.put64(at, 1 << 63 | 64 << 51 | place);
        },
    ),
];

#[test]
fn attach_is_refused() {
    for case in REFUSED {
        let mut image = sound();
        assert!(format::v1::attach(&image.store, "").is_ok());
        (case.damage)(&mut image);
        let error = format::v1::attach(&image.store, "").map(|_| ());
        let error = error.expect_err(case.name);
        assert_eq!(class(error), case.expected, "{}: {error:?}", case.name);
        let what = error.fault().unwrap().what;
        assert!(what.contains(case.what), "{}: {what}", case.name);
    }
}

#[test]
fn io_fails() {
    for case in ENTRIES {
        let mut image = sound();
        (case.damage)(&mut image);
        let before = image.store.to_vec();
        let mut device = open(image.store).expect(case.name);
        let error = device.read(0, 4096).expect_err(case.name);
        assert_eq!(class(error), case.expected, "{}: {error:?}", case.name);
        let what = error.fault().unwrap().what;
        assert!(what.contains(case.what), "{}: {what}", case.name);
        assert!(device.read(70 * 4096, 4096).is_ok(), "{}", case.name);
        // What points to nowhere keeps the file from growing: it would point to somebody's bytes.
        if what.contains("points") || what.contains("overflows") {
            let error = device.write(200 * 4096, &[1; 512]).expect_err(case.name);
            assert_eq!(class(error), case.expected, "{}: {error:?}", case.name);
            assert!(device.store.to_vec() == before, "{}", case.name);
        }
    }
}
