// SPDX-License-Identifier: GPL-2.0

//! Images that qemu-img makes, and what it says of ours.

use std::{
    fs,
    process::{Command, Stdio},
};

use loop_parser::contract::Discard;
use testkit::{
    device::Device,
    rng::Rng,
    store::Store,
    tools::{self, TempDir},
};

use crate::{
    image::{check, descriptor, Spec},
    open::{about, open, open_as, part, request},
};

/// Runs a program; panics if it fails.
fn run(folder: &TempDir, words: &str) {
    let mut words = words.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .current_dir(folder.path(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// A disk with data and zeros in it, with all sorts of boundaries.
fn content(size: u64, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut disk = vec![0; size as usize];
    let mut at = 0;
    while at < disk.len() {
        let len = 512 * (1 + rng.below(600)) as usize;
        let end = (at + len).min(disk.len());
        if rng.one_in(2) {
            disk[at..end].fill_with(|| rng.next_u64() as u8);
        }
        at = end;
    }
    disk
}

fn load(folder: &TempDir, name: &str) -> Store {
    Store::new(&fs::read(folder.path(name)).unwrap())
}

/// The guest disk, as qemu-img sees it.
fn theirs(folder: &TempDir, name: &str) -> Vec<u8> {
    run(
        folder,
        &format!("qemu-img convert -f vmdk -O raw {name} theirs"),
    );
    fs::read(folder.path("theirs")).unwrap()
}

fn folder() -> Option<TempDir> {
    tools::has_qemu_img().then(TempDir::new)
}

const SIZE: u64 = 35 * 1024 * 1024 + 512;

/// Writes and discards at random; the disk is then `shadow`.
fn use_it(device: &mut Device, shadow: &mut [u8], seed: u64) {
    let mut rng = Rng::new(seed);
    let size = device.disk.size;
    for _ in 0..40 {
        let pos = rng.below(size / 512) * 512;
        let len = (512 * (1 + rng.below(300))).min(size - pos);
        let byte = match rng.one_in(4) && device.disk.features.discard {
            true => {
                device.discard(pos, len, Discard::Zero).unwrap();
                0
            }
            false => {
                let byte = 1 + rng.below(250) as u8;
                device.write(pos, &vec![byte; len as usize]).unwrap();
                byte
            }
        };
        shadow[pos as usize..][..len as usize].fill(byte);
    }
}

#[test]
fn theirs_are_read_and_written() {
    let Some(folder) = folder() else { return };
    fs::write(folder.path("raw"), content(SIZE, 7)).unwrap();
    for options in [
        "subformat=monolithicSparse",
        "subformat=monolithicSparse,zeroed_grain=on",
    ] {
        let convert = format!("qemu-img convert -f raw -O vmdk -o {options} raw image");
        run(&folder, &convert);
        let mut shadow = theirs(&folder, "image");
        let mut device = open(load(&folder, "image")).unwrap();
        assert_eq!(device.disk.size, shadow.len() as u64);
        assert!(
            device.read(0, device.disk.size).unwrap() == shadow,
            "{options}"
        );
        use_it(&mut device, &mut shadow, 3);
        assert!(
            device.read(0, device.disk.size).unwrap() == shadow,
            "{options}"
        );
        let store = device.close().unwrap();
        check(&store);
        store.save(&folder.path("ours")).unwrap();
        run(&folder, "qemu-img check -f vmdk ours");
        assert!(theirs(&folder, "ours") == shadow, "{options}");
    }
}

/// An image over another one, which qemu-img finds by the name and the CID.
#[test]
fn children() {
    let Some(folder) = folder() else { return };
    fs::write(folder.path("raw"), content(SIZE, 8)).unwrap();
    run(&folder, "qemu-img convert -f raw -O vmdk raw base.vmdk");
    for zeros in ["off", "on"] {
        let create = format!(
            "qemu-img create -q -f vmdk -o zeroed_grain={zeros} -b base.vmdk -F vmdk child.vmdk"
        );
        run(&folder, &create);
        let store = load(&folder, "child.vmdk");
        let about = about(&store, &request()).unwrap();
        assert_eq!(about.parent_name(&store).unwrap(), "base.vmdk");
        let base = open(load(&folder, "base.vmdk")).unwrap();
        loop_parser::contract::Parent::check(&about.parent.unwrap(), &base.disk).unwrap();
        let mut device = open(store).unwrap().on_top_of(base);
        assert_eq!(device.disk.features.discard, zeros == "on");
        let mut shadow = theirs(&folder, "child.vmdk");
        assert!(device.read(0, device.disk.size).unwrap() == shadow);
        use_it(&mut device, &mut shadow, 4);
        assert!(device.read(0, device.disk.size).unwrap() == shadow);
        let store = device.close().unwrap();
        check(&store);
        store.save(&folder.path("child.vmdk")).unwrap();
        run(&folder, "qemu-img check -f vmdk child.vmdk");
        assert!(theirs(&folder, "child.vmdk") == shadow, "{zeros}");
    }
}

/// A parent that was written to is another one.
#[test]
fn parent_that_was_changed() {
    let Some(folder) = folder() else { return };
    fs::write(folder.path("raw"), content(SIZE, 9)).unwrap();
    run(&folder, "qemu-img convert -f raw -O vmdk raw base.vmdk");
    run(
        &folder,
        "qemu-img create -q -f vmdk -b base.vmdk -F vmdk child.vmdk",
    );
    let mut base = open(load(&folder, "base.vmdk")).unwrap();
    base.write(0, &[1; 512]).unwrap();
    let store = base.close().unwrap();
    let child = about(&load(&folder, "child.vmdk"), &request()).unwrap();
    let changed = about(&store, &request()).unwrap();
    let check = |disk| loop_parser::contract::Parent::check(&child.parent.unwrap(), disk);
    assert!(check(&changed.disk).is_err());
    store.save(&folder.path("base.vmdk")).unwrap();
    // qemu-img sees it, too.
    let output = Command::new("qemu-img")
        .args(["convert", "-f", "vmdk", "-O", "raw", "child.vmdk", "out"])
        .current_dir(folder.path(""))
        .output()
        .unwrap();
    assert!(!output.status.success());
}

/// Extents of a split disk: each is written alone, and qemu-img puts them together.
#[test]
fn extents() {
    let Some(folder) = folder() else { return };
    let create = "qemu-img create -q -f vmdk -o subformat=twoGbMaxExtentSparse disk.vmdk 4097M";
    run(&folder, create);
    let mut shadow = Vec::new();
    for (index, len) in [(1, 2u64 << 30), (2, 2 << 30), (3, 1 << 20)] {
        let name = format!("disk-s00{index}.vmdk");
        let mut device = open_as(load(&folder, &name), &part(len, false)).unwrap();
        assert!(device.disk.size >= len);
        for pos in [0, len - 8192, len - 512] {
            let byte = index * 16 + (pos % 7) as u8;
            device.write(pos, &[byte; 512]).unwrap();
            shadow.push((u64::from(index - 1) * (2 << 30) + pos, byte));
        }
        let store = device.close().unwrap();
        check(&store);
        store.save(&folder.path(&name)).unwrap();
    }
    shadow.sort_unstable();
    for (pos, byte) in shadow {
        let dd = format!(
            "qemu-img dd -f vmdk -O raw bs=512 skip={} count={} if=disk.vmdk of=sector",
            pos / 512,
            pos / 512 + 1
        );
        run(&folder, &dd);
        let sector = fs::read(folder.path("sector")).unwrap();
        assert!(sector.starts_with(&[byte; 512]), "{pos}");
    }
}

/// Images with grains and tables of all sizes.
#[test]
fn ours() {
    if !tools::has_qemu_img() {
        return;
    }
    let size = 9 * 1024 * 2 + 3;
    for spec in [
        Spec::new(size, 128).with_grains(&[0, 2, 1]),
        Spec::new(size, 16).with_grains(&[0, 2, 1]),
        Spec::new(size, 128).without_redundant(),
        Spec::new(size, 8).with_entries(100),
        Spec::new(size, 128).without_tables(),
        Spec::new(size, 128).with_zeros(&[4, 5]),
    ] {
        let mut device = open(spec.build().store).unwrap();
        let mut shadow = device.read(0, spec.bytes()).unwrap();
        use_it(&mut device, &mut shadow, 5);
        let store = device.close().unwrap();
        check(&store);
        let theirs = tools::qemu_img_read(&store, "vmdk");
        assert!(
            theirs.as_ref() == Ok(&shadow),
            "{spec:?} {:?}",
            theirs.err()
        );
    }
}

/// COWD files, which qemu-img opens through a descriptor only, alone and over another disk.
#[test]
fn cowd() {
    let Some(folder) = folder() else { return };
    let size = 9 * 1024 * 2 + 3;
    let below = open_base(&folder, size);
    for grain in [1, 8, 128] {
        for parent in [None, Some(("12ab90ef", "base.vmdk"))] {
            let spec = Spec::cowd(size, grain).with_grains(&[0, 2, 1]);
            let text = descriptor(size, parent)
                .replace("monolithicSparse", "vmfsSparse")
                .replace("SPARSE \"image", "VMFSSPARSE \"delta");
            fs::write(folder.path("image"), text).unwrap();
            let request = part(spec.bytes(), parent.is_some());
            let mut device = open_as(spec.build().store, &request).unwrap();
            if parent.is_some() {
                device = device.on_top_of(open(Store::new(&below)).unwrap());
            }
            let mut shadow = device.read(0, spec.bytes()).unwrap();
            use_it(&mut device, &mut shadow, 5);
            let store = device.close().unwrap();
            check(&store);
            store.save(&folder.path("delta.vmdk")).unwrap();
            assert!(theirs(&folder, "image") == shadow, "{grain} {parent:?}");
        }
    }
}

/// A disk full of something that children can lie on: `base.vmdk`.
fn open_base(folder: &TempDir, sectors: u64) -> Vec<u8> {
    let grains: Vec<u64> = (0..sectors / 128).collect();
    let spec = Spec::new(sectors, 128).with_grains(&grains);
    let store = spec.build().store;
    store.save(&folder.path("base.vmdk")).unwrap();
    store.to_vec()
}
