// SPDX-License-Identifier: GPL-2.0

//! Descriptors that are refused: how, and at which line.

use loop_parser::contract::{AttachRequest, Error, Part};
use testkit::store::Store;

use crate::{attach, attach_for, class, file, Class, MAGIC};

/// Attaches a descriptor in which `line` is between good ones; answers the class of the error, and what
/// was said to be where, from the beginning of the line.
fn refused(line: &str) -> (Class, &'static str, u64) {
    let before = "CID=12345678\nRW 5 FLAT \"a\" 0\n";
    let store = file(format!("{before}{line}\nRW 5 FLAT \"b\" 0\n"));
    let error = attach(&store).expect_err(line);
    let fault = error.fault().expect("no fault");
    let at = fault.at - (MAGIC.len() + before.len()) as u64;
    (class(error), fault.what, at)
}

#[test]
fn lines() {
    use Class::{Malformed, Unsupported};
    let neither = "line of VMDK descriptor is neither a setting nor an extent";
    let no_size = "VMDK extent has no size";
    let no_name = "VMDK extent has no file name";
    for (line, class, what, at) in [
        ("WR 5 FLAT \"x\" 0", Malformed, neither, 0),
        ("RWX 5 FLAT \"x\" 0", Malformed, neither, 0),
        ("garbage", Malformed, neither, 0),
        ("\u{1}\u{2}", Malformed, neither, 0),
        ("RW", Malformed, no_size, 0),
        ("RW ", Malformed, no_size, 0),
        ("RW FLAT \"x\" 0", Malformed, no_size, 0),
        ("RW -5 FLAT \"x\" 0", Malformed, no_size, 0),
        ("RW 0 FLAT \"x\" 0", Malformed, no_size, 0),
        ("RW 0 ZERO", Malformed, no_size, 0),
        (
            "RW 0x5 FLAT \"x\" 0",
            Malformed,
            "number in VMDK descriptor is none",
            3,
        ),
        (
            "RW 5FLAT \"x\" 0",
            Malformed,
            "number in VMDK descriptor is none",
            3,
        ),
        (
            "RW 36893488147419103232 ZERO",
            Malformed,
            "number in VMDK descriptor is too large",
            3,
        ),
        (
            "RW 36028797018963968 ZERO",
            Malformed,
            "product overflows",
            0,
        ),
        ("RW 5 FLAT", Malformed, no_name, 0),
        (
            "RW 5 FLAT x 0",
            Malformed,
            "offset of VMDK extent is no number",
            10,
        ),
        ("RW 5 FLAT \"\" 0", Malformed, no_name, 0),
        ("RW 5 SPARSE", Malformed, no_name, 0),
        (
            "RW 5 FLAT \"x 0",
            Malformed,
            "quote in VMDK descriptor is not closed",
            0,
        ),
        (
            "RW 5 FLAT \"x\" -1",
            Malformed,
            "offset of VMDK extent is no number",
            14,
        ),
        (
            "RW 5 FLAT \"x\" 1a",
            Malformed,
            "number in VMDK descriptor is none",
            14,
        ),
        ("RW 5", Unsupported, "VMDK extent is of an unknown type", 0),
        (
            "RW 5 FLATX \"x\" 0",
            Unsupported,
            "VMDK extent is of an unknown type",
            0,
        ),
        (
            "RW 5 VMFSRDM \"x\"",
            Unsupported,
            "VMDK extent is a raw device of ESX",
            0,
        ),
        (
            "RW 5 VMFSRAW \"x\"",
            Unsupported,
            "VMDK extent is a raw device of ESX",
            0,
        ),
        (
            "RW 5 SPARSE \"x\" 1",
            Unsupported,
            "sparse VMDK extent inside of a file",
            0,
        ),
        (
            "NOACCESS 5 FLAT \"x\" 0",
            Unsupported,
            "VMDK extent that is not to be accessed",
            0,
        ),
        (
            "encryption.keySafe = \"vmware:key/list/(pair/)\"",
            Unsupported,
            "VMDK is encrypted",
            0,
        ),
        ("encryption.data=x", Unsupported, "VMDK is encrypted", 0),
        (
            "parentCID=",
            Malformed,
            "CID in VMDK descriptor is no number",
            0,
        ),
        (
            "parentCID=none",
            Malformed,
            "CID in VMDK descriptor is no number",
            0,
        ),
        (
            "parentCID=123456789",
            Malformed,
            "CID in VMDK descriptor is no number",
            0,
        ),
        (
            "parentCID=1-2",
            Malformed,
            "CID in VMDK descriptor is no number",
            0,
        ),
        (
            "parentCID=\"\"",
            Malformed,
            "CID in VMDK descriptor is no number",
            0,
        ),
        (
            "parentCID=12345678",
            Malformed,
            "VMDK parent has no name",
            0,
        ),
        (
            "parentFileNameHint=\"x",
            Malformed,
            "quote in VMDK descriptor is not closed",
            0,
        ),
        (
            "ddb.uuid.parent=\"00000000-0000-0000-0000-000000000001\"",
            Unsupported,
            "VMDK has a parent that is only known to VirtualBox",
            0,
        ),
    ] {
        assert_eq!(refused(line), (class, what, at), "{line}");
    }
}

