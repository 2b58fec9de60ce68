// SPDX-License-Identifier: GPL-2.0

//! Attaching images that can be served.

use loop_parser::contract::{Error, Identity, State};
use testkit::store::Store;
use vhd_format::format;

use crate::{
    attach, class,
    image::{fix, put, End, Image, Spec},
    open, Class,
};

const CHS_MAX: (u16, u8, u8) = (65535, 16, 255);

/// 100 * 4 * 17 sectors.
const CHS_SIZE: u64 = 100 * 4 * 17 * 512;

#[test]
fn disk_is_described() {
    let store = Spec::dynamic(1 << 20, 4096).build().store;
    let attached = attach(&store).unwrap();
    assert_eq!(attached.disk.size, 1 << 20);
    assert_eq!(attached.disk.variant, "dynamic");
    assert_eq!(attached.disk.size_source, "current_size");
    assert_eq!(attached.disk.creator, *b"win ");
    assert_eq!(attached.disk.unit, 4096);
    assert_eq!(attached.disk.identity, Identity(*b"sixteen bytes id"));
    assert_eq!(attached.disk.state, State::Clean);
    assert_eq!(attached.warning, None);

    let store = Spec::fixed(1 << 20).build().store;
    let attached = attach(&store).unwrap();
    assert_eq!(attached.disk.size, 1 << 20);
    assert_eq!(attached.disk.variant, "fixed");
    assert_eq!(attached.disk.unit, 0);
    assert_eq!(attached.disk.identity, Identity(*b"sixteen bytes id"));
    assert_eq!(attached.disk.state, State::Clean);
    assert_eq!(attached.warning, None);
}

#[test]
fn parsed_state_is_small() {
    assert!(size_of::<format::VhdMap>() < 200);
    assert!(size_of::<format::Attached>() < 512);
}

#[test]
fn size_by_creator() {
    const CHS: &str = "chs";
    const CURRENT: &str = "current_size";
    // Larger than what the geometry says.
    let current = CHS_SIZE + 4096;
    let cases: &[(&[u8; 4], &str)] = &[
        (b"vpc ", CHS),
        (b"qemu", CHS),
        (b"vpc\0", CURRENT),
        (b"VPC ", CURRENT),
        (b"win ", CURRENT),
        (b"qem2", CURRENT),
        (b"d2v\0", CURRENT),
        (b"tap\0", CURRENT),
        (b"CTXS", CURRENT),
        (b"wa\0\0", CURRENT),
        (b"vbox", CURRENT),
        (b"*img", CURRENT),
        (b"bxic", CURRENT),
        (b"\0\0\0\0", CURRENT),
        (b"????", CURRENT),
    ];
    for spec in [Spec::dynamic(current, 4096), Spec::fixed(current)] {
        for (creator, expected) in cases {
            let store = spec.clone().by(creator, 0x0001_0003).build().store;
            let disk = attach(&store).unwrap().disk;
            assert_eq!(disk.size_source, *expected, "{creator:?}");
            let size = if *expected == CHS { CHS_SIZE } else { current };
            assert_eq!(disk.size, size, "{creator:?}");
        }
    }
}

#[test]
fn geometry_that_does_not_count() {
    // (geometry, current size, size, source)
    let cases = [
        // Exactly what the BAT covers, and one sector more.
        ((8, 1, 1), 4096, 4096, "chs"),
        ((9, 1, 1), 4096, 4096, "current_size"),
        ((0, 4, 17), 4096, 4096, "current_size"),
        ((100, 0, 17), 4096, 4096, "current_size"),
        ((100, 4, 0), 4096, 4096, "current_size"),
        (CHS_MAX, 4096, 4096, "current_size"),
    ];
    for (chs, current, size, source) in cases {
        for mut spec in [Spec::dynamic(current, 4096), Spec::fixed(current)] {
            spec.chs = chs;
            let store = spec.by(b"vpc ", 0x0005_0003).build().store;
            let disk = attach(&store).unwrap().disk;
            assert_eq!((disk.size, disk.size_source), (size, source), "{chs:?}");
        }
    }
}

