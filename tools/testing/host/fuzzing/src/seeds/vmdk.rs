// SPDX-License-Identifier: GPL-2.0

//! VMDKs.

use testkit::store::Store;

use super::{by_qemu, with_scripts};
use crate::{
    sesparse_image, stream_image,
    stream_image::Form,
    vmdk::{AS_PART, ON_PARENT},
    vmdk_compressed, vmdk_image,
};

/// A descriptor as many programs write it.
const TEXT: &str = "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=1a2b3c4d\n\
    parentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\n# Extent description\n\
    RW 4192256 FLAT \"disk-f001.vmdk\" 0\nRW 1000 FLAT \"disk-f002.vmdk\" 128\n\
    RW 8 SPARSE \"disk s003.vmdk\"\nRW 100 ZERO\n\n# The Disk Data Base\n#DDB\n\n\
    ddb.virtualHWVersion = \"4\"\nddb.longContentID = \"00112233445566778899aabb1a2b3c4d\"\n\
    ddb.adapterType = \"ide\"\n";

/// Descriptors, sound and not.
pub(super) fn descriptors() -> Vec<Vec<u8>> {
    let mut texts = vec![
        TEXT.to_owned(),
        TEXT.replace('\n', "\r\n"),
        TEXT.replace('=', "  =\t"),
        TEXT.to_uppercase()
            .replace("# DISK DESCRIPTORFILE", "# Disk DescriptorFile"),
        TEXT.replace("1a2b3c4d", "7"),
        TEXT.replace("CID=1a2b3c4d\n", ""),
        TEXT.replace("CID=1a2b3c4d\n", "CID=1a2b3c4d\nCID=00000001\n"),
        TEXT.replace("RW 8 ", "RDONLY 8 "),
        TEXT.replace("RW 8 ", "NOACCESS 8 "),
        TEXT.replace("SPARSE", "VMFSRDM"),
        TEXT.replace("FLAT", "VMFS")
            .replace("twoGbMaxExtentFlat", "vmfs"),
        TEXT.replace("SPARSE", "SESPARSE"),
        TEXT.replace("4192256", "99999999999999999999"),
        TEXT.replace("4192256", "36028797018963967"),
        TEXT.replace("#DDB", "encryption.keySafe = \"x\""),
        TEXT.replace("#DDB", "changeTrackPath=\"disk-ctk.vmdk\""),
        TEXT.replace("disk-f001", "d\u{e4}sk\\..\\"),
        TEXT.replace("1a2b3c4d\"", "1a2b3c4e\""),
        format!("{TEXT}\0RW 8 FLAT \"behind.vmdk\" 0\n"),
        format!("{TEXT}{}", "RW 8 FLAT \"many.vmdk\" 0\n".repeat(400)),
        vmdk_image::descriptor(4096, None),
        vmdk_image::descriptor(4096, Some(("00000001", "C:\\\\disks\\\\base.vmdk"))),
        vmdk_image::descriptor(4000, Some(("00000001", "../base.vmdk"))),
        stream_image::text(4096, "parentFileNameHint=\"base.vmdk\""),
    ];
    let parent = "parentCID=0000abcd\nparentFileNameHint=\"folder/base.vmdk\"";
    texts.push(TEXT.replace("parentCID=ffffffff", parent));
    texts.push(TEXT.replace("parentCID=ffffffff", "parentCID=0000abcd"));
    let mut seeds: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
    seeds.push(TEXT.as_bytes()[..200].to_vec());
    seeds
}

/// Files of all kinds, sound. Few sectors of them are not zero.
fn sound() -> Vec<Store> {
    let mut stores = Vec::new();
    for entries in [3, 64, 512] {
        let sparse = vmdk_image::Spec::new(800, 8)
            .with_entries(entries)
            .with_grains(&[0, 2, 70]);
        stores.push(sparse.clone().build().store);
        stores.push(sparse.clone().without_redundant().build().store);
        stores.push(
            sparse
                .clone()
                .without_tables()
                .with_zeros(&[5, 6])
                .build()
                .store,
        );
        stores.push(sparse.with_zeros(&[5, 6, 99]).build().store);
    }
    let child = vmdk_image::Spec::new(800, 1)
        .with_grains(&[3, 4])
        .on("00000001", "base.vmdk");
    stores.push(child.build().store);
    for grain in [1, 8] {
        stores.push(
            vmdk_image::Spec::cowd(800, grain)
                .with_grains(&[0, 2, 70])
                .build()
                .store,
        );
        stores.push(vmdk_image::Spec::cowd(800, grain).build().store);
    }
    use sesparse_image::Fill;
    let grains = [
        (0, Fill::Data(1)),
        (1, Fill::Zero),
        (2, Fill::Unmapped(4)),
        (4095, Fill::Missing),
        (4096, Fill::Data(0)),
    ];
    for sectors in [800, 40_000] {
        let mut spec = sesparse_image::Spec::new(sectors).with_grains(&grains);
        spec.grains.retain(|number, _| *number < sectors / 8);
        stores.push(spec.build().store);
    }
    stores.extend(streams());
    stores
}

