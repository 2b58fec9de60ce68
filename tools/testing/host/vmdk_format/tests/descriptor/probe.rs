// SPDX-License-Identifier: GPL-2.0

//! Recognising a VMDK.

use loop_parser::contract::{AttachRequest, Verdict};
use testkit::{samples, store::Store};
use vmdk_format::format;

use crate::{attach, zero};

#[test]
fn beginnings() {
    for (bytes, verdict) in [
        (&b"KDMV"[..], Verdict::Mine),
        (b"COWD", Verdict::Mine),
        (b"\xbe\xba\xfe\xca\0\0\0\0", Verdict::Mine),
        (b"# Disk DescriptorFile", Verdict::Mine),
        (b"# Disk DescriptorFile\r\nversion=1", Verdict::Mine),
        (b"# disk descriptorFILE\n", Verdict::Mine),
        (b"# Disk Descriptor File", Verdict::Mine),
        (b"#Disk Descriptor File", Verdict::Mine),
        (b"#Disk DescriptorFile", Verdict::Mine),
        (b" # Disk DescriptorFile", Verdict::Mine),
        (b"# Disk\tDescriptorFile", Verdict::Mine),
        (b"\xef\xbb\xbf# Disk DescriptorFile\r\n", Verdict::Mine),
        (b"\n\r\n \t\n# mine\n# Disk DescriptorFile\n", Verdict::Mine),
        (b"version=1\n", Verdict::Mine),
        (b"# a disk\r\n\r\nVersion = 3\r\nCID=1\r\n", Verdict::Mine),
        (b"", Verdict::NotMine),
        (b"KDM", Verdict::NotMine),
        (b"VMDK", Verdict::NotMine),
        (b"kdmv", Verdict::NotMine),
        (b"\xbe\xba\xfe\xca\0\0\0\x01", Verdict::NotMine),
        (b"\xbe\xba\xfe\xca", Verdict::NotMine),
        (b"# Disk DescriptorFil", Verdict::NotMine),
        (b"CID=1\n# Disk DescriptorFile\n", Verdict::NotMine),
        (b"version=4\n", Verdict::NotMine),
        (b"version=10\n", Verdict::NotMine),
        (b"version=1;\n", Verdict::NotMine),
        (b"#!/bin/sh\nversion=$1\n", Verdict::NotMine),
        (b"\xef\xbb# Disk DescriptorFile\n", Verdict::NotMine),
        (b"\0# Disk DescriptorFile\n", Verdict::NotMine),
    ] {
        assert_eq!(Store::new(bytes).probe(format::probe), verdict, "{bytes:?}");
        let padded = [bytes, &[0; 4096]].concat();
        assert_eq!(
            Store::new(&padded).probe(format::probe),
            if bytes.len() == 4 && bytes[0] == 0xbe {
                Verdict::Mine
            } else {
                verdict
            }
        );
    }
    // A disk that is called .vmdk may be raw.
    assert_eq!(
        Store::new(&[0; 4096]).probe(format::probe),
        Verdict::NotMine
    );
}

/// Blanks do not matter to what is read then, and too many are those of another text.
#[test]
fn blanks() {
    let lines = "CID=12345678\nRW 5 ZERO\n";
    for (count, is_mine) in [
        (0, true),
        (1, true),
        (493, true),
        (494, false),
        (4000, false),
    ] {
        let title = format!("#{}DiskDescriptorFile\n", " ".repeat(count));
        let store = Store::new(format!("{title}{lines}").as_bytes());
        let verdict = store.probe(format::probe);
        assert_eq!(verdict == Verdict::Mine, is_mine, "{count}");
        match is_mine {
            true => assert_eq!(attach(&store).unwrap().list(&store), [zero(5)]),
            false => assert!(format::kind(&store, &AttachRequest::default()).is_err()),
        }
    }
}

/// What is in front of it changes nothing of what a descriptor says.
#[test]
fn beginnings_of_descriptors() {
    for start in [
        "\u{feff}# Disk DescriptorFile\n",
        "\r\n# by hand\r\n# Disk DescriptorFile\r\n",
        "version=1\n",
        "\u{feff}version = 1\r\n",
    ] {
        let text = format!("{start}CID=12345678\nRW 5 ZERO\n");
        let store = Store::new(text.as_bytes());
        assert_eq!(store.probe(format::probe), Verdict::Mine, "{start:?}");
        assert_eq!(attach(&store).unwrap().list(&store), [zero(5)]);
    }
}

#[test]
fn other_formats_are_not_mine() {
    for suffix in [".vhd", ".qcow", ".qcow2", ".vmdk"] {
        for sample in samples::list(suffix) {
            let Some(bytes) = samples::unpack(&sample.name) else {
                continue;
            };
            let verdict = Store::new(&bytes).probe(format::probe);
            assert_eq!(
                verdict == Verdict::Mine,
                suffix == ".vmdk",
                "{}",
                sample.name
            );
        }
    }
}
