// SPDX-License-Identifier: GPL-2.0

//! Random writes to images of every shape, compared with QEMU.

use crate::{
    checker,
    guest::Guest,
    image::{has_qemu, Base, Image, Spec},
};

/// Guests do this much between two looks of QEMU.
const STEPS: u64 = 60;

fn with(cluster: u64, change: impl FnOnce(&mut Spec)) -> Spec {
    Spec::new(cluster).with(change)
}

/// The plain ones: every cluster size, every refcount order.
fn plain() -> Vec<Spec> {
    let mut list = Vec::new();
    for bits in [9, 10, 12, 14, 16, 18, 21] {
        list.push(Spec::new(1 << bits));
    }
    for order in [0, 1, 2, 3, 5, 6] {
        list.push(with(512, |it| it.order = order));
        list.push(with(4096, |it| it.order = order));
    }
    for cluster in [512, 4096, 65536] {
        list.push(with(cluster, |it| it.version = 2));
        list.push(with(cluster, |it| it.is_filled = false));
        list.push(with(cluster, |it| it.is_lazy = true));
    }
    for preallocation in ["metadata", "falloc", "full"] {
        list.push(with(4096, |it| it.preallocation = preallocation));
    }
    list.push(with(512, |it| it.sectors = 3000));
    list
}

fn layered() -> Vec<Spec> {
    let mut list = Vec::new();
    for cluster in [512, 4096, 65536] {
        for version in [2, 3] {
            for sectors in [10, 100_000_000 / cluster, 24 * cluster / 512 + 3] {
                let base = Base::Raw(sectors.min(8000));
                list.push(with(cluster, |it| {
                    it.version = version;
                    it.base = base;
                }));
            }
        }
    }
    list
}

fn compressed() -> Vec<Spec> {
    let mut list = Vec::new();
    for cluster in [512, 4096, 65536] {
        for version in [2, 3] {
            list.push(with(cluster, |it| {
                it.version = version;
                it.is_compressed = true;
            }));
        }
        list.push(with(cluster, |it| {
            it.is_compressed = true;
            it.is_zstd = true;
            it.base = Base::Raw(100);
        }));
    }
    list
}

fn snapshots() -> Vec<Spec> {
    let mut list = Vec::new();
    for cluster in [512, 4096, 65536] {
        for (version, order, count, is_compressed) in [
            (2, 4, 1, false),
            (3, 4, 1, false),
            (3, 4, 3, false),
            (3, 1, 2, false),
            (3, 4, 1, true),
            (3, 6, 2, true),
        ] {
            list.push(with(cluster, |it| {
                it.version = version;
                it.order = order;
                it.snapshots = count;
                it.is_compressed = is_compressed;
            }));
        }
        list.push(with(cluster, |it| {
            it.snapshots = 2;
            it.base = Base::Raw(300);
        }));
    }
    list
}

fn extended() -> Vec<Spec> {
    let mut list = Vec::new();
    for cluster in [1 << 14, 1 << 16] {
        for (base, is_compressed, count, preallocation) in [
            (Base::None, false, 0, "off"),
            (Base::None, false, 0, "metadata"),
            (Base::Raw(2000), false, 0, "off"),
            (Base::None, true, 0, "off"),
            (Base::None, false, 2, "off"),
            (Base::Raw(700), true, 1, "off"),
        ] {
            list.push(with(cluster, |it| {
                it.is_extended = true;
                it.base = base;
                it.is_compressed = is_compressed;
                it.snapshots = count;
                it.preallocation = preallocation;
            }));
        }
    }
    list
}

/// Our guest, QEMU and our guest again work on an image.
fn run(spec: Spec, seed: u64) {
    let image = spec.build();
    let name = format!("{} (seed {seed})", spec.name());
    let mut guest = Guest::new(&image, seed).without_failures();
    guest.verify();
    for _ in 0..STEPS {
        guest.step();
    }
    let store = look(&image, &mut guest, &name);

    // QEMU goes on.
    let end = guest.disk.size;
    let cluster = spec.cluster;
    let pos = (end / 3) & !511;
    let store = image.qemu_io(
        &store,
        &[
            format!("write -q -P 201 {pos} {}", (cluster * 2).min(end - pos)),
            format!("discard -q {} {cluster}", cluster * 2),
        ],
    );
    let disk = image.qemu_read(&store);
    let mut guest = Guest::over(&image, store, disk, seed + 1).without_failures();
    for _ in 0..STEPS / 2 {
        guest.step();
    }
    let store = look(&image, &mut guest, &name);

    // Its snapshots are still there, and all can be shared again.
    if spec.snapshots > 0 {
        let store = image.qemu_img(&store, &["snapshot", "-c", "again"]);
        let disk = image.qemu_read(&store);
        let mut guest = Guest::over(&image, store, disk, seed + 3).without_failures();
        for _ in 0..STEPS / 2 {
            guest.step();
        }
        let store = look(&image, &mut guest, &name);
        let last = format!("s{}", spec.snapshots - 1);
        let back = image.qemu_img(&store, &["snapshot", "-a", &last]);
        image.qemu_check(&back, &name);
        let gone = image.qemu_img(&store, &["snapshot", "-d", &last]);
        image.qemu_check(&gone, &name);
        let disk = image.qemu_read(&gone);
        assert!(disk == guest.shadow, "{name}: without the snapshot");
        let mut guest = Guest::over(&image, gone, disk, seed + 2).without_failures();
        for _ in 0..STEPS / 2 {
            guest.step();
        }
        look(&image, &mut guest, &name);
    }
}

/// Detaches the image, and lets everybody look at it.
fn look(image: &Image, guest: &mut Guest, name: &str) -> testkit::store::Store {
    guest.close().unwrap();
    guest.verify();
    let report = checker::check(&guest.store);
    assert_eq!(report.errors, [""; 0], "{name}");
    assert_eq!(report.leaks, 0, "{name}: leaks");
    let disk = checker::read(&guest.store, &image.base, &image.compressed);
    assert!(disk == guest.shadow, "{name}: second reader");
    image.qemu_check(&guest.store, name);
    assert!(
        image.qemu_read(&guest.store) == guest.shadow,
        "{name}: QEMU"
    );
    guest.store.clone()
}

fn run_all(specs: Vec<Spec>) {
    if !has_qemu() {
        return;
    }
    let seeds = std::env::var("LP_QCOW_SEEDS").map_or(1, |it| it.parse().unwrap());
    for spec in specs {
        for seed in 0..seeds {
            run(spec, seed);
        }
    }
}

#[test]
fn plain_images() {
    run_all(plain());
}

#[test]
fn images_over_a_backing_file() {
    run_all(layered());
}

#[test]
fn compressed_images() {
    run_all(compressed());
}

#[test]
fn images_with_snapshots() {
    run_all(snapshots());
}

#[test]
fn images_with_subclusters() {
    run_all(extended());
}
