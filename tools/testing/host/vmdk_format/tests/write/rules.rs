// SPDX-License-Identifier: GPL-2.0

//! What a write does to an image.

use loop_parser::contract::{Error, Placement};
use testkit::{
    device::Begun,
    store::{Failure, Op, ENOSPC},
};

use crate::{
    image::{self, check, disk, get32, put32, put64, Header, Spec},
    open::{below, open, open_as, open_on, part},
};

/// Bytes in a grain of [`small`].
const G: u64 = 4096;
const SIZE: u64 = 1 << 20;

/// 256 grains, in tables of 64.
fn small() -> Spec {
    Spec::new(SIZE / 512, 8)
        .with_entries(64)
        .with_grains(&[0, 2, 70])
}

/// All kinds of them.
pub fn kinds() -> Vec<Spec> {
    let mut cowd = Spec::cowd(SIZE / 512, 8).with_grains(&[0, 2, 70]);
    cowd.has_tables = false;
    vec![
        small(),
        small().without_redundant(),
        small().with_entries(100),
        small().with_entries(3).without_tables(),
        small().without_tables().with_zeros(&[5, 6, 200]),
        small().with_zeros(&[5, 6, 200]),
        cowd,
        Spec::cowd(SIZE / 512, 1).with_grains(&[0, 2, 70]),
    ]
}

/// The same image as a child; a COWD file does not know that it is one.
pub fn child(spec: &Spec) -> Spec {
    match spec.kind {
        image::Kind::Sparse => spec.clone().on("00000001", "base.vmdk"),
        image::Kind::Cowd => spec.clone(),
    }
}

/// The rest of a new grain is what it was: zeros, or the parent's.
#[test]
fn completes_grains() {
    for spec in kinds() {
        for under in [0, 5 * G + 512, SIZE] {
            let spec = if under > 0 {
                child(&spec)
            } else {
                spec.clone()
            };
            let image = spec.build();
            let mut device = open_on(&spec, image.store, under).unwrap();
            let mut shadow = disk(&device.store, &below(under, SIZE));
            assert!(device.read(0, SIZE).unwrap() == shadow);
            for pos in [
                512,
                G + 512,
                5 * G + 1024,
                70 * G + 3584,
                255 * G,
                200 * G + 512,
            ] {
                device.write(pos, &[1; 512]).unwrap();
                shadow[pos as usize..][..512].fill(1);
            }
            assert!(device.read(0, SIZE).unwrap() == shadow);
            let store = device.close().unwrap();
            check(&store);
            assert!(disk(&store, &below(under, SIZE)) == shadow);
        }
    }
}

/// A disk that ends within a grain: the grain is all there.
#[test]
fn last_grain() {
    for under in [0, SIZE] {
        let mut spec = Spec::new(2 * 8 + 3, 8).with_grains(&[1]);
        if under > 0 {
            spec = spec.on("00000001", "base.vmdk");
        }
        let size = spec.bytes();
        let mut device = open_on(&spec, spec.build().store, under).unwrap();
        assert_eq!(device.disk.size, size);
        device.write(size - 512, &[9; 512]).unwrap();
        let mut shadow = disk(&spec.build().store, &below(under, size));
        shadow[size as usize - 512..].fill(9);
        assert!(device.read(0, size).unwrap() == shadow);
        let store = device.close().unwrap();
        check(&store);
        let header = Header::load(&store);
        let last = header.entry(&store, header.directory, 2);
        assert_eq!(store.len(), last * 512 + G);
        assert!(disk(&store, &below(under, size)) == shadow);
    }
}

fn cid(store: &testkit::store::Store) -> String {
    let (at, len) = Header::load(store).descriptor.unwrap();
    let text = String::from_utf8_lossy(&store.get(at, len as usize)).into_owned();
    let line = text.lines().find(|line| line.starts_with("CID=")).unwrap();
    line[4..].to_owned()
}

