// SPDX-License-Identifier: GPL-2.0

//! What an attach learns.

use loop_parser::contract::{AttachRequest, Error, State};
use testkit::store::Store;

use crate::{
    image::{descriptor, put32, put64, Header, Spec, CID},
    open::{about, open_as, part, request},
};

fn small() -> Spec {
    Spec::new(2048, 8).with_grains(&[0, 2, 70])
}

/// The text of the embedded descriptor, in place of what was there.
fn with_text(spec: &Spec, text: &str) -> Store {
    let mut store = spec.build().store;
    let (at, len) = Header::load(&store).descriptor.unwrap();
    store.put(at, &vec![0; len as usize]);
    store.put(at, text.as_bytes());
    store
}

#[test]
fn disk() {
    let store = small().build().store;
    let about = about(&store, &request()).unwrap();
    assert_eq!(about.disk.size, 2048 * 512);
    assert_eq!(about.disk.unit, 4096);
    assert_eq!(about.disk.variant, "monolithicSparse");
    assert_eq!(about.disk.state, State::Clean);
    let cid = u32::from_str_radix(CID, 16).unwrap();
    assert_eq!(about.disk.identity.0[..4], cid.to_le_bytes());
    assert!(about.parent.is_none() && about.warning.is_none());
}

#[test]
fn cowd() {
    let store = Spec::cowd(2048, 1).build().store;
    let found = about(&store, &request()).unwrap();
    assert_eq!((found.disk.size, found.disk.unit), (2048 * 512, 512));
    assert_eq!(found.disk.variant, "COWD");
    assert_eq!(found.disk.identity.0, [0; 16]);
    assert!(found.parent.is_none());
}

/// Zeros would be read where the parent's bytes are.
#[test]
fn child_of_cowd() {
    for (at, bytes, is_child) in [
        (32, &b"base.vmdk"[..], true),
        (32, b"/b/a", true),
        (1056, b"\x01\0\0\0", true),
        // The geometry of a disk without a parent.
        (32, b"\x14\x01\0\0\xff\0\0\0\x3f\0\0\0", false),
        // The generation of its own.
        (1060, b"\x01\0\0\0", false),
    ] {
        let mut store = Spec::cowd(2048, 8).build().store;
        store.put(at, bytes);
        let result = about(&store, &request());
        assert_eq!(result.is_err(), is_child, "{at}: {bytes:?}");
        if let Err(error) = result {
            assert!(
                matches!(error, Error::Unsupported(it) if it.at == 32),
                "{error:?}"
            );
        }
        for has_parent in [false, true] {
            about(&store, &part(2048 * 512, has_parent)).unwrap();
        }
    }
}

/// A file that was not closed is served, and that is said.
#[test]
fn unclean() {
    for (spec, at) in [(small(), 72), (Spec::cowd(2048, 8), 1648)] {
        let mut store = spec.build().store;
        store.put(at, &[1]);
        let found = about(&store, &request()).unwrap();
        assert_eq!(found.disk.state, State::Dirty);
        assert_eq!(found.warning.unwrap().at, at);
    }
}

#[test]
fn parent() {
    let store = small().on("0000abcd", "base.vmdk").build().store;
    let found = about(&store, &request()).unwrap();
    assert_eq!(found.parent_name(&store).unwrap(), "base.vmdk");
    // As an extent of a disk it is that disk's business.
    let found = about(&store, &part(2048 * 512, false)).unwrap();
    assert!(found.parent.is_none());
    assert_eq!(found.disk.identity.0, [0; 16]);
    assert_eq!(found.disk.variant, "sparse");
    // No name.
    let text = descriptor(2048, Some(("0000abcd", ""))).replace("parentFileNameHint=\"\"\n", "");
    let error = about(&with_text(&small(), &text), &request()).unwrap_err();
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
}

/// Room for a descriptor, but nothing in it; or no room.
#[test]
fn no_descriptor() {
    let mut without = small();
    without.descriptor = None;
    for store in [with_text(&small(), ""), without.build().store] {
        let found = about(&store, &request()).unwrap();
        assert_eq!(found.disk.variant, "sparse");
        assert_eq!(found.disk.identity.0, [0; 16]);
        assert_eq!(found.disk.size, 2048 * 512);
    }
}

/// Nothing can be shifted by a line that nobody understands: the disk is in this file.
#[test]
fn unknown_line() {
    for line in ["garbage", "WR 5 FLAT \"x\" 0", "\u{1}\u{2}"] {
        let text = descriptor(2048, None).replace("version=1\n", &format!("{line}\n"));
        let store = with_text(&small(), &text);
        let found = about(&store, &request()).unwrap();
        assert_eq!(found.disk.size, 2048 * 512);
        assert_eq!(found.disk.variant, "monolithicSparse");
        let mut device = open_as(store, &request()).unwrap();
        device.write(0, &[1; 512]).unwrap();
        let store = device.close().unwrap();
        let (at, len) = Header::load(&store).descriptor.unwrap();
        let changed = String::from_utf8(store.get(at, len as usize)).unwrap();
        assert!(changed.contains(line) && !changed.contains(CID));
    }
}

