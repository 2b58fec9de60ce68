// SPDX-License-Identifier: GPL-2.0

//! Extents and placements at the boundaries.

use loop_parser::contract::{Compression, Extent, Placement, Result};
use testkit::{device::Device, store::Store};

use crate::{
    image::{Cluster, Image, Spec},
    open,
};

const C: u64 = 4096;

fn data(offset: u64, len: u64) -> Result<Extent> {
    Ok(Extent::Data { offset, len })
}

fn zero(len: u64) -> Result<Extent> {
    Ok(Extent::Zero { len })
}

fn build(clusters: &[(u64, Cluster)]) -> (Image, Device) {
    let image = Spec::v3(4 << 20, 12).with_clusters(clusters).build();
    let device = open(image.store.clone()).unwrap();
    (image, device)
}

#[test]
fn runs_of_data() {
    let (image, device) = build(&[
        (0, Cluster::Data),
        (1, Cluster::Data),
        (2, Cluster::Shared),
        (4, Cluster::Data),
        (3, Cluster::Data),
    ]);
    let at = image.places[&0];
    assert_eq!(device.resolve_read(0, 512), data(at, 512));
    assert_eq!(device.resolve_read(512, C), data(at + 512, C));
    assert_eq!(
        device.resolve_read(2 * C - 512, C),
        data(at + 2 * C - 512, C)
    );
    // The refcount makes a difference to who writes only.
    assert_eq!(device.resolve_read(0, 1 << 20), data(at, 3 * C));
    assert_eq!(device.resolve_read(2 * C, 1 << 20), data(at + 2 * C, C));
    // The order of the file is not that of the disk.
    assert_eq!(device.resolve_read(3 * C, 1 << 20), data(at + 4 * C, C));
    assert_eq!(device.resolve_read(4 * C, 1 << 20), data(at + 3 * C, C));
    assert_eq!(device.resolve_read(5 * C, 1 << 19), zero(1 << 19));
}

#[test]
fn runs_of_zeros() {
    let (_, device) = build(&[
        (1, Cluster::Zero),
        (2, Cluster::ZeroAllocated),
        (130, Cluster::Data),
    ]);
    // Unallocated, flagged and allocated ones are alike without a backing file.
    assert_eq!(device.resolve_read(0, 4 << 20), zero(129 * C));
    assert_eq!(device.resolve_read(2 * C, 4 << 20), zero(128 * C));
    // No L2 table: as far as there is none, and on.
    assert_eq!(device.resolve_read(2 << 20, 2 << 20), zero(2 << 20));
    assert_eq!(device.resolve_read((2 << 20) - C, 2 * C), zero(2 * C));
}

#[test]
fn below() {
    let spec = Spec::v3(4 << 20, 12).on(b"base").with_clusters(&[
        (1, Cluster::Zero),
        (2, Cluster::ZeroAllocated),
        (4, Cluster::Data),
    ]);
    let device = open(spec.build().store).unwrap();
    assert_eq!(
        device.resolve_read(0, 1 << 20),
        Ok(Extent::Parent { len: C })
    );
    assert_eq!(device.resolve_read(C, 1 << 20), zero(2 * C));
    assert_eq!(
        device.resolve_read(3 * C, 1 << 20),
        Ok(Extent::Parent { len: C })
    );
    // 128 more clusters are looked at, in this L2 table.
    assert_eq!(
        device.resolve_read(5 * C, 1 << 20),
        Ok(Extent::Parent { len: 129 * C })
    );
    assert_eq!(
        device.resolve_read(2 << 20, 2 << 20),
        Ok(Extent::Parent { len: 2 << 20 })
    );
}

#[test]
fn compressed() {
    for is_zstd in [false, true] {
        let mut spec = Spec::v3(1 << 20, 12)
            .with_clusters(&[(1, Cluster::Compressed), (2, Cluster::Compressed)]);
        spec.is_zstd = is_zstd;
        let image = spec.build();
        let device = open(image.store.clone()).unwrap();
        for (pos, cluster, skip, len) in [(C, 1, 0, C), (2 * C + 512, 2, 512, C - 512)] {
            let Ok(Extent::Compressed(unit)) = device.resolve_read(pos, 1 << 19) else {
                panic!("not compressed");
            };
            assert_eq!(unit.offset, image.places[&cluster]);
            assert_eq!((unit.skip, unit.len), (skip, len));
            assert_eq!(unit.unit, 4096);
            assert_eq!((unit.offset + u64::from(unit.stored)) % 512, 0);
            let is = [Compression::Deflate, Compression::Zstd][usize::from(is_zstd)];
            assert_eq!(unit.compression, is);
        }
        assert_eq!(device.read(C, C).unwrap(), image.content(1));
        assert_eq!(device.read(2 * C, C).unwrap(), image.content(2));
        // The last one ends past the end of the file: its last sector is not whole.
        assert_ne!(device.store.len() % 512, 0);
    }
}

