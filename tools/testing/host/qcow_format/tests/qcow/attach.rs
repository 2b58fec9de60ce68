// SPDX-License-Identifier: GPL-2.0

//! What an attach says of a disk, and what it costs.

use loop_parser::contract::{Error, Map, State, Verdict};
use qcow_format::format;
use testkit::store::Store;

use crate::{
    attach,
    image::{Cluster, Spec, BACKING_FORMAT},
};

#[test]
fn versions_and_sizes() {
    for (spec, variant) in [(Spec::v2(12345, 9), "v2"), (Spec::v3(12345, 16), "v3")] {
        let store = spec.build().store;
        let disk = attach(&store).unwrap().disk;
        assert_eq!((disk.variant, disk.size), (variant, 24 * 512));
        assert_eq!(disk.unit, spec.cluster());
        assert_eq!(disk.state, State::Clean);
        assert_eq!(store.probe(format::probe_qcow2), Verdict::Mine);
        assert_eq!(store.probe(format::probe_qcow), Verdict::NotMine);
    }
}

#[test]
fn probes() {
    for (bytes, version) in [
        (&b"QFI\xfb\0\0\0\x01"[..], Some(1)),
        (b"QFI\xfb\0\0\0\x02", Some(2)),
        (b"QFI\xfb\0\0\0\x03", Some(2)),
        // There is no such version yet; it is not raw.
        (b"QFI\xfb\0\0\0\x04", Some(2)),
        (b"QFI\xfb\0\0\0\0", Some(2)),
        (b"QFI\xfb\x01\0\0\0", Some(2)),
        (b"QFI\xfb\0\0\0", None),
        (b"QFI\xfb", None),
        (b"QFI", None),
        (b"", None),
        (b"QFI\xfa\0\0\0\x02", None),
        (b"qfi\xfb\0\0\0\x02", None),
    ] {
        let store = Store::new(bytes);
        let mine = |probe| store.probe(probe) == Verdict::Mine;
        assert_eq!(mine(format::probe_qcow), version == Some(1), "{bytes:?}");
        assert_eq!(mine(format::probe_qcow2), version == Some(2), "{bytes:?}");
    }
}

#[test]
fn limits_are_accepted() {
    // Largest and smallest of everything.
    for bits in [9, 10, 16, 20, 21] {
        for order in 0..=6 {
            let mut spec = Spec::v3(1 << 20, bits);
            spec.refcount_order = order;
            assert!(attach(&spec.build().store).is_ok(), "{bits} {order}");
        }
        assert!(attach(&Spec::v2(1 << 20, bits).build().store).is_ok());
    }
    for bits in [14, 16, 21] {
        assert!(attach(&Spec::extended(1 << 20, bits).build().store).is_ok());
    }
    for length in [104, 112, 120, 512] {
        let mut spec = Spec::v3(1 << 20, 9);
        spec.header_length = length;
        assert!(attach(&spec.build().store).is_ok(), "{length}");
    }
    let mut spec = Spec::v3(1 << 20, 16);
    spec.l1_size = Some(4 << 20);
    let mut image = spec.build();
    assert!(attach(&image.store).is_ok());
    // All that such an L1 has entries for.
    image.put64(24, (4 << 20) << 29);
    assert_eq!(attach(&image.store).unwrap().disk.size, 1 << 51);
    image.put64(24, ((4 << 20) << 29) + 1);
    assert!(attach(&image.store).is_err());
}

#[test]
fn empty_disk() {
    let mut image = Spec::v3(0, 16).build();
    assert_eq!(attach(&image.store).unwrap().disk.size, 0);
    // No entry, no table.
    image.put64(40, 0);
    assert_eq!(attach(&image.store).unwrap().disk.size, 0);
}

#[test]
fn features_that_do_not_matter() {
    let mut image = Spec::v3(1 << 20, 16).build();
    // Lazy refcounts, and what there may be one day.
    image.put64(80, u64::MAX);
    // Bitmaps, raw external data, and what there may be one day.
    image.put64(88, u64::MAX);
    assert!(attach(&image.store).is_ok());
    let mut spec = Spec::v3(1 << 20, 16);
    spec.snapshots = 65536;
    assert!(attach(&spec.build().store).is_ok());
}

/// Tables can be cut by the end of the file, by less than a cluster.
#[test]
fn cut_tables() {
    let image = Spec::v3(1 << 20, 16).build();
    let mut store = image.store.clone();
    store.put_size(image.l1_at + 16);
    assert!(attach(&store).is_ok());
    store.put_size(image.l1_at + 1);
    let attached = attach(&store).unwrap();
    assert!(attached.map.resolve_read(&store, 0, 512).is_ok());
    store.put_size(image.l1_at);
    assert!(attach(&store).is_err());
}

/// The cost is the same for any size.
#[test]
fn attach_reads_little() {
    let cost = |spec: Spec| {
        let spec = spec.with_extension(BACKING_FORMAT, b"qcow2");
        let store = spec.on(b"base").build().store;
        let (loads, bytes) = (store.loads(), store.loaded_bytes());
        attach(&store).unwrap();
        assert_eq!(store.stores(), 0);
        (store.loads() - loads, store.loaded_bytes() - bytes)
    };
    for make in [Spec::v2, Spec::v3, Spec::extended] {
        let small = cost(make(1 << 30, 16));
        assert_eq!(small, cost(make(1 << 44, 16)));
        assert!(small.0 < 16 && small.1 < 4096, "{small:?}");
    }
}

#[test]
fn options_are_refused() {
    let store = Spec::v3(1 << 20, 16).build().store;
    let result = format::v2::attach(&store, "size=current", false).map(|_| ());
    assert_eq!(result, Err(Error::BadOption));
}

#[test]
fn size_is_read_again() {
    let mut image = Spec::v3(1 << 20, 12)
        .with_clusters(&[(0, Cluster::Data)])
        .build();
    let map = attach(&image.store).unwrap().map;
    for (size, expected) in [(1 << 19, 1 << 19), (1000, 512), (2 << 20, 2 << 20)] {
        image.put64(24, size);
        assert_eq!(map.reread_size(&image.store), Ok(expected));
    }
    image.put64(24, (2 << 20) + 512);
    assert_eq!(
        map.reread_size(&image.store),
        Err(Error::unsupported(
            "qcow2 disk has outgrown the L1 table that it was attached with",
            24
        ))
    );
}
