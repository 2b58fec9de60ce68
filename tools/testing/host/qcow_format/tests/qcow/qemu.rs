// SPDX-License-Identifier: GPL-2.0

//! Images that qemu-img made: their content is what `qemu-img convert` says it is.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use loop_parser::contract::Parent;
use testkit::{
    device::Device,
    rng::Rng,
    store::Store,
    tools::{self, TempDir},
};

use crate::{attach, open, reader::Reader};

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

/// A disk with data, zeros and text in it, with all sorts of boundaries.
fn content(size: u64, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut disk = vec![0; size as usize];
    let mut at = 0;
    while at < disk.len() {
        let len = 512 * (1 + rng.below(300)) as usize;
        let end = (at + len).min(disk.len());
        match rng.below(4) {
            0 => disk[at..end]
                .iter_mut()
                .for_each(|it| *it = rng.next_u64() as u8),
            1 => {
                for (index, byte) in disk[at..end].iter_mut().enumerate() {
                    *byte = b"nothing new under the sun "[index % 26];
                }
            }
            _ => {}
        }
        at = end;
    }
    disk
}

fn load(path: &Path) -> Store {
    Store::new(&fs::read(path).unwrap())
}

/// Opens an image and what is below it.
fn open_chain(folder: &TempDir, name: &str) -> Device {
    let store = load(&folder.path(name));
    let parent = attach(&store).unwrap().parent;
    let device = open(store).unwrap();
    let Some(parent) = parent else {
        return device;
    };
    let mut buf = [0; 1024];
    let len = parent.name(&device.store, 0, &mut buf).unwrap().unwrap();
    let below = String::from_utf8(buf[..len].to_vec()).unwrap();
    assert_eq!(parent.parser(), Some("qcow2"));
    device.on_top_of(open_chain(folder, &below))
}

/// Compares an image with what qemu-img, and the second reader, make of it.
fn check(folder: &TempDir, name: &str) {
    run(
        folder,
        &format!("qemu-img convert -f qcow2 -O raw {name} theirs"),
    );
    let theirs = fs::read(folder.path("theirs")).unwrap();
    let device = open_chain(folder, name);
    assert_eq!(device.disk.size, theirs.len() as u64, "{name}");
    assert!(
        device.read(0, device.disk.size).unwrap() == theirs,
        "{name}"
    );
    if attach(&device.store).unwrap().parent.is_none() {
        assert!(Reader::new(&device.store).disk(&[]) == theirs, "{name}");
    }
}

fn folder_with(size: u64) -> Option<TempDir> {
    if !tools::has_qemu_img() {
        return None;
    }
    let folder = TempDir::new();
    fs::write(folder.path("raw"), content(size, 7)).unwrap();
    Some(folder)
}

const SIZE: u64 = 3 * 1024 * 1024 + 512;

#[test]
fn cluster_sizes() {
    let Some(folder) = folder_with(SIZE) else {
        return;
    };
    for bits in 9..=21 {
        for compat in ["0.10", "1.1"] {
            for flag in ["", "-c "] {
                let size = 1 << bits;
                let options = format!("cluster_size={size},compat={compat}");
                run(
                    &folder,
                    &format!("qemu-img convert -f raw -O qcow2 {flag}-o {options} raw image"),
                );
                check(&folder, "image");
            }
        }
    }
}

#[test]
fn zstd_and_subclusters() {
    let Some(folder) = folder_with(SIZE) else {
        return;
    };
    for bits in [14, 16, 21] {
        for extended in ["on", "off"] {
            for compression in ["zlib", "zstd"] {
                for flag in ["", "-c "] {
                    let options = format!(
                        "cluster_size={},extended_l2={extended},compression_type={compression}",
                        1 << bits
                    );
                    run(
                        &folder,
                        &format!("qemu-img convert -f raw -O qcow2 {flag}-o {options} raw image"),
                    );
                    check(&folder, "image");
                }
            }
        }
    }
}

#[test]
fn refcount_orders() {
    let Some(folder) = folder_with(SIZE) else {
        return;
    };
    for order in 0..=6 {
        let options = format!("refcount_bits={},lazy_refcounts=on", 1 << order);
        run(
            &folder,
            &format!("qemu-img convert -f raw -O qcow2 -o {options} raw image"),
        );
        check(&folder, "image");
    }
}

#[test]
fn preallocation() {
    let Some(folder) = folder_with(512) else {
        return;
    };
    for how in ["off", "metadata", "falloc", "full"] {
        for extended in ["on", "off"] {
            for bits in [14, 16] {
                let options = format!(
                    "preallocation={how},extended_l2={extended},cluster_size={}",
                    1 << bits
                );
                run(
                    &folder,
                    &format!("qemu-img create -f qcow2 -o {options} image 3145728"),
                );
                check(&folder, "image");
            }
        }
    }
}

/// Writes by qemu-io: data, zeros with and without a place, discards, compressed clusters, before and
/// after a snapshot.
#[test]
fn snapshots_and_zeros() {
    let Some(folder) = folder_with(SIZE) else {
        return;
    };
    if Command::new("qemu-io").arg("--version").output().is_err() {
        tools::say("SKIP: qemu-io is not on PATH");
        return;
    }
    for options in [
        "cluster_size=65536",
        "cluster_size=512",
        "cluster_size=65536,compat=0.10",
        "cluster_size=65536,extended_l2=on",
        "cluster_size=65536,compression_type=zstd",
    ] {
        run(
            &folder,
            &format!("qemu-img convert -f raw -O qcow2 -o {options} raw image"),
        );
        for round in 0..2 {
            let mut words = vec!["-f".to_owned(), "qcow2".to_owned()];
            for command in [
                format!("write -P {} 100k 300k", 17 + round),
                "write -z 200k 128k".to_owned(),
                "write -z -u 600k 128k".to_owned(),
                "discard 1M 256k".to_owned(),
                // What is compressed cannot replace anything.
                "discard 2M 64k".to_owned(),
                format!("write -c -P {} 2M 64k", 99 + round),
                "write -P 5 2078k 1k".to_owned(),
            ] {
                words.push("-c".to_owned());
                words.push(command);
            }
            words.push("image".to_owned());
            let status = Command::new("qemu-io")
                .args(&words)
                .current_dir(folder.path(""))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert!(status.success(), "{options}");
            check(&folder, "image");
            run(&folder, &format!("qemu-img snapshot -c snap{round} image"));
            check(&folder, "image");
        }
        run(&folder, "qemu-img snapshot -a snap0 image");
        check(&folder, "image");
    }
}

/// Backing files that are smaller and larger than what lies on them.
#[test]
fn chains() {
    let Some(folder) = folder_with(SIZE) else {
        return;
    };
    run(&folder, "qemu-img convert -f raw -O qcow2 -c raw base");
    for size in [1024 * 1024, SIZE, 2 * SIZE] {
        for options in ["cluster_size=4096", "cluster_size=65536,extended_l2=on"] {
            for (name, below) in [("middle", "base"), ("top", "middle")] {
                run(
                    &folder,
                    &format!(
                        "qemu-img create -f qcow2 -b {below} -F qcow2 -o {options} {name} {size}"
                    ),
                );
                let status = Command::new("qemu-io")
                    .args([
                        "-f",
                        "qcow2",
                        "-c",
                        "write -P 77 70k 3k",
                        "-c",
                        "write -z 512k 64k",
                    ])
                    .arg(name)
                    .current_dir(folder.path(""))
                    .stdout(Stdio::null())
                    .status();
                assert!(status.is_ok_and(|status| status.success()));
            }
            check(&folder, "top");
        }
    }
}
