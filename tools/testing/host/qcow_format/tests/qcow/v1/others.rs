// SPDX-License-Identifier: GPL-2.0

//! Images of version 1 that other programs made.

use std::{fs, process::Command};

use loop_parser::contract::Parent;
use qcow_format::format;
use testkit::{
    samples::{self, Hash},
    store::Store,
    tools::{self, TempDir},
};

use super::{
    image::{self, Spec},
    open,
};

#[test]
fn samples() {
    for sample in samples::list(".qcow") {
        let Some(bytes) = samples::unpack(&sample.name) else {
            tools::say(&format!("SKIP: {} cannot be unpacked", sample.name));
            continue;
        };
        let mut device = open(Store::new(&bytes)).unwrap();
        assert_eq!(device.disk.size, sample.size, "{}", sample.name);
        assert_eq!(device.disk.variant, "v1");
        let mut hash = Hash::default();
        let mut shadow = device.read(0, sample.size).unwrap();
        hash.update(&shadow);
        assert_eq!(hash.hex(), sample.digest, "{}", sample.name);

        for pos in [0, 5 << 20, sample.size - 4096] {
            device.write(pos, &[0xa5; 4096]).unwrap();
            shadow[pos as usize..][..4096].fill(0xa5);
        }
        let store = device.close().unwrap();
        assert!(image::disk(&store, &[]) == shadow, "{}", sample.name);
        if tools::has_qemu_img() {
            assert!(tools::qemu_img_read(&store, "qcow").unwrap() == shadow);
        }
    }
}

fn run(folder: &TempDir, words: &str) {
    let mut words = words.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .current_dir(folder.path(""))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn qemu_img() {
    if !tools::has_qemu_img() {
        return;
    }
    let folder = TempDir::new();
    let raw: Vec<u8> = (0..5000).flat_map(crate::image::pattern).collect();
    fs::write(folder.path("raw"), &raw).unwrap();
    for is_compressed in [false, true] {
        // qemu-img 10 cannot convert to compressed clusters.
        if is_compressed {
            let clusters: Vec<_> = (0..625).map(|index| (index, index % 3 > 0)).collect();
            let image = Spec::new(raw.len() as u64, 12, 9).with_clusters(&clusters);
            image.build().store.save(&folder.path("base")).unwrap();
        } else {
            run(&folder, "qemu-img convert -f raw -O qcow raw base");
        }
        let store = Store::new(&fs::read(folder.path("base")).unwrap());
        assert!(tools::qemu_img_read(&store, "qcow").unwrap() == raw);
        let base = open(store).unwrap();
        assert!(base.read(0, base.disk.size).unwrap() == raw);

        // Another cluster size, and a disk that is larger than what lies below.
        run(
            &folder,
            "qemu-img create -f qcow -b base -F qcow child 4194304",
        );
        let store = Store::new(&fs::read(folder.path("child")).unwrap());
        let parent = format::v1::attach(&store, "").unwrap().parent.unwrap();
        let mut name = [0; 64];
        assert_eq!(parent.parser(), None);
        assert_eq!(parent.name(&store, 0, &mut name), Ok(Some(4)));
        assert_eq!(&name[..4], b"base");
        let mut child = open(store).unwrap().on_top_of(base);
        let mut shadow = raw.clone();
        shadow.resize(child.disk.size as usize, 0);
        assert!(child.read(0, child.disk.size).unwrap() == shadow);
        for pos in [512, 70 << 10, (2 << 20) + 512, 4_194_304 - 512] {
            child.write(pos, &[9; 512]).unwrap();
            shadow[pos as usize..][..512].fill(9);
        }
        child.close().unwrap().save(&folder.path("child")).unwrap();
        run(&folder, "qemu-img convert -f qcow -O raw child theirs");
        assert!(fs::read(folder.path("theirs")).unwrap() == shadow);
    }
}
