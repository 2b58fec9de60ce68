// SPDX-License-Identifier: GPL-2.0

//! Streams that other programs made, and what they make of ours.

use std::{
    fs,
    process::{Command, Stdio},
};

use testkit::{
    rng::Rng,
    samples::{self, Hash},
    store::Store,
    tools::{self, TempDir},
};

use crate::{
    image::{text, Fill, Form, Spec},
    open, open_with,
};

fn streams() -> Vec<(samples::Sample, Vec<u8>)> {
    let mut list = samples::list(".vmdk");
    list.retain(|sample| sample.what == "streamOptimized");
    if list.is_empty() {
        tools::say("SKIP: all streams of the samples: none (set LP_SHARED_IMAGES)");
    }
    let unpacked = list.into_iter().filter_map(|sample| {
        let bytes = samples::unpack(&sample.name);
        if bytes.is_none() {
            tools::say(&format!("SKIP: {} cannot be unpacked", sample.name));
        }
        bytes.map(|bytes| (sample, bytes))
    });
    unpacked.collect()
}

#[test]
fn samples_have_their_content() {
    for (sample, bytes) in streams() {
        let device = open(&Store::new(&bytes)).unwrap();
        assert_eq!(device.disk.size, sample.size, "{}", sample.name);
        let mut hash = Hash::default();
        hash.update(&device.read(0, sample.size).unwrap());
        assert_eq!(hash.hex(), sample.digest, "{}", sample.name);
    }
}

/// Of the one by VirtualBox, which has its directory at the end.
#[test]
fn samples_without_their_end() {
    for (sample, bytes) in streams() {
        let whole = open(&Store::new(&bytes)).unwrap();
        let disk = whole.read(0, sample.size).unwrap();
        if bytes[56..64] != [0xff; 8] {
            continue;
        }
        // The footer, and the directory, which lies behind the last table.
        for missing in [512, 1536, 1537, 2049] {
            let store = Store::new(&bytes[..bytes.len() - missing]);
            let (device, warning) = open_with(&store, None).unwrap();
            assert!(warning.is_some());
            for pos in (0..sample.size).step_by(65536) {
                let len = (sample.size - pos).min(65536);
                // The last grain of this disk is one that is there.
                let read = device.read(pos, len).unwrap();
                assert!(
                    read[..] == disk[pos as usize..][..len as usize],
                    "{missing}"
                );
            }
        }
    }
}

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
fn content(sectors: u64, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut disk = vec![0; sectors as usize * 512];
    let mut at = 0;
    while at < disk.len() {
        let end = (at + 512 * (1 + rng.below(300)) as usize).min(disk.len());
        let kind = rng.below(4);
        for (index, byte) in disk[at..end].iter_mut().enumerate() {
            match kind {
                0 => *byte = rng.next_u64() as u8,
                1 => *byte = b"nothing new under the sun "[index % 26],
                _ => {}
            }
        }
        at = end;
    }
    disk
}

#[test]
fn qemu_made() {
    if !tools::has_qemu_img() {
        return;
    }
    let folder = TempDir::new();
    // Up to a second table.
    for sectors in [1, 127, 128, 129, 5000, 65536 + 200] {
        let disk = content(sectors, sectors);
        fs::write(folder.path("raw"), &disk).unwrap();
        run(
            &folder,
            "qemu-img convert -f raw -O vmdk -o subformat=streamOptimized raw image",
        );
        let store = Store::new(&fs::read(folder.path("image")).unwrap());
        let device = open(&store).unwrap();
        assert_eq!(device.disk.size, sectors * 512);
        assert!(device.read(0, sectors * 512).unwrap() == disk, "{sectors}");
    }
}

/// The builder and the code under test could be wrong about the same thing.
#[test]
fn qemu_reads_what_is_built() {
    if !tools::has_qemu_img() {
        return;
    }
    for form in [Form::Footer, Form::Front, Form::Qemu] {
        for sectors in [1000, 1024, 1025] {
            let mut spec = Spec::new(form, sectors).with(|it| it.per_table = 512);
            for number in [0, 1, 2, 17, 60, sectors / 8 - 1] {
                let fill = [Fill::Text, Fill::Random][number as usize % 2];
                spec.grains.insert(number, fill);
            }
            // Its name is not that of the file.
            spec.text = text(sectors, "").replace("stream.vmdk", "image");
            let image = spec.build();
            let theirs = tools::qemu_img_read(&image.store, "vmdk").unwrap();
            assert!(theirs == image.disk, "{form:?} {sectors}");
            let ours = open(&image.store).unwrap().read(0, sectors * 512).unwrap();
            assert!(ours == theirs, "{form:?} {sectors}");
        }
    }
}
