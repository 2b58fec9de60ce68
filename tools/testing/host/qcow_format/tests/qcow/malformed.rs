// SPDX-License-Identifier: GPL-2.0

//! Images that must not be served, or not all of them, each with the class of the error it gets and
//! what is said of it. Each is a sound image with one thing changed.

mod entries;
mod refused;

use loop_parser::contract::{Error, Map};

use qcow_format::format;

use crate::{
    attach, class,
    image::{Cluster, Image, Spec, BACKING_FORMAT, FEATURE_NAMES},
    open, Class,
};

/// A way to break an image.
pub struct Case {
    name: &'static str,
    spec: fn() -> Spec,
    damage: fn(&mut Image),
    expected: Class,
    /// What the message says.
    what: &'static str,
}

const fn case(
    name: &'static str,
    spec: fn() -> Spec,
    expected: Class,
    what: &'static str,
    damage: fn(&mut Image),
) -> Case {
    Case {
        name,
        spec,
        damage,
        expected,
        what,
    }
}

const CLUSTERS: &[(u64, Cluster)] = &[
    (0, Cluster::Data),
    (1, Cluster::Zero),
    (2, Cluster::ZeroAllocated),
    (3, Cluster::Compressed),
    (5, Cluster::Data),
];

fn v3() -> Spec {
    Spec::v3(1 << 20, 12).with_clusters(CLUSTERS)
}

fn v2() -> Spec {
    Spec::v2(1 << 20, 12).with_clusters(&[(0, Cluster::Data), (3, Cluster::Compressed)])
}

fn extended() -> Spec {
    Spec::extended(1 << 20, 14).with_clusters(&[
        (0, Cluster::Sub(0xff)),
        (3, Cluster::Compressed),
        (7, Cluster::SubNoPlace(1 << 32)),
    ])
}

fn snapshots() -> Spec {
    Spec {
        snapshots: 3,
        ..v3()
    }
}

fn child() -> Spec {
    v3().on(b"base.img").with_extension(BACKING_FORMAT, b"raw")
}

fn named() -> Spec {
    let mut names = vec![0; 96];
    names[..7].copy_from_slice(b"\0\0dirty");
    names[48..55].copy_from_slice(b"\0\x07bogus");
    v3().with_extension(FEATURE_NAMES, &names)
}

use entries::ENTRIES;
use refused::REFUSED;
use Class::{Malformed, NeedsReadOnly, Unsupported};

fn said(error: Error) -> &'static str {
    error.fault().map_or("", |fault| fault.what)
}

#[test]
fn attach_is_refused() {
    assert!(REFUSED.len() + ENTRIES.len() >= 60);
    for case in REFUSED {
        let mut image = (case.spec)().build();
        let sound = attach(&image.store);
        assert!(sound.is_ok(), "{}: {:?}", case.name, sound.err());
        (case.damage)(&mut image);
        let error = attach(&image.store).map(|_| ()).expect_err(case.name);
        assert_eq!(class(error), case.expected, "{}: {error:?}", case.name);
        assert!(said(error).contains(case.what), "{}: {error:?}", case.name);
    }
}

#[test]
fn io_fails() {
    for case in ENTRIES {
        let mut image = (case.spec)().build();
        let sound = open(image.store.clone()).unwrap();
        assert!(sound.read(0, 512).is_ok(), "{}", case.name);
        (case.damage)(&mut image);
        let device = open(image.store).expect(case.name);
        let error = device.read(0, 4096).expect_err(case.name);
        assert_eq!(class(error), case.expected, "{}: {error:?}", case.name);
        assert!(said(error).contains(case.what), "{}: {error:?}", case.name);
        assert_eq!(error.to_io_errno(), -5);
        // What the bad entry is not about can be read.
        assert!(
            device.read(device.disk.size - 512, 512).is_ok() || case.name.starts_with("L2 table")
        );
    }
}

#[test]
fn errno_is_never_einval() {
    for case in REFUSED {
        let mut image = (case.spec)().build();
        (case.damage)(&mut image);
        let errno = attach(&image.store).map(|_| ()).unwrap_err().to_errno();
        let expected = match case.expected {
            Malformed => -117,
            Unsupported => -95,
            NeedsReadOnly => -30,
            Class::Other => unreachable!(),
        };
        assert_eq!(errno, expected, "{}", case.name);
    }
}

#[test]
fn the_name_of_a_feature_is_quoted() {
    let mut image = named().build();
    image.put64(72, 1 << 7);
    let quote_of = |image: &Image| {
        let error = attach(&image.store).map(|_| ()).unwrap_err();
        let quote = format::v2::quote(&image.store, error.fault().unwrap())?;
        Some(image.store.get(quote.offset, quote.len as usize))
    };
    let name = quote_of(&image).expect("there is a name");
    assert_eq!(
        name,
        *b"bogus"
            .iter()
            .chain(&[0; 41])
            .copied()
            .collect::<Vec<u8>>()
    );
    // No name, another fault, an unreadable table: no quote.
    image.put64(72, 1 << 8);
    assert_eq!(quote_of(&image), None);
    image.put64(72, 1 << 2);
    assert_eq!(quote_of(&image), None);
    image.put64(72, 1 << 7);
    image.put32(116, u32::MAX);
    assert_eq!(quote_of(&image), None);
}

/// What is marked dirty or corrupt is served to a read-only device.
#[test]
fn damage_needs_read_only() {
    for (bits, what) in [
        (1, "was not closed"),
        (2, "marked corrupt"),
        (3, "marked corrupt"),
    ] {
        let mut image = v3().build();
        image.put64(72, bits);
        let error = format::v2::attach(&image.store, "", true).map(|_| ());
        let error = error.unwrap_err();
        assert_eq!(class(error), NeedsReadOnly);
        assert!(said(error).contains(what) && said(error).contains("qemu-img check -r all"));
        let attached = attach(&image.store).unwrap();
        assert!(attached.warning.unwrap().what.contains(what));
        assert!(attached.map.resolve_read(&image.store, 0, 512).is_ok());
    }
}
