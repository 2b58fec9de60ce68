// SPDX-License-Identifier: GPL-2.0

//! What a file is attached as, and what is refused.

use loop_parser::contract::{AttachRequest, Disk, Error, Verdict};
use testkit::store::Store;
use vmdk_format::format;

use crate::{
    attach, class,
    image::{Fill, Image, Spec},
    part, Class,
};

fn image() -> Image {
    Spec::new(70_000)
        .with_grains(&[(0, Fill::Data(1)), (5000, Fill::Data(0))])
        .build()
}

fn refused(store: &Store, request: &AttachRequest<'_>) -> Class {
    class(attach(store, request).map(|_| ()).unwrap_err())
}

/// Attaches a file in which a field has another value.
fn with_field(at: u64, value: u64) -> Class {
    let mut store = image().store;
    store.put(at, &value.to_le_bytes());
    refused(&store, &part(512, false))
}

#[test]
fn it_is_an_extent() {
    let store = image().store;
    assert_eq!(store.probe(format::probe), Verdict::Mine);
    let attached = attach(&store, &part(70_000 * 512, false)).unwrap();
    let expected = Disk {
        size: 70_000 * 512,
        variant: "seSparse",
        unit: 4096,
        ..Disk::default()
    };
    assert_eq!(attached.disk, expected);
    // Nobody says what lies below it.
    let alone = AttachRequest::default();
    assert_eq!(refused(&store, &alone), Class::Unsupported);
    // More than there is.
    assert_eq!(
        refused(&store, &part(70_001 * 512, false)),
        Class::Malformed
    );
    let options = AttachRequest {
        options: "x",
        ..part(512, false)
    };
    assert_eq!(attach(&store, &options).map(|_| ()), Err(Error::BadOption));
}

#[test]
fn it_is_never_written() {
    let request = AttachRequest {
        writable: true,
        ..part(512, false)
    };
    assert_eq!(refused(&image().store, &request), Class::NeedsReadOnly);
}

#[test]
fn attaching_costs_the_same_whatever_the_size() {
    let cost = |sectors: u64| {
        let mut store = image().store;
        // The directory is put behind everything else.
        let at = store.len().next_multiple_of(512);
        let len = sectors.div_ceil(8 * 4096) * 8;
        store.put_size((at + len).next_multiple_of(512));
        store.put(16, &sectors.to_le_bytes());
        store.put(128, &(at / 512).to_le_bytes());
        store.put(136, &len.div_ceil(512).to_le_bytes());
        assert_eq!(
            attach(&store, &part(512, false)).unwrap().disk.size,
            sectors * 512
        );
        store.loads()
    };
    assert_eq!(cost(70_000), cost(1 << 40));
    assert!(cost(70_000) < 10);
}

#[test]
fn constants() {
    for (at, value) in [
        (8, 0x2_0000_0002),
        (8, 0x1_0000_0001),
        (24, 16),
        (24, 0),
        (32, 32),
    ] {
        assert_eq!(with_field(at, value), Class::Unsupported, "{at}");
    }
    for at in [40, 48, 56, 64, 72] {
        assert_eq!(with_field(at, 1), Class::Unsupported, "{at}");
        assert_eq!(with_field(at, 1 << 63), Class::Unsupported, "{at}");
    }
    for capacity in [u64::MAX, 1 << 55, 1 << 54] {
        assert_eq!(with_field(16, capacity), Class::Malformed);
    }
}

#[test]
fn areas_are_in_the_file_and_apart() {
    // Volatile header, directory and tables.
    for at in [80, 128, 144] {
        for sector in [0, 1 << 30, 1 << 55, u64::MAX] {
            assert_eq!(with_field(at, sector), Class::Malformed, "{at}");
        }
        for len in [1 << 30, 1 << 55, u64::MAX] {
            assert_eq!(with_field(at + 8, len), Class::Malformed, "{at}");
        }
    }
    assert_eq!(with_field(192, 0), Class::Malformed);
    assert_eq!(with_field(192, u64::MAX), Class::Malformed);
    // Over one another.
    let image = image();
    for (at, other) in [
        (80, image.directory),
        (80, image.tables),
        (144, image.directory),
    ] {
        assert_eq!(with_field(at, other / 512), Class::Malformed, "{at}");
    }
    // No room for the header, and for all entries.
    assert_eq!(with_field(88, 0), Class::Malformed);
    assert_eq!(with_field(136, 0), Class::Malformed);
    assert_eq!(with_field(16, 4096 * 8 * 64 + 1), Class::Malformed);
}

#[test]
fn volatile_header() {
    let volatile = image().volatile;
    assert_eq!(with_field(volatile, 0xcafe_babe), Class::Malformed);
    for value in [1, u64::MAX, 1 << 63] {
        assert_eq!(with_field(volatile + 24, value), Class::Unsupported);
    }
    // The others do not matter.
    let mut store = image().store;
    store.put(volatile + 8, &[0xff; 16]);
    assert!(attach(&store, &part(512, false)).is_ok());
}

#[test]
fn files_of_every_length() {
    let whole = image().store;
    for len in 0..whole.len().min(4096) {
        let mut store = whole.clone();
        store.put_size(len);
        assert_eq!(
            refused(&store, &part(512, false)),
            Class::Malformed,
            "{len}"
        );
    }
}
