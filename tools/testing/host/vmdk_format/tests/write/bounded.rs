// SPDX-License-Identifier: GPL-2.0

//! What things cost.

use loop_parser::contract::{Error, Extent};

use crate::{
    image::{check, disk, put32, Header, Kind, Spec},
    open::{open, open_on, BELOW},
    rules::{child, kinds},
};

/// A read in one grain: an entry of the directory, and one of a table.
#[test]
fn two_loads() {
    for bits in 0..=16 {
        for spec in [
            Spec::new(1 << 21, 1 << bits),
            Spec::cowd(1 << 21, 1 << bits),
        ] {
            let grain = 12;
            let spec = spec.with_grains(&[grain]);
            let device = open_on(&spec, spec.build().store, 0).unwrap();
            let loads = device.store.loads();
            let extent = device.resolve_read(grain << bits << 9, 512).unwrap();
            assert!(matches!(extent, Extent::Data { len: 512, .. }));
            assert_eq!(device.store.loads() - loads, 2, "2^{bits}");
        }
    }
}

/// Grains in a row are one extent, up to a limit, and cost a load for 16 of them.
#[test]
fn runs() {
    let grains: Vec<u64> = (0..512).collect();
    for spec in [Spec::new(4096, 8), Spec::cowd(4096, 8)] {
        let spec = spec.with_grains(&grains);
        let device = open_on(&spec, spec.build().store, 0).unwrap();
        let loads = device.store.loads();
        let extent = device.resolve_read(512, 4096 * 512 - 512).unwrap();
        let is_right = matches!(extent, Extent::Data { len, .. } if len == 128 * 4096 - 512);
        assert!(is_right, "{extent:?}");
        assert!(device.store.loads() - loads <= 1 + 128 / 16);
        let loads = device.store.loads();
        let extent = device.resolve_read(200 * 4096, 8192).unwrap();
        assert!(matches!(extent, Extent::Data { len: 8192, .. }));
        assert_eq!(device.store.loads() - loads, 2);
    }
}

/// An attach costs the same whatever the size of the disk.
#[test]
fn attach() {
    let cost = |sectors: u64| {
        let store = Spec::new(sectors, 128).without_tables().build().store;
        open(store).unwrap().store.loaded_bytes()
    };
    assert_eq!(cost(1 << 12), cost(1 << 34));
}

/// A large directory that names one table again and again: nobody waits for ever.
#[test]
fn too_many_tables() {
    let mut spec = Spec::new(1 << 36, 8).without_tables().without_redundant();
    spec.grains = vec![0];
    let mut image = spec.build();
    let header = Header::load(&image.store);
    let table = image.store.get(header.directory, 4);
    let all = table.repeat(header.tables() as usize);
    image.store.put(header.directory, &all);
    let mut device = open(image.store).unwrap();
    let before = device.store.loads();
    let error = device.write(4096, &[1; 512]).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    assert!(device.store.loads() - before < 5 << 20);
    // What has a place can be written.
    device.write(0, &[1; 512]).unwrap();
}

/// The same for the repair of an image that was not closed.
#[test]
fn too_many_tables_to_repair() {
    let spec = Spec::new(1 << 36, 8).without_tables().with_grains(&[0]);
    let mut image = spec.build();
    let header = Header::load(&image.store);
    for directory in header.directories() {
        let table = image.store.get(directory, 4);
        image
            .store
            .put(directory, &table.repeat(header.tables() as usize));
    }
    image.store.put(72, &[1]);
    let mut device = open(image.store).unwrap();
    let before = device.store.loads();
    let error = device.write(4096, &[1; 512]).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    assert!(device.store.loads() - before < 20 << 20);
    // It can be read.
    assert_eq!(device.read(0, 512).unwrap(), crate::image::pattern(0));
}

/// One table is looked at again and again while it is written to; that costs no more than its size.
#[test]
fn one_look_at_the_tables() {
    for spec in kinds() {
        let mut device = open_on(&spec, spec.build().store, 0).unwrap();
        device.write(20 * 4096, &[1; 512]).unwrap();
        let loads = device.store.loads();
        for grain in 21..29 {
            device.write(grain * 4096, &[1; 512]).unwrap();
        }
        let each = (device.store.loads() - loads) / 8;
        let most = if spec.entries == 3 { 40 } else { 20 };
        assert!(each <= most, "{each} {spec:?}");
    }
}

/// Nothing that a header names twice.
#[test]
fn kinds_are_what_they_say() {
    for spec in kinds() {
        let mut store = spec.build().store;
        assert_eq!(Header::load(&store).kind, spec.kind);
        assert_eq!(
            crate::image::problem(&store, crate::image::Redundant::Equal),
            None
        );
        if spec.kind == Kind::Sparse {
            // The checker is no yes-man.
            let at = Header::load(&store).directory;
            put32(&mut store, at, 1);
            assert!(crate::image::problem(&store, crate::image::Redundant::Equal).is_some());
        }
    }
}

/// Grains of a child that are written together get their places together: what was the parent's has to be
/// durable before the entries, and that costs a sync.
#[test]
fn syncs_of_a_child() {
    const LEN: u64 = 1 << 20;
    for spec in [Spec::cowd(1 << 14, 1), child(&Spec::new(1 << 14, 8))] {
        let spec = spec.with_grains(&[40]);
        let mut device = open_on(&spec, spec.build().store, 1 << 23).unwrap();
        device.write(0, &[1; 512]).unwrap();
        let mut shadow = device.read(0, 1 << 23).unwrap();
        let syncs = device.store.syncs();
        // The table's end, and a grain that has its place, are somewhere in it.
        device.write(512 * 3, &[2; LEN as usize]).unwrap();
        shadow[512 * 3..][..LEN as usize].fill(2);
        let grains = LEN / 128 / spec.grain_len();
        assert!(device.store.syncs() - syncs <= grains + 4, "{spec:?}");
        assert!(device.read(0, 1 << 23).unwrap() == shadow);
        let store = device.close().unwrap();
        check(&store);
        assert!(disk(&store, &[BELOW; 1 << 23]) == shadow);
    }
}
