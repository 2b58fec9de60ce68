// SPDX-License-Identifier: GPL-2.0

//! The CID is another after every use in which the disk was written to, and nothing else is.

use std::collections::HashSet;

use loop_parser::contract::{Allocate, Error};
use testkit::{
    rng::Rng,
    store::{Failure, Op, Store},
};

use crate::{attach, attach_writable, class, file, identity, Class};

fn with_cid(cid: &str) -> Store {
    file(format!(
        "version=1\nCID={cid}\nparentCID=ffffffff\nRW 5 ZERO\nddb.adapterType = \"ide\"\n"
    ))
}

/// Where two texts of one length differ: the first byte, and the bytes in the second one up to the last.
fn difference(old: &[u8], new: &[u8]) -> Option<(usize, Vec<u8>)> {
    assert_eq!(old.len(), new.len());
    let differs = |index: &usize| old[*index] != new[*index];
    let first = (0..old.len()).find(differs)?;
    let last = (0..old.len()).rfind(differs)?;
    Some((first, new[first..=last].to_vec()))
}

/// Everything but the digits at `at`.
fn without(text: &[u8], at: usize, len: usize) -> Vec<u8> {
    [&text[..at], &text[at + len..]].concat()
}

fn find(text: &[u8], what: &str) -> usize {
    let what = what.as_bytes();
    let found = text.windows(what.len()).position(|it| it == what);
    found.unwrap() + what.len()
}

#[test]
fn digits_stay_where_they_are() {
    let mut rng = Rng::new(1);
    for digits in 1..=8 {
        for _ in 0..200 {
            let cid: String = (0..digits)
                .map(|_| char::from(b"0123456789abcdefABCDEF"[rng.below(22) as usize]))
                .collect();
            let mut store = with_cid(&cid);
            let before = store.to_vec();
            let mut set = attach_writable(&store, rng.next_u64() as u32).unwrap();
            set.image.alloc.begin(&mut store).unwrap();
            assert_eq!((store.stores(), store.syncs()), (1, 1));
            let after = store.to_vec();
            let at = find(&before, "\nCID=");
            assert_eq!(without(&before, at, digits), without(&after, at, digits));
            let text = String::from_utf8(after[at..at + digits].to_vec()).unwrap();
            let old = u32::from_str_radix(&cid, 16).unwrap();
            let new = u32::from_str_radix(&text, 16).unwrap();
            assert_ne!(old, new);
            assert!(new < 0xffff_fffe);
            let id = attach(&store).unwrap().image.disk.identity.0;
            assert_eq!(id, identity(new));
        }
    }
}

/// The numbers that have a meaning are not taken, and nothing stays as it is.
#[test]
fn meaningful_numbers_are_left_out() {
    for old in [
        0u32,
        1,
        2,
        0xffff_fffd,
        0xffff_fffe,
        0xffff_ffff,
        0x8000_0000,
    ] {
        let aims = [old, 0xffff_ffff, 0xffff_fffe, 0xffff_fffd, 0, 1];
        let mut randoms: Vec<u32> = aims.iter().map(|aim| aim.wrapping_sub(old)).collect();
        randoms.extend([0, 1, u32::MAX, u32::MAX - 1]);
        for random in randoms {
            let mut store = with_cid(&format!("{old:08x}"));
            let mut set = attach_writable(&store, random).unwrap();
            set.image.alloc.begin(&mut store).unwrap();
            let id = attach(&store).unwrap().image.disk.identity.0;
            for not in [old, 0xffff_ffff, 0xffff_fffe] {
                assert_ne!(id, identity(not), "{old:x} {random:x}");
            }
        }
    }
}

/// Another random number is another CID.
#[test]
fn numbers_are_random() {
    let mut rng = Rng::new(2);
    let mut seen = HashSet::new();
    for _ in 0..1000 {
        let mut store = with_cid("12345678");
        let mut set = attach_writable(&store, rng.next_u64() as u32).unwrap();
        set.image.alloc.begin(&mut store).unwrap();
        seen.insert(attach(&store).unwrap().image.disk.identity.0);
    }
    assert!(seen.len() > 990, "{}", seen.len());
}

