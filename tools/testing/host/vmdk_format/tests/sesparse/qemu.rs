// SPDX-License-Identifier: GPL-2.0

//! What QEMU makes of the files that are built here: there is no specification to hold them
//! against.

use std::{fs, process::Command};

use testkit::tools::{self, TempDir};

use crate::{
    image::{Fill, Image, Spec},
    open,
};

/// The disk as `qemu-img` shows it, or what it complains about.
fn theirs(image: &Image, sectors: u64) -> Result<Vec<u8>, String> {
    let folder = TempDir::new();
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"seSparse\"\n# Extent description\nRW {sectors} SESPARSE \"part.vmdk\"\n"
    );
    fs::write(folder.path("disk.vmdk"), text).unwrap();
    image.store.save(&folder.path("part.vmdk")).unwrap();
    let output = Command::new("qemu-img")
        .args(["convert", "-f", "vmdk", "-O", "raw"])
        .args([folder.path("disk.vmdk"), folder.path("raw")])
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(fs::read(folder.path("raw")).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn spec() -> Spec {
    Spec::new(70_008).with_grains(&[
        (0, Fill::Data(3)),
        (1, Fill::Zero),
        (2, Fill::Unmapped(0)),
        (3, Fill::Missing),
        (7, Fill::Data(4096 + 7)),
        (4095, Fill::Data(0)),
        (8192, Fill::Data(2)),
        (8750, Fill::Data(1)),
    ])
}

#[test]
fn content_is_the_same() {
    if !tools::has_qemu_img() {
        return;
    }
    for is_reversed in [false, true] {
        let image = Spec {
            is_reversed,
            ..spec()
        }
        .build();
        let theirs = theirs(&image, 70_008).unwrap();
        assert!(theirs == image.disk);
        let device = open(&image.store, false).unwrap();
        assert!(device.read(0, device.disk.size).unwrap() == theirs);
    }
}

/// What is refused here is refused there.
#[test]
fn refusals_are_the_same() {
    if !tools::has_qemu_img() {
        return;
    }
    let volatile = spec().build().volatile;
    for (at, value) in [
        (8, 0x2_0000_0002),
        (24, 16),
        (32, 32),
        (40, 1),
        (48, 1),
        (72, 1),
        (volatile, 0xcafe_babe),
        (volatile + 24, 1),
    ] {
        let mut image = spec().build();
        image.store.put(at, &u64::to_le_bytes(value));
        assert!(theirs(&image, 70_008).is_err(), "{at}");
        assert!(open(&image.store, false).is_err(), "{at}");
    }
}