/// Streams, with and without their end.
fn streams() -> Vec<Store> {
    use stream_image::Fill;
    let grains = [
        (0, Fill::Text),
        (1, Fill::Text),
        (17, Fill::Zero),
        (18, Fill::Text),
        (50, Fill::Text),
    ];
    let mut stores = Vec::new();
    for form in [Form::Footer, Form::Front, Form::Qemu] {
        for has_zero_grains in [false, true] {
            let image = stream_image::Spec::new(form, 403)
                .with_grains(&grains)
                .with(|it| it.has_zero_grains = has_zero_grains)
                .build();
            if form == Form::Footer {
                for len in [
                    image.directory - 512,
                    image.directory + 512,
                    image.places[&18].1 - 1,
                ] {
                    let mut store = image.store.clone();
                    store.put_size(len);
                    stores.push(store);
                }
            }
            stores.push(image.store);
        }
    }
    stores
}

/// The same with one field after the other changed, and cut.
fn damaged(good: &Store) -> Vec<Store> {
    let mut stores = Vec::new();
    let values = [u64::MAX, 1, 0, 0x200, 1 << 40];
    for (number, at) in (4..80).step_by(4).enumerate() {
        let mut store = good.clone();
        store.put(at, &values[number % 5].to_le_bytes()[..4]);
        stores.push(store);
    }
    for len in [70, 511, good.len() / 2, good.len() - 1] {
        let mut store = good.clone();
        store.put_size(len);
        stores.push(store);
    }
    stores
}

/// The beginnings of files.
pub(super) fn headers() -> Vec<Vec<u8>> {
    let mut stores = sound();
    for index in [0, 13, 17, 20] {
        stores.extend(damaged(&stores[index].clone()));
    }
    let mut heads: Vec<Vec<u8>> = stores
        .iter()
        .map(|it| it.get(0, it.len().min(2560) as usize))
        .collect();
    // Footers are at the end.
    heads.extend(streams().iter().map(Store::to_vec));
    heads
}

/// Files, and what a guest does with them, alone and as parts.
pub(super) fn images() -> Vec<Vec<u8>> {
    let mut stores = sound();
    for index in [0, 13, 17, 20] {
        stores.extend(damaged(&stores[index].clone()));
    }
    for options in ["subformat=monolithicSparse", "subformat=streamOptimized"] {
        let create = ["create", "-q", "-f", "vmdk", "-o", options, "@", "300k"];
        let writes: &[&str] = match options.ends_with("Sparse") {
            true => &["write -P 7 64k 700"],
            false => &[],
        };
        stores.extend(by_qemu(&create, writes));
    }
    let mut seeds = with_scripts(stores);
    for bits in [AS_PART, AS_PART | ON_PARENT] {
        for mut seed in with_scripts(sound()) {
            seed[0] |= bits;
            seeds.push(seed);
        }
    }
    seeds
}

/// Heads of `vmdk_compressed`, and contents.
pub(super) fn grains() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for grain in 0..9u8 {
        for bits in (0..32u8).filter(|bits| (bits ^ grain) & 3 != 3) {
            let mut seed = vec![grain, bits, grain.wrapping_mul(37) ^ bits, bits / 3];
            seed.extend([8, 0, 1, 56, 2, 255, 1, 6, 4, 12, 8, 0]);
            assert_eq!(seed.len(), vmdk_compressed::HEAD);
            match bits & vmdk_compressed::GARBAGE {
                0 => seed.extend(&b"sixteen bytes id and more"[..1 + usize::from(bits) % 25]),
                _ => seed.extend([0x78, 0x9c, 0x4b, 0x04, 0x02, 0, 1, 2, 3]),
            }
            seeds.push(seed);
        }
    }
    seeds
}