/// The lines with extents say how large the disk is; some programs round the header's capacity up.
#[test]
fn size_of_the_disk() {
    for (sectors, expected) in [(2041, 2041), (2048, 2048), (4096, 2048)] {
        let store = with_text(&small(), &descriptor(sectors, None));
        let found = about(&store, &request()).unwrap();
        assert_eq!(found.disk.size, expected * 512);
        // As an extent the header counts: the list has its own idea.
        let found = about(&store, &part(1024, false)).unwrap();
        assert_eq!(found.disk.size, 2048 * 512);
    }
}

#[test]
fn size_of_an_extent() {
    for spec in [small(), Spec::cowd(2048, 8)] {
        let store = spec.build().store;
        about(&store, &part(2048 * 512, false)).unwrap();
        let error = about(&store, &part(2049 * 512, false)).unwrap_err();
        assert!(
            matches!(error, Error::Malformed(it) if it.at == 12),
            "{error:?}"
        );
    }
}

/// One of several extents is not a disk.
#[test]
fn one_of_several() {
    let line = "RW 2048 SPARSE \"image.vmdk\"\n";
    let two = descriptor(2048, None).replace(line, &line.repeat(2));
    let split = two.replace("monolithicSparse", "twoGbMaxExtentSparse");
    about(&with_text(&small(), &two), &request()).unwrap();
    let error = about(&with_text(&small(), &split), &request()).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    about(&with_text(&small(), &split), &part(2048, false)).unwrap();
}

/// Versions and flags, and whether they can be written.
#[test]
fn versions() {
    for (version, is_writable) in [(1u32, true), (2, true), (3, false)] {
        let mut store = small().build().store;
        store.put(4, &version.to_le_bytes());
        for writable in [false, true] {
            let request = AttachRequest {
                writable,
                ..request()
            };
            let result = about(&store, &request);
            if is_writable || !writable {
                result.unwrap();
            } else {
                let error = result.unwrap_err();
                assert!(
                    matches!(error, Error::NeedsReadOnly(it) if it.at == 4),
                    "{error:?}"
                );
            }
        }
    }
    let tracked = descriptor(2048, None) + "changeTrackPath=\"image-ctk.vmdk\"\n";
    let store = with_text(&small(), &tracked);
    let error = about(&store, &request()).unwrap_err();
    assert!(matches!(error, Error::NeedsReadOnly(_)), "{error:?}");
}

/// Without its flag the redundant directory does not count; a 0 is none, and so is one "at the end".
#[test]
fn redundant_directory() {
    let spec = small().without_redundant();
    for (flags, at) in [(1u32, u64::MAX), (3, 0), (3, u64::MAX)] {
        let mut store = spec.build().store;
        store.put(8, &flags.to_le_bytes());
        put64(&mut store, 48, at);
        let mut device = open_as(store, &request()).unwrap();
        device.write(20 * 4096, &[1; 512]).unwrap();
        let store = device.close().unwrap();
        assert_eq!(store.get(48, 8), at.to_le_bytes());
    }
}

/// Which of the directories lies first differs by program.
#[test]
fn either_first() {
    let image = small().build();
    let header = Header::load(&image.store);
    let mut store = image.store.clone();
    put64(&mut store, 56, header.redundant.unwrap() / 512);
    put64(&mut store, 48, header.directory / 512);
    let device = open_as(store, &request()).unwrap();
    let whole = crate::image::disk(&image.store, &[]);
    assert!(device.read(0, 2048 * 512).unwrap() == whole);
}

/// The disk has become larger; or smaller, or larger than there are tables for.
#[test]
fn reread_size() {
    for spec in [small(), Spec::cowd(2048, 8)] {
        let is_cowd = spec.kind == crate::image::Kind::Cowd;
        let mut device = open_as(spec.build().store, &request()).unwrap();
        device.reread_size().unwrap();
        assert_eq!(device.disk.size, 2048 * 512);
        let put = |device: &mut testkit::device::Device, sectors: u64| match is_cowd {
            true => put32(&mut device.store, 12, sectors),
            false => put64(&mut device.store, 12, sectors),
        };
        put(&mut device, 8 * spec.entries);
        device.reread_size().unwrap();
        assert_eq!(device.disk.size, 4096 * spec.entries);
        device.write(4096 * (spec.entries - 1), &[1; 512]).unwrap();
        put(&mut device, 8 * spec.entries + 1);
        assert!(device.reread_size().is_err());
    }
}
