// SPDX-License-Identifier: GPL-2.0

//! Where guest ranges lie.

use loop_parser::contract::{Compression, Extent, Part, Placement};

use crate::{
    image::{Fill, Form, Spec},
    open, open_with,
};

const FORMS: [Form; 3] = [Form::Footer, Form::Front, Form::Qemu];

/// 51 grains of 8 sectors; the last one has 3.
fn spec(form: Form) -> Spec {
    Spec::new(form, 403).with_grains(&[
        (0, Fill::Text),
        (1, Fill::Random),
        (2, Fill::Random),
        (15, Fill::Text),
        (16, Fill::Text),
        (30, Fill::Random),
        (50, Fill::Text),
    ])
}

#[test]
fn content_is_right() {
    for form in FORMS {
        for per_table in [1, 16, 512] {
            let image = spec(form).with(|it| it.per_table = per_table).build();
            let device = open(&image.store).unwrap();
            assert!(device.read(0, 403 * 512).unwrap() == image.disk, "{form:?}");
            for pos in (0..403).map(|sector| sector * 512) {
                let bytes = device.read(pos, 512).unwrap();
                assert!(bytes[..] == image.disk[pos as usize..][..512]);
            }
        }
    }
}

#[test]
fn grains_are_compressed_units() {
    for form in FORMS {
        let image = spec(form).build();
        let device = open(&image.store).unwrap();
        for (&number, &(at, _)) in &image.places {
            let start = number * 4096;
            let shown = (403 * 512 - start).min(4096);
            for skip in (0..shown).step_by(512) {
                let asked = 403 * 512 - start - skip;
                let extent = device.resolve_read(start + skip, asked).unwrap();
                let Extent::Compressed(unit) = extent else {
                    panic!("{extent:?}");
                };
                assert_eq!(unit.offset, at + 12);
                let stored = u32::from_le_bytes(image.store.get_array(at + 8));
                assert_eq!(unit.stored, stored);
                assert_eq!(unit.compression, Compression::Zlib);
                assert_eq!(u64::from(unit.least), shown);
                assert_eq!((unit.unit, u64::from(unit.skip)), (4096, skip));
                assert_eq!(unit.len, shown - skip);
            }
        }
    }
}

#[test]
fn holes_are_one_extent() {
    for form in FORMS {
        let image = spec(form).build();
        let device = open(&image.store).unwrap();
        let hole = |pos: u64, len| device.resolve_read(pos * 4096 + 512, len).unwrap();
        let to_grain = |pos: u64, grain: u64| Extent::Zero {
            len: (grain - pos) * 4096 - 512,
        };
        assert_eq!(hole(3, 1 << 20), to_grain(3, 15));
        assert_eq!(hole(17, 1 << 20), to_grain(17, 30));
        // Over tables that are not there.
        assert_eq!(hole(31, 1 << 20), to_grain(31, 50));
        assert_eq!(hole(31, 1024), Extent::Zero { len: 1024 });
    }
}

#[test]
fn lookups_are_bounded() {
    // No grain, but all the tables: 128 entries are looked at, no more.
    let image = Spec::new(Form::Front, 8 << 12).build();
    let device = open(&image.store).unwrap();
    let before = device.store.loads();
    let extent = device.resolve_read(0, 16 << 20).unwrap();
    assert_eq!(extent, Extent::Zero { len: 129 * 4096 });
    let loads = device.store.loads() - before;
    assert!(loads <= 129 + 9, "{loads}");
}

#[test]
fn what_is_missing_is_the_parents() {
    for form in FORMS {
        let image = spec(form).build();
        let part = Part {
            len: 403 * 512,
            has_parent: true,
        };
        let (device, _) = open_with(&image.store, Some(part)).unwrap();
        assert_eq!(
            device.resolve_read(3 * 4096, 403 * 512 - 3 * 4096).unwrap(),
            Extent::Parent { len: 12 * 4096 }
        );
        let extent = device.resolve_read(0, 4096).unwrap();
        assert!(matches!(extent, Extent::Compressed(_)));
    }
}

#[test]
fn zero_grains_hide_the_parent() {
    for form in FORMS {
        let image = spec(form)
            .with(|it| {
                it.has_zero_grains = true;
                it.grains.insert(4, Fill::Zero);
                it.grains.insert(5, Fill::Zero);
                it.grains.insert(32, Fill::Zero);
            })
            .build();
        for has_parent in [false, true] {
            let part = Part {
                len: 403 * 512,
                has_parent,
            };
            let (device, _) = open_with(&image.store, Some(part)).unwrap();
            let kind = |pos: u64| device.resolve_read(pos * 4096, 1 << 16).unwrap();
            assert_eq!(kind(4), Extent::Zero { len: 8192 });
            assert_eq!(kind(32), Extent::Zero { len: 4096 });
            let below = match has_parent {
                true => Extent::Parent { len: 4096 },
                false => Extent::Zero { len: 4096 },
            };
            assert_eq!(kind(3), below);
        }
    }
}

#[test]
fn nothing_is_written_in_place() {
    let image = spec(Form::Footer).build();
    let device = open(&image.store).unwrap();
    for pos in (0..403).map(|sector| sector * 512) {
        let placement = device.resolve_write(pos, 512).unwrap();
        let expected = Placement::Allocate {
            pos: pos / 4096 * 4096,
            len: 4096,
        };
        assert_eq!(placement, expected);
    }
}