/// The mark and the new CID are durable before anything else is changed; the mark goes when all is
/// durable. Every time.
#[test]
fn marks() {
    for spec in kinds() {
        let mut device = open_on(&spec, spec.build().store, 0).unwrap();
        let is_sparse = spec.kind == image::Kind::Sparse;
        let mut seen = vec![image::CID.to_owned()];
        for round in 0..3 {
            device.store.record();
            // In place.
            device.write(0, &[round; 512]).unwrap();
            let trace = device.store.take_trace();
            let sync = trace.iter().position(|op| matches!(op, Op::Sync)).unwrap();
            assert!(trace[..sync].len() > usize::from(is_sparse));
            assert!(Header::load(&device.store).is_unclean);
            if is_sparse {
                let cid = cid(&device.store);
                assert!(cid.len() == 8 && !seen.contains(&cid), "{cid} {seen:?}");
                seen.push(cid);
            }
            device.store.record();
            device.write(0, &[round + 1; 512]).unwrap();
            assert_eq!(device.store.take_trace().len(), 1, "marked twice");
            device
                .write((9 + u64::from(round)) * G, &[round; 512])
                .unwrap();
            device.store.record();
            device.trim().unwrap();
            let trace = device.store.take_trace();
            let [.., before, clear, after] = &trace[..] else {
                panic!("{trace:?}");
            };
            assert!(matches!((before, after), (Op::Sync, Op::Sync)));
            let at = if is_sparse { 72 } else { 1648 };
            assert!(matches!(clear, Op::Write { offset, .. } if *offset == at));
            check(&device.store);
        }
    }
}

/// Nothing was written: nothing changes.
#[test]
fn reading_changes_nothing() {
    for spec in kinds() {
        let before = spec.build().store.to_vec();
        let device = open_on(&spec, spec.build().store, 0).unwrap();
        device.read(0, SIZE).unwrap();
        assert!(device.close().unwrap().to_vec() == before);
    }
}

/// An extent of a disk is marked, but what its own descriptor says is not its business.
#[test]
fn parts() {
    let spec = small();
    let before = spec.build().store;
    let mut device = open_as(spec.build().store, &part(SIZE, false)).unwrap();
    device.write(0, &[1; 512]).unwrap();
    assert!(Header::load(&device.store).is_unclean);
    assert_eq!(cid(&device.store), cid(&before));
    check(&device.close().unwrap());
}

/// A file is extended by many grains at once, and what is left of them is cut off.
#[test]
fn grows_in_batches() {
    for spec in kinds() {
        let image = spec.build();
        let before = image.store.len();
        let mut device = open_on(&spec, image.store, 0).unwrap();
        device.write(9 * G, &[1; 512]).unwrap();
        assert!(device.image_len() > before + (1 << 20));
        let syncs = device.store.syncs();
        for grain in 10..60 {
            device.write(grain * G, &[1; 512]).unwrap();
        }
        let more = device.store.syncs() - syncs;
        assert!(more <= 1, "{more} syncs for 50 grains");
        let store = device.close().unwrap();
        check(&store);
        let tables = 2 * G * spec.tables();
        assert!(store.len() <= before + 52 * G + tables, "{}", store.len());
        if spec.kind == image::Kind::Cowd {
            assert_eq!(get32(&store, 28) * 512, store.len());
        }
        // All has a place: the size stays.
        let before = store.len();
        let mut device = open_on(&spec, store, 0).unwrap();
        device.write(9 * G, &[2; 512]).unwrap();
        assert_eq!(device.close().unwrap().len(), before);
    }
}

#[test]
fn released_space_is_used_again() {
    for spec in kinds() {
        let mut device = open_on(&spec, spec.build().store, 0).unwrap();
        let mut offsets = Vec::new();
        for _ in 0..3 {
            let Begun::Pending(pending, _) = device.begin(9 * G, &[1; 512]).unwrap() else {
                panic!("written in place");
            };
            // Part of it was written before it failed.
            let offset = pending.space().offset;
            device.store.put(offset, &[0xee; 512]);
            device.give_up(&pending);
            offsets.push(offset);
        }
        assert!(offsets.iter().all(|it| *it == offsets[0]));
        device.write(9 * G + 512, &[1; 512]).unwrap();
        assert_eq!(device.read(9 * G, 512).unwrap(), [0; 512]);
        check(&device.close().unwrap());
    }
}

