// SPDX-License-Identifier: GPL-2.0

//! How a disk names its parent, and knows it.

use loop_parser::contract::{Disk, Error, Identity, Parent};

use crate::{attach, class, file, identity, Class, MAGIC};
use testkit::store::Store;

fn child(cid: &str, hint: &[u8]) -> Store {
    let lines = [
        b"CID=00000001\nparentCID=",
        cid.as_bytes(),
        b"\nparentFileNameHint=\"",
        hint,
        b"\"\nRW 5 SPARSE \"x\"\n",
    ];
    file(lines.concat())
}

#[test]
fn names() {
    let longest = [vec![b'x'; 2000], b"/".to_vec(), vec![b'y'; 2000]].concat();
    for (hint, names) in [
        (&b"base.vmdk"[..], &[&b"base.vmdk"[..]][..]),
        (b"b", &[b"b"]),
        (b"../base/base.vmdk", &[b"../base/base.vmdk", b"base.vmdk"]),
        (
            b"/vmfs/volumes/ds 1/base.vmdk",
            &[b"/vmfs/volumes/ds 1/base.vmdk", b"base.vmdk"],
        ),
        // Windows.
        (
            b"..\\base\\base.vmdk",
            &[b"../base/base.vmdk", b"base.vmdk"],
        ),
        (b"C:\\my disks\\base.vmdk", &[b"base.vmdk"]),
        (b"c:/disks/base.vmdk", &[b"base.vmdk"]),
        (b"\\\\server\\share\\base.vmdk", &[b"base.vmdk"]),
        (b"\\base.vmdk", &[b"base.vmdk"]),
        // Names like any other.
        (b"a:b", &[b"a:b"]),
        (b"1:/b", &[b"1:/b", b"b"]),
        (b"dir/back\\slash", &[b"dir/back\\slash", b"back\\slash"]),
        (b" blank .vmdk ", &[b" blank .vmdk "]),
        (b"a=b#c", &[b"a=b#c"]),
        (b"\xff\xfe not UTF-8", &[b"\xff\xfe not UTF-8"]),
        (&longest, &[&longest, &longest[2001..]]),
    ] {
        let store = child("1234abcd", hint);
        let set = attach(&store).unwrap();
        assert_eq!(
            set.parent_names(&store),
            names,
            "{}",
            String::from_utf8_lossy(hint)
        );
        let parent = set.image.parent.unwrap();
        assert_eq!(parent.parser(), Some("vmdk"));
        // It has to fit.
        let mut small = vec![0; hint.len() - 1];
        let result = parent.name(&store, 0, &mut small);
        assert_eq!(result.map_err(class), Err(Class::Malformed));
    }
}

#[test]
fn names_without_quotes() {
    let store = file("parentCID=1\nparentFileNameHint = a name \t\r\nRW 5 ZERO\n");
    assert_eq!(attach(&store).unwrap().parent_names(&store), [b"a name"]);
}

#[test]
fn names_of_no_file() {
    for hint in [&b"dir/"[..], b"/", b"dir/..", b".", b"..\\..", b"C:\\"] {
        let store = child("1", hint);
        let parent = attach(&store).unwrap().image.parent.unwrap();
        let result = parent.name(&store, 0, &mut [0; 64]);
        assert_eq!(result.map_err(class), Err(Class::Malformed), "{hint:?}");
    }
}

/// The parent has to have the CID that is recorded.
#[test]
fn content_ids() {
    for (text, cid) in [
        ("1234abcd", 0x1234abcd),
        ("0", 0),
        ("00000000", 0),
        ("fffffffe", 0xffff_fffe),
        ("FfF", 0xfff),
    ] {
        let store = child(text, b"base.vmdk");
        let set = attach(&store).unwrap();
        assert_eq!(set.image.disk.identity.0, identity(1));
        let parent = set.image.parent.unwrap();
        let with = |id| Disk {
            identity: Identity(id),
            ..Disk::default()
        };
        assert_eq!(parent.check(&with(identity(cid))), Ok(()));
        for other in [
            identity(cid ^ 1),
            identity(cid ^ 0x8000_0000),
            identity(!cid),
            [0; 16],
        ] {
            let error = parent.check(&with(other)).unwrap_err();
            assert_eq!(
                error.fault().unwrap().what,
                "CID of VMDK parent is not the one that is recorded"
            );
        }
    }
}

