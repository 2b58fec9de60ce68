// SPDX-License-Identifier: GPL-2.0

//! Unit tests of the parts, at their boundaries. Whole images are tested from outside, in
//! tools/testing/host/vhd_format/tests.

extern crate std;

use std::{
    vec,
    vec::Vec, //
};

use loop_parser::contract::Error;
use testkit::{
    rng::Rng,
    store::Store, //
};

use super::{
    bitmap::{
        self,
        Run, //
    },
    checksum,
    footer::Place,
    layout::{
        BatEntry,
        Layout,
        MAX_DISK_SIZE, //
    },
    num::{
        self,
        add,
        align_up,
        mul,
        Region,
        OUTSIDE, //
    },
    size::SizeRule, //
};

#[test]
fn arithmetic_is_checked() {
    assert_eq!(add(u64::MAX - 1, 1, 7), Ok(u64::MAX));
    assert_eq!(
        add(u64::MAX, 1, 7),
        Err(Error::malformed("offset overflows", 7))
    );
    assert_eq!(
        mul(1 << 32, (1 << 32) - 1, 7),
        Ok(u64::MAX - u64::from(u32::MAX))
    );
    assert!(mul(1 << 32, 1 << 32, 7).is_err());
    for (value, up) in [(0, 0), (1, 512), (511, 512), (512, 512), (513, 1024)] {
        assert_eq!(align_up(value, 512, 7), Ok(up));
    }
    assert_eq!(align_up(u64::MAX - 511, 512, 7), Ok(u64::MAX - 511));
    assert!(align_up(u64::MAX - 510, 512, 7).is_err());
    assert!(align_up(1, 0, 7).is_err());
}

#[test]
fn regions_overlap_or_do_not() {
    let region = |start, len| Region::new(start, len, 0).unwrap();
    for (a, b, expected) in [
        ((0, 10), (10, 10), false),
        ((0, 11), (10, 10), true),
        ((10, 10), (0, 10), false),
        ((10, 10), (0, 11), true),
        ((5, 1), (0, 10), true),
        ((0, 10), (5, 1), true),
        // Nothing overlaps with nothing.
        ((5, 0), (0, 10), false),
        ((0, 0), (0, 10), false),
    ] {
        assert_eq!(region(a.0, a.1).overlaps(region(b.0, b.1)), expected);
        assert_eq!(region(b.0, b.1).overlaps(region(a.0, a.1)), expected);
    }
    assert!(Region::new(u64::MAX, 1, 0).is_err());
}

#[test]
fn out_of_room_is_what_can_pass() {
    for (errno, expected) in [(28, true), (27, true), (122, true), (5, false), (30, false)] {
        assert_eq!(num::is_out_of_room(Error::Store(-errno)), expected);
    }
    assert!(!num::is_out_of_room(Error::WouldBlock));
    assert!(!num::is_out_of_room(Error::BadOption));
}

#[test]
fn sums_of_all_lengths() {
    let bytes: Vec<u8> = (0..2000u32).map(|i| (i * 7 % 256) as u8).collect();
    let store = Store::new(&bytes);
    for len in [0, 1, 127, 128, 129, 255, 256, 511, 512, 1024] {
        for at in [0, 1, 100] {
            let expected: u32 = bytes[at..at + len].iter().map(|&b| u32::from(b)).sum();
            let got = checksum::sum_at(&store, at as u64, len as u64);
            assert_eq!(got, Ok(expected), "{len} at {at}");
            assert_eq!(checksum::sum(&bytes[at..at + len]), expected);
        }
    }
    assert!(checksum::sum_at(&store, 1999, 1).is_ok());
    assert!(checksum::sum_at(&store, 1999, 2).is_err());
    assert!(checksum::sum_at(&store, u64::MAX, 512).is_err());
}

#[test]
fn checksum_is_the_complement() {
    // A structure of 8 bytes with its checksum at 4.
    let stored = !(1u32 + 2 + 3 + 255);
    let mut bytes = vec![1, 2, 3, 255];
    bytes.extend(stored.to_be_bytes());
    let sum = checksum::sum(&bytes);
    assert!(checksum::matches(sum, stored));
    assert!(!checksum::matches(sum + 1, stored));
}

