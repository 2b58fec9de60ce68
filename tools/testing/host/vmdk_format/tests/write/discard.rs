// SPDX-License-Identifier: GPL-2.0

//! Discards and write-zeroes.

use loop_parser::contract::{Discard, Extent};
use testkit::device::Device;

use crate::{
    image::{check, disk, Header, Kind, Spec},
    open::{below, open, open_on},
    rules::{child, kinds},
};

const G: u64 = 4096;
const SIZE: u64 = 1 << 20;
const ALL: [Discard; 3] = [Discard::Forget, Discard::Zero, Discard::ZeroInPlace];

/// What a device says that it can, and what the format can say.
#[test]
fn features() {
    for spec in kinds() {
        for under in [0, SIZE] {
            let spec = if under > 0 {
                child(&spec)
            } else {
                spec.clone()
            };
            let device = open_on(&spec, spec.build().store, under).unwrap();
            let expected = under == 0 || spec.has_zero_grains;
            let features = device.disk.features;
            assert_eq!(
                (features.discard, features.write_zeroes),
                (expected, expected)
            );
            assert!(!features.reuses_space);
        }
    }
}

/// Whole grains, parts of them, the end of the disk; what is allocated, zero, and the parent's.
#[test]
fn ranges() {
    for spec in kinds() {
        for under in [0, SIZE] {
            let mut spec = if under > 0 {
                child(&spec)
            } else {
                spec.clone()
            };
            if under > 0 && !spec.has_zero_grains {
                continue;
            }
            spec.size -= 3;
            let size = spec.bytes();
            for how in ALL {
                let mut device = open_on(&spec, spec.build().store, under).unwrap();
                device.write(100 * G, &[1; 9 * G as usize]).unwrap();
                device.write(size - 512, &[1; 512]).unwrap();
                let mut shadow = device.read(0, size).unwrap();
                for (pos, len) in [
                    (512, 1024),
                    (0, 3 * G),
                    (69 * G, 2 * G + 512),
                    (100 * G + 512, 3 * G),
                    (104 * G, 4 * G),
                    (120 * G, 80 * G),
                    (size - 2 * G, 2 * G),
                ] {
                    device.discard(pos, len, how).unwrap();
                    let range = pos as usize..(pos + len) as usize;
                    let now = device.read(pos, len).unwrap();
                    if how == Discard::Forget {
                        let is_old = |at: usize| now[at] == shadow[range.start + at];
                        assert!((0..now.len()).all(|at| now[at] == 0 || is_old(at)));
                    } else {
                        assert!(now.iter().all(|it| *it == 0), "{how:?} {pos}");
                    }
                    shadow[range].copy_from_slice(&now);
                }
                // What has lost its place is not given to another.
                device.write(100 * G, &[2; 12 * G as usize]).unwrap();
                shadow[100 * G as usize..][..12 * G as usize].fill(2);
                device.write(9 * G + 512, &[2; 512]).unwrap();
                shadow[9 * G as usize + 512..][..512].fill(2);
                assert!(device.read(0, size).unwrap() == shadow);
                let store = device.close().unwrap();
                check(&store);
                assert!(disk(&store, &below(under, size)) == shadow);
            }
        }
    }
}

/// Neighbours are given back together, and leave what the format has for them.
#[test]
fn entries() {
    for has_zero_grains in [false, true] {
        let mut spec = Spec::new(SIZE / 512, 8).with_grains(&[4, 5, 6, 7]);
        spec.has_zero_grains = has_zero_grains;
        let mut device = open(spec.build().store).unwrap();
        let syncs = device.store.syncs();
        device.discard(4 * G, 4 * G, Discard::Zero).unwrap();
        // One for the mark, one before the grains are punched.
        assert_eq!(device.store.syncs() - syncs, 2);
        let header = Header::load(&device.store);
        for directory in header.directories() {
            for grain in 4..8 {
                let entry = header.entry(&device.store, directory, grain);
                assert_eq!(entry, u64::from(has_zero_grains));
            }
        }
        let zeros = device.resolve_read(0, SIZE).unwrap();
        assert_eq!(zeros, Extent::Zero { len: 128 * G });
    }
}

/// Space that is kept for zeros.
#[test]
fn kept_in_place() {
    for spec in kinds() {
        let image = spec.build();
        let grain = spec.grain_len();
        let (_, place) = image.entries[&2];
        let mut device = open_on(&spec, image.store, 0).unwrap();
        device.discard(0, 4 * grain, Discard::ZeroInPlace).unwrap();
        let found = device.resolve_read(2 * grain, grain).unwrap();
        assert_eq!(
            found,
            Extent::Data {
                offset: place,
                len: grain
            }
        );
        assert!(device.read(0, 4 * grain).unwrap().iter().all(|it| *it == 0));
        check(&device.close().unwrap());
    }
}

