// SPDX-License-Identifier: GPL-2.0

//! Descriptors that other programs wrote.

use loop_parser::contract::Allocate;
use testkit::{samples, store::Store, tools};

use crate::{attach, attach_writable, flat, identity, image, Listed};

/// The sample, or what its embedded descriptor would be as a file of its own: with a sector of zeros
/// behind, as there is more room than text.
fn descriptor(name: &str) -> Option<Store> {
    let Some(bytes) = samples::unpack(name) else {
        tools::say(&format!("SKIP: {name} cannot be unpacked"));
        return None;
    };
    if bytes.starts_with(b"#") {
        return Some(Store::new(&bytes));
    }
    assert!(bytes.starts_with(b"KDMV"));
    let number = |at: usize| {
        let bytes: [u8; 8] = bytes[at..at + 8].try_into().unwrap();
        u64::from_le_bytes(bytes) as usize * 512
    };
    let (at, len) = (number(28), number(36));
    Some(Store::new(&bytes[at..at + len]))
}

fn check(name: &str, cid: u32, variant: &str, expected: &[Listed]) {
    let Some(mut store) = descriptor(name) else {
        return;
    };
    let sample = samples::list(".vmdk")
        .into_iter()
        .find(|it| it.name == name);
    let set = attach(&store).unwrap();
    assert_eq!(set.image.disk.size, sample.unwrap().size, "{name}");
    assert_eq!(set.image.disk.variant, variant);
    assert_eq!(set.image.disk.identity.0, identity(cid));
    assert!(set.image.parent.is_none());
    assert_eq!(set.list(&store), expected);

    let mut set = match attach_writable(&store, 0x0bad_cafe) {
        Ok(set) => set,
        Err(_) => return assert!(!expected[0].writable),
    };
    let before = store.to_vec();
    set.image.alloc.begin(&mut store).unwrap();
    let after = store.to_vec();
    let changed = before
        .iter()
        .zip(&after)
        .filter(|(old, new)| old != new)
        .count();
    let has_long = String::from_utf8_lossy(&before).contains("longContentID");
    assert!(
        (1..=if has_long { 16 } else { 8 }).contains(&changed),
        "{changed}"
    );
    // Nothing of the old number is left.
    let old = format!("{cid:08x}");
    assert!(!String::from_utf8_lossy(&after).contains(&old));
    assert_eq!(attach(&store).unwrap().list(&store), expected);
}

#[test]
fn descriptor_files() {
    check(
        "vb-fixed.vmdk",
        0xd6d6_120e,
        "monolithicFlat",
        &[flat(70144, b"vb-fixed-flat.vmdk", 0)],
    );
    let parts = [
        image(4192256, b"vb-split3g-s001.vmdk"),
        image(2099207, b"vb-split3g-s002.vmdk"),
    ];
    check(
        "vb-split3g.vmdk",
        0x3954_bf60,
        "twoGbMaxExtentSparse",
        &parts,
    );
}

#[test]
fn embedded_descriptors() {
    check(
        "bx-vmware4.vmdk",
        0x6b00_e7ee,
        "monolithicSparse",
        &[image(20480, b"bx-vmware4.img")],
    );
    check(
        "ext2.vmdk",
        0xdc80_b6c7,
        "monolithicSparse",
        &[image(8192, b"ext2.vmdk")],
    );
    check(
        "vb-standard.vmdk",
        0x348e_a5b9,
        "monolithicSparse",
        &[image(70144, b"vb-standard.vmdk")],
    );
    check(
        "ov-stream.vmdk",
        0xf55e_0690,
        "streamOptimized",
        &[image(70144, b"disk")],
    );
    let part = image(70144, b"vb-stream.vmdk").read_only();
    check("vb-stream.vmdk", 0xad07_d80c, "streamOptimized", &[part]);
}