#[test]
fn places_of_the_last_footer() {
    for (size, expected) in [
        (0, None),
        (510, None),
        (511, Some((0, 511))),
        (512, Some((0, 512))),
        (513, Some((1, 512))),
        (1022, Some((510, 512))),
        (1023, Some((512, 511))),
        (1024, Some((512, 512))),
        (u64::MAX, Some((u64::MAX - 511, 511))),
    ] {
        let place = Place::end(size).map(|place| (place.at, place.len));
        assert_eq!(place, expected, "{size}");
    }
}

#[test]
fn options_are_parsed_exactly() {
    assert_eq!(SizeRule::parse(""), Ok(SizeRule::Auto));
    assert_eq!(SizeRule::parse("size=chs"), Ok(SizeRule::Chs));
    assert_eq!(SizeRule::parse("size=current"), Ok(SizeRule::Current));
    assert_eq!(SizeRule::parse("size=current_size"), Err(Error::BadOption));
}

#[test]
fn entries_name_sectors() {
    for (start, expected) in [
        (0, Some(0)),
        (511, None),
        (512, Some(1)),
        (513, None),
        (0xffff_fffe * 512, Some(0xffff_fffe)),
        // All ones means something else.
        (0xffff_ffff * 512, None),
        (0x1_0000_0000 * 512, None),
        (u64::MAX - 511, None),
    ] {
        let entry = BatEntry::for_block(start).map(BatEntry::raw);
        assert_eq!(entry, expected, "{start}");
    }
    assert!(BatEntry::from_raw(u32::MAX).is_none());
    assert!(!BatEntry::from_raw(u32::MAX - 1).is_none());
}

/// Footer, header at 512, BAT of 4 entries at 1536, blocks of 1 KiB.
fn layout() -> Layout {
    Layout {
        header: 512,
        table: 1536,
        entries: 4,
        block_shift: 10,
        may_have_batmap: false,
        batmap: None,
        has_parent: false,
    }
}

#[test]
fn positions_in_blocks() {
    let layout = layout();
    for (pos, index, within, range) in [
        (0, 0, 0, (0, 1024)),
        (512, 0, 512, (0, 1024)),
        (1024, 1, 0, (1024, 1024)),
        (3071, 2, 1023, (2048, 1024)),
        // The last block has its full size, wherever the disk ends.
        (3072, 3, 0, (3072, 1024)),
    ] {
        assert_eq!(layout.index(pos), Ok(index));
        assert_eq!(layout.within(pos), within);
        assert_eq!(layout.guest_range(pos), range);
    }
    assert_eq!(layout.index(4095), Ok(3));
    assert_eq!(layout.index(4096), Err(OUTSIDE));
    assert_eq!(layout.index(u64::MAX), Err(OUTSIDE));
    assert_eq!(layout.blocks(), 4);
    assert_eq!((layout.covered(), layout.limit()), (4096, 4096));
    assert_eq!(layout.entry_at(3), Ok(1536 + 12));
    assert_eq!(layout.entry_at(4), Err(OUTSIDE));
    assert_eq!(layout.entry_at(u64::MAX), Err(OUTSIDE));
}

#[test]
fn bitmaps_take_whole_sectors() {
    for (block_shift, sectors) in [
        (9, 1),
        (12, 1),
        (20, 1),
        (21, 1),
        (22, 2),
        (25, 16),
        (31, 1024),
    ] {
        let layout = Layout {
            block_shift,
            ..layout()
        };
        assert_eq!(layout.block_size(), 1 << block_shift);
        assert_eq!(layout.bitmap_len(), sectors * 512, "{block_shift}");
    }
}

#[test]
fn disks_are_limited_to_two_tib() {
    let layout = Layout {
        entries: 1 << 26,
        block_shift: 31,
        ..layout()
    };
    assert_eq!(layout.covered(), 1 << 57);
    assert_eq!(layout.limit(), MAX_DISK_SIZE);
    assert_eq!(layout.blocks(), 1024);
    assert_eq!(layout.index(MAX_DISK_SIZE - 1), Ok(1023));
    assert_eq!(layout.index(MAX_DISK_SIZE), Err(OUTSIDE));
}