/// Over a parent zeros need a table of their own.
#[test]
fn hides_the_parent() {
    let spec = Spec::new(SIZE / 512, 8)
        .with_entries(64)
        .without_tables()
        .with_zeros(&[])
        .on("00000001", "base.vmdk");
    let before = spec.build().store.len();
    let mut device = open_on(&spec, spec.build().store, SIZE).unwrap();
    device.discard(3 * G, 80 * G, Discard::Forget).unwrap();
    assert_eq!(device.store.len(), before);
    device.discard(3 * G, 80 * G, Discard::Zero).unwrap();
    device.discard(90 * G, 512, Discard::Zero).unwrap();
    let mut shadow = below(SIZE, SIZE);
    shadow[3 * G as usize..83 * G as usize].fill(0);
    shadow[90 * G as usize..][..512].fill(0);
    assert!(device.read(0, SIZE).unwrap() == shadow);
    let store = device.close().unwrap();
    check(&store);
    assert!(disk(&store, &below(SIZE, SIZE)) == shadow);
    let header = Header::load(&store);
    assert_eq!(header.entry(&store, header.directory, 3), 1);
}

/// The third grain is discarded and written, in turns.
fn discard_again_and_again(device: &mut Device, grain: u64) {
    for round in 0..100 {
        for how in ALL {
            device.discard(2 * grain, grain, how).unwrap();
            let all = device.read(2 * grain, grain).unwrap();
            assert!(all.iter().all(|it| *it == 0));
            device.write(2 * grain, &[round; 512]).unwrap();
        }
    }
}

/// A block device has no other place for what is written there again.
#[test]
fn block_devices() {
    for spec in kinds() {
        let image = spec.build();
        let room = image.store.len().next_multiple_of(G) + 2 * G + 3 * 16384;
        let store = image.store.into_device(room, 0xdb);
        let grain = spec.grain_len();
        let mut device = open_on(&spec, store, 0).unwrap();
        discard_again_and_again(&mut device, grain);
        check(&device.close().unwrap());
    }
}

/// A file would grow for ever if what it cannot give back were not used again.
#[test]
fn no_holes() {
    for spec in kinds() {
        let image = spec.build();
        let grain = spec.grain_len();
        let mut device = open_on(&spec, image.store.without_holes(), 0).unwrap();
        device.write(2 * grain, &[1; 512]).unwrap();
        let size = device.store.len();
        discard_again_and_again(&mut device, grain);
        assert_eq!(device.store.len(), size);
        check(&device.close().unwrap());
    }
}

/// No discard is the reason that there are no sector numbers left.
#[test]
fn near_the_largest_file() {
    let spec = Spec::new(SIZE / 512, 8).with_grains(&[2]);
    for (size, is_freed) in [(1 << 40, true), ((1 << 41) - SIZE, false)] {
        let mut image = spec.build();
        image.store.put_size(size);
        let mut device = open(image.store).unwrap();
        device.discard(2 * G, G, Discard::Zero).unwrap();
        let zeros = matches!(device.resolve_read(2 * G, G).unwrap(), Extent::Zero { .. });
        assert_eq!(zeros, is_freed);
        assert_eq!(device.read(2 * G, 512).unwrap(), [0; 512]);
    }
}

/// A grain that the end of the file cuts, at no multiple of the grain, is given back; then the file
/// grows. The place is not handed out: it may be punched later.
#[test]
fn cut_grain_is_not_handed_out() {
    let spec = Spec::new(3 * 8, 8).with_grains(&[0, 1, 2]);
    let mut image = spec.build();
    let (at, place) = image.entries[&2];
    let moved = place + 1024;
    let header = Header::load(&image.store);
    let redundant = crate::image::get32(&image.store, header.redundant.unwrap()) * 512 + 8;
    for at in [at, redundant] {
        crate::image::put32(&mut image.store, at, moved / 512);
    }
    image.store.put_size(moved + 2048);
    let mut device = open(image.store).unwrap();
    device.write(2 * G, &[1; 2048]).unwrap();
    assert!(device.read(2 * G, G).is_err());
    device.discard(2 * G, G, Discard::Zero).unwrap();
    device.write(2 * G, &[2; 512]).unwrap();
    let Extent::Data { offset, .. } = device.resolve_read(2 * G, G).unwrap() else {
        panic!("nothing there");
    };
    assert!(offset >= moved + G);
    assert_eq!(Header::load(&device.store).kind, Kind::Sparse);
}
