// SPDX-License-Identifier: GPL-2.0

//! Images that must not be served, each with the class of the error it gets.

use vhd_format::format;

use crate::{
    class,
    image::{put, Bits, End, Image, Spec},
    Class,
};

/// A way to break an image.
struct Case {
    name: &'static str,
    spec: fn() -> Spec,
    damage: fn(&mut Image),
    expected: Class,
    /// Where the fault is to be reported, if that is of interest.
    at: Option<u64>,
}

fn dynamic() -> Spec {
    Spec::dynamic(64 * 1024, 4096).with_blocks(&[(0, Bits::Ones), (3, Bits::Zeros)])
}

fn child() -> Spec {
    Spec::differencing(64 * 1024, 4096).with_blocks(&[(0, Bits::Ones), (3, Bits::Mixed(3))])
}

fn fixed() -> Spec {
    Spec::fixed(64 * 1024)
}

fn tapdisk() -> Spec {
    let mut spec = dynamic().by(b"tap\0", 0x0001_0003);
    spec.batmap = Some((1, false));
    spec
}

const fn case(
    name: &'static str,
    spec: fn() -> Spec,
    expected: Class,
    damage: fn(&mut Image),
) -> Case {
    Case {
        name,
        spec,
        damage,
        expected,
        at: None,
    }
}

const fn case_at(
    name: &'static str,
    spec: fn() -> Spec,
    expected: Class,
    at: u64,
    damage: fn(&mut Image),
) -> Case {
    Case {
        name,
        spec,
        damage,
        expected,
        at: Some(at),
    }
}

fn damage_checksums(image: &mut Image) {
    image.store.put(100, &[1]);
    image.store.put(image.end_at + 100, &[1]);
}

fn set_both(image: &mut Image, cookie: &[u8]) {
    let end = image.end_at;
    image.store.put(0, cookie);
    image.store.put(end, cookie);
}

use Class::{Malformed, NeedsReadOnly, Unsupported};

/// Where the footer at the end of [`dynamic`] is.
const END: u64 = 11264;

