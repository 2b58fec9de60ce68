// SPDX-License-Identifier: GPL-2.0

//! Whose file is it?

use loop_parser::contract::Verdict;
use testkit::store::Store;
use vhd_format::format;

use crate::image::{pattern, End, Image, Spec};

#[track_caller]
fn mine(store: &Store) {
    assert_eq!(store.probe(format::probe), Verdict::Mine);
}

#[track_caller]
fn not_mine(store: &Store) {
    assert_eq!(store.probe(format::probe), Verdict::NotMine);
}

#[test]
fn sound_images() {
    for mut spec in [Spec::dynamic(8192, 4096), Spec::fixed(8192)] {
        mine(&spec.build().store);
        spec.end = End::Short;
        mine(&spec.build().store);
    }
    for end in [End::Missing, End::Damaged, End::Filled(0xc7)] {
        let mut spec = Spec::dynamic(8192, 4096);
        spec.end = end;
        mine(&spec.build().store);
    }
    let mut image = Spec::dynamic(8192, 4096).build();
    image.store.put(0, &[0; 512]);
    mine(&image.store);
}

/// A fixed image with no data at all, and files smaller than a footer.
#[test]
fn tiny_files() {
    let footer = Spec::fixed(0).footer();
    for (len, verdict) in [
        (512, Verdict::Mine),
        // 511 bytes begin with the cookie: a short footer in an empty file.
        (511, Verdict::Mine),
    ] {
        assert_eq!(
            Store::new(&footer[..len]).probe(format::probe),
            verdict,
            "{len}"
        );
    }
    for len in 0..=1200 {
        not_mine(&Store::new(&vec![0; len]));
        not_mine(&Store::new(&vec![0xff; len]));
    }
}

#[test]
fn raw_disks() {
    let mut bytes: Vec<u8> = (0..64).flat_map(|sector| pattern(sector, 1)).collect();
    not_mine(&Store::new(&bytes));
    bytes[510] = 0x55;
    bytes[511] = 0xaa;
    not_mine(&Store::new(&bytes));
}

/// A fixed image, changed at its end.
fn fixed(change: impl FnOnce(&mut Image)) -> Store {
    let mut image = Spec::fixed(8192).build();
    change(&mut image);
    image.store
}

#[test]
fn damaged_footers_are_mine() {
    // Any damage that leaves cookie, version, type, offset and size alone.
    for at in [8, 24, 28, 40, 56, 64, 68, 84, 300, 511] {
        mine(&fixed(|it| it.store.put(it.end_at + at, &[0x99])));
    }
    // What some writers make of "0xFFFFFFFF".
    mine(&fixed(|it| {
        it.store.put(it.end_at + 16, &0xffff_ffffu64.to_be_bytes());
    }));
}

#[test]
fn unservable_ones_with_a_right_checksum_are_mine() {
    for (offset, bytes) in [(12, [9, 9, 9, 9]), (60, [0, 0, 0, 5]), (60, [0, 0, 0, 4])] {
        mine(&fixed(|it| it.edit_end(offset, &bytes)));
    }
    mine(&fixed(|it| it.edit_end(0, b"v_poison")));
}

#[test]
fn spoofs_are_not_mine() {
    // A guest wrote the cookie, and nothing else that fits.
    let mut raw: Vec<u8> = (0..64).flat_map(|sector| pattern(sector, 1)).collect();
    let at = raw.len() - 512;
    raw[at..at + 8].copy_from_slice(b"conectix");
    not_mine(&Store::new(&raw));
    raw[at..at + 8].copy_from_slice(b"v_poison");
    not_mine(&Store::new(&raw));

    // With a wrong checksum, each of the others has to be plausible.
    let damage = |offset: u64, bytes: &[u8]| {
        fixed(|it| {
            it.store.put(it.end_at + 64, &[0; 4]);
            it.store.put(it.end_at + offset, bytes);
        })
    };
    mine(&damage(511, &[0]));
    not_mine(&damage(12, &[0, 2, 0, 0]));
    not_mine(&damage(60, &[0, 0, 0, 0]));
    not_mine(&damage(60, &[0, 0, 0, 5]));
    not_mine(&damage(60, &[0, 0, 0, 3]));
    not_mine(&damage(16, &512u64.to_be_bytes()));
    not_mine(&damage(48, &0u64.to_be_bytes()));
}

/// The footer of another image at the end of a raw disk: its size does not fit.
#[test]
fn fixed_size_must_fit() {
    mine(&fixed(|it| it.edit_end(48, &8192u64.to_be_bytes())));
    not_mine(&fixed(|it| it.edit_end(48, &8193u64.to_be_bytes())));
    not_mine(&fixed(|it| it.edit_end(48, &u64::MAX.to_be_bytes())));
}

#[test]
fn cookie_in_front_is_proof() {
    for cookie in [b"conectix", b"v_poison"] {
        let mut bytes: Vec<u8> = (0..64).flat_map(|sector| pattern(sector, 1)).collect();
        bytes[..8].copy_from_slice(cookie);
        mine(&Store::new(&bytes));
        mine(&Store::new(cookie));
    }
}

/// A dynamic footer alone: its header has to be within the file.
#[test]
fn dynamic_footer_at_the_end_only() {
    let tail_only = |header_at: u64, checksum: bool| {
        let mut image = Spec::dynamic(8192, 4096).build();
        image.store.put(0, &[0; 512]);
        image.edit_end(16, &header_at.to_be_bytes());
        if !checksum {
            image.store.put(image.end_at + 300, &[1]);
        }
        image.store
    };
    mine(&tail_only(512, true));
    mine(&tail_only(512, false));
    mine(&tail_only(1 << 40, true));
    not_mine(&tail_only(1 << 40, false));
    not_mine(&tail_only(u64::MAX, false));
    not_mine(&tail_only(0, false));
}

/// The tail is where it belongs, whatever the size of the file.
#[test]
fn odd_sizes() {
    let image = Spec::fixed(8192).build();
    for size in 0..image.store.len() {
        let mut store = image.store.clone();
        store.put_size(size);
        // Without its last byte, a zero, it is a short footer.
        let is_short = size == image.store.len() - 1;
        assert_eq!(
            store.probe(format::probe) == Verdict::Mine,
            is_short,
            "{size}"
        );
    }
}