#[test]
fn blocks_are_located() {
    // A block has 3 sectors.
    let locate = |entry, size| layout().locate(BatEntry::from_raw(entry), 1540, size);
    let block = locate(4, 7 * 512).unwrap();
    assert_eq!((block.bitmap, block.data, block.end), (2048, 2560, 3584));
    assert!(locate(4, 7 * 512 - 1).is_err());
    assert!(locate(3, 1 << 20).is_err());
    assert!(locate(0, 1 << 20).is_err());
    assert!(locate(u32::MAX, u64::MAX).is_ok());
    let error = locate(5, 7 * 512).unwrap_err();
    assert_eq!(error.fault().unwrap().at, 1540);
}

#[test]
fn headers_end_in_whole_sectors() {
    assert_eq!(layout().headers_end(), Ok(2048));
    assert_eq!(layout().batmap_header_at(), Ok(2048));
    let full = Layout {
        entries: 128,
        ..layout()
    };
    assert_eq!(full.headers_end(), Ok(2048));
    let header_last = Layout {
        header: 8192,
        ..layout()
    };
    assert_eq!(header_last.headers_end(), Ok(8192 + 1024));
}

/// One bit at a time, as the specification has it.
fn slow_run(bitmap: &[u8], first: u64, max: u64) -> Run {
    let bit = |sector: u64| bitmap[sector as usize / 8] & (0x80 >> (sector % 8)) != 0;
    let is_set = bit(first);
    let sectors = (0..max).take_while(|i| bit(first + i) == is_set).count();
    Run {
        is_set,
        sectors: sectors as u64,
    }
}

#[test]
fn runs_of_bits() {
    let mut rng = Rng::new(3);
    for round in 0..200 {
        // Long runs and short ones.
        let mut bitmap = vec![0u8; 512];
        let step = 1 + rng.below(300);
        for sector in 0..4096u64 {
            if (sector / step + round) % 2 == 0 || rng.one_in(400) {
                bitmap[sector as usize / 8] |= 0x80 >> (sector % 8);
            }
        }
        let store = Store::new(&[&[0x3c; 512], &bitmap[..]].concat());
        for _ in 0..50 {
            let first = rng.below(4096);
            let max = 1 + rng.below(4096 - first);
            let got = bitmap::run(&store, 512, first, max).unwrap();
            assert_eq!(got, slow_run(&bitmap, first, max), "{first} {max}");
        }
    }
}

#[test]
fn runs_at_word_boundaries() {
    let store = Store::new(&[0xff; 1024]);
    for (first, max, loads) in [
        (0, 64, 1),
        (0, 65, 2),
        (63, 1, 1),
        (63, 2, 2),
        (64, 64, 1),
        (4095, 1, 1),
        (0, 4096, 64),
    ] {
        let before = store.loads();
        let run = bitmap::run(&store, 0, first, max).unwrap();
        assert_eq!((run.is_set, run.sectors), (true, max));
        assert_eq!(store.loads() - before, loads, "{first} {max}");
    }
    // A mebibyte is 2048 sectors: 32 loads.
    let before = store.loads();
    bitmap::run(&store, 0, 0, 2048).unwrap();
    assert_eq!(store.loads() - before, 32);
}

#[test]
fn bits_are_set() {
    for (first, count) in [
        (0u64, 1u64),
        (0, 2),
        (0, 4),
        (1, 1),
        (2, 2),
        (0, 8),
        (8, 64),
        (1024, 1024),
        // Parts of bytes at one end, or at both.
        (3, 5),
        (3, 6),
        (3, 13),
        (3, 14),
        (7, 1),
        (7, 2),
        (8, 9),
        (9, 0),
        (1, 4094),
    ] {
        let mut store = Store::new(&[0; 1024]);
        bitmap::set(&mut store, 512, first, count).unwrap();
        let bytes = store.to_vec();
        assert_eq!(bytes[..512], [0; 512]);
        for sector in 0..4096 {
            let is_set = bytes[512 + sector as usize / 8] & (0x80 >> (sector % 8)) != 0;
            assert_eq!(is_set, (first..first + count).contains(&sector));
        }
    }
    // Neighbours in the same byte stay.
    let mut store = Store::new(&[0b0001_0010; 512]);
    bitmap::set(&mut store, 0, 0, 2).unwrap();
    assert_eq!(store.get(0, 2), [0b1101_0010, 0b0001_0010]);
}