#[test]
fn content_ids() {
    for cid in [
        "",
        "xyz",
        "0x12",
        "123456789",
        "000000001",
        "-1",
        "12345678h",
        "\"\"",
        "\"",
        "#1",
    ] {
        let error = attach(&file(format!("version=1\nCID={cid}\nRW 1 ZERO"))).unwrap_err();
        assert_eq!(class(error), Class::Malformed, "{cid}");
        assert_eq!(error.fault().unwrap().at, MAGIC.len() as u64 + 10, "{cid}");
    }
}

#[test]
fn no_extents() {
    for lines in ["", "version=1\nCID=1\n", "#RW 1 ZERO\n", "\0RW 1 ZERO\n"] {
        let error = attach(&file(lines)).unwrap_err();
        assert_eq!(class(error), Class::Malformed);
        assert_eq!(
            error.fault().unwrap().what,
            "VMDK descriptor lists no extents"
        );
    }
}

#[test]
fn length() {
    let lines = "RW 1 ZERO\n";
    let padded = |len: usize| {
        let mut store = file(lines);
        store.put_size(len as u64);
        store
    };
    assert!(attach(&padded(1 << 20)).is_ok());
    let error = attach(&padded((1 << 20) + 1)).unwrap_err();
    assert_eq!(
        error,
        Error::unsupported("VMDK descriptor is larger than 1 MiB", 0)
    );
}

/// Disks of disks are not made.
#[test]
fn descriptor_as_extent() {
    let request = AttachRequest {
        part: Some(Part {
            len: 512,
            has_parent: false,
        }),
        ..AttachRequest::default()
    };
    let error = attach_for(&file("RW 1 ZERO\n"), &request).unwrap_err();
    assert_eq!(class(error), Class::Unsupported);
}

#[test]
fn options() {
    let request = AttachRequest {
        options: "size=1",
        ..AttachRequest::default()
    };
    let error = attach_for(&file("RW 1 ZERO\n"), &request).unwrap_err();
    assert_eq!(error, Error::BadOption);
}

#[test]
fn not_a_descriptor() {
    for bytes in [
        &b""[..],
        b"# Disk",
        b"RW 1 ZERO\n# Disk DescriptorFile\n",
        b"version=4\nRW 1 ZERO\n",
        b"\xff\xfe# Disk DescriptorFile\nRW 1 ZERO\n",
    ] {
        let error = attach(&Store::new(bytes)).unwrap_err();
        assert_eq!(error, Error::malformed("file does not begin as a VMDK", 0));
    }
}

#[test]
fn errors_of_the_store_are_passed_on() {
    let mut store = file(format!("CID=1\n#{}\nRW 1 ZERO\n", "x".repeat(600)));
    store.break_sector(512);
    assert_eq!(attach(&store).unwrap_err(), Error::Store(-5));
}
