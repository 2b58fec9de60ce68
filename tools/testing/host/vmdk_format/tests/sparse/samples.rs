// SPDX-License-Identifier: GPL-2.0

//! Images that other programs made.

use testkit::{
    samples::{self, Hash},
    store::Store,
    tools,
};

use crate::{
    image::{check, disk, get64, Redundant},
    open::{open, open_as, part},
};

/// The samples that are one sparse file; says so if there are none.
fn list() -> Vec<(samples::Sample, Store)> {
    let list = samples::list(".vmdk").into_iter();
    let list = list.filter(|it| it.what.starts_with("monolithicSparse"));
    let unpacked = list.filter_map(|it| {
        let bytes = samples::unpack(&it.name)?;
        Some((it, Store::new(&bytes)))
    });
    let list: Vec<_> = unpacked.collect();
    if list.is_empty() {
        tools::say("SKIP: all monolithicSparse samples: none (set LP_SHARED_IMAGES)");
    }
    list
}

#[test]
fn guest_content_is_right() {
    for (sample, store) in list() {
        let device = open(store).unwrap();
        assert_eq!(device.disk.size, sample.size, "{}", sample.name);
        assert_eq!(device.disk.variant, "monolithicSparse");
        let mut hash = Hash::default();
        hash.update(&device.read(0, sample.size).unwrap());
        assert_eq!(hash.hex(), sample.digest, "{}", sample.name);
    }
}

/// They can be written to, and qemu-img reads what was written.
#[test]
fn writes() {
    for (sample, store) in list() {
        let mut device = open(store).unwrap();
        let mut shadow = device.read(0, sample.size).unwrap();
        for pos in (0..sample.size - 4096).step_by(333 * 1024) {
            let pos = pos / 512 * 512;
            device.write(pos, &[0x7e; 1536]).unwrap();
            shadow[pos as usize..][..1536].fill(0x7e);
        }
        let store = device.close().unwrap();
        check(&store);
        assert!(
            disk(&store, &[])[..shadow.len()] == shadow,
            "{}",
            sample.name
        );
        if tools::has_qemu_img() {
            let theirs = tools::qemu_img_read(&store, "vmdk").unwrap();
            assert!(theirs == shadow, "{}", sample.name);
        }
    }
}

/// The extents of a disk that is split. The last one's capacity is rounded up.
#[test]
fn extents() {
    let list = samples::list(".vmdk");
    let split = list.iter().find(|it| it.name == "vb-split3g.vmdk");
    let Some(whole) = split else {
        tools::say("SKIP: vb-split3g.vmdk is not there (set LP_SHARED_IMAGES)");
        return;
    };
    let mut hash = Hash::default();
    let mut left = whole.size;
    for name in ["vb-split3g-s001.vmdk", "vb-split3g-s002.vmdk"] {
        let store = Store::new(&samples::unpack(name).unwrap());
        let len = left.min(get64(&store, 12) * 512);
        assert_eq!(crate::image::problem(&store, Redundant::Equal), None);
        let device = open_as(store, &part(len, false)).unwrap();
        assert!(device.disk.size >= len);
        for pos in (0..len).step_by(1 << 24) {
            hash.update(&device.read(pos, (len - pos).min(1 << 24)).unwrap());
        }
        left -= len;
    }
    assert_eq!(left, 0);
    assert_eq!(hash.hex(), whole.digest);
}
