// SPDX-License-Identifier: GPL-2.0

//! Where guest ranges lie.

use loop_parser::contract::{Error, Extent, Placement};

use crate::{
    image::{disk, put32, Header, Kind, Spec},
    open::{below, open, open_on},
};

const G: u64 = 4096;

/// Runs of zeros, of the parent's, and of data, in one table and across tables.
#[test]
fn extents() {
    let spec = Spec::new(2048, 8)
        .with_entries(64)
        .with_grains(&[0, 1, 2, 9, 8, 63, 64]);
    let image = spec.build();
    let place = |grain: u64| image.entries[&grain].1;
    let device = open(image.store.clone()).unwrap();
    let data = |grain: u64, within: u64, len: u64| Extent::Data {
        offset: place(grain) + within,
        len,
    };
    let resolve = |pos: u64, len: u64| device.resolve_read(pos, len).unwrap();
    assert_eq!(resolve(512, 1 << 20), data(0, 512, 3 * G - 512));
    assert_eq!(resolve(512, 512), data(0, 512, 512));
    assert_eq!(resolve(3 * G, 1 << 19), Extent::Zero { len: 5 * G });
    assert_eq!(resolve(8 * G, 2 * G), data(8, 0, G));
    assert_eq!(resolve(9 * G, 2 * G), data(9, 0, G));
    assert_eq!(resolve(63 * G, 4 * G), data(63, 0, 2 * G));
    assert_eq!(resolve(200 * G, 56 * G), Extent::Zero { len: 56 * G });
    let allocate = Ok(Placement::Allocate { pos: 3 * G, len: G });
    assert_eq!(device.resolve_write(3 * G + 512, 512), allocate);
    let in_place = Ok(Placement::InPlace {
        offset: place(1) + 1024,
        len: 2 * G - 1024,
    });
    assert_eq!(device.resolve_write(G + 1024, 1 << 19), in_place);
}

#[test]
fn parent() {
    for spec in [
        Spec::new(2048, 8)
            .with_grains(&[1])
            .with_zeros(&[3])
            .on("00000001", "base.vmdk"),
        Spec::cowd(2048, 8).with_grains(&[1]),
    ] {
        let device = open_on(&spec, spec.build().store, 1 << 20).unwrap();
        assert_eq!(
            device.resolve_read(512, 4 * G).unwrap(),
            Extent::Parent { len: G - 512 }
        );
        let found = device.resolve_read(3 * G, G).unwrap();
        match spec.kind {
            Kind::Sparse => assert_eq!(found, Extent::Zero { len: G }),
            Kind::Cowd => assert_eq!(found, Extent::Parent { len: G }),
        }
        let expected = disk(&device.store, &below(1 << 20, 1 << 20));
        assert!(device.read(0, 1 << 20).unwrap() == expected);
    }
}

/// A 1 is a sector number unless there are zero grains: that of the descriptor.
#[test]
fn one() {
    let mut image = Spec::new(2048, 8).with_grains(&[4]).build();
    let (at, _) = image.entries[&4];
    put32(&mut image.store, at, 1);
    let device = open(image.store.clone()).unwrap();
    let error = device.resolve_read(4 * G, G).unwrap_err();
    assert!(
        matches!(error, Error::Malformed(it) if it.at == at),
        "{error:?}"
    );
    image.store.put(8, &[7]);
    let device = open(image.store).unwrap();
    assert_eq!(device.resolve_read(4 * G, G), Ok(Extent::Zero { len: G }));
}

/// Entries that cannot be right: the I/O fails, with the place of the entry. Others are served.
#[test]
fn bad_entries() {
    for spec in [
        Spec::new(2048, 8).with_grains(&[2, 3]),
        Spec::cowd(2048, 8).with_grains(&[2, 3]),
    ] {
        let image = spec.build();
        let header = Header::load(&image.store);
        let end = image.store.len() / 512;
        let (at, _) = image.entries[&3];
        for bad in [1, header.directory / 512, end, end + 1, u64::from(u32::MAX)] {
            let mut store = image.store.clone();
            put32(&mut store, at, bad);
            let device = open(store).unwrap();
            let error = device.resolve_read(3 * G, G).unwrap_err();
            assert!(
                matches!(error, Error::Malformed(it) if it.at == at),
                "{bad}: {error:?}"
            );
            assert!(device.resolve_write(3 * G, G).is_err());
            // A run ends in front of it.
            let run = device.resolve_read(2 * G, 2 * G).unwrap();
            assert!(matches!(run, Extent::Data { len: G, .. }));
        }
        for bad in [1, header.directory / 512, end, u64::from(u32::MAX)] {
            let mut store = image.store.clone();
            put32(&mut store, header.directory, bad);
            let device = open(store).unwrap();
            let error = device.resolve_read(0, G).unwrap_err();
            let at = header.directory;
            assert!(
                matches!(error, Error::Malformed(it) if it.at == at),
                "{bad}: {error:?}"
            );
        }
    }
}

/// The end of the file cuts the last grain, as the end of the disk does.
#[test]
fn cut_grain() {
    let spec = Spec::new(2 * 8 + 3, 8).with_grains(&[0, 1, 2]);
    let image = spec.build();
    let (at, place) = image.entries[&2];
    let size = spec.bytes();
    let mut store = image.store.clone();
    store.put_size(place + 3 * 512);
    let device = open(store.clone()).unwrap();
    let expected = disk(&image.store, &[]);
    assert!(device.read(0, size).unwrap() == expected);
    // One sector less is one too few; a part of a sector is none.
    store.put_size(place + 3 * 512 - 1);
    let device = open(store).unwrap();
    assert!(device.read(0, size - 512).unwrap() == expected[..size as usize - 512]);
    let error = device.resolve_read(size - 512, 512).unwrap_err();
    assert!(
        matches!(error, Error::Malformed(it) if it.at == at),
        "{error:?}"
    );
}

/// An image of which not everything is in memory can say so at every load.
#[test]
fn errors_of_the_store() {
    for spec in [Spec::new(2048, 8), Spec::cowd(2048, 8)] {
        let image = spec.with_grains(&[2]).build();
        let directory = Header::load(&image.store).directory;
        for at in [directory, image.entries[&2].0] {
            let mut device = open(image.store.clone()).unwrap();
            device.store.break_sector(at);
            assert_eq!(device.resolve_read(2 * G, G), Err(testkit::store::EIO));
            assert!(device.write(2 * G, &[1; 512]).is_err());
        }
    }
}
