// SPDX-License-Identifier: GPL-2.0

//! Where guest ranges lie.

use std::cell::Cell;

use loop_parser::contract::{Error, Extent, Map, Placement, Result, Tables};
use testkit::{
    rng::Rng,
    store::{Store, EIO},
};

use crate::{
    attach, class,
    image::{Bits, End, Spec},
    open,
    reader::Reader,
    Class,
};

const MIB: u64 = 1 << 20;

fn data(offset: u64, len: u64) -> Result<Extent> {
    Ok(Extent::Data { offset, len })
}

fn zero(len: u64) -> Result<Extent> {
    Ok(Extent::Zero { len })
}

#[test]
fn fixed_is_one_extent() {
    let device = open(Spec::fixed(MIB).build().store).unwrap();
    assert_eq!(device.resolve_read(0, MIB), data(0, MIB));
    assert_eq!(device.resolve_read(MIB - 512, 512), data(MIB - 512, 512));
    assert_eq!(
        device.resolve_write(512, 1024),
        Ok(Placement::InPlace {
            offset: 512,
            len: 1024
        })
    );
}

/// That the footer is not part of the disk is in its size, to which the driver keeps.
#[test]
fn fixed_ends_with_the_file() {
    let image = Spec::fixed(MIB).build();
    let attached = attach(&image.store).unwrap();
    assert_eq!(attached.disk.size, MIB);
    for (pos, len, expected) in [
        (0, MIB, data(0, MIB)),
        (MIB - 512, 512, data(MIB - 512, 512)),
        (MIB - 512, 4096, data(MIB - 512, 1024)),
    ] {
        assert_eq!(attached.map.resolve_read(&image.store, pos, len), expected);
    }
    for pos in [MIB + 512, MIB + 1024, u64::MAX - 511] {
        let error = attached.map.resolve_read(&image.store, pos, 512);
        assert_eq!(class(error.unwrap_err()), Class::Malformed, "{pos}");
    }
}

#[test]
fn fixed_that_grew_after_attach() {
    let mut image = Spec::fixed(MIB).build();
    let attached = attach(&image.store).unwrap();
    image.store.put(2 * MIB, &Spec::fixed(2 * MIB).footer());
    let read = attached.map.resolve_read(&image.store, 0, 2 * MIB);
    assert_eq!(read, data(0, 2 * MIB));
}

#[test]
fn fixed_that_was_cut_after_attach() {
    let mut image = Spec::fixed(MIB).build();
    let attached = attach(&image.store).unwrap();
    image.store.put_size(4096 + 511);
    let read = |pos| attached.map.resolve_read(&image.store, pos, MIB);
    assert_eq!(read(0), data(0, 4096));
    assert_eq!(read(3584), data(3584, 512));
    assert_eq!(class(read(4096).unwrap_err()), Class::Malformed);
    assert_eq!(class(read(MIB - 512).unwrap_err()), Class::Malformed);
}

#[test]
fn positions_outside_a_dynamic_disk() {
    let mut spec = Spec::dynamic(3 * 4096 + 512, 4096);
    // The BAT has entries there.
    spec.entries = Some(64);
    let image = spec.build();
    let attached = attach(&image.store).unwrap();
    for pos in [64 * 4096, 65 * 4096, u64::MAX - 511] {
        let read = attached.map.resolve_read(&image.store, pos, 512);
        assert_eq!(read, Err(EIO), "{pos}");
        let write = attached.map.resolve_write(&image.store, pos, 512);
        assert_eq!(write, Err(EIO), "{pos}");
    }
    // A length that reaches beyond is cut.
    let read = attached.map.resolve_read(&image.store, 3 * 4096, MIB);
    assert_eq!(read, zero(61 * 4096));
}

#[test]
fn runs_of_unallocated_blocks_are_merged() {
    let spec = Spec::dynamic(16 * 4096, 4096).with_blocks(&[(5, Bits::Ones)]);
    let image = spec.build();
    let data_at = image.starts[0] + 512;
    let device = open(image.store).unwrap();
    let size = 16 * 4096;
    assert_eq!(device.resolve_read(0, size), zero(5 * 4096));
    assert_eq!(device.resolve_read(512, size - 512), zero(5 * 4096 - 512));
    assert_eq!(device.resolve_read(512, 1024), zero(1024));
    assert_eq!(device.resolve_read(4096, 4096), zero(4096));
    assert_eq!(device.resolve_read(5 * 4096, size / 2), data(data_at, 4096));
    assert_eq!(
        device.resolve_read(5 * 4096 + 512, 512),
        data(data_at + 512, 512)
    );
    assert_eq!(device.resolve_read(6 * 4096, 10 * 4096), zero(10 * 4096));
}

#[test]
fn merging_is_bounded() {
    let device = open(Spec::dynamic(1 << 40, 1 << 21).build().store).unwrap();
    let before = device.store.loads();
    let extent = device.resolve_read(0, 1 << 40);
    let loads = device.store.loads() - before;
    assert!(loads <= 130, "{loads}");
    assert_eq!(extent, zero(129 << 21));
}