/// A parent's descriptor is known by the CID in it, by the digits of which there may be fewer.
#[test]
fn child_knows_its_parent() {
    let base = attach(&file("CID=0012ab\nparentCID=ffffffff\nRW 5 FLAT \"b\" 0\n")).unwrap();
    let other = attach(&file(
        "CID=0012ac\nparentCID=0012ab\nparentFileNameHint=x\nRW 5 ZERO\n",
    ))
    .unwrap();
    let parent = attach(&child("12ab", b"base.vmdk"))
        .unwrap()
        .image
        .parent
        .unwrap();
    assert_eq!(parent.check(&base.image.disk), Ok(()));
    assert_eq!(
        parent.check(&other.image.disk).map_err(class),
        Err(Class::Malformed)
    );
    // No CID is no parent of anybody, not even of 0.
    let nobody = attach(&file("RW 5 FLAT \"b\" 0\n")).unwrap();
    let parent = attach(&child("0", b"base.vmdk"))
        .unwrap()
        .image
        .parent
        .unwrap();
    assert_eq!(
        parent.check(&nobody.image.disk).map_err(class),
        Err(Class::Malformed)
    );
}

#[test]
fn no_parent() {
    for lines in [
        "RW 5 ZERO\n",
        "CID=1\nRW 5 ZERO\n",
        "parentCID=ffffffff\nparentFileNameHint=\"base.vmdk\"\nRW 5 ZERO\n",
        "parentCID=FFFFFFFF\nRW 5 ZERO\n",
        "parentFileNameHint=\"base.vmdk\"\nRW 5 ZERO\n",
        "parentCID=ffffffff\nparentCID=1\nRW 5 ZERO\n",
        "parentCID=ffffffff\nddb.uuid.parent=\"00000000-0000-0000-0000-000000000000\"\nRW 5 ZERO\n",
    ] {
        assert!(
            attach(&file(lines)).unwrap().image.parent.is_none(),
            "{lines}"
        );
    }
}

/// "CID" is in "parentCID", too.
#[test]
fn keys_in_keys() {
    let store = file("parentCID=22222222\nparentFileNameHint=\"b\"\nCID=11111111\nRW 5 ZERO\n");
    let set = attach(&store).unwrap();
    assert_eq!(set.image.disk.identity.0, identity(0x1111_1111));
    let store = file("parentCID=22222222\nparentFileNameHint=\"b\"\nRW 5 ZERO\n");
    let set = attach(&store).unwrap();
    assert_eq!(set.image.disk.identity.0, [0; 16]);
    assert!(set.image.parent.is_some());
}

#[test]
fn parent_without_a_name() {
    for hint in ["", "parentFileNameHint=\n", "parentFileNameHint=\"\"\n"] {
        let error = attach(&file(format!("CID=1\nparentCID=2\n{hint}RW 5 ZERO\n"))).unwrap_err();
        let at = MAGIC.len() as u64 + 6;
        assert_eq!(error, Error::malformed("VMDK parent has no name", at));
    }
}

/// VirtualBox names parents by UUID. With a CID there is a way to find them.
#[test]
fn parents_of_virtualbox() {
    let uuid = "ddb.uuid.parent=\"526dead5-c32c-4ddd-979e-2113609a7dcf\"\nRW 5 ZERO\n";
    let store = file(format!(
        "parentCID=5\nparentFileNameHint=\"b.vmdk\"\n{uuid}"
    ));
    assert_eq!(attach(&store).unwrap().parent_names(&store), [b"b.vmdk"]);
    for start in [
        "",
        "parentCID=ffffffff\n",
        "parentCID=ffffffff\nparentFileNameHint=\"b\"\n",
    ] {
        let error = attach(&file(format!("{start}{uuid}"))).unwrap_err();
        assert_eq!(class(error), Class::Unsupported);
        assert_eq!(
            error.fault().unwrap().at,
            (MAGIC.len() + start.len()) as u64
        );
    }
}
