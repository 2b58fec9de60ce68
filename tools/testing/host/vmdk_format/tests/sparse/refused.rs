// SPDX-License-Identifier: GPL-2.0

//! Headers that are refused, each with the place that gives it away.

use loop_parser::contract::{AttachRequest, Error, Result};
use testkit::store::Store;

use crate::{
    image::{disk, put32, put64, Header, Spec},
    open::{about, open_as, request, About},
};

fn attach(store: &Store) -> Result<About> {
    about(store, &request())
}

#[track_caller]
fn assert_malformed(store: &Store, at: u64) {
    let error = attach(store).unwrap_err();
    assert!(
        matches!(error, Error::Malformed(it) if it.at == at),
        "{error:?}"
    );
}

#[track_caller]
fn assert_unsupported(store: &Store, at: u64) {
    let error = attach(store).unwrap_err();
    assert!(
        matches!(error, Error::Unsupported(it) if it.at == at),
        "{error:?}"
    );
}

fn sparse() -> Store {
    Spec::new(2048, 8).with_grains(&[0, 2]).build().store
}

/// Values of a 64-bit field that are refused, as something that shows there or elsewhere, and those next
/// to them that are not.
#[track_caller]
fn field64(at: u64, bad: &[u64], good: &[u64]) {
    for value in bad {
        let mut store = sparse();
        put64(&mut store, at, *value);
        let error = attach(&store).expect_err(&format!("{at}: {value}"));
        assert!(
            matches!(error, Error::Malformed(_)),
            "{at}: {value}: {error:?}"
        );
    }
    for value in good {
        let mut store = sparse();
        put64(&mut store, at, *value);
        attach(&store).unwrap();
    }
}

#[test]
fn short_files() {
    let whole = sparse().to_vec();
    for len in [4, 79, 511] {
        assert_malformed(&Store::new(&whole[..len]), len as u64);
    }
    // The overhead is not all there.
    assert_malformed(&Store::new(&whole[..512]), 64);
    let cowd = Spec::cowd(2048, 8).build().store.to_vec();
    assert_malformed(&Store::new(&cowd[..2047]), 2047);
    assert_malformed(&Store::new(&cowd[..2048]), 20);
}

#[test]
fn versions() {
    for version in [0, 4, u64::from(u32::MAX)] {
        let mut store = sparse();
        put32(&mut store, 4, version);
        assert_unsupported(&store, 4);
        if version > 1 {
            let mut store = Spec::cowd(2048, 8).build().store;
            put32(&mut store, 4, version);
            assert_unsupported(&store, 4);
        }
    }
}

#[test]
fn flags() {
    for bit in 18..32 {
        let mut store = sparse();
        put32(&mut store, 8, 3 | 1 << bit);
        assert_unsupported(&store, 8);
    }
    // Others do not matter.
    for bit in 3..16 {
        let mut store = sparse();
        put32(&mut store, 8, 3 | 1 << bit);
        attach(&store).unwrap();
    }
    // Compressed without markers, and the other way round.
    for flags in [0x1_0003, 0x2_0003] {
        let mut store = sparse();
        put32(&mut store, 8, flags);
        assert_unsupported(&store, 8);
    }
    for (compression, is_known) in [(1, true), (2, false)] {
        let mut store = sparse();
        store.put(77, &[compression]);
        match is_known {
            true => assert_malformed(&store, 77),
            false => assert_unsupported(&store, 77),
        }
    }
}

/// A transfer as text: line ends became others.
#[test]
fn check_bytes() {
    for bytes in [*b"\n \n\n", *b"\r\n \r", *b"\n \r\r"] {
        let mut store = sparse();
        store.put(73, &bytes);
        assert_malformed(&store, 73);
        // The flag says whether they are there.
        put32(&mut store, 8, 2);
        attach(&store).unwrap();
    }
}

