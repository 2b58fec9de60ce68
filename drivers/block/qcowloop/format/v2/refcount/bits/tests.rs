// SPDX-License-Identifier: GPL-2.0

//! Counts of all widths.

use super::{
    get,
    set,
    span, //
};

/// The largest count of `2^order` bits.
fn max(order: u32) -> u64 {
    match order {
        6 => u64::MAX,
        _ => (1 << (1u32 << order)) - 1,
    }
}

#[test]
fn narrow_counts_begin_with_the_lowest_bits() {
    let bytes = [0b1110_0100, 0x21];
    assert_eq!((0..4).map(|it| get(&bytes, 1, it)).sum::<u64>(), 6);
    assert_eq!(get(&bytes, 1, 0), 0);
    assert_eq!(get(&bytes, 1, 3), 3);
    assert_eq!(get(&bytes, 0, 2), 1);
    assert_eq!(get(&bytes, 0, 3), 0);
    assert_eq!(get(&bytes, 2, 2), 1);
    assert_eq!(get(&bytes, 2, 3), 2);
}

#[test]
fn wide_counts_are_big_endian() {
    let bytes = [0, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(get(&bytes, 3, 8), 8);
    assert_eq!(get(&bytes, 4, 1), 0x0203);
    assert_eq!(get(&bytes, 5, 1), 0x0405_0607);
    assert_eq!(get(&bytes, 6, 0), 0x0001_0203_0405_0607);
    assert_eq!(get(&bytes, 6, 1), 0, "past the end");
}

#[test]
fn a_count_is_set_and_no_other() {
    for order in 0..=6 {
        for count in [0, 1, max(order)] {
            for fill in [0x00, 0xff] {
                let mut bytes = [fill; 32];
                set(&mut bytes, order, 3, count);
                assert_eq!(get(&bytes, order, 3), count, "order {order}");
                for other in [0, 2, 4] {
                    let old = if fill == 0 { 0 } else { max(order) };
                    let is_there = other < (32 * 8) >> order;
                    assert_eq!(get(&bytes, order, other), if is_there { old } else { 0 });
                }
            }
        }
    }
}

#[test]
fn spans() {
    assert_eq!(span(0, 7, 9), (0, 2));
    assert_eq!(span(0, 8, 9), (1, 2));
    assert_eq!(span(2, 1, 2), (0, 1));
    assert_eq!(span(3, 1, 2), (1, 2));
    assert_eq!(span(4, 3, 5), (6, 10));
    assert_eq!(span(6, 1, 2), (8, 16));
}
