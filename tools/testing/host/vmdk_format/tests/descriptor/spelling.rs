// SPDX-License-Identifier: GPL-2.0

//! The same descriptor, as different programs write it.

use crate::{attach, file, flat, identity, image, Set};
use testkit::store::Store;

const LINES: &str = "version=1\n\
    CID=1a2b3c4d\n\
    parentCID=ffffffff\n\
    createType=\"twoGbMaxExtentFlat\"\n\
    \n\
    # Extent description\n\
    RW 4192256 FLAT \"disk-f001.vmdk\" 0\n\
    RW 1000 FLAT \"disk-f002.vmdk\" 128\n\
    RW 8 SPARSE \"disk s003.vmdk\"\n\
    \n\
    # The Disk Data Base\n\
    #DDB\n\
    \n\
    ddb.virtualHWVersion = \"4\"\n\
    ddb.adapterType = \"ide\"\n";

fn check(store: &Store) -> Set {
    let set = attach(store).unwrap();
    let disk = set.image.disk;
    assert_eq!(disk.size, (4192256 + 1000 + 8) * 512);
    assert_eq!(disk.variant, "twoGbMaxExtentFlat");
    assert_eq!(disk.identity.0, identity(0x1a2b3c4d));
    assert_eq!(disk.unit, 0);
    assert!(set.image.parent.is_none());
    assert_eq!(set.image.warning, None);
    let expected = [
        flat(4192256, b"disk-f001.vmdk", 0),
        flat(1000, b"disk-f002.vmdk", 128),
        image(8, b"disk s003.vmdk"),
    ];
    assert_eq!(set.list(store), expected);
    set
}

/// Rewrites the lines, and checks the result.
fn rewritten(rewrite: impl Fn(&str) -> String) {
    check(&file(LINES.lines().map(rewrite).collect::<String>()));
}

#[test]
fn as_it_is() {
    check(&file(LINES));
    check(&file(LINES.trim_end()));
}

#[test]
fn ends_of_lines() {
    rewritten(|line| format!("{line}\r\n"));
    rewritten(|line| format!("{line}\r"));
    rewritten(|line| format!("{line}\n\n \n\r\n"));
    let mixed = LINES.replacen('\n', "\r\n", 3).replacen("\n\n", "\r\n", 1);
    check(&file(mixed));
}

#[test]
fn blanks() {
    rewritten(|line| format!("{line}  \t \n"));
    rewritten(|line| format!(" \t{line}\n"));
    rewritten(|line| format!("{}\n", line.replace('=', "  =\t ")));
    rewritten(|line| format!("{}\n", line.replace(" = ", "=")));
    rewritten(|line| format!("{}\n", line.replace("RW ", "RW \t ")));
    rewritten(|line| format!("{}\n", line.replace("FLAT ", "FLAT  \t ")));
    rewritten(|line| format!("{}\n", line.replace("FLAT \"", "FLAT\"")));
    rewritten(|line| format!("{}\n", line.replace("k\" ", "k\"   ")));
    rewritten(|line| format!("{}\n", line.replace("k\" ", "k\"")));
}

#[test]
fn upper_and_lower_case() {
    rewritten(|line| {
        let (key, value) = line.split_once('=').unwrap_or(("", line));
        let equals = if key.is_empty() { "" } else { "=" };
        format!("{}{equals}{value}\n", key.to_uppercase())
    });
    rewritten(|line| {
        let (key, value) = line.split_once('=').unwrap_or(("", line));
        let equals = if key.is_empty() { "" } else { "=" };
        format!("{}{equals}{value}\n", key.to_lowercase())
    });
    rewritten(|line| format!("{}\n", line.replace("RW", "rw").replace("FLAT", "flat")));
    rewritten(|line| format!("{}\n", line.replace("SPARSE", "Sparse")));
    rewritten(|line| {
        format!(
            "{}\n",
            line.replace("twoGbMaxExtentFlat", "TWOGBMAXEXTENTFLAT")
        )
    });
    rewritten(|line| format!("{}\n", line.replace("1a2b3c4d", "1A2B3C4D")));
    let magic = "# DISK descriptorfile\r\n";
    check(&Store::new(&[magic, LINES].concat().into_bytes()));
}

#[test]
fn quotes() {
    rewritten(|line| {
        format!(
            "{}\n",
            line.replace("=\"twoGbMaxExtentFlat\"", "=twoGbMaxExtentFlat")
        )
    });
    rewritten(|line| format!("{}\n", line.replace("=1a2b3c4d", "=\"1a2b3c4d\"")));
    rewritten(|line| format!("{}\n", line.replace("=ffffffff", " = \"FFFFFFFF\" ")));
    // What follows a value is not part of it.
    rewritten(|line| format!("{}\n", line.replace("1a2b3c4d", "1a2b3c4d # so far")));
    rewritten(|line| {
        format!(
            "{}\n",
            line.replace("\"twoGbMaxExtentFlat\"", "\"twoGbMaxExtentFlat\" x")
        )
    });
}

