// SPDX-License-Identifier: GPL-2.0

//! Random descriptors, against what they were made from; random damage, which must do no harm.

use loop_parser::contract::{Allocate, Error, Extents, Parent};
use proptest::prelude::*;
use testkit::store::Store;

use crate::{attach, attach_writable, file, flat, identity, image, zero, Listed, What};

/// An extent, and the line for it.
fn extent() -> impl Strategy<Value = (Listed, Vec<u8>)> {
    let name = proptest::collection::vec(any::<u8>(), 1..40).prop_map(|name| {
        let is_good = |byte: &u8| !matches!(byte, 0 | b'"' | b'\n' | b'\r');
        let mut name: Vec<u8> = name.into_iter().filter(is_good).collect();
        name.push(b'x');
        name
    });
    (1u64..1 << 40, 0usize..6, name, 0u64..1 << 40, "[ \t]{1,3}").prop_map(
        |(sectors, kind, name, sector, blank)| {
            let mut listed = match kind {
                0 => zero(sectors),
                1 | 2 => flat(sectors, &name, sector),
                _ => image(sectors, &name),
            };
            let access = match kind {
                2 | 5 => "rdonly",
                _ => "RW",
            };
            listed.writable = access == "RW";
            let word = ["ZERO", "FLAT", "VMFS", "SPARSE", "VMFSsparse", "SESPARSE"][kind];
            let start = format!("{access}{blank}{sectors}{blank}{word}");
            let mut line = start.into_bytes();
            if kind > 0 {
                line.extend_from_slice(format!("{blank}\"").as_bytes());
                line.extend_from_slice(&name);
                line.push(b'"');
            }
            if matches!(listed.what, What::Flat { .. }) {
                line.extend_from_slice(format!("{blank}{sector}").as_bytes());
            }
            (listed, line)
        },
    )
}

/// A line that says nothing.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        "#[ -~]{0,80}".prop_map(String::into_bytes),
        "ddb\\.[a-z.]{0,30} ?= ?\"[ !#-~]{0,60}\"".prop_map(String::into_bytes),
        "[ \t]{0,9}".prop_map(String::into_bytes),
    ]
}