const CASES: &[Case] = &[
    // Footer: magic.
    case_at("no footer at all", dynamic, Malformed, END, |it| {
        set_both(it, b"nonsense")
    }),
    case("cookie in lower and upper case", dynamic, Malformed, |it| {
        set_both(it, b"CONECTIX")
    }),
    case_at("poisoned", dynamic, Unsupported, 0, |it| {
        set_both(it, b"v_poison")
    }),
    case_at("poisoned in front only", dynamic, Unsupported, 0, |it| {
        it.store.put(0, b"v_poison")
    }),
    case("poisoned fixed", fixed, Unsupported, |it| {
        it.store.put(it.end_at, b"v_poison")
    }),
    // Footer: version.
    case_at("footer version 2.0", dynamic, Unsupported, 12, |it| {
        it.edit_footers(12, &0x0002_0000u32.to_be_bytes())
    }),
    case("footer version 1.1", dynamic, Unsupported, |it| {
        it.edit_footers(12, &0x0001_0001u32.to_be_bytes())
    }),
    case("footer version 0", fixed, Unsupported, |it| {
        it.edit_footers(12, &[0; 4])
    }),
    // Footer: type.
    case_at("type 0", dynamic, Unsupported, END + 60, |it| {
        it.edit_footers(60, &0u32.to_be_bytes())
    }),
    case("type 1", dynamic, Unsupported, |it| {
        it.edit_footers(60, &1u32.to_be_bytes())
    }),
    case("type 5", dynamic, Unsupported, |it| {
        it.edit_footers(60, &5u32.to_be_bytes())
    }),
    case("type 6", fixed, Unsupported, |it| {
        it.edit_footers(60, &6u32.to_be_bytes())
    }),
    case("type 0x03000000", dynamic, Unsupported, |it| {
        it.edit_footers(60, &3u32.to_le_bytes())
    }),
    case_at("its own parent", child, Malformed, 512 + 40, |it| {
        it.edit_header(40, &it.spec.unique_id.clone())
    }),
    case("dynamic footers in a fixed image", fixed, Malformed, |it| {
        it.edit_footers(60, &3u32.to_be_bytes())
    }),
    case("fixed footer at 0 only", dynamic, Malformed, |it| {
        it.edit_front(60, &2u32.to_be_bytes());
        it.store.put(it.end_at, &[0; 512]);
    }),
    // Footer: checksum.
    case_at(
        "both checksums wrong",
        dynamic,
        Malformed,
        64,
        damage_checksums,
    ),
    case("fixed with wrong checksum", fixed, Malformed, |it| {
        it.store.put(it.end_at + 100, &[1])
    }),
    case("checksum zero", fixed, Malformed, |it| {
        it.store.put(it.end_at + 64, &[0; 4])
    }),
    case("checksum without complement", fixed, Malformed, |it| {
        let sum = !it.store.get_be32(it.end_at + 64);
        it.store.put(it.end_at + 64, &sum.to_be_bytes());
    }),
    // Footer: creator and sizes.
    case_at("tapdisk 0.1", tapdisk, Unsupported, 32, |it| {
        it.edit_footers(32, &1u32.to_be_bytes())
    }),
    case_at("size 0", dynamic, Malformed, 48, |it| {
        it.edit_footers(48, &[0; 8])
    }),
    case("size 511", dynamic, Malformed, |it| {
        it.edit_footers(48, &511u64.to_be_bytes())
    }),
    case_at(
        "one sector more than the BAT",
        dynamic,
        Malformed,
        48,
        |it| it.edit_footers(48, &(64 * 1024 + 512u64).to_be_bytes()),
    ),
    case("size all ones", dynamic, Malformed, |it| {
        it.edit_footers(48, &[0xff; 8])
    }),
    case("one sector more than the file", fixed, Malformed, |it| {
        it.edit_footers(48, &(64 * 1024 + 512u64).to_be_bytes())
    }),
    case("fixed, size all ones", fixed, Malformed, |it| {
        it.edit_footers(48, &[0xff; 8])
    }),
    case("fixed, size 0", fixed, Malformed, |it| {
        it.edit_footers(48, &[0; 8])
    }),
    case("fixed, cut by a sector", fixed, Malformed, |it| {
        let footer = it.store.get(it.end_at, 512);
        let at = it.end_at - 512;
        it.store.put(at, &footer);
        it.store.put_size(at + 512);
    }),
    // Where the header is.
    case_at("header at 0", dynamic, Malformed, 16, |it| {
        it.edit_footers(16, &0u64.to_be_bytes())
    }),
    case("header at 511", dynamic, Malformed, |it| {
        it.edit_footers(16, &511u64.to_be_bytes())
    }),
    case("header one byte past the end", dynamic, Malformed, |it| {
        let at = it.store.len() - 1023;
        it.edit_footers(16, &at.to_be_bytes());
    }),
    case("header offset overflows", dynamic, Malformed, |it| {
        it.edit_footers(16, &(u64::MAX - 1000).to_be_bytes())
    }),
    case("header offset all ones", dynamic, Malformed, |it| {
        it.edit_footers(16, &[0xff; 8])
    }),
    case("header reaches into the footer", dynamic, Malformed, |it| {
        let header = it.store.get(512, 1024);
        let at = it.end_at - 1023;
        it.store.put(at, &header[..1023]);
        it.edit_footers(16, &at.to_be_bytes());
    }),
    // Header: magic, version, checksum.
    case_at("no header", dynamic, Malformed, 512, |it| {
        it.store.put(512, &[0; 1024])
    }),
    case("header cookie wrong", dynamic, Malformed, |it| {
        it.edit_header(0, b"cxsparsE")
    }),
    case_at("header version 2.0", dynamic, Unsupported, 536, |it| {
        it.edit_header(24, &0x0002_0000u32.to_be_bytes())
    }),
    case_at("header checksum wrong", dynamic, NeedsReadOnly, 548, |it| {
        it.store.put(512 + 1023, &[1])
    }),
    // Header: shift counts.
    case_at("block size 0", dynamic, Malformed, 544, |it| {
        it.edit_header(32, &[0; 4])
    }),
    case("block size 1", dynamic, Malformed, |it| {
        it.edit_header(32, &1u32.to_be_bytes())
    }),
    case("block size 256", dynamic, Malformed, |it| {
        it.edit_header(32, &256u32.to_be_bytes())
    }),
    case("block size 511", dynamic, Malformed, |it| {
        it.edit_header(32, &511u32.to_be_bytes())
    }),
    case("block size 4608", dynamic, Malformed, |it| {
        it.edit_header(32, &4608u32.to_be_bytes())
    }),
    case("block size 4095", dynamic, Malformed, |it| {
        it.edit_header(32, &4095u32.to_be_bytes())
    }),
    case("block size all ones", dynamic, Malformed, |it| {
        it.edit_header(32, &[0xff; 4])
    }),
    // Header: products and bounds.
    case("no entries", dynamic, Malformed, |it| {
        it.edit_header(28, &[0; 4])
    }),
    case("one entry too few", dynamic, Malformed, |it| {
        it.edit_header(28, &15u32.to_be_bytes())
    }),
    case_at("entries all ones", dynamic, Unsupported, 540, |it| {
        it.edit_header(28, &[0xff; 4])
    }),
    case("2^26 + 1 entries", dynamic, Unsupported, |it| {
        it.edit_header(28, &((1u32 << 26) + 1).to_be_bytes())
    }),
    case("2^26 entries past the end", dynamic, Malformed, |it| {
        it.edit_header(28, &(1u32 << 26).to_be_bytes())
    }),
    case_at("BAT at 1537", dynamic, Malformed, 528, |it| {
        it.edit_header(16, &1537u64.to_be_bytes())
    }),
    case("BAT past the end", dynamic, Malformed, |it| {
        let at = it.store.len();
        it.edit_header(16, &at.to_be_bytes());
    }),
    case("BAT offset overflows", dynamic, Malformed, |it| {
        it.edit_header(16, &(u64::MAX - 511).to_be_bytes())
    }),
    case("BAT offset all ones", dynamic, Malformed, |it| {
        it.edit_header(16, &[0xff; 8])
    }),
    // Overlaps.
    case("BAT over the footer copy", dynamic, Malformed, |it| {
        it.edit_header(16, &0u64.to_be_bytes())
    }),
    case("BAT over the header", dynamic, Malformed, |it| {
        it.edit_header(16, &1024u64.to_be_bytes())
    }),
    case("BAT at the header", dynamic, Malformed, |it| {
        it.edit_header(16, &512u64.to_be_bytes())
    }),
    case("BAT over the footer", dynamic, Malformed, |it| {
        let at = it.end_at;
        it.edit_header(16, &at.to_be_bytes());
    }),
    case("BAT reaches into the footer", dynamic, Malformed, |it| {
        let at = it.end_at - 512;
        it.edit_header(16, &at.to_be_bytes());
        it.edit_header(28, &129u32.to_be_bytes());
    }),
    // What tapdisk adds.
    case("encrypted", tapdisk, Unsupported, |it| {
        it.store.put(it.table_end() + 29, &[1])
    }),
    case("encrypted, tapdisk 1.1", tapdisk, Unsupported, |it| {
        it.edit_footers(32, &0x0001_0001u32.to_be_bytes());
        it.store.put(it.table_end() + 29, &[1]);
    }),
];