#[test]
fn merging_stops_where_a_fault_begins() {
    let mut image = Spec::dynamic(16 * 4096, 4096).build();
    image.set_entry(3, 0);
    let device = open(image.store).unwrap();
    assert_eq!(device.resolve_read(0, 16 * 4096), zero(3 * 4096));
    let error = device.resolve_read(3 * 4096, 512).unwrap_err();
    assert_eq!(class(error), Class::Malformed);
}

/// Every start and length in blocks with all kinds of bitmaps, against one bit at a time.
#[test]
fn bitmaps_are_honoured() {
    for block_size in [512u32, 1024, 2048, 4096, 32768, 65536, 131072] {
        for seed in 0..8 {
            let blocks = [(0, Bits::Mixed(seed)), (2, Bits::Mixed(seed + 100))];
            let spec = Spec::dynamic(u64::from(block_size) * 3, block_size).with_blocks(&blocks);
            check_runs(&spec, seed);
        }
    }
}

fn check_runs(spec: &Spec, seed: u64) {
    let image = spec.build();
    let starts = image.starts.clone();
    let expected = Reader::open(&image.store).unwrap().disk();
    let device = open(image.store).unwrap();
    assert!(device.read(0, spec.size).unwrap() == expected);

    let block = u64::from(spec.block_size);
    let mut rng = Rng::new(seed);
    for _ in 0..200 {
        let sector = rng.below(block / 512);
        let len = 1 + rng.below(block / 512 - sector);
        let bits = spec.blocks[0].1;
        let mut run = 1;
        while run < len && bits.get(sector + run) == bits.get(sector) {
            run += 1;
        }
        let expected = if bits.get(sector) {
            let offset = starts[0] + spec.bitmap_len() + sector * 512;
            data(offset, run * 512)
        } else {
            zero(run * 512)
        };
        assert_eq!(device.resolve_read(sector * 512, len * 512), expected);
    }
}

/// 32 loads for 1 MiB: 2048 bits in words of 64.
#[test]
fn bitmap_is_read_by_words() {
    let spec = Spec::dynamic(4 * MIB, 2 << 20).with_blocks(&[(0, Bits::Ones)]);
    let image = spec.build();
    let device = open(image.store).unwrap();
    for (pos, len, most) in [(0, MIB, 33), (MIB, MIB, 33), (4096, MIB, 34), (0, 512, 2)] {
        let before = device.store.loads();
        let extent = device.resolve_read(pos, len).unwrap();
        let loads = device.store.loads() - before;
        assert!(matches!(extent, Extent::Data { len: got, .. } if got == len));
        assert!(loads <= most, "{loads} loads for {len} at {pos}");
    }
    // Bounded in any case.
    let before = device.store.loads();
    device.resolve_read(0, 2 * MIB).unwrap();
    assert!(device.store.loads() - before <= 129);
}

#[test]
fn large_blocks_take_several_calls() {
    let spec = Spec::dynamic(16 * MIB, 16 << 20).with_blocks(&[(0, Bits::Ones)]);
    let image = spec.build();
    let device = open(image.store).unwrap();
    let before = device.store.loads();
    let extent = device.resolve_read(512, 16 * MIB - 512).unwrap();
    assert!(device.store.loads() - before <= 129);
    assert!(matches!(extent, Extent::Data { len, .. } if len == 4 * MIB - 512));
}

/// Where an entry may point: one sector less is too little, one more too much.
#[test]
fn entries_are_checked_at_every_use() {
    // Footer 0..512, header 512..1536, BAT 1536..1600: the first block can begin at 2048.
    let mut spec = Spec::dynamic(16 * 4096, 4096);
    spec.end = End::Missing;
    let mut image = spec.build();
    image.store.put_size(64 * 512);
    let attached = attach(&image.store).unwrap();
    // A block has 1 + 8 sectors: the last one begins at 55.
    for (entry, is_valid) in [
        (0, false),
        (1, false),
        (2, false),
        (3, false),
        (4, true),
        (5, true),
        (55, true),
        (56, false),
        (63, false),
        (64, false),
        (0x7fff_ffff, false),
        (0x8000_0000, false),
        (0xffff_fff6, false),
        (0xffff_fffe, false),
    ] {
        image.set_entry(1, entry);
        let read = attached.map.resolve_read(&image.store, 4096, 512);
        let write = attached.map.resolve_write(&image.store, 4096, 512);
        if is_valid {
            assert!(read.is_ok() && write.is_ok(), "{entry}");
            continue;
        }
        for error in [read.unwrap_err(), write.unwrap_err()] {
            assert_eq!(class(error), Class::Malformed, "{entry}");
            assert_eq!(error.fault().unwrap().at, 1536 + 4, "{entry}");
        }
    }
}

/// Blocks in front of and between the headers are fine, if they touch none.
#[test]
fn blocks_between_the_headers() {
    let mut spec = Spec::dynamic(16 * 4096, 4096);
    spec.header_at = 512 * 20;
    spec.table_at = 512 * 40;
    let mut image = spec.build();
    image.store.put_size(512 * 100);
    let attached = attach(&image.store).unwrap();
    for (entry, is_valid) in [
        (0, false),
        (1, true),
        (11, true),
        (12, false),
        (21, false),
        (22, true),
        (31, true),
        (32, false),
        (40, false),
        (41, true),
    ] {
        image.set_entry(0, entry);
        let read = attached.map.resolve_read(&image.store, 0, 512);
        assert_eq!(read.is_ok(), is_valid, "{entry}");
    }
}

