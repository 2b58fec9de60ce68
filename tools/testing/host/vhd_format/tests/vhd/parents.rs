// SPDX-License-Identifier: GPL-2.0

//! How a differencing image names its parent.

use loop_parser::contract::{Disk, Error, Identity, Parent};
use vhd_format::format;

use crate::{
    attach, class,
    image::{Image, Spec},
    Class,
};

type Name = (&'static [u8; 4], Vec<u8>);

fn le(name: &str) -> Vec<u8> {
    name.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn w2ru(name: &str) -> Name {
    (b"W2ru", le(name))
}

fn w2ku(name: &str) -> Name {
    (b"W2ku", le(name))
}

fn macx(name: &str) -> Name {
    (b"MacX", name.into())
}

fn spec(names: &[Name], header: &str) -> Spec {
    let mut spec = Spec::differencing(1 << 16, 4096);
    spec.names = names.to_vec();
    spec.parent_name = header.encode_utf16().collect();
    spec
}

/// All names of an image; a class instead of one that is none.
fn names_of(image: &Image) -> Vec<Result<Vec<u8>, Class>> {
    let parent = attach(&image.store).unwrap().parent.unwrap();
    let mut buf = [0; 4096];
    let mut names = Vec::new();
    loop {
        match parent.name(&image.store, names.len(), &mut buf) {
            Ok(None) => return names,
            Ok(Some(len)) => names.push(Ok(buf[..len].to_vec())),
            Err(error) => names.push(Err(class(error))),
        }
        assert!(names.len() < 40);
    }
}

#[track_caller]
fn assert_names(names: &[Name], header: &str, expected: &[&str]) {
    let got = names_of(&spec(names, header).build());
    let expected: Vec<_> = expected
        .iter()
        .map(|name| match *name {
            "" => Err(Class::Malformed),
            name => Ok(name.as_bytes().to_vec()),
        })
        .collect();
    assert_eq!(got, expected);
}

#[test]
fn most_trustworthy_name_comes_first() {
    assert_names(
        &[
            (b"Wi2k", b"C:\\plain\\5.vhd".to_vec()),
            (b"Wi2r", b"plain\\4.vhd".to_vec()),
            w2ku("D:\\images\\3.vhd"),
            macx("file:///Users/me/2.vhd"),
            w2ru(".\\folder\\1.vhd"),
        ],
        "E:\\header\\6.vhd",
        &[
            "folder/1.vhd",
            "2.vhd",
            "3.vhd",
            "plain/4.vhd",
            "5.vhd",
            "6.vhd",
            "/Users/me/2.vhd",
        ],
    );
}

#[test]
fn names_of_xenserver() {
    assert_names(
        &[
            macx("file://./base image%20.vhd"),
            w2ku(".\\base image%20.vhd"),
            w2ru(".\\base image%20.vhd"),
        ],
        "base image%20.vhd",
        &["base image%20.vhd"; 4],
    );
    assert_names(
        &[macx("file://../other/base.vhd")],
        "",
        &["../other/base.vhd"],
    );
}

#[test]
fn nothing_recorded() {
    assert_names(&[], "", &[]);
    // An alias record of Mac OS is no path.
    assert_names(&[(b"Mac ", b"alias".to_vec())], "", &[]);
    assert_names(&[(b"????", b"what".to_vec())], "x", &["x"]);
}

#[test]
fn windows_paths() {
    for (recorded, expected) in [
        ("a.vhd", "a.vhd"),
        (".\\a.vhd", "a.vhd"),
        ("..\\a.vhd", "../a.vhd"),
        ("..\\..\\x\\a.vhd", "../../x/a.vhd"),
        (".\\.\\x\\.\\\\a.vhd", "x/a.vhd"),
        ("x/y\\a.vhd", "x/y/a.vhd"),
        ("a..vhd", "a..vhd"),
        (".a", ".a"),
        ("...", "..."),
        ("C:\\x\\a.vhd", "a.vhd"),
        ("c:a.vhd", "a.vhd"),
        ("c:x\\a.vhd", "a.vhd"),
        ("\\\\server\\share\\a.vhd", "a.vhd"),
        ("\\\\?\\C:\\x\\a.vhd", "a.vhd"),
        ("\\x\\a.vhd", "a.vhd"),
        ("/x/a.vhd", "a.vhd"),
        ("x\\a:b.vhd", "x/a:b.vhd"),
        ("ä€😀.vhd", "ä€😀.vhd"),
        // No file.
        ("", ""),
        (".", ""),
        ("..", ""),
        ("x\\..", ""),
        ("C:\\", ""),
        ("C:", ""),
        ("\\", ""),
        ("C:\\x\\..", ""),
        ("a\0b", ""),
    ] {
        assert_names(&[w2ru(recorded)], "", &[expected]);
        assert_names(&[w2ku(recorded)], "", &[expected]);
    }
}

/// Zeros behind a name are not part of it.
#[test]
fn terminated_names() {
    assert_names(&[w2ru("a.vhd\0\0")], "", &["a.vhd"]);
    assert_names(&[macx("file://./a.vhd\0")], "", &["a.vhd"]);
}

#[test]
fn header_name_is_a_base_name() {
    for (recorded, expected) in [
        ("a.vhd", "a.vhd"),
        ("C:\\x\\ä.vhd", "ä.vhd"),
        ("x\\y\\a.vhd", "a.vhd"),
        ("/dev/x/a", "a"),
        ("..\\..", ""),
    ] {
        assert_names(&[], recorded, &[expected]);
    }
    // All of the field, and what lies behind a zero.
    let long = "n".repeat(256);
    assert_names(&[], &long, &[&long]);
    assert_names(&[], "a\0b", &["a"]);
    // More than the letter of a drive.
    assert_names(&[], "ab:c.vhd", &["ab:c.vhd"]);
}

#[test]
fn urls() {
    for (recorded, expected) in [
        ("file://./a.vhd", &["a.vhd"][..]),
        ("FILE://./x//a%41.vhd", &["x/a%41.vhd"]),
        ("file://../a.vhd", &["../a.vhd"]),
        ("file:///x/a.vhd", &["a.vhd", "/x/a.vhd"]),
        ("file:///x/y%20z/a%41.vhd", &["aA.vhd", "/x/y z/aA.vhd"]),
        ("file:///x/./y/../a.vhd", &["a.vhd", "/x/y/../a.vhd"]),
        ("file://localhost/x/%c3%A4.vhd", &["ä.vhd", "/x/ä.vhd"]),
        ("file:/x/a.vhd", &["a.vhd", "/x/a.vhd"]),
        // What only looks like an escape.
        ("file:///x/%zz%4", &["%zz%4", "/x/%zz%4"]),
        // No file on this machine, or no file at all.
        ("file://server/x/a.vhd", &[""]),
        ("http://server/a.vhd", &[""]),
        ("file:a.vhd", &[""]),
        ("file://", &[""]),
        ("a.vhd", &[""]),
        ("", &[""]),
        ("file:///", &["", ""]),
        ("file:///x/..", &["", ""]),
        ("file:///x/a%00.vhd", &["", ""]),
        ("file:///x%2Fa.vhd", &["", ""]),
        ("file://./..", &[""]),
    ] {
        assert_names(&[macx(recorded)], "", expected);
    }
}

/// File names on Windows are any 16-bit numbers: half a pair is three bytes.
#[test]
fn lone_surrogates() {
    for (units, expected) in [
        (&[0xd83d, 0xde00][..], &b"\xf0\x9f\x98\x80"[..]),
        (&[0xd83d], b"\xed\xa0\xbd"),
        (&[0xde00, 0xd83d], b"\xed\xb8\x80\xed\xa0\xbd"),
        (&[0xd83d, 0x61], b"\xed\xa0\xbda"),
        (&[0xffff, 0x800, 0x7ff], b"\xef\xbf\xbf\xe0\xa0\x80\xdf\xbf"),
    ] {
        let bytes = units.iter().flat_map(|it: &u16| it.to_le_bytes()).collect();
        let names = names_of(&spec(&[(b"W2ru", bytes)], "").build());
        assert_eq!(names, [Ok(expected.to_vec())], "{units:x?}");
    }
}

/// One name that cannot be right does not hide the others.
#[test]
fn names_that_are_out_of_range() {
    let build = || {
        let names = [w2ru("a.vhd"), macx("file:///b.vhd")];
        spec(&names, "c").build()
    };
    let at = build().table_end();
    let end = build().store.len();
    let code = u32::from_be_bytes(*b"W2ru");
    for (space, length, offset, is_fine) in [
        (512u32, 10u32, at, true),
        // In sectors if less than 512.
        (1, 10, at, true),
        (0, 10, at, false),
        (512, 9, at, false),
        (512, 514, at, false),
        (1, 514, at, false),
        (u32::MAX, u32::MAX - 1, at, false),
        (u32::MAX, 8194, 0, false),
        (512, 10, end - 9, false),
        (512, 10, end, false),
        (512, 10, u64::MAX - 5, false),
        (512, 0, at, false),
    ] {
        let mut image = build();
        image.set_locator(0, code, space, length, offset);
        let first = if is_fine {
            Ok(b"a.vhd".to_vec())
        } else {
            Err(Class::Malformed)
        };
        let others = [b"b.vhd".to_vec(), b"c".to_vec(), b"/b.vhd".to_vec()].map(Ok);
        let expected: Vec<_> = [first].into_iter().chain(others).collect();
        assert_eq!(names_of(&image), expected, "{space} {length} {offset}");
    }
}

#[test]
fn name_that_does_not_fit() {
    let image = spec(&[w2ru(".\\abcd.vhd"), macx("file:///x/y")], "").build();
    let parent = attach(&image.store).unwrap().parent.unwrap();
    for (index, fits) in [(0, 8), (1, 1), (2, 4)] {
        for len in 0..12 {
            let mut buf = vec![0; len];
            match parent.name(&image.store, index, &mut buf) {
                Ok(got) => assert!(got == Some(fits) && len >= fits),
                // What is dropped needs room for a moment.
                Err(error) => {
                    assert_eq!(class(error), Class::Malformed);
                    assert!(len <= fits + 1);
                }
            }
        }
    }
    // Longer than any path.
    let long = "x".repeat(4096);
    assert_names(&[w2ru(&long)], "", &[&long]);
    assert_names(&[w2ru(&(long.clone() + "x"))], "", &[""]);
    assert_names(&[w2ru(&"ä".repeat(2049))], "", &[""]);
}

/// Several locators of a kind, in their order; a code that is not there is not waited for.
#[test]
fn all_places_are_looked_at() {
    let names: Vec<Name> = (0..8).map(|i| w2ru(&format!("{i}"))).collect();
    let expected: Vec<String> = (0..8).map(|i| i.to_string()).collect();
    let expected: Vec<&str> = expected.iter().map(|it| &it[..]).collect();
    assert_names(&names, "", &expected);
}

#[test]
fn parent_is_known_by_its_id() {
    let attached = attach(&spec(&[], "x").build().store).unwrap();
    assert_eq!(attached.disk.variant, "differencing");
    let parent = attached.parent.unwrap();
    assert_eq!(parent.parser(), Some("vhd"));
    let with_id = |id| Disk {
        identity: Identity(id),
        ..Disk::default()
    };
    assert_eq!(parent.check(&with_id(*b"sixteen bytes id")), Ok(()));
    for id in [[0; 16], *b"sixteen bytes iD"] {
        let error = parent.check(&with_id(id)).unwrap_err();
        assert_eq!(class(error), Class::Malformed);
        assert_eq!(error.fault().unwrap().at, 512 + 40);
    }
    assert!(parent.check(&attached.disk).is_err());
}

#[test]
fn raw_parent() {
    let mut spec = spec(&[], "x");
    spec.parent_id = [0; 16];
    // Even if the child has no id either.
    for id in [*b"id of the child!", [0; 16]] {
        spec.unique_id = id;
        let parent = attach(&spec.build().store).unwrap().parent.unwrap();
        assert_eq!(parent.parser(), Some("raw"));
        assert_eq!(parent.check(&Disk::default()), Ok(()));
    }
}

/// Names are of no interest to an image that has no parent.
#[test]
fn dynamic_images_have_no_parent() {
    for disk_type in [2, 3] {
        let mut spec = spec(&[w2ru("a")], "x");
        spec.disk_type = disk_type;
        assert!(attach(&spec.build().store).unwrap().parent.is_none());
    }
}

/// The file may have been cut, or be unreadable, by the time it is asked for names.
#[test]
fn file_that_changes() {
    let image = spec(&[w2ru("a.vhd")], "x").build();
    let parent = attach(&image.store).unwrap().parent.unwrap();
    for size in 0..image.store.len() {
        let mut store = image.store.clone();
        store.put_size(size);
        for index in 0..3 {
            match parent.name(&store, index, &mut [0; 64]) {
                Ok(_) | Err(Error::Malformed(_) | Error::Store(_)) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    assert!(format::attach(&image.store, "", false).is_ok());
}
