// SPDX-License-Identifier: GPL-2.0

//! Where guest ranges lie.

use loop_parser::contract::{Extent, Placement};

use crate::{
    class,
    image::{entry, Fill, Image, Spec},
    open, Class,
};

/// Three tables of 16 MiB, the second of which is not there; the last grain has 3 sectors.
fn spec() -> Spec {
    Spec::new(70_003).with_grains(&[
        (0, Fill::Data(3)),
        (1, Fill::Data(4)),
        (2, Fill::Data(5)),
        (3, Fill::Zero),
        (4, Fill::Unmapped(0)),
        (5, Fill::Unmapped(4)),
        (6, Fill::Missing),
        // The number is split in the entry.
        (7, Fill::Data(4096 + 7)),
        (8, Fill::Data(4096 * 3)),
        (4095, Fill::Data(0)),
        (8192, Fill::Data(2)),
        (8750, Fill::Data(1)),
    ])
}

fn at(number: u64, image: &Image, place: u64) -> (u64, u64) {
    (number * 4096, image.grains + place * 4096)
}

#[test]
fn content_is_right() {
    for is_reversed in [false, true] {
        let image = Spec {
            is_reversed,
            ..spec()
        }
        .build();
        let device = open(&image.store, false).unwrap();
        assert_eq!(device.disk.size, 70_003 * 512);
        assert!(device.read(0, device.disk.size).unwrap() == image.disk);
        for pos in (0..100).chain(69_900..70_003).map(|sector| sector * 512) {
            let read = device.read(pos, 512).unwrap();
            assert!(read[..] == image.disk[pos as usize..][..512]);
        }
    }
}

#[test]
fn runs_are_one_extent() {
    let image = spec().build();
    let (_, offset) = at(0, &image, 3);
    for has_parent in [false, true] {
        let device = open(&image.store, has_parent).unwrap();
        let resolve = |pos: u64| device.resolve_read(pos, device.disk.size - pos).unwrap();
        assert_eq!(resolve(0), Extent::Data { offset, len: 12288 });
        let inner = Extent::Data {
            offset: offset + 4608,
            len: 12288 - 4608,
        };
        assert_eq!(resolve(4608), inner);
        // Zeros whatever lies below, up to where that shows.
        let len = match has_parent {
            true => 3 * 4096,
            false => 4 * 4096,
        };
        assert_eq!(resolve(3 * 4096), Extent::Zero { len });
        let (pos, offset) = at(7, &image, 4096 + 7);
        assert_eq!(resolve(pos), Extent::Data { offset, len: 4096 });
    }
    let device = open(&image.store, true).unwrap();
    let below = device.resolve_read(6 * 4096, 8192).unwrap();
    assert_eq!(below, Extent::Parent { len: 4096 });
    // Where there is no table, up to the next one.
    let below = device.resolve_read(4096 * 4096 + 512, 1 << 30);
    assert_eq!(
        below.unwrap(),
        Extent::Parent {
            len: (16 << 20) - 512
        }
    );
}

#[test]
fn lookups_are_bounded() {
    let image = Spec::new(8 * 4096)
        .with_grains(&[(4000, Fill::Missing)])
        .build();
    let device = open(&image.store, false).unwrap();
    let before = device.store.loads();
    let extent = device.resolve_read(0, 16 << 20).unwrap();
    let loads = device.store.loads() - before;
    assert!(loads <= 130, "{loads}");
    assert!(matches!(extent, Extent::Zero { len } if len >= 128 * 4096));
}

#[test]
fn nothing_is_written_in_place() {
    let image = spec().build();
    let device = open(&image.store, false).unwrap();
    for number in [0, 3, 6, 4095, 5000, 8750] {
        let placement = device.resolve_write(number * 4096 + 512, 512).unwrap();
        let expected = Placement::Allocate {
            pos: number * 4096,
            len: 4096,
        };
        assert_eq!(placement, expected);
    }
}

#[test]
fn entries_of_tables() {
    let malformed = |value: u64| {
        let mut image = spec().build();
        image.store.put(image.entries[&1], &value.to_le_bytes());
        let device = open(&image.store, false).unwrap();
        assert_eq!(device.read(4096, 512).map_err(class), Err(Class::Malformed));
        // What lies around it is as it was.
        assert!(device.read(0, 4096).unwrap()[..] == image.disk[..4096]);
        assert!(device.read(8192, 8192).unwrap()[..] == image.disk[8192..16384]);
    };
    // Of no type, with and without a number; missing, but with a number.
    for kind in 4..16 {
        malformed(kind << 60);
        malformed(kind << 60 | 1 << 48);
    }
    for value in [1, 1 << 48, 1 << 59] {
        malformed(value);
    }
    // The first grain that is not all in the file, and the last one of all.
    malformed(entry(Fill::Data(4096 * 3 + 1)));
    malformed(3 << 60 | ((1 << 60) - 1));
    malformed(3 << 60 | 1 << 47);
}

#[test]
fn entries_of_the_directory() {
    // Of no type; a table behind the last one; one that no file can have.
    for value in [
        1,
        0x2000_0000 << 32,
        0x1000_0001 << 32,
        0x1000_0000 << 32 | 2,
        u64::MAX,
    ] {
        let mut image = spec().build();
        image
            .store
            .put(image.directory + 16, &u64::to_le_bytes(value));
        let device = open(&image.store, false).unwrap();
        let read = device.read(8192 * 4096, 512);
        assert_eq!(read.map_err(class), Err(Class::Malformed), "{value:x}");
        let before = device.read(0, 8192 * 4096).unwrap();
        assert!(before[..] == image.disk[..8192 * 4096]);
    }
    let last = 0x1000_0000 << 32 | 0xffff_ffff_u64;
    let mut image = spec().build();
    image.store.put(image.directory + 16, &last.to_le_bytes());
    let device = open(&image.store, false).unwrap();
    let read = device.read(8192 * 4096, 512);
    assert_eq!(read.map_err(class), Err(Class::Malformed));
}

/// The file ends before its grains and tables do.
#[test]
fn cut() {
    let whole = spec().build();
    let mut sizes: Vec<u64> = (whole.grains..whole.store.len()).step_by(1 << 20).collect();
    sizes.extend((0..40).map(|sectors| whole.grains + sectors * 512));
    for len in sizes {
        let mut store = whole.store.clone();
        store.put_size(len);
        let device = open(&store, false).unwrap();
        for (number, place) in [(0, 3), (1, 4), (4095, 0), (8192, 2), (7, 4096 + 7)] {
            let (pos, offset) = at(number, &whole, place);
            match device.read(pos, 4096) {
                Ok(read) => assert!(read[..] == whole.disk[pos as usize..][..4096]),
                Err(error) => {
                    assert!(offset + 4096 > len);
                    assert_eq!(class(error), Class::Malformed);
                }
            }
        }
    }
}