#[test]
fn sizes() {
    field64(12, &[1 << 54, 1 << 55, u64::MAX], &[1, 2047, 2048, 4096]);
    let mut store = sparse();
    put64(&mut store, 12, 0);
    assert_unsupported(&store, 12);
    // Without a descriptor.
    put64(&mut store, 28, 0);
    attach(&store).unwrap();
    field64(20, &[0, 3, 12, 65535, 65537, 131072, 1 << 63], &[8, 65536]);
    for (entries, is_good) in [
        (0, false),
        (1, true),
        (512, true),
        (65536, true),
        (65537, false),
    ] {
        let mut store = sparse();
        put32(&mut store, 44, entries);
        assert_eq!(attach(&store).is_ok(), is_good, "{entries}");
    }
}

/// Things that lie past the end of the file, or over each other.
#[test]
fn places() {
    let header = Header::load(&sparse());
    let end = sparse().len() / 512;
    let (text, text_len) = header.descriptor.unwrap();
    let (text, text_end) = (text / 512, (text + text_len) / 512);
    let directory = header.directory / 512;
    field64(64, &[end + 1, u64::MAX, 1 << 55], &[end, directory + 1]);
    // The directory.
    field64(56, &[0, end, 1 << 55, text, text_end - 1], &[directory]);
    field64(28, &[end, 1 << 55, end - 1, u64::MAX], &[0, text]);
    field64(
        36,
        &[u64::MAX, end, directory - text + 1],
        &[0, 1, text_len / 512],
    );
    let mut store = sparse();
    put64(&mut store, 36, 2049);
    assert_unsupported(&store, 36);
}

/// A redundant directory that is no good is not needed to read.
#[test]
fn places_of_the_redundant_directory() {
    let whole = sparse();
    let header = Header::load(&whole);
    let end = whole.len() / 512;
    let (text, _) = header.descriptor.unwrap();
    let directory = header.directory / 512;
    let redundant = header.redundant.unwrap() / 512;
    let places = [end, 1 << 55, 1 << 63, text / 512, directory, end - 1];
    let wrong = places.map(|sector| (48, sector));
    for (at, sector) in wrong.into_iter().chain([(56, redundant)]) {
        let mut store = whole.clone();
        put64(&mut store, at, sector);
        let writable = AttachRequest {
            writable: true,
            ..request()
        };
        let error = about(&store, &writable).unwrap_err();
        assert!(
            matches!(error, Error::NeedsReadOnly(it) if it.at == 48),
            "{sector}: {error:?}"
        );
        let only_read = AttachRequest {
            writable: false,
            ..request()
        };
        let device = open_as(store, &only_read).unwrap();
        assert!(device.read(0, 2048 * 512).unwrap() == disk(&whole, &[]));
    }
}

#[test]
fn directory_of_cowd() {
    let spec = Spec::cowd(8 * 4096 + 1, 8);
    let store = spec.build().store;
    attach(&store).unwrap();
    for (at, value) in [
        (24, 1),
        (24, 0),
        (16, 0),
        (16, 3),
        (16, 131072),
        (20, 0),
        (20, 3),
        (20, u64::from(u32::MAX)),
        (12, u64::from(u32::MAX)),
    ] {
        let mut store = store.clone();
        put32(&mut store, at, value);
        let error = attach(&store).unwrap_err();
        assert!(
            matches!(error, Error::Malformed(_)),
            "{at}: {value}: {error:?}"
        );
    }
}

/// What the store says is passed on, for every load there is.
#[test]
fn errors_of_the_store() {
    for spec in [Spec::new(2048, 8), Spec::cowd(2048, 8)] {
        let mut store = spec.build().store;
        store.break_sector(0);
        assert_eq!(attach(&store).unwrap_err(), testkit::store::EIO);
    }
    let mut store = sparse();
    store.break_sector(512);
    assert_eq!(attach(&store).unwrap_err(), testkit::store::EIO);
}