#[test]
fn malformed_images_are_refused() {
    assert!(CASES.len() >= 30);
    for case in CASES {
        let mut image = (case.spec)().build();
        assert!(format::attach(&image.store, "", true).is_ok(), "sound");
        (case.damage)(&mut image);
        match format::attach(&image.store, "", true) {
            Ok(attached) => panic!("{}: {:?}", case.name, attached.disk),
            Err(error) => {
                assert_eq!(class(error), case.expected, "{}: {error:?}", case.name);
                let fault = error.fault().unwrap();
                if let Some(at) = case.at {
                    assert_eq!(fault.at, at, "{}: {error:?}", case.name);
                }
            }
        }
    }
}

/// The same files with their last byte missing, and one too many: a footer is not found there, but
/// nothing panics.
#[test]
fn malformed_images_of_odd_sizes() {
    for case in CASES {
        for change in [-1i64, 1, 511] {
            let mut image = (case.spec)().build();
            (case.damage)(&mut image);
            let size = image.store.len().checked_add_signed(change).unwrap();
            image.store.put_size(size);
            let _ = format::attach(&image.store, "", true);
        }
    }
}

#[test]
fn no_batmap_without_the_creator_or_the_cookie() {
    // The same bytes, not written by a tapdisk that has batmaps.
    for (creator, version) in [(b"win ", 0x0001_0003), (b"tap ", 0x0001_0003)] {
        let mut spec = dynamic().by(creator, version);
        spec.batmap = Some((1, true));
        assert!(format::attach(&spec.build().store, "", true).is_ok());
    }
    let mut spec = tapdisk();
    spec.batmap = Some((1, true));
    let mut image = spec.build();
    image.store.put(image.table_end(), b"TDBATMAP");
    assert!(format::attach(&image.store, "", true).is_ok());
}

/// A file that ends right behind its BAT has no batmap, and no footer at its end.
#[test]
fn nothing_behind_the_table() {
    let mut spec = Spec::dynamic(64 * 1024, 4096).by(b"tap\0", 0x0001_0003);
    spec.end = End::Missing;
    let mut image = spec.build();
    for size in [1536 + 64, 1536 + 65, 2048] {
        image.store.put_size(size);
        assert!(format::attach(&image.store, "", true).is_ok(), "{size}");
    }
    image.store.put_size(1536 + 63);
    let error = format::attach(&image.store, "", true).unwrap_err();
    assert_eq!(class(error), Malformed);
}

/// Flips of single bytes in front of the blocks: an error or a disk, never a panic, and never a
/// footer that is taken for another kind.
#[test]
fn single_bytes_changed_with_right_checksums() {
    for at in 0..512 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut image = dynamic().build();
            image.edit_footers(at, &[value]);
            let _ = format::attach(&image.store, "", true);
        }
    }
    for at in 0..1024 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut image = dynamic().build();
            image.edit_header(at, &[value]);
            let _ = format::attach(&image.store, "", true);
        }
    }
}

#[test]
fn put_is_what_it_seems() {
    let mut bytes = [0; 4];
    put(&mut bytes, 1, &[1, 2]);
    assert_eq!(bytes, [0, 1, 2, 0]);
}