/// Lines in a random order, of which the extents keep theirs.
fn text(mut lines: Vec<Vec<u8>>, extents: &[(Listed, Vec<u8>)], order: u64, end: &str) -> Vec<u8> {
    let mut rng = testkit::rng::Rng::new(order);
    rng.shuffle(&mut lines);
    let mut places: Vec<u64> = extents
        .iter()
        .map(|_| rng.below(lines.len() as u64 + 1))
        .collect();
    places.sort_unstable();
    for ((_, line), place) in extents.iter().zip(places).rev() {
        lines.insert(place as usize, line.clone());
    }
    let mut text = b"# Disk DescriptorFile".to_vec();
    for line in lines {
        text.extend_from_slice(end.as_bytes());
        text.extend_from_slice(&line);
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn made_and_read(
        extents in proptest::collection::vec(extent(), 1..12),
        mut lines in proptest::collection::vec(noise(), 0..12),
        cid in proptest::option::of((any::<u32>(), 1usize..9)),
        parent in proptest::option::of((0u32..0xffff_ffff, "[a-z/]{0,20}[a-z]")),
        order: u64,
        end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r"), Just(" \n\t")],
        random: u32,
    ) {
        let cid = cid.map(|(cid, digits)| (cid >> (32 - 4 * digits as u32), digits));
        if let Some((cid, digits)) = cid {
            lines.push(format!("cid = {cid:0digits$X}").into_bytes());
        }
        if let Some((cid, name)) = &parent {
            lines.push(format!("parentCID={cid:x}").into_bytes());
            lines.push(format!("parentFileNameHint=\"{name}\"").into_bytes());
        }
        let mut store = Store::new(&text(lines, &extents, order, end));
        let set = attach(&store).unwrap();
        let expected: Vec<Listed> = extents.into_iter().map(|(listed, _)| listed).collect();
        prop_assert_eq!(&set.list(&store), &expected);
        let sectors: u64 = expected.iter().map(|it| it.sectors).sum();
        prop_assert_eq!(set.image.disk.size, sectors * 512);
        let id = cid.map_or([0; 16], |(cid, _)| identity(cid));
        prop_assert_eq!(set.image.disk.identity.0, id);
        prop_assert_eq!(set.image.parent.is_some(), parent.is_some());
        if let Some((_, name)) = parent {
            prop_assert_eq!(&set.parent_names(&store)[0], name.as_bytes());
        }

        let can_write = |it: &Listed| it.writable || it.what == What::Zero;
        let writable = attach_writable(&store, random);
        prop_assert_eq!(writable.is_ok(), expected.iter().all(can_write));
        let before = store.to_vec();
        let mut alloc = set.image.alloc;
        alloc.begin(&mut store).unwrap();
        let after = store.to_vec();
        let changed: Vec<usize> =
            (0..before.len()).filter(|index| before[*index] != after[*index]).collect();
        prop_assert_eq!(changed.is_empty(), cid.is_none());
        if let (Some(first), Some(last), Some((_, digits))) = (changed.first(), changed.last(), cid) {
            prop_assert!(last - first < digits);
            prop_assert!(after[*first..=*last].iter().all(u8::is_ascii_hexdigit));
            let new = attach(&store).unwrap();
            prop_assert_ne!(new.image.disk.identity.0, id);
            prop_assert_eq!(new.list(&store), expected);
        }
    }

    #[test]
    fn damaged(
        extents in proptest::collection::vec(extent(), 1..6),
        mut lines in proptest::collection::vec(noise(), 0..4),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4), 1..6),
        order: u64,
    ) {
        lines.push(b"CID=12345678".to_vec());
        lines.push(b"ddb.longContentID = \"0012345678\"".to_vec());
        lines.push(b"parentCID=1\nparentFileNameHint=\"x\\y\"".to_vec());
        let mut bytes = text(lines, &extents, order, "\n");
        for (index, byte, how) in damage {
            let at = 21 + index.index(bytes.len() - 21);
            match how {
                0 => bytes[at] = byte,
                1 => bytes[at] = b"\0\n\r\"=# 09fF"[usize::from(byte) % 11],
                2 => drop(bytes.drain(at..(at + usize::from(byte)).min(bytes.len()))),
                _ => bytes.insert(at, byte),
            }
            if bytes.len() < 30 {
                break;
            }
        }
        harmless(&bytes);
    }

    #[test]
    fn garbage(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        harmless(&file(bytes).to_vec());
    }

    #[test]
    fn garbage_of_the_right_sort(text in "(RW |RDONLY |NOACCESS |[0-9]{1,21} ?|FLAT |ZERO |\"x\" ?|CID|parent|=|\"|\n|\r|#| ){0,60}") {
        harmless(&file(text).to_vec());
    }
}

/// Whatever is in the file: no panic, and answers that fit together.
fn harmless(bytes: &[u8]) {
    let mut store = Store::new(bytes);
    let set = match attach(&store) {
        Ok(set) => set,
        Err(error) => return assert!(matches!(error, Error::Malformed(_) | Error::Unsupported(_))),
    };
    let list = set.list(&store);
    assert!(!list.is_empty());
    let sectors: u64 = list.iter().map(|it| it.sectors).sum();
    assert_eq!(set.image.disk.size, sectors * 512);
    let names = list.iter().filter_map(|it| match &it.what {
        What::Zero => None,
        What::Flat { name, .. } | What::Image { name } => Some(name),
    });
    for name in names {
        assert!(!name.is_empty() && !name.iter().any(|it| matches!(it, 0 | b'"' | b'\n' | b'\r')));
    }
    if let Some(parent) = &set.image.parent {
        for index in 0..3 {
            let _ = parent.name(&store, index, &mut [0; 256]);
        }
    }
    let mut alloc = set.image.alloc;
    alloc.begin(&mut store).unwrap();
    let after = store.to_vec();
    let changed = bytes.iter().zip(&after).filter(|(old, new)| old != new);
    assert!(changed.count() <= 16);
    assert_eq!(bytes.len(), after.len());
    // Everything else is as it was, to whatever a cursor points.
    for cursor in 0..=store.len() {
        let _ = set.extents.next(&store, cursor);
    }
}