#[test]
fn largest_geometry_means_current_size() {
    let mut spec = Spec::dynamic(140 << 30, 1 << 21);
    for (chs, source) in [(CHS_MAX, "current_size"), ((65535, 16, 254), "chs")] {
        spec.chs = chs;
        let store = spec.clone().by(b"vpc ", 0).build().store;
        assert_eq!(attach(&store).unwrap().disk.size_source, source);
    }
}

#[test]
fn options_choose_the_size() {
    let store = Spec::dynamic(CHS_SIZE + 4096, 4096).build().store;
    let size = |options| format::attach(&store, options, true).map(|it| it.disk.size);
    assert_eq!(size(""), Ok(CHS_SIZE + 4096));
    assert_eq!(size("size=current"), Ok(CHS_SIZE + 4096));
    assert_eq!(size("size=chs"), Ok(CHS_SIZE));
    for bad in [
        "size",
        "size=",
        "size=CHS",
        "size=chs ",
        " ",
        "chs",
        "size=chs,size=chs",
    ] {
        assert_eq!(size(bad), Err(Error::BadOption), "{bad:?}");
    }
}

#[test]
fn forced_geometry_must_be_covered() {
    let mut spec = Spec::dynamic(4096, 4096);
    for chs in [(0, 0, 0), (9, 1, 1)] {
        spec.chs = chs;
        let store = spec.build().store;
        let error = format::attach(&store, "size=chs", true).unwrap_err();
        assert_eq!(class(error), Class::Malformed);
    }
}

#[test]
fn odd_current_size_is_rounded_down() {
    for (current, size) in [(8192, 8192), (8193, 8192), (8191, 7680), (513, 512)] {
        let mut image = Spec::dynamic(16384, 4096).build();
        image.edit_footers(48, &u64::to_be_bytes(current));
        assert_eq!(attach(&image.store).unwrap().disk.size, size, "{current}");
    }
}

#[test]
fn short_footer() {
    for mut spec in [Spec::fixed(8192), Spec::dynamic(8192, 4096)] {
        spec.end = End::Short;
        let mut image = spec.build();
        assert_eq!(image.store.len() % 512, 511);
        // The end has to do.
        if spec.disk_type == 3 {
            image.store.put(0, &[0; 512]);
        }
        assert_eq!(attach(&image.store).unwrap().disk.size, 8192);
    }
}

#[test]
fn short_footer_only_at_the_right_size() {
    let image = Spec::fixed(8192).build();
    for size in [8192 + 509, 8192 + 510] {
        let mut store = image.store.clone();
        store.put_size(size);
        assert_eq!(class(attach(&store).unwrap_err()), Class::Malformed);
    }
}

/// Damages of the copy at 0 under which the one at the end serves.
#[test]
fn damaged_front() {
    let damages: [&[u8]; 4] = [&[0; 512], &[0xff; 512], b"conectix", b"conectiX"];
    for damage in damages {
        let mut image = Spec::dynamic(8192, 4096).build();
        let mut bytes = damage.to_vec();
        bytes.resize(512, 0x11);
        image.store.put(0, &bytes);
        let attached = attach(&image.store).unwrap();
        assert_eq!(attached.disk.size, 8192);
        assert_eq!(attached.disk.state, State::Recovered);
        assert_eq!(attached.warning.unwrap().at, 0);
    }
}

#[test]
fn damaged_end() {
    for end in [
        End::Missing,
        End::Filled(0xc7),
        End::Filled(0),
        End::Damaged,
    ] {
        let mut spec = Spec::dynamic(8192, 4096);
        spec.end = end;
        let store = spec.build().store;
        let attached = attach(&store).unwrap();
        let warning = attached.warning.unwrap();
        let is_tapdisk = warning.what.contains("tapdisk");
        assert_eq!(is_tapdisk, end == End::Filled(0xc7), "{end:?}");
        let state = attached.disk.state;
        assert_eq!(state == State::Dirty, is_tapdisk, "{end:?}");
        assert_eq!(state == State::Recovered, !is_tapdisk, "{end:?}");
    }
}