/// The field of the length is of another size in each.
#[test]
fn compressed_in_all_cluster_sizes() {
    for bits in 9..=21 {
        for version in [2, 3] {
            let mut spec = Spec::v3(8 << bits, bits);
            if version == 2 {
                spec = Spec::v2(8 << bits, bits);
            }
            let clusters = [
                (0, Cluster::Data),
                (1, Cluster::Compressed),
                (7, Cluster::Compressed),
            ];
            let image = spec.with_clusters(&clusters).build();
            let device = open(image.store.clone()).unwrap();
            for index in [0, 1, 7] {
                let bytes = device.read(index << bits, 1 << bits).unwrap();
                assert!(bytes == image.content(index), "{bits} {version} {index}");
            }
        }
    }
}

#[test]
fn subclusters() {
    // Subclusters of a sector: two allocated, one zero, one allocated, the rest is nobody's.
    let spec = Spec::extended(1 << 20, 14).with_clusters(&[
        (0, Cluster::Sub(0b1011 | 0b100 << 32)),
        (1, Cluster::SubNoPlace(1 << 63)),
        (2, Cluster::Data),
    ]);
    let image = spec.clone().build();
    let at = image.places[&0];
    let device = open(image.store).unwrap();
    assert_eq!(device.resolve_read(0, 1 << 20), data(at, 1024));
    assert_eq!(device.resolve_read(512, 1 << 20), data(at + 512, 512));
    assert_eq!(device.resolve_read(1024, 512), zero(512));
    assert_eq!(device.resolve_read(1024, 1 << 20), zero(512));
    assert_eq!(device.resolve_read(1536, 1 << 20), data(at + 1536, 512));
    assert_eq!(device.resolve_read(2048, 1 << 20), zero((32 << 10) - 2048));

    let device = open(spec.on(b"base").build().store).unwrap();
    assert_eq!(device.resolve_read(1024, 1 << 20), zero(512));
    let len = 2 * 16384 - 512 - 2048;
    assert_eq!(
        device.resolve_read(2048, 1 << 20),
        Ok(Extent::Parent { len })
    );
    assert_eq!(device.resolve_read(2 * 16384 - 512, 1 << 20), zero(512));
}

/// Bit 0 says nothing in an extended entry.
#[test]
fn no_zero_flag_in_extended_entries() {
    let mut image = Spec::extended(1 << 20, 14)
        .with_clusters(&[(0, Cluster::Data)])
        .build();
    let at = image.places[&0];
    image.put64(image.entries[&0], at | 1);
    let device = open(image.store).unwrap();
    assert_eq!(device.resolve_read(0, 16384), data(at, 16384));
}

#[test]
fn reserved_bits_are_masked() {
    let mut image = Spec::v3(1 << 20, 12)
        .with_clusters(&[(0, Cluster::Data)])
        .build();
    let (table, place) = (image.tables[&0], image.places[&0]);
    image.put64(image.l1_at, table | 0x7f00_0000_0000_01ff);
    image.put64(image.entries[&0], place | 0x3f00_0000_0000_01fe);
    let device = open(image.store).unwrap();
    assert_eq!(device.resolve_read(0, C), data(place, C));
}

#[test]
fn cut_files() {
    let (image, _) = build(&[(0, Cluster::Data), (1, Cluster::Data)]);
    let at = image.places[&0];
    let cut = |len: u64| {
        let mut store: Store = image.store.clone();
        store.put_size(at + C + len);
        open(store).unwrap()
    };
    let device = cut(1536);
    assert_eq!(device.resolve_read(0, 2 * C), data(at, C + 1536));
    assert_eq!(device.resolve_read(C + 1536, C - 1536), zero(C - 1536));
    // Bytes that are not there cannot be written in place.
    let allocate = Ok(Placement::Allocate { pos: C, len: C });
    assert_eq!(device.resolve_write(C + 1536, 512), allocate);
    // A part of a sector is neither to be had nor to be dropped.
    let device = cut(1537);
    assert_eq!(device.resolve_read(C, C), data(at + C, 1536));
    assert!(device.resolve_read(C + 1536, 512).is_err());
    assert_eq!(device.resolve_read(C + 2048, 512), zero(512));
    // Nothing of the cluster is there: that cannot be right.
    let device = cut(0);
    assert_eq!(device.resolve_read(0, 2 * C), data(at, C));
    assert!(device.resolve_read(C, 512).is_err());
}

