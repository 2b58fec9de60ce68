// SPDX-License-Identifier: GPL-2.0

//! What the fuzzers begin with: small images of every shape, sound and malformed, from the builders
//! of the tests and from `qemu-img`. Nothing of it is stored.

mod vmdk;

use crate::{
    compressed,
    input::{Input, Step, FIX_CHECKSUMS, ON_DEVICE},
    qemu_image, v1_image,
    v2_image::{self, Cluster},
    vhd_image::{self, Bits, End},
};
use testkit::{
    store::Store,
    tools::{self, TempDir},
};

/// Longest input that is worth anything, in bytes: longer ones are mutated too slowly.
pub const MAX_LEN: usize = 24 << 10;

/// The seeds of a target.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    let mut seeds = match target {
        "qcow1" => with_scripts(version_1()),
        "qcow2_header" => headers(),
        "qcow2_map" | "qcow2_write" => with_scripts(version_2()),
        "qcow2_compressed" => compressed_clusters(),
        "vhd" => with_scripts(vhd()),
        "vmdk_descriptor" => vmdk::descriptors(),
        "vmdk_header" => vmdk::headers(),
        "vmdk_map" => vmdk::images(),
        "vmdk_compressed" => vmdk::grains(),
        _ => panic!("no target {target}"),
    };
    seeds.retain(|seed| seed.len() <= MAX_LEN);
    seeds
}

/// Every image with a guest that does a few things, and in turns other things.
fn with_scripts(stores: Vec<Store>) -> Vec<Vec<u8>> {
    let step = |op: u8, arg: u8, place: u32, count: u8| Step {
        op,
        arg,
        place,
        count,
    };
    let scripts = [
        (
            FIX_CHECKSUMS,
            vec![
                step(0, 0, 3, 0),
                step(7, 1, 9, 3),
                step(13, 0, 0, 0),
                step(0, 0, 3, 20),
                step(15, 0, 0, 0),
                step(2, 0, 17, 5),
            ],
        ),
        (
            FIX_CHECKSUMS,
            vec![
                step(10, 16, 0, 10),
                step(11, 0, 5, 3),
                step(12, 16, 30, 63),
                step(14, 0, 0, 0),
                step(1, 32, 0, 63),
            ],
        ),
        (
            FIX_CHECKSUMS,
            vec![
                step(0x80, 1, 6, 4),
                step(0x8a, 0x42, 2, 8),
                step(0x88, 0x83, 1, 2),
                step(0x8e, 0, 0, 0),
                step(0x80, 0x40, 50, 9),
            ],
        ),
        (
            FIX_CHECKSUMS | ON_DEVICE | 0xf0,
            vec![
                step(0, 0, 1, 1),
                step(8, 18, 40, 1),
                step(11, 16, 0, 63),
                step(0, 0, 1, 1),
                step(15, 0, 0, 0),
            ],
        ),
    ];
    let mut seeds = Vec::new();
    for (number, store) in stores.iter().enumerate() {
        let (options, steps) = &scripts[number % scripts.len()];
        seeds.push(Input::bytes(*options, steps, store));
    }
    seeds
}

/// A file that a program of QEMU makes; nothing if that is not there.
fn by_qemu(args: &[&str], io: &[&str]) -> Option<Store> {
    if !tools::has_qemu_img() {
        return None;
    }
    let folder = TempDir::new();
    let (path, below) = (folder.path("image"), folder.path("below"));
    std::fs::write(below, [0x42; 4096]).expect("a file");
    let path = path.to_str().expect("a name").to_owned();
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program)
            .current_dir(folder.path("."))
            .args(args)
            .output()
            .expect("QEMU");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {message}");
    };
    let args: Vec<&str> = args
        .iter()
        .map(|arg| if *arg == "@" { path.as_str() } else { arg })
        .collect();
    run("qemu-img", &args);
    for command in io {
        run("qemu-io", &["-c", command, &path]);
    }
    Some(Store::new(&std::fs::read(&path).expect("the image")))
}

/// Images of version 1.
fn version_1() -> Vec<Store> {
    let spec = v1_image::Spec::new;
    let clusters = [(0, false), (1, true), (70, false), (3, true)];
    let mut stores = Vec::new();
    for (cluster_bits, l2_bits) in [(9, 6), (12, 9), (16, 13)] {
        let image = spec(100 << 9, cluster_bits, l2_bits);
        stores.push(image.build().store);
        if cluster_bits == 9 {
            let image = image.with_clusters(&clusters);
            stores.push(image.build().store);
            stores.push(image.on(b"base").build().store);
        }
    }
    stores.push(spec(1 << 40, 16, 13).build().store);
    let create = ["create", "-q", "-f", "qcow", "@", "200k"];
    stores.extend(by_qemu(&create, &["write -P 7 8k 5k", "write -P 9 0 512"]));
    let below = [
        "create", "-q", "-f", "qcow", "-b", "below", "-F", "raw", "@", "5k",
    ];
    stores.extend(by_qemu(&below, &["write -P 7 1k 1k"]));
    let good = spec(100 << 9, 9, 6).with_clusters(&clusters).build();
    stores.extend(damaged(
        &good.store,
        &[
            (8, 8),
            (16, 4),
            (24, 8),
            (32, 1),
            (33, 1),
            (36, 4),
            (40, 8),
            (good.l1_at, 8),
        ],
    ));
    stores
}