/// The footer of an image inside the image is not believed.
#[test]
fn front_wins_over_end() {
    let mut image = Spec::dynamic(8192, 4096).build();
    image.edit_end(48, &4096u64.to_be_bytes());
    assert_eq!(attach(&image.store).unwrap().disk.size, 8192);
    image.edit_end(60, &2u32.to_be_bytes());
    assert_eq!(attach(&image.store).unwrap().disk.variant, "dynamic");
}

/// A fixed disk's first sector is the guest's: whatever is there does not count.
#[test]
fn fixed_disk_that_begins_like_a_vhd() {
    let heads: [[u8; 512]; 3] = [
        Spec::fixed(1024).footer(),
        {
            let mut damaged = Spec::dynamic(1024, 512).footer();
            damaged[99] ^= 1;
            damaged
        },
        {
            let mut poison = [0; 512];
            put(&mut poison, 0, b"v_poison");
            poison
        },
    ];
    for head in heads {
        let mut image = Spec::fixed(8192).build();
        image.store.put(0, &head);
        let attached = attach(&image.store).unwrap();
        assert_eq!(attached.disk.variant, "fixed");
        assert_eq!(attached.disk.size, 8192);
    }
}

#[test]
fn hidden_byte_is_not_summed_by_early_tapdisk() {
    let hide = |creator: &[u8; 4], version: u32| {
        let mut image = Spec::dynamic(8192, 4096).by(creator, version).build();
        for at in [0, image.end_at] {
            image.store.put(at + 85, &[1]);
        }
        attach(&image.store).is_ok()
    };
    assert!(hide(b"tap\0", 0x0001_0001));
    assert!(!hide(b"tap\0", 0x0001_0002));
    assert!(!hide(b"tap\0", 0x0001_0003));
    assert!(!hide(b"win ", 0x0001_0001));
    assert!(!hide(b"tap ", 0x0001_0001));
}

#[test]
fn hidden_byte_may_be_summed_too() {
    let mut image = Spec::dynamic(8192, 4096).by(b"tap\0", 0x0001_0001).build();
    image.edit_footers(85, &[1]);
    assert!(attach(&image.store).is_ok());
}

#[test]
fn wrong_header_checksum_needs_read_only() {
    let mut image = Spec::dynamic(8192, 4096).build();
    image.store.put(512 + 800, &[1]);
    let error = format::attach(&image.store, "", true).unwrap_err();
    assert_eq!(class(error), Class::NeedsReadOnly);
    assert_eq!(error.fault().unwrap().at, 512 + 36);

    let attached = format::attach(&image.store, "", false).unwrap();
    assert_eq!(attached.disk.size, 8192);
    assert_eq!(attached.warning.unwrap().at, 512 + 36);
}

#[test]
fn wrong_header_checksum_hides_no_other_fault() {
    let mut image = Spec::dynamic(8192, 4096).build();
    image.edit_header(32, &3000u32.to_be_bytes());
    image.store.put(512 + 800, &[1]);
    for writable in [false, true] {
        let error = format::attach(&image.store, "", writable).unwrap_err();
        assert_eq!(class(error), Class::Malformed);
    }
}

#[test]
fn table_may_be_larger_than_needed_and_lie_anywhere() {
    for table_at in [1536, 2048, 0x2000, 0x10_0000] {
        let mut spec = Spec::dynamic(8192, 4096);
        spec.table_at = table_at;
        spec.entries = Some(700);
        assert!(attach(&spec.build().store).is_ok(), "{table_at}");
    }
}

/// Header behind the BAT, as a volume manager's tool might leave it.
#[test]
fn header_may_lie_behind_the_table() {
    let mut spec = Spec::dynamic(8192, 4096);
    spec.table_at = 512;
    spec.header_at = 1024;
    assert!(attach(&spec.build().store).is_ok());
}

