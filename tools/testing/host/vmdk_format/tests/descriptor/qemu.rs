// SPDX-License-Identifier: GPL-2.0

//! Disks that qemu-img made, and what it says of them after the CID was changed.

use std::{fs, path::Path, process::Command};

use loop_parser::contract::{Allocate, Parent};
use testkit::{
    store::Store,
    tools::{self, TempDir},
};

use crate::{attach, attach_writable, flat, identity, image};

/// What qemu-img prints; panics if it fails.
fn qemu_img(folder: &TempDir, words: &str) -> String {
    let output = Command::new("qemu-img")
        .args(words.split(' '))
        .current_dir(folder.path(""))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn load(path: &Path) -> Store {
    Store::new(&fs::read(path).unwrap())
}

/// The number behind `key` in what qemu-img says of an image.
fn info(folder: &TempDir, name: &str, key: &str) -> u32 {
    let said = qemu_img(folder, &format!("info -f vmdk {name}"));
    let line = said.lines().find_map(|line| line.trim().strip_prefix(key));
    line.expect(&said).trim().parse().unwrap()
}

#[test]
fn qemu_reads_the_new_cid() {
    if !tools::has_qemu_img() {
        return;
    }
    let folder = TempDir::new();
    for (subformat, parts, is_flat) in [
        ("monolithicFlat", 1, true),
        ("twoGbMaxExtentFlat", 3, true),
        ("twoGbMaxExtentSparse", 3, false),
    ] {
        let name = format!("{subformat}.vmdk");
        let size: u64 = if parts == 1 { 10 << 20 } else { 5 << 30 };
        qemu_img(
            &folder,
            &format!("create -q -f vmdk -o subformat={subformat} {name} {size}"),
        );
        let path = folder.path(&name);
        let mut store = load(&path);
        let mut set = attach_writable(&store, 0x1357_9bdf).unwrap();
        let old = info(&folder, &name, "cid:");
        assert_eq!(set.image.disk.size, size);
        assert_eq!(set.image.disk.variant, subformat);
        assert_eq!(set.image.disk.identity.0, identity(old));
        let list = set.list(&store);
        assert_eq!(list.len(), parts);
        let sectors = list[0].sectors;
        let letter = if is_flat { 'f' } else { 's' };
        let part = match parts {
            1 => format!("{subformat}-flat.vmdk"),
            _ => format!("{subformat}-{letter}001.vmdk"),
        };
        match is_flat {
            true => assert_eq!(list[0], flat(sectors, part.as_bytes(), 0)),
            false => assert_eq!(list[0], image(sectors, part.as_bytes())),
        }
        set.image.alloc.begin(&mut store).unwrap();
        store.save(&path).unwrap();
        let new = info(&folder, &name, "cid:");
        assert_ne!(old, new);
        assert_eq!(attach(&store).unwrap().image.disk.identity.0, identity(new));
    }
}

/// qemu-img opens a child only on a parent with the right CID, and so do we.
#[test]
fn qemu_and_we_know_parents() {
    if !tools::has_qemu_img() {
        return;
    }
    let folder = TempDir::new();
    fs::write(folder.path("raw"), vec![7; 10 << 20]).unwrap();
    qemu_img(
        &folder,
        "convert -f raw -O vmdk -o subformat=twoGbMaxExtentSparse raw base.vmdk",
    );
    qemu_img(
        &folder,
        "create -q -f vmdk -o subformat=twoGbMaxExtentSparse -b base.vmdk -F vmdk child.vmdk",
    );
    let mut base = load(&folder.path("base.vmdk"));
    let child = load(&folder.path("child.vmdk"));
    let set = attach(&child).unwrap();
    assert_eq!(set.parent_names(&child), [b"base.vmdk"]);
    let parent = set.image.parent.unwrap();
    assert_eq!(parent.check(&attach(&base).unwrap().image.disk), Ok(()));
    qemu_img(&folder, "convert -f vmdk -O raw child.vmdk out");
    assert!(fs::read(folder.path("out")).unwrap() == vec![7; 10 << 20]);

    let mut written = attach_writable(&base, 1).unwrap();
    written.image.alloc.begin(&mut base).unwrap();
    base.save(&folder.path("base.vmdk")).unwrap();
    assert!(parent.check(&attach(&base).unwrap().image.disk).is_err());
    let output = Command::new("qemu-img")
        .args(["convert", "-f", "vmdk", "-O", "raw", "child.vmdk", "out"])
        .current_dir(folder.path(""))
        .output()
        .unwrap();
    assert!(!output.status.success());
}