/// Once for all writers of a device; again if it was closed, with none of the numbers before: there may
/// be children that were made in between.
#[test]
fn every_use_has_its_own() {
    let mut store = with_cid("deadbeef");
    let mut alloc = attach_writable(&store, 0x1234_5678).unwrap().image.alloc;
    let mut seen = HashSet::from([identity(0xdead_beef)]);
    for _ in 0..1000 {
        alloc.begin(&mut store).unwrap();
        let syncs = store.syncs();
        alloc.begin(&mut store).unwrap();
        assert_eq!(store.syncs(), syncs);
        assert!(seen.insert(attach(&store).unwrap().image.disk.identity.0));
        alloc.close(&mut store).unwrap();
    }
    assert_eq!((store.stores(), store.syncs()), (1000, 1000));
}

#[test]
fn attaching_changes_nothing() {
    let store = with_cid("12345678");
    let before = store.to_vec();
    let mut set = attach_writable(&store, 7).unwrap();
    let mut store = store;
    set.image.alloc.close(&mut store).unwrap();
    assert_eq!(store.to_vec(), before);
    assert_eq!(store.stores(), 0);
}

#[test]
fn no_content_id() {
    let mut store = file("version=1\nparentCID=ffffffff\nRW 5 ZERO\n");
    let mut set = attach_writable(&store, 7).unwrap();
    set.image.alloc.begin(&mut store).unwrap();
    assert_eq!(store.stores(), 0);
}

/// A longer one ends in it: both change. Or does not: then it is something else.
#[test]
fn long_content_ids() {
    const START: &str = "3d325d661a45fce9bb3cff25";
    for (cid, long, follows) in [
        ("f55e0690", "3d325d661a45fce9bb3cff25f55e0690", true),
        ("f55e0690", "3D325D661A45FCE9BB3CFF25F55E0690", true),
        ("f55e0690", "f55e0690", true),
        ("690", "3d325d661a45fce9bb3cff2500000690", true),
        ("f55e0690", "3d325d661a45fce9bb3cff25f55e0691", false),
        ("690", "3d325d661a45fce9bb3cff25f55e0690", false),
        ("f55e0690", "f55e0690f55e0690x", false),
        ("f55e0690", "55e0690", false),
        ("f55e0690", "", false),
    ] {
        for order in 0..2 {
            let mut settings = [
                format!("CID={cid}\n"),
                format!("ddb.longContentID = \"{long}\"\n"),
            ];
            settings.rotate_left(order);
            let mut store = file(format!("{}RW 5 ZERO\n{}", settings[0], settings[1]));
            let before = store.to_vec();
            let mut set = attach_writable(&store, 0xabcd_ef01).unwrap();
            set.image.alloc.begin(&mut store).unwrap();
            assert_eq!((store.stores(), store.syncs()), (1 + u64::from(follows), 1));
            let after = store.to_vec();
            let at = find(&before, "CID=");
            let new = after[at..at + cid.len()].to_vec();
            assert_ne!(new, cid.as_bytes());
            let (mut old_rest, mut new_rest) = (before.clone(), after.clone());
            old_rest[at..at + cid.len()].fill(b'.');
            new_rest[at..at + cid.len()].fill(b'.');
            if follows {
                let end = find(&before, "longContentID = \"") + long.len();
                let last = end - cid.len()..end;
                assert_eq!(after[last.clone()], new);
                old_rest[last.clone()].fill(b'.');
                new_rest[last].fill(b'.');
            }
            assert_eq!(old_rest, new_rest);
            let text = String::from_utf8_lossy(&after).to_lowercase();
            assert!(long.len() < 32 || text.contains(START));
        }
    }
}

/// What moves under us is not written to.
#[test]
fn digits_that_have_moved() {
    let old = with_cid("12345678");
    let at = find(&old.to_vec(), "\nCID=") as u64;
    for (offset, bytes) in [
        (at - 4, &b"#"[..]),
        (at - 4, b"XID=1"),
        (at - 1, b"12"),
        (at, b" 1234567"),
        (at, b"\""),
        (at, b"1234567 "),
        (at, b"x"),
        (at + 7, b"\n"),
        (at + 7, b"12\n"),
        (at + 8, b"9"),
        (at, b"\0"),
    ] {
        let mut store = old.clone();
        let mut set = attach_writable(&store, 7).unwrap();
        store.put(offset, bytes);
        let changed = store.to_vec();
        let error = set.image.alloc.begin(&mut store).unwrap_err();
        assert_eq!(class(error), Class::Malformed, "{offset} {bytes:?}");
        assert_eq!(error.fault().unwrap().at, at);
        assert_eq!(store.to_vec(), changed);
        assert_eq!((store.stores(), store.syncs()), (0, 0));
    }
    let mut store = old;
    let mut set = attach_writable(&store, 7).unwrap();
    store.put_size(at + 3);
    assert!(set.image.alloc.begin(&mut store).is_err());
    assert_eq!(store.stores(), 0);
}