#[test]
fn block_sizes() {
    for shift in 9..=31 {
        let mut spec = Spec::dynamic(1 << 20, 1u32 << shift);
        spec.chs = (1, 1, 1);
        let device = open(spec.build().store).unwrap();
        assert_eq!(device.disk.size, 1 << 20);
        assert!(device.read(0, 1 << 20).unwrap().iter().all(|&b| b == 0));
    }
}

/// 2040 GiB is what Windows and XenServer can make.
#[test]
fn largest_disks() {
    const GIB: u64 = 1 << 30;
    let attach_size = |size| attach(&Spec::dynamic(size, 1 << 21).build().store);
    assert_eq!(attach_size(2040 * GIB).unwrap().disk.size, 2040 * GIB);
    assert_eq!(attach_size(2048 * GIB).unwrap().disk.size, 2048 * GIB);
    let error = attach_size(2048 * GIB + 512).unwrap_err();
    assert_eq!(class(error), Class::Unsupported);
}

/// Attach reads as much of a large image as of a small one.
#[test]
fn attach_reads_a_constant_amount() {
    let cost = |size| {
        let store = Spec::dynamic(size, 1 << 21)
            .by(b"tap\0", 0x0001_0003)
            .build()
            .store;
        attach(&store).unwrap();
        (store.loads(), store.loaded_bytes())
    };
    assert_eq!(cost(1 << 22), cost(1 << 41));
    let (loads, bytes) = cost(1 << 22);
    assert!(loads < 32 && bytes < 4096, "{loads} loads, {bytes} bytes");
}

#[test]
fn saved_state_and_junk_in_reserved_fields_do_not_matter() {
    let mut image = Spec::dynamic(8192, 4096).build();
    image.edit_footers(84, &[1]);
    image.edit_footers(86, &[0xaa; 426]);
    image.edit_footers(8, &[0xff; 4]);
    image.edit_footers(40, &[0xff; 8]);
    image.edit_header(8, &[0x12; 8]);
    image.edit_header(40, &[0x77; 24]);
    image.edit_header(768, &[0x55; 256]);
    assert!(attach(&image.store).is_ok());
}

/// Whatever its size, a file of nothing is refused and nothing panics.
#[test]
fn small_files() {
    for size in 0..=2100 {
        for byte in [0, 0xff] {
            let store = Store::new(&vec![byte; size]);
            let error = attach(&store).unwrap_err();
            assert_eq!(class(error), Class::Malformed, "{size}");
        }
    }
}

/// Every prefix of an image: refused or served, never a panic.
#[test]
fn cut_images() {
    let whole = Spec::dynamic(8192, 4096)
        .with_blocks(&[(1, crate::image::Bits::Ones)])
        .build()
        .store;
    for size in 0..whole.len() {
        let mut store = whole.clone();
        store.put_size(size);
        match open(store) {
            // Up to the end of the BAT everything has to be there.
            Ok(device) => {
                assert!(size >= 1536 + 8);
                let result = device.read(4096, 512);
                let block_end = Image::table_end(&Spec::dynamic(8192, 4096).build()) + 512 + 4096;
                assert_eq!(result.is_ok(), size >= block_end, "{size}");
            }
            Err(error) => assert_eq!(class(error), Class::Malformed, "{size}"),
        }
    }
}

#[test]
fn checksum_is_over_all_bytes() {
    let image = Spec::dynamic(8192, 4096).build();
    for at in (0..512).filter(|at| !(64..68).contains(at)) {
        let mut store = image.store.clone();
        let byte = store.get(at, 1)[0];
        // Both copies.
        store.put(at, &[byte ^ 1]);
        store.put(image.end_at + at, &[byte ^ 1]);
        assert!(attach(&store).is_err(), "byte {at}");
    }
    let mut footer = Spec::fixed(0).footer();
    let before = footer;
    fix(&mut footer, 64);
    assert_eq!(before, footer);
}
