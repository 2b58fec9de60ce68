// SPDX-License-Identifier: GPL-2.0

//! Images with random damage: whatever they hold, nothing panics and no answer breaks the contract.

use loop_parser::contract::{Error, Extent, Placement};
use testkit::{device::Device, rng::Rng, store::Store};

use crate::{
    image::{Cluster, Image, Spec, BACKING_FORMAT, FEATURE_NAMES},
    open,
};

fn images() -> Vec<Image> {
    let clusters = [
        (0, Cluster::Data),
        (1, Cluster::Zero),
        (2, Cluster::ZeroAllocated),
        (3, Cluster::Compressed),
        (9, Cluster::Shared),
        (700, Cluster::Data),
    ];
    let mut snapshots = Spec::v3(4 << 20, 12).with_clusters(&clusters);
    snapshots.snapshots = 2;
    vec![
        snapshots.build(),
        Spec::v2(4 << 20, 9)
            .with_clusters(&[(0, Cluster::Data), (5, Cluster::Compressed)])
            .build(),
        Spec::extended(4 << 20, 14)
            .on(b"base")
            .with_extension(FEATURE_NAMES, &[7; 96])
            .with_extension(BACKING_FORMAT, b"raw")
            .with_clusters(&[(0, Cluster::Sub(0xff)), (1, Cluster::SubNoPlace(3 << 40))])
            .build(),
    ]
}

/// Numbers that are more likely than others to be of interest.
fn number(rng: &mut Rng, image: &Image) -> u64 {
    let places = [0, 512, image.l1_at, image.reftable_at, image.store.len()];
    let base = match rng.below(4) {
        0 => places[rng.below(5) as usize],
        1 => 1 << rng.below(64),
        2 => u64::MAX,
        _ => rng.next_u64() >> rng.below(64),
    };
    let flags = [0, 1 << 63, 1 << 62, 1][rng.below(4) as usize];
    base.wrapping_add(rng.below(3)).wrapping_sub(1) | flags
}

fn damage(rng: &mut Rng, image: &mut Image) {
    for _ in 0..1 + rng.below(3) {
        let value = number(rng, image);
        let at = match rng.below(4) {
            0 => rng.below(15) * 8,
            1 => 100 + rng.below(40) * 4,
            2 => image.l1_at + rng.below(4) * 8,
            _ => image.tables[&0] + rng.below(12) * 8,
        };
        match rng.below(2) {
            0 => image.put64(at, value),
            _ => image.put32(at, value as u32),
        }
    }
    if rng.one_in(5) {
        let len = rng.below(image.store.len() + 1);
        image.store.put_size(len);
    }
}

fn is_expected(error: Error) -> bool {
    !matches!(error, Error::WouldBlock)
}

/// Resolves everywhere; the device panics if an answer breaks the contract.
fn use_it(device: &Device, rng: &mut Rng) {
    let size = device.disk.size;
    for _ in 0..24 {
        if size == 0 {
            return;
        }
        let pos = match rng.below(3) {
            0 => rng.below(size.div_ceil(512).min(64)) * 512,
            1 => (size - 512) / 512 * 512,
            _ => rng.below(size.div_ceil(512)) * 512,
        };
        let len = (512 << rng.below(14)).min(size - pos);
        match device.resolve_read(pos, len) {
            Ok(Extent::Compressed(_)) => {
                // Damaged or not, as long as it is no panic.
                let _ = device.read(pos, 512);
            }
            Ok(_) => {}
            Err(error) => assert!(is_expected(error)),
        }
        match device.resolve_write(pos, len) {
            Ok(Placement::InPlace { offset, .. }) => assert!(offset >= device.disk.unit),
            Ok(Placement::Allocate { .. }) => {}
            Err(error) => assert!(is_expected(error)),
        }
    }
}

#[test]
fn damaged_images() {
    let mut rng = Rng::new(5);
    let images = images();
    let mut attached = 0;
    for round in 0..30_000 {
        let mut image = images[round % images.len()].clone();
        damage(&mut rng, &mut image);
        match open(image.store) {
            Ok(device) => {
                attached += 1;
                use_it(&device, &mut rng);
            }
            Err(error) => assert!(is_expected(error)),
        }
    }
    // Not all of them are so bad that nothing was tested.
    assert!(attached > 5_000, "{attached}");
}

#[test]
fn garbage() {
    let mut rng = Rng::new(6);
    for _ in 0..2_000 {
        let len = rng.below(3000) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
        for (at, byte) in b"QFI\xfb\0\0\0\x03".iter().enumerate().take(len) {
            bytes[at] = *byte;
        }
        assert!(open(Store::new(&bytes)).is_err());
    }
}
