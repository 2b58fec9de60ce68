// SPDX-License-Identifier: GPL-2.0

//! Random images: what is resolved is what the second reader finds, sector by sector.

use loop_parser::contract::{Extent, Placement};
use proptest::prelude::*;
use testkit::{device::Device, store::Store};

use crate::{
    image::{Cluster, Spec},
    open,
    reader::{Reader, Sector},
};

fn cluster(is_extended: bool, version: u32) -> BoxedStrategy<Cluster> {
    if is_extended {
        // Of a subcluster: nobody's, allocated, zero; runs are more likely than not.
        let bitmap = (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(a, b, c)| {
            let zero = u64::from(a & b);
            zero << 32 | u64::from(c) & !zero
        });
        return prop_oneof![
            Just(Cluster::Data),
            Just(Cluster::Shared),
            Just(Cluster::Zero),
            Just(Cluster::ZeroAllocated),
            Just(Cluster::Compressed),
            bitmap.clone().prop_map(Cluster::Sub),
            bitmap.prop_map(|bits| Cluster::SubNoPlace(bits >> 32 << 32)),
        ]
        .boxed();
    }
    if version == 2 {
        return prop_oneof![
            4 => Just(Cluster::Data),
            1 => Just(Cluster::Shared),
            1 => Just(Cluster::Compressed),
        ]
        .boxed();
    }
    prop_oneof![
        4 => Just(Cluster::Data),
        1 => Just(Cluster::Shared),
        1 => Just(Cluster::Zero),
        1 => Just(Cluster::ZeroAllocated),
        1 => Just(Cluster::Compressed),
    ]
    .boxed()
}

/// Sound images of many shapes. Small clusters, so that there are several L2 tables.
fn spec() -> impl Strategy<Value = Spec> {
    let shape = (
        any::<bool>(),
        2u32..=3,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    (shape, 9u32..=12, 1u64..400, any::<u64>()).prop_flat_map(
        |((is_extended, version, is_zstd, has_backing, owns), bits, sectors, seed)| {
            let mut spec = match version {
                2 if !is_extended => Spec::v2(0, bits),
                _ => Spec::v3(0, bits),
            };
            spec.is_extended = is_extended;
            if is_extended {
                spec.cluster_bits += 5;
            }
            spec.is_zstd = is_zstd && spec.version == 3;
            spec.owns_tables = owns || seed % 4 > 0;
            if has_backing {
                spec.backing = Some(b"base".to_vec());
            }
            spec.size = (sectors * 512) << (spec.cluster_bits - 9);
            // Not all disks end with a cluster.
            spec.size -= seed % 7 * 512 % spec.size;
            spec.size = spec.size.clamp(512, 1 << 21);
            let count = spec.size.div_ceil(spec.cluster());
            let one = (0..count, cluster(is_extended, spec.version));
            proptest::collection::vec(one, 0..60).prop_map(move |mut clusters| {
                let mut seen = std::collections::BTreeSet::new();
                clusters.retain(|it| seen.insert(it.0));
                Spec {
                    clusters,
                    ..spec.clone()
                }
            })
        },
    )
}

/// What the backing file holds.
fn below(len: u64) -> Vec<u8> {
    (0..len).map(|i| (i / 512 % 251) as u8 + 1).collect()
}

/// The device and what is below it.
fn open_over(store: Store, below: &[u8]) -> Device {
    let device = open(store).unwrap();
    let clusters: Vec<_> = (0..below.len() as u64 / 512)
        .map(|i| (i, Cluster::Data))
        .collect();
    let mut base = Spec::v3(below.len() as u64, 9)
        .with_clusters(&clusters)
        .build();
    for (index, bytes) in (0..).zip(below.chunks(512)) {
        let at = base.places[&index];
        base.store.put(at, bytes);
    }
    device.on_top_of(open(base.store).unwrap())
}

/// Every answer is what the reader says of each of its sectors, and could not be a sector longer
/// within the cluster.
fn check_reads(device: &Device, reader: &Reader<'_>, has_backing: bool) {
    let size = device.disk.size;
    let mut pos = 0;
    while pos < size {
        let extent = device.resolve_read(pos, size - pos).unwrap();
        let len = check_extent(reader, pos, extent, has_backing);
        // From any sector on.
        let half = (len / 1024 * 512).max(512);
        let part = device.resolve_read(pos + len - half, half).unwrap();
        check_extent(reader, pos + len - half, part, has_backing);
        pos += len;
    }
}

fn check_extent(reader: &Reader<'_>, pos: u64, extent: Extent, has_backing: bool) -> u64 {
    let len = match extent {
        Extent::Data { len, .. } | Extent::Zero { len } | Extent::Parent { len } => len,
        Extent::Compressed(unit) => unit.len,
    };
    for done in (0..len).step_by(512) {
        let sector = reader.sector(pos + done);
        let is_right = match (extent, sector) {
            (Extent::Data { offset, .. }, Sector::Data(place, _)) => offset + done == place,
            (Extent::Zero { .. }, Sector::Zero) => true,
            (Extent::Zero { .. }, Sector::Below) => !has_backing,
            (Extent::Parent { .. }, Sector::Below) => has_backing,
            (Extent::Compressed(unit), Sector::Compressed(offset, within, stored)) => {
                unit.offset == offset
                    && u64::from(unit.skip) + done == within
                    && u64::from(unit.stored) == stored
            }
            _ => false,
        };
        assert!(is_right, "{pos}+{done}: {extent:?} {sector:?}");
    }
    len
}

/// In place is what the reader calls somebody's own, all of it and nothing else.
fn check_writes(device: &Device, reader: &Reader<'_>) {
    let cluster = device.disk.unit;
    for pos in (0..device.disk.size).step_by(512) {
        let own = |pos| match reader.sector(pos) {
            Sector::Data(place, true) => Some(place),
            _ => None,
        };
        match device.resolve_write(pos, device.disk.size - pos).unwrap() {
            Placement::InPlace { offset, len } => {
                for done in (0..len).step_by(512) {
                    assert_eq!(own(pos + done), Some(offset + done));
                }
            }
            Placement::Allocate { pos: start, len } => {
                assert_eq!((start, len), (pos / cluster * cluster, cluster));
                assert_eq!(own(pos), None);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn images(spec in spec(), below_sectors in 0u64..3000) {
        let store = spec.build().store;
        let reader = Reader::new(&store);
        let has_backing = spec.backing.is_some();
        let below = match has_backing {
            true => below(below_sectors * 512),
            false => Vec::new(),
        };
        let device = open_over(store.clone(), &below);
        prop_assert_eq!(device.disk.size, reader.size);
        check_reads(&device, &reader, has_backing);
        check_writes(&device, &reader);
        prop_assert!(device.read(0, reader.size).unwrap() == reader.disk(&below));
    }
}