/// Two places at once, given back in either order.
#[test]
fn two_at_once() {
    for first in [0, 1] {
        let mut device = open(small().build().store).unwrap();
        let pending: Vec<_> = [9, 10]
            .iter()
            .map(|index| match device.begin(index * G, &[1; 512]).unwrap() {
                Begun::Pending(pending, _) => pending,
                Begun::Written(_) => panic!("written in place"),
            })
            .collect();
        device.give_up(&pending[first]);
        device.finish(pending[1 - first].clone()).unwrap();
        device.write(11 * G, &[3; 512]).unwrap();
        check(&device.close().unwrap());
    }
}

/// The file has another size now, but what was handed out is not free.
#[test]
fn size_changed_while_pending() {
    let mut device = open(small().build().store).unwrap();
    let Begun::Pending(pending, _) = device.begin(9 * G, &[1; 512]).unwrap() else {
        panic!("written in place");
    };
    let end = pending.space().offset + G;
    device.store.put_size(end);
    device.write(10 * G, &[2; 512]).unwrap();
    device.finish(pending).unwrap();
    assert_eq!(device.read(9 * G, 512).unwrap(), [1; 512]);
    check(&device.close().unwrap());
}

#[test]
fn block_devices() {
    for mut spec in kinds() {
        spec.size -= 3;
        let image = spec.build();
        let at_once = spec.grain_len();
        let room = image.store.len().next_multiple_of(G) + 16 * G + 3 * 16384;
        let mut device = open_on(&spec, image.store.into_device(room, 0xdb), 0).unwrap();
        let size = spec.bytes();
        let mut shadow = device.read(0, size).unwrap();
        let mut full = false;
        for grain in 1..size / at_once {
            let pos = grain * at_once;
            match device.write(pos, &[grain as u8; 512]) {
                Ok(()) => shadow[pos as usize..][..512].fill(grain as u8),
                Err(error) => {
                    assert_eq!(error, ENOSPC);
                    full = true;
                }
            }
        }
        assert!(full, "{spec:?}");
        assert!(device.read(0, size).unwrap() == shadow);
        let store = device.close().unwrap();
        assert_eq!(store.len(), room);
        check(&store);
        assert!(disk(&store, &[]) == shadow);
    }
}

/// What an entry says that cannot be right is not written to; what is right is.
#[test]
fn malformed_entries() {
    for spec in kinds() {
        let image = spec.build();
        let end = image.store.len() / 512;
        let (at, _) = image.entries[&2];
        for (bad, is_past) in [(2, false), (end, true), (u64::from(u32::MAX), true)] {
            let mut store = image.store.clone();
            put32(&mut store, at, bad);
            let mut device = open_on(&spec, store, 0).unwrap();
            let pos = 2 * spec.grain_len();
            for error in [
                device.write(pos, &[1; 512]).unwrap_err(),
                device.read(pos, 512).unwrap_err(),
            ] {
                assert!(
                    matches!(error, Error::Malformed(it) if it.at == at),
                    "{error:?}"
                );
            }
            device.write(0, &[1; 512]).unwrap();
            // An entry that points past the end would point to the next grain that is handed out.
            let new = device.write(9 * G, &[1; 512]);
            assert_eq!(new.is_err(), is_past, "{new:?}");
            assert!(device.write(pos, &[1; 512]).is_err());
        }
    }
}