/// Where the line was there is now one without an end: it is not looked for in the whole file.
#[test]
fn line_that_does_not_end() {
    let mut store = with_cid("12345678");
    let mut set = attach_writable(&store, 7).unwrap();
    let at = find(&store.to_vec(), "\nCID=") as u64 - 4;
    store.put(at, &vec![b'a'; 3 << 20]);
    let before = store.loaded_bytes();
    let error = set.image.alloc.begin(&mut store).unwrap_err();
    assert_eq!(class(error), Class::Malformed);
    let loaded = store.loaded_bytes() - before;
    assert!(loaded <= 1 << 20, "{loaded}");
    assert_eq!(store.stores(), 0);
}

/// The longer one is looked at before anything is stored.
#[test]
fn long_digits_that_have_moved() {
    let mut store = file("CID=12345678\nRW 5 ZERO\nddb.longContentID = \"0012345678\"\n");
    let mut set = attach_writable(&store, 7).unwrap();
    let at = find(&store.to_vec(), "longContentID = \"") as u64;
    store.put(at + 9, b"\" ");
    let error = set.image.alloc.begin(&mut store).unwrap_err();
    assert_eq!(class(error), Class::Malformed);
    assert_eq!(store.stores(), 0);
}

/// Somebody else has changed the CID: what comes next differs from that, too.
#[test]
fn number_that_has_changed() {
    let mut store = with_cid("00000010");
    let mut set = attach_writable(&store, 5).unwrap();
    let at = find(&store.to_vec(), "\nCID=") as u64;
    store.put(at, b"00000015");
    set.image.alloc.begin(&mut store).unwrap();
    assert_ne!(store.get(at, 8), b"00000015");
}

/// A store that fails can be tried again; the CIDs stay the same number.
#[test]
fn failing_stores() {
    for n in 0..2 {
        for failure in Failure::ALL {
            let mut store = file("CID=12345678\nRW 5 ZERO\nddb.longContentID = \"0012345678\"\n");
            let mut set = attach_writable(&store, 0x7777_7777).unwrap();
            store.fail_after(n, failure);
            let result = set.image.alloc.begin(&mut store);
            assert_eq!(result, Err(Error::Store(-28)));
            assert_eq!(store.syncs(), 0);
            assert!(attach(&store).is_ok());
            set.image.alloc.begin(&mut store).unwrap();
            assert_eq!(store.syncs(), 1);
            let text = store.to_vec();
            let short = find(&text, "CID=");
            let long = find(&text, "longContentID = \"00");
            assert_ne!(&text[short..short + 8], b"12345678");
            assert_eq!(text[short..short + 8], text[long..long + 8]);
        }
    }
}

/// Nothing is written to a disk whose new CID is not durable.
#[test]
fn failing_sync() {
    let mut store = with_cid("12345678");
    let mut set = attach_writable(&store, 7).unwrap();
    store.set_sync_fails(true);
    assert_eq!(set.image.alloc.begin(&mut store), Err(Error::Store(-5)));
    assert_eq!(set.image.alloc.begin(&mut store), Err(Error::Store(-5)));
    store.set_sync_fails(false);
    assert_eq!(set.image.alloc.begin(&mut store), Ok(()));
}

/// First everything is stored, then synced.
#[test]
fn order() {
    let mut store = file("CID=12345678\nRW 5 ZERO\nddb.longContentID = \"0012345678\"\n");
    let mut set = attach_writable(&store, 7).unwrap();
    store.record();
    set.image.alloc.begin(&mut store).unwrap();
    let trace = store.take_trace();
    assert!(
        matches!(trace[..], [Op::Write { .. }, Op::Write { .. }, Op::Sync]),
        "{trace:?}"
    );
}

#[test]
fn only_digits_change() {
    let mut store = with_cid("0");
    let before = store.to_vec();
    let mut set = attach_writable(&store, 4).unwrap();
    set.image.alloc.begin(&mut store).unwrap();
    let (at, digits) = difference(&before, &store.to_vec()).unwrap();
    assert_eq!((at, digits.len()), (find(&before, "\nCID="), 1));
}
