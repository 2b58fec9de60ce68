// SPDX-License-Identifier: GPL-2.0

//! Grains and tables that cannot be right: what they are of cannot be read, the rest can.

use testkit::{device::Device, store::Store};

use crate::{
    class,
    image::{put_grain, Fill, Form, Image, Spec},
    open, Class,
};

const FORMS: [Form; 3] = [Form::Footer, Form::Front, Form::Qemu];
/// The grain that is damaged.
const BAD: u64 = 17;

fn image(form: Form) -> Image {
    Spec::new(form, 403)
        .with_grains(&[
            (0, Fill::Text),
            (16, Fill::Text),
            (BAD, Fill::Random),
            (18, Fill::Text),
            (50, Fill::Text),
        ])
        .build()
}

fn grain_of(device: &Device, number: u64) -> loop_parser::contract::Result<Vec<u8>> {
    device.read(number * 4096, 512)
}

/// Damages a stream, and looks at it: a grain is malformed, and all the others are what they were.
fn damage(form: Form, change: impl Fn(&mut Image)) {
    let mut image = image(form);
    change(&mut image);
    let device = open(&image.store).unwrap();
    check(&device, &image.disk, &[BAD]);
}

fn check(device: &Device, disk: &[u8], bad: &[u64]) {
    for number in 0..51 {
        let read = grain_of(device, number);
        if bad.contains(&number) {
            assert_eq!(read.map_err(class), Err(Class::Malformed), "{number}");
        } else {
            let at = (number * 4096) as usize;
            assert!(read.unwrap()[..] == disk[at..at + 512], "{number}");
        }
    }
    // Also at the end of a run.
    let before = bad[0] * 4096;
    assert!(device.read(0, before).unwrap()[..] == disk[..before as usize]);
}

#[test]
fn table_entries() {
    for form in FORMS {
        let put = |value: u32| {
            damage(form, |image| {
                image.store.put(image.entries[&BAD], &value.to_le_bytes());
            });
        };
        let sector = |number: u64| (image(form).places[&number].0 / 512) as u32;
        // Another place's grain.
        put(sector(16));
        put(sector(18));
        // The middle of a grain; the header; the descriptor, which is what 1 means without its
        // flag.
        put(sector(BAD) + 1);
        put(1);
        // The end of the file, and what lies past it.
        put((image(form).store.len() / 512) as u32);
        put(u32::MAX);
        put((image(form).store.len() / 512) as u32 - 1);
    }
}

#[test]
fn grain_headers() {
    for form in FORMS {
        let put = |at: u64, bytes: &[u8]| {
            damage(form, |image| {
                image.store.put(image.places[&BAD].0 + at, bytes)
            });
        };
        // Other places, places that are none, and some past the end.
        for lba in [0u64, 128, BAD * 8 + 1, 408, 1 << 20, 1 << 55, u64::MAX] {
            put(0, &lba.to_le_bytes());
        }
        // No bytes; more than there are of any grain; more than there are in the file.
        for size in [0, 4096 + 64 + 4096 + 1, 1 << 31, u32::MAX] {
            put(8, &u32::to_le_bytes(size));
        }
    }
}

#[test]
fn compressed_bytes() {
    for form in FORMS {
        // Header of the zlib stream, data, checksum.
        for (at, byte) in [(12, 0x79), (12, 0xff), (13, 0), (14, 7)] {
            damage(form, |image| {
                image.store.put(image.places[&BAD].0 + at, &[byte])
            });
        }
        damage(form, |image| {
            let at = image.places[&BAD].0;
            let size = u32::from_le_bytes(image.store.get_array(at + 8));
            let last = image.store.get_array::<1>(at + 11 + u64::from(size))[0];
            image.store.put(at + 11 + u64::from(size), &[!last]);
        });
        // Not even the header of the stream, or nothing in it.
        for packed in [&[0x78][..], &[0x78, 0x9c], &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]] {
            damage(form, |image| {
                put_grain(&mut image.store, image.places[&BAD].0, BAD * 8, packed);
            });
        }
    }
}

/// Too little comes out; for the last grain it has to be what is on the disk.
#[test]
fn grains_that_are_too_short() {
    for form in FORMS {
        for (len, is_enough) in [(3 * 512 - 1, false), (3 * 512, true), (4096, true)] {
            let mut image = image(form);
            let content = vec![7; len];
            let packed = miniz_oxide::deflate::compress_to_vec_zlib(&content, 6);
            put_grain(&mut image.store, image.places[&50].0, 50 * 8, &packed);
            let read = open(&image.store).unwrap().read(50 * 4096, 3 * 512);
            match is_enough {
                true => assert!(read.unwrap() == vec![7; 3 * 512]),
                false => assert_eq!(read.map_err(class), Err(Class::Malformed)),
            }
        }
        for len in [4095, 3 * 512] {
            damage(form, |image| {
                let packed = miniz_oxide::deflate::compress_to_vec_zlib(&vec![7; len], 6);
                put_grain(&mut image.store, image.places[&BAD].0, BAD * 8, &packed);
            });
        }
    }
}

/// What would be more than a grain is not decompressed.
#[test]
fn bombs() {
    for form in FORMS {
        let mut image = image(form);
        let packed = miniz_oxide::deflate::compress_to_vec_zlib(&vec![9; 4 << 20], 9);
        assert!(packed.len() <= 4096 + 64 + 4096, "the bomb is too large");
        let at = image.store.len();
        put_grain(&mut image.store, at, BAD * 8, &packed);
        let sector = (at / 512) as u32;
        // What is behind a footer hides it.
        if form == Form::Footer {
            let (tail, size) = (image.store.get(at - 1536, 1536), image.store.len());
            image.store.put(size.next_multiple_of(512), &tail);
        }
        image.store.put(image.entries[&BAD], &sector.to_le_bytes());
        let device = open(&image.store).unwrap();
        assert!(device.read(BAD * 4096, 4096).unwrap() == vec![9; 4096]);
    }
}

#[test]
fn directory_entries() {
    for form in FORMS {
        for sector in [u32::MAX, 1 << 20, 0x7fff_ffff] {
            let mut image = image(form);
            image.store.put(image.directory + 4, &sector.to_le_bytes());
            let device = open(&image.store).unwrap();
            check(&device, &image.disk, &(16..32).collect::<Vec<_>>()[..]);
        }
        // No table at all: a hole.
        let mut image = image(form);
        image.store.put(image.directory + 4, &[0; 4]);
        let device = open(&image.store).unwrap();
        assert!(device.read(16 * 4096, 16 * 4096).unwrap() == vec![0; 16 * 4096]);
    }
}

/// The directory is in front, and grains are missing at the end.
#[test]
fn cut() {
    for form in [Form::Front, Form::Qemu] {
        let whole = image(form);
        for len in (whole.places[&0].0..whole.store.len()).step_by(100) {
            let mut store: Store = whole.store.clone();
            store.put_size(len);
            let device = open(&store).unwrap();
            for (&number, &(at, _)) in &whole.places {
                let size = u32::from_le_bytes(whole.store.get_array(at + 8));
                let is_there = at + 12 + u64::from(size) <= len;
                let start = (number * 4096) as usize;
                match grain_of(&device, number) {
                    Ok(bytes) => assert!(is_there && bytes[..] == whole.disk[start..start + 512]),
                    Err(error) => {
                        assert!(!is_there);
                        assert_eq!(class(error), Class::Malformed);
                    }
                }
            }
        }
    }
}