#[test]
fn blocks_past_four_gib() {
    let mut image = Spec::dynamic(16 * 4096, 4096).build();
    // The last entries that the format has, at just under 2 TiB.
    for entry in [0x0080_0000u32, 0x0100_0001, 0xffff_fffe] {
        let start = u64::from(entry) * 512;
        image.set_entry(2, entry);
        image.store.put(start, &[0xff; 512]);
        image.store.put(start + 512, &[0xa5; 4096]);
        let device = open(image.store.clone()).unwrap();
        assert_eq!(device.read(2 * 4096, 4096).unwrap(), [0xa5; 4096]);
        assert_eq!(
            device.resolve_write(2 * 4096, 4096),
            Ok(Placement::InPlace {
                offset: start + 512,
                len: 4096
            })
        );
    }
}

#[test]
fn writes_to_unallocated_blocks() {
    // The last block has its full size, wherever the disk ends.
    let device = open(Spec::dynamic(2 * 4096 + 1024, 4096).build().store).unwrap();
    for (pos, len, unit_pos, unit_len) in [
        (0, 512, 0, 4096),
        (3584, 8192 - 3584, 0, 4096),
        (4096, 512, 4096, 4096),
        (8192, 512, 8192, 4096),
        (8192 + 512, 512, 8192, 4096),
    ] {
        let expected = Placement::Allocate {
            pos: unit_pos,
            len: unit_len,
        };
        assert_eq!(device.resolve_write(pos, len), Ok(expected));
    }
}

/// The block may be discarded before they are made ready: the unit is the whole of it.
#[test]
fn writes_to_clear_sectors() {
    let spec = Spec::dynamic(4 * MIB - 256 * 1024, 2 << 20)
        .with_blocks(&[(0, Bits::Zeros), (1, Bits::Zeros)]);
    let device = open(spec.build().store).unwrap();
    for (pos, unit_pos) in [
        (0, 0),
        (2 * MIB - 512, 0),
        (2 * MIB + 512, 2 * MIB),
        (4 * MIB - 512 * 1024, 2 * MIB),
    ] {
        let expected = Placement::Allocate {
            pos: unit_pos,
            len: 2 * MIB,
        };
        assert_eq!(device.resolve_write(pos, 512), Ok(expected));
    }
}

#[test]
fn a_write_in_place_ends_where_clear_bits_begin() {
    let spec = Spec::dynamic(65536, 65536).with_blocks(&[(0, Bits::Mixed(3))]);
    let device = open(spec.build().store).unwrap();
    for sector in 0..128 {
        match device.resolve_write(sector * 512, 65536 - sector * 512) {
            Ok(Placement::InPlace { len, .. }) => {
                assert!((sector..sector + len / 512).all(|s| Bits::Mixed(3).get(s)));
                let next = sector + len / 512;
                assert!(next == 128 || !Bits::Mixed(3).get(next));
            }
            Ok(Placement::Allocate { pos: 0, len: 65536 }) => {
                assert!(!Bits::Mixed(3).get(sector));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Tables of which only the first few loads are in the page cache.
struct Cached<'a> {
    store: &'a Store,
    hits: Cell<u32>,
}

impl Tables for Cached<'_> {
    fn size(&self) -> Result<u64> {
        self.store.size()
    }

    fn load(&self, offset: u64, buf: &mut [u8]) -> Result {
        match self.hits.get().checked_sub(1) {
            Some(left) => self.hits.set(left),
            None => return Err(Error::WouldBlock),
        }
        self.store.load(offset, buf)
    }
}

/// What is not in the page cache is never guessed at.
#[test]
fn would_block_is_passed_on() {
    let blocks = [(0, Bits::Ones), (1, Bits::Mixed(9))];
    let spec = Spec::dynamic(MIB, 65536).with_blocks(&blocks);
    let image = spec.build();
    let attached = attach(&image.store).unwrap();
    for pos in [0, 512, 65536, 2 * 65536] {
        let whole = attached.map.resolve_read(&image.store, pos, MIB - pos);
        let mut hits = 0;
        loop {
            let cached = Cached {
                store: &image.store,
                hits: Cell::new(hits),
            };
            match attached.map.resolve_read(&cached, pos, MIB - pos) {
                Err(Error::WouldBlock) => hits += 1,
                other => {
                    assert_eq!(other, whole);
                    break;
                }
            }
        }
        assert!(hits > 1);
    }
}

/// The table may be gone by the time it is read.
#[test]
fn store_errors_are_passed_on() {
    let mut image = Spec::dynamic(MIB, 4096).build();
    let attached = attach(&image.store).unwrap();
    image.store.put_size(1536);
    assert_eq!(attached.map.resolve_read(&image.store, 0, 512), Err(EIO));
    assert_eq!(attached.map.resolve_write(&image.store, 0, 512), Err(EIO));
}