/// An L2 table that was cut has no entries behind the cut.
#[test]
fn cut_l2_table() {
    for (spec, entry) in [
        (Spec::v3(1 << 20, 14), 8),
        (Spec::extended(1 << 20, 14), 16),
    ] {
        let image = spec.with_clusters(&[(0, Cluster::Zero)]).build();
        let mut store = image.store.clone();
        store.put_size(image.tables[&0] + entry);
        let device = open(store).unwrap();
        assert_eq!(device.resolve_read(0, 1 << 20), zero(1 << 20));
    }
}

#[test]
fn placements() {
    let (image, device) = build(&[
        (0, Cluster::Data),
        (1, Cluster::Data),
        (2, Cluster::Shared),
        (3, Cluster::Zero),
        (4, Cluster::ZeroAllocated),
        (5, Cluster::Compressed),
    ]);
    let offset = image.places[&0];
    let in_place = |offset, len| Ok(Placement::InPlace { offset, len });
    assert_eq!(device.resolve_write(0, 1 << 20), in_place(offset, 2 * C));
    assert_eq!(
        device.resolve_write(C + 512, 512),
        in_place(offset + C + 512, 512)
    );
    for index in [2, 3, 4, 5, 6, 600] {
        let allocate = Placement::Allocate {
            pos: index * C,
            len: C,
        };
        for within in [0, 512, C - 512] {
            assert_eq!(device.resolve_write(index * C + within, 512), Ok(allocate));
        }
    }
}

/// Not even a cluster of our own can be written if the table is somebody else's, too.
#[test]
fn shared_table() {
    let mut spec = Spec::v3(1 << 20, 12).with_clusters(&[(0, Cluster::Data)]);
    spec.owns_tables = false;
    let device = open(spec.build().store).unwrap();
    let allocate = Ok(Placement::Allocate { pos: 0, len: C });
    assert_eq!(device.resolve_write(0, 512), allocate);
}

#[test]
fn subclusters_in_place() {
    let spec = Spec::extended(1 << 20, 14).with_clusters(&[(0, Cluster::Sub(0b11 | 1 << 34))]);
    let image = spec.build();
    let device = open(image.store.clone()).unwrap();
    let offset = image.places[&0];
    let in_place = Ok(Placement::InPlace { offset, len: 1024 });
    assert_eq!(device.resolve_write(0, 1 << 20), in_place);
    let allocate = Ok(Placement::Allocate { pos: 0, len: 16384 });
    assert_eq!(device.resolve_write(1024, 512), allocate);
    assert_eq!(device.resolve_write(2048, 512), allocate);
}

/// What a read of 4 KiB in one cluster costs: an entry of the L1, and one of the L2 table.
#[test]
fn two_loads() {
    let size = 1 << 30;
    for bits in 12..=21 {
        let mut specs = vec![Spec::v2(size, bits), Spec::v3(size, bits)];
        if bits >= 14 {
            specs.push(Spec::extended(size, bits));
        }
        for spec in specs {
            let image = spec.with_clusters(&[(77, Cluster::Data)]).build();
            let device = open(image.store).unwrap();
            let loads = device.store.loads();
            let extent = device.resolve_read(77 << bits, 4096).unwrap();
            assert!(matches!(extent, Extent::Data { len: 4096, .. }));
            assert_eq!(device.store.loads() - loads, 2, "clusters of 2^{bits}");
        }
    }
}

/// No call looks at more than its share of a table.
#[test]
fn loads_are_bounded() {
    let mut clusters = Vec::new();
    for index in 0..1000 {
        clusters.push((index, Cluster::Zero));
    }
    let image = Spec::v3(1 << 30, 16).with_clusters(&clusters).build();
    let device = open(image.store).unwrap();
    for pos in [0, 1 << 20, 1 << 29] {
        let loads = device.store.loads();
        let _ = device.resolve_read(pos, 1 << 29);
        assert!(device.store.loads() - loads <= 2 * 130);
    }
}

#[test]
fn outside_of_the_disk() {
    let (_, device) = build(&[]);
    let map = crate::attach(&device.store).unwrap().map;
    use loop_parser::contract::Map;
    for pos in [4 << 20, u64::MAX - 511, 1 << 62] {
        assert!(map.resolve_read(&device.store, pos, 512).is_err());
        assert!(map.resolve_write(&device.store, pos, 512).is_err());
    }
}
