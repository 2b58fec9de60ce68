// SPDX-License-Identifier: GPL-2.0

//! Unit tests of the book-keeping.

extern crate std;

use std::vec::Vec;

use super::{
    Slots,
    WINDOW, //
};

#[test]
fn places_come_in_order_and_clean_ones_first() {
    let mut slots = Slots::new(1000, 10);
    assert!(!slots.has_free());
    assert_eq!(slots.take(), None);
    slots.push(3, false);
    let starts: Vec<_> = (0..3).map(|_| slots.take().unwrap().index).collect();
    let starts: Vec<_> = starts
        .into_iter()
        .map(|index| slots.start_of(index).unwrap())
        .collect();
    assert_eq!(starts, [1000, 1010, 1020]);
    assert_eq!((slots.taken(), slots.used()), (3, 3));

    slots.give_back(1000);
    slots.push(1, false);
    assert_eq!(slots.used(), 3);
    let slot = slots.take().unwrap();
    assert_eq!((slot.index, slot.is_dirty), (3, false));
    let slot = slots.take().unwrap();
    assert_eq!((slot.index, slot.is_dirty), (0, true));
    assert_eq!(slots.take(), None);
}

#[test]
fn used_places_end_with_the_last_that_is_not_free() {
    let mut slots = Slots::new(0, 1);
    assert_eq!(slots.used(), 0);
    slots.push(4, false);
    assert_eq!(slots.used(), 0);
    for _ in 0..3 {
        slots.take();
    }
    assert_eq!(slots.used(), 3);
    slots.settle(1);
    slots.give_back(2);
    assert_eq!(slots.used(), 2);
    slots.give_back(0);
    assert_eq!(slots.used(), 2);
}

#[test]
fn what_was_not_taken_is_not_given_back() {
    let mut slots = Slots::new(1000, 10);
    slots.push(2, false);
    // Free, unaligned, outside, in front.
    for start in [1000, 1005, 1020, 990, 0, u64::MAX] {
        slots.give_back(start);
        slots.settle(start);
    }
    assert_eq!(slots.take().map(|it| it.is_dirty), Some(false));
    slots.settle(1000);
    slots.give_back(1000);
    assert_eq!(slots.take().map(|it| it.index), Some(1));
    assert_eq!(slots.take(), None);
}

#[test]
fn old_places_are_forgotten() {
    let mut slots = Slots::new(0, 1);
    for round in 0..10 {
        slots.push(64, false);
        for i in 0..64 {
            assert_eq!(slots.take().map(|it| it.index), Some(round * 64 + i));
        }
    }
    assert_eq!(slots.count(), 640);
    assert_eq!(slots.taken(), WINDOW);
    slots.give_back(640 - WINDOW - 1);
    assert!(!slots.has_free());
    slots.give_back(640 - WINDOW);
    assert_eq!(slots.take().map(|it| it.index), Some(640 - WINDOW));
}