/// Images of versions 2 and 3.
fn version_2() -> Vec<Store> {
    let mut stores = vec![built(9).store, built(12).store];
    let extended = v2_image::Spec::extended(256 << 10, 14)
        .on(b"base")
        .with_clusters(&[(1, Cluster::SubNoPlace(3 << 40)), (2, Cluster::Zero)]);
    stores.push(extended.build().store);
    let shared = v2_image::Spec::v2(32 << 10, 9)
        .on(b"base")
        .with_clusters(&[(0, Cluster::Shared), (9, Cluster::Compressed)]);
    stores.push(shared.build().store);
    if qemu_image::has_qemu() {
        stores.extend(shapes().iter().map(|spec| spec.build().store));
    }
    for size in ["1M", "3T"] {
        for options in [
            "cluster_size=64k",
            "cluster_size=2M",
            "compat=0.10",
            "cluster_size=512,refcount_bits=1",
            "cluster_size=64k,extended_l2=on,preallocation=off",
            "cluster_size=4k,lazy_refcounts=on,refcount_bits=64",
        ] {
            let create = ["create", "-q", "-f", "qcow2", "-o", options, "@", size];
            if size == "1M" || options.starts_with("cluster_size=2M") {
                stores.extend(by_qemu(&create, &["write -P 7 64k 700"]));
            }
        }
    }
    let good = built(9);
    let mut fields: Vec<(u64, usize)> = (8..72).step_by(4).map(|at| (at, 4)).collect();
    fields.extend([(72, 8), (88, 8), (96, 4), (100, 4), (104, 1)]);
    fields.extend([(good.l1_at, 8), (good.reftable_at, 8)]);
    fields.extend(good.entries.values().map(|&at| (at, 8)));
    stores.extend(damaged(&good.store, &fields));
    stores
}

/// Shapes of images that QEMU makes, with their content and their counts.
fn shapes() -> Vec<qemu_image::Spec> {
    let spec = |cluster| qemu_image::Spec::new(cluster).with(|it| it.sectors = 37);
    let mut shapes = vec![
        spec(512),
        spec(1024),
        spec(512).with(|it| it.version = 2),
        spec(512).with(|it| it.order = 0),
        spec(512).with(|it| it.order = 6),
        spec(512).with(|it| it.is_compressed = true),
        spec(512).with(|it| it.preallocation = "metadata"),
        spec(512).with(|it| it.base = qemu_image::Base::Raw(20)),
        spec(1024).with(|it| {
            it.is_compressed = true;
            it.base = qemu_image::Base::Raw(9);
        }),
    ];
    let zstd = spec(4096).with(|it| {
        it.sectors = 64;
        it.is_compressed = true;
        it.is_zstd = true;
    });
    let snapshots = spec(512).with(|it| it.snapshots = 1);
    let extended = qemu_image::Spec::new(16384).with(|it| {
        it.is_extended = true;
        it.is_filled = false;
        it.sectors = 300;
    });
    shapes.extend([zstd, snapshots, extended]);
    shapes.push(snapshots.with(|it| {
        it.snapshots = 2;
        it.version = 2;
    }));
    shapes
}

/// A small image of many kinds of clusters.
fn built(cluster_bits: u32) -> v2_image::Image {
    let clusters = [
        (0, Cluster::Data),
        (1, Cluster::Zero),
        (2, Cluster::ZeroAllocated),
        (3, Cluster::Compressed),
        (9, Cluster::Shared),
        (70, Cluster::Data),
    ];
    v2_image::Spec::v3(100 << cluster_bits, cluster_bits)
        .with_clusters(&clusters)
        .with_extension(v2_image::FEATURE_NAMES, &[7; 96])
        .build()
}

/// The image with one field after the other changed, and cut.
fn damaged(good: &Store, fields: &[(u64, usize)]) -> Vec<Store> {
    let mut stores = Vec::new();
    for (number, &(at, len)) in fields.iter().enumerate() {
        let values = [u64::MAX, 1 << 31 | 512, 0, 0x200, 1 << 62 | 0x1234];
        for value in [values[number % 5], values[(number + 2) % 5]] {
            let mut store = good.clone();
            store.put(at, &value.to_be_bytes()[8 - len..]);
            stores.push(store);
        }
    }
    for size in [60, 511, good.len() / 2, good.len() - 1] {
        let mut store = good.clone();
        store.put_size(size);
        stores.push(store);
    }
    stores
}