/// There are no more sector numbers.
#[test]
fn as_large_as_can_be() {
    let spec = Spec::new(SIZE / 512, 128).with_grains(&[0]);
    let grain = 65536;
    for (left, is_room) in [
        (2 * grain, true),
        (grain, true),
        (grain - 512, false),
        (0, false),
    ] {
        let mut image = spec.build();
        image.store.put_size((1 << 41) - left);
        let mut device = open(image.store).unwrap();
        let before = device.image_len();
        let result = device.write(3 * grain, &[1; 512]);
        if is_room {
            result.unwrap();
            let header = Header::load(&device.store);
            let entry = header.entry(&device.store, header.directory, 3);
            assert_eq!(entry * 512, before);
            assert_eq!(device.read(3 * grain, 512).unwrap(), [1; 512]);
            assert!(device.image_len() <= 1 << 41);
        } else {
            assert_eq!(result, Err(Error::Store(-27)));
            device.write(0, &[1; 512]).unwrap();
        }
    }
}

/// 32-bit sector numbers: bytes beyond 4 GiB are not those at the start of the file.
#[test]
fn beyond_4_gib() {
    let spec = Spec::new((6 << 30) / 512, 128).with_grains(&[0]);
    let mut image = spec.build();
    image.store.put_size(5 << 30);
    let mut device = open(image.store).unwrap();
    let pos = (6 << 30) - 65536;
    device.write(pos + 512, &[7; 512]).unwrap();
    let placement = device.resolve_write(pos + 512, 512).unwrap();
    let expected = Placement::InPlace {
        offset: (5 << 30) + 512,
        len: 512,
    };
    assert_eq!(placement, expected);
    assert_eq!(device.read(pos + 512, 512).unwrap(), [7; 512]);
    assert_eq!(device.read(0, 512).unwrap(), image::pattern(0));
}

/// Another program has changed the header since the attach.
#[test]
fn changed_in_the_meantime() {
    let spec = small();
    let header = Header::load(&spec.build().store);
    for (at, value) in [
        (12, SIZE / 512 - 1),
        (20, 16),
        (48, header.directory / 512),
        (56, header.directory / 512 + 1),
        (4, 9),
    ] {
        let mut device = open(spec.build().store).unwrap();
        put64(&mut device.store, at, value);
        let before = device.store.to_vec();
        for _ in 0..2 {
            let error = device.write(9 * G, &[1; 512]).unwrap_err();
            assert!(matches!(error, Error::NeedsReadOnly(_)), "{error:?}");
        }
        assert!(device.store.to_vec() == before);
    }
}

/// Somebody else has closed the image while it was in use here.
#[test]
fn closed_by_another() {
    let mut device = open(small().build().store).unwrap();
    device.write(9 * G, &[1; 512]).unwrap();
    let first = cid(&device.store);
    device.store.put(72, &[0]);
    device.begin_again();
    device.write(10 * G, &[1; 512]).unwrap();
    assert!(Header::load(&device.store).is_unclean);
    assert_ne!(cid(&device.store), first);
    check(&device.close().unwrap());
}

/// The digits of the CID are gone: that is no image to write to.
#[test]
fn content_id_moved() {
    let mut device = open(small().build().store).unwrap();
    let (at, _) = Header::load(&device.store).descriptor.unwrap();
    device
        .store
        .put(at, b"# Disk DescriptorFile\nversion=1\n#ID=00000000\n");
    assert!(device.write(9 * G, &[1; 512]).is_err());
}

/// Whatever store fails, nothing is lost, and the next try succeeds.
#[test]
fn every_store_can_fail() {
    for spec in kinds() {
        for failure in Failure::ALL {
            for n in 0..24 {
                let mut device = open_on(&spec, spec.build().store, 0).unwrap();
                let mut shadow = device.read(0, SIZE).unwrap();
                device.store.fail_after(n, failure);
                for pos in [9 * G, G, 128 * G, 129 * G] {
                    let mut tries = 0;
                    while device.write(pos, &[1; 512]).is_err() {
                        tries += 1;
                        assert!(tries < 2, "{failure:?} {n}");
                        assert!(
                            device.read(0, SIZE).unwrap() == shadow,
                            "{failure:?} {n} {spec:?}"
                        );
                    }
                    shadow[pos as usize..][..512].fill(1);
                }
                device.store.never_fail();
                let store = device.close().unwrap();
                check(&store);
                assert!(disk(&store, &[]) == shadow, "{failure:?} {n}");
            }
        }
    }
}