/// Lines that are of no interest, at the end and between others.
#[test]
fn other_lines() {
    for line in [
        "#",
        "# RW 100 FLAT \"commented.vmdk\" 0",
        "#CID=00000000",
        "  # indented",
        "encoding=\"windows-1252\"",
        "isNativeSnapshot=\"no\"",
        "unknown=",
        "=",
        "=x",
        "key of several words = RW 5 FLAT \"x\" 0",
        "rw=5",
        "RW = 5",
        "ddb.comment=\"CID=00000000\\nRW 100 FLAT \"",
        "ddb.uuid.parent=\"00000000-0000-0000-0000-000000000000\"",
        "ddb.uuid.image=\"526dead5-c32c-4ddd-979e-2113609a7dcf\"",
        "ddb.toolsInstallType = \"4",
        "ddb.longContentID = \"3d325d661a45fce9bb3cff25f55e0690\"",
        "changeTrackPath=\"\"",
        "encryption.keySafe=\"\"",
        "XCID=00000000",
        "CIDX=00000000",
        "a.key.that.is.much.longer.than.any.that.is.known.here.createType=\"vmfs\"",
        "CID parentCID = 77777777",
    ] {
        rewritten(|it| format!("{line}\n{it}\n"));
        check(&file(format!("{LINES}{line}")));
    }
}

/// Of several settings with one key the first counts.
#[test]
fn settings_twice() {
    check(&file(format!(
        "{LINES}CID=00000001\nparentCID=7\ncreateType=\"vmfs\"\n"
    )));
}

/// Names and other text in encodings that are not UTF-8, in which a byte may be part of a character.
#[test]
fn encodings() {
    for name in [
        &b"\xfcber.vmdk"[..],
        b"\x95\x5c.vmdk",
        b"\xa4\xa4\xa4\xe5",
        b"\xff\xfe\x80",
    ] {
        let lines = [
            b"encoding=\"Shift_JIS\"\nddb.comment = \"",
            name,
            b"\"\n# ",
            name,
            b"\nRW 100 FLAT \"",
            name,
            b"\" 0\n",
        ];
        let store = file(lines.concat());
        let set = attach(&store).unwrap();
        assert_eq!(set.list(&store), [flat(100, name, 0)]);
    }
}

/// The text ends at the first zero byte: behind it may lie anything.
#[test]
fn text_ends_at_nul() {
    for tail in [
        &b"\0"[..],
        b"\0\0\0\0",
        b"\0RW 100 FLAT \"x\" 0\n",
        b"\0 garbage \xff\n",
        &[0; 5000],
    ] {
        check(&file([LINES.as_bytes(), tail].concat()));
    }
    // In the middle of a line, too.
    let store = file("RW 100 FLAT \"a\" 0\nRW 50\0 FLAT \"b\" 0\n");
    assert!(attach(&store).is_err());
    let store = file("RW 100 FLAT \"a\" 0\nCID=12\x0034\n");
    assert_eq!(
        attach(&store).unwrap().image.disk.identity.0,
        identity(0x12)
    );
}

/// Wherever the pieces end in which the text is loaded.
#[test]
fn all_alignments() {
    for len in 0..200 {
        check(&file(format!("#{}\n{LINES}", "x".repeat(len))));
    }
}

#[test]
fn kinds_of_disk() {
    for (value, variant) in [
        ("\"monolithicSparse\"", "monolithicSparse"),
        ("\"monolithicFlat\"", "monolithicFlat"),
        ("\"twoGbMaxExtentSparse\"", "twoGbMaxExtentSparse"),
        ("\"streamOptimized\"", "streamOptimized"),
        ("\"fullDevice\"", "fullDevice"),
        ("\"partitionedDevice\"", "partitionedDevice"),
        ("\"vmfs\"", "vmfs"),
        ("\"vmfsThin\"", "vmfsThin"),
        ("\"vmfsPreallocated\"", "vmfsPreallocated"),
        ("\"vmfsEagerZeroedThick\"", "vmfsEagerZeroedThick"),
        ("\"vmfsSparse\"", "vmfsSparse"),
        ("\"seSparse\"", "seSparse"),
        ("custom", "custom"),
        ("\"vmfsX\"", "other"),
        ("\"somethingThatNobodyHasThoughtOfYet\"", "other"),
        ("\"\"", "other"),
        ("", "other"),
    ] {
        let store = file(format!("createType={value}\nRW 1 FLAT \"x\" 0"));
        assert_eq!(attach(&store).unwrap().image.disk.variant, variant);
    }
    let store = file("RW 1 FLAT \"x\" 0");
    let disk = attach(&store).unwrap().image.disk;
    assert_eq!((disk.variant, disk.identity.0), ("other", [0; 16]));
}