/// Headers, with what follows them.
fn headers() -> Vec<Vec<u8>> {
    let mut stores = version_2();
    let spec = v2_image::Spec::v3(1 << 20, 12)
        .on(b"a/base.raw")
        .with_extension(v2_image::BACKING_FORMAT, b"raw")
        .with_extension(0x2385_2875, &[1; 24])
        .with_extension(0x4441_5441, b"data.raw");
    stores.push(spec.build().store);
    let mut names = vec![0; 96];
    names[..10].copy_from_slice(b"\0\x05 unknown");
    names[48..56].copy_from_slice(b"\0\x3f\xff odd ");
    let unknown = v2_image::Spec::v3(1 << 20, 12).with_extension(v2_image::FEATURE_NAMES, &names);
    for bit in [5, 63] {
        let mut image = unknown.build();
        image.put64(72, 1 << bit);
        stores.push(image.store);
    }
    let heads = stores
        .iter()
        .map(|it| it.get(0, it.len().min(1024) as usize));
    heads.collect()
}

/// Heads of `qcow2_compressed`, and contents.
fn compressed_clusters() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let steps = [
        0, 0, 1, 0, 0, 3, 15, 0, 0, 0, 0, 0, 12, 16, 0, 0, 0, 9, 0, 32, 0, 0, 0, 63,
    ];
    for cluster in 0..13u8 {
        for bits in 0..32 {
            if (bits ^ cluster) & 3 == 3 || bits & 17 == 17 {
                continue;
            }
            let mut seed = vec![
                cluster,
                bits,
                cluster.wrapping_mul(37),
                bits % 3,
                bits % 5,
                cluster ^ bits,
            ];
            seed.extend(steps);
            assert_eq!(seed.len(), compressed::HEAD);
            match bits & compressed::GARBAGE {
                0 => seed.extend(
                    b"sixteen bytes id and more"
                        .iter()
                        .take(1 + usize::from(bits)),
                ),
                _ if bits & compressed::ZSTD == 0 => seed.extend([0x4b, 0x04, 0x02, 0, 1, 2, 3]),
                _ => seed.extend([0x28, 0xb5, 0x2f, 0xfd, 0x20, 4, 0x21, 0, 0, 7, 7, 7]),
            }
            seeds.push(seed);
        }
    }
    seeds
}

/// VHDs of all kinds.
fn vhd() -> Vec<Store> {
    let blocks = [(1, Bits::Ones), (3, Bits::Mixed(7)), (5, Bits::Zeros)];
    let mut specs = vec![vhd_image::Spec::fixed(4 << 10)];
    for base in [vhd_image::Spec::dynamic, vhd_image::Spec::differencing] {
        let plain = base(16 << 10, 1024).with_blocks(&blocks);
        specs.push(plain.clone());
        specs.push(base(64 << 20, 2 << 20));
        specs.push(base(8 << 10, 512).with_blocks(&blocks[..1]));
        for end in [End::Short, End::Missing, End::Filled(0xc7), End::Damaged] {
            let mut spec = plain.clone();
            spec.end = end;
            specs.push(spec);
        }
        let mut tapdisk = plain.clone().by(b"tap\0", 0x0001_0003);
        tapdisk.batmap = Some((1, false));
        tapdisk.full = vec![1];
        tapdisk.aligned = true;
        specs.push(tapdisk);
        let mut windows = plain.clone();
        windows.gap = 7;
        windows.parent_name = "base.vhd".encode_utf16().collect();
        let name: Vec<u8> = ".\\base.vhd"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        windows.names = vec![(b"W2ru", name), (b"MacX", b"file://./base.vhd".to_vec())];
        specs.push(windows);
        let mut lone = plain;
        lone.front = false;
        specs.push(lone);
    }
    let mut stores: Vec<Store> = specs.iter().map(|spec| spec.build().store).collect();
    for subformat in ["subformat=dynamic", "subformat=fixed"] {
        let create = ["create", "-q", "-f", "vpc", "-o", subformat, "@", "300k"];
        stores.extend(by_qemu(&create, &["write -P 7 8k 700"]));
    }
    let good = vhd_image::Spec::differencing(16 << 10, 1024)
        .with_blocks(&blocks)
        .build();
    let mut fields = vec![
        (12, 4),
        (16, 8),
        (40, 8),
        (48, 8),
        (56, 4),
        (60, 4),
        (84, 1),
    ];
    fields.extend([
        (528, 8),
        (536, 4),
        (540, 4),
        (544, 4),
        (1088, 4),
        (1096, 8),
        (1540, 4),
    ]);
    stores.extend(damaged(&good.store, &fields));
    stores
}
