// SPDX-License-Identifier: GPL-2.0

//! Images that grow and shrink a lot: refcount blocks, the refcount table, the reserve.

use loop_parser::contract::{Discard, Error, TablesMut};

use crate::{
    checker::{self, Header},
    guest::Guest,
    image::{has_qemu, Image, Spec},
};

/// Writes all of the disk, in steps of `step` bytes from the end or the start.
fn write_all(guest: &mut Guest, step: usize, is_backwards: bool, byte: u8) {
    let size = guest.shadow.len();
    let mut starts: Vec<usize> = (0..size).step_by(step).collect();
    if is_backwards {
        starts.reverse();
    }
    for start in starts {
        let end = size.min(start + step);
        let bytes = vec![byte; end - start];
        guest.write(start as u64, &bytes).unwrap();
        guest.shadow[start..end].fill(byte);
    }
}

fn discard_all(guest: &mut Guest) {
    let size = guest.disk.size;
    guest.discard(0, size, Discard::Forget).unwrap();
    guest.shadow.fill(0);
}

/// What is there after a detach is exact, for us and for QEMU.
#[track_caller]
fn look(image: &Image, guest: &mut Guest) {
    guest.close().unwrap();
    let report = checker::check(&guest.store);
    assert_eq!(report.errors, [""; 0]);
    assert_eq!(report.leaks, 0);
    image.qemu_check(&guest.store, &image.spec.name());
    assert!(image.qemu_read(&guest.store) == guest.shadow);
}

/// 64 clusters to a refcount block, 4096 to a cluster of the table.
fn large() -> Image {
    Spec::new(512)
        .with(|it| {
            it.order = 6;
            it.sectors = 20_000;
            it.is_filled = false;
        })
        .build()
}

#[test]
fn refcount_table_moves_several_times() {
    if !has_qemu() {
        return;
    }
    for is_backwards in [false, true] {
        let image = large();
        let before = Header::load(&image.store);
        let mut guest = Guest::new(&image, 1);
        write_all(&mut guest, 100 * 512, is_backwards, 0x42);
        let after = Header::load(&guest.store);
        assert!(after.reftable != before.reftable);
        assert!(after.reftable_clusters >= 4 * before.reftable_clusters);
        look(&image, &mut guest);
    }
}

#[test]
fn discard_cuts_the_file() {
    if !has_qemu() {
        return;
    }
    for cluster in [512, 4096, 65536] {
        let image = Spec::new(cluster)
            .with(|it| {
                it.sectors = cluster / 512 * 300;
                it.is_filled = false;
            })
            .build();
        let mut guest = Guest::new(&image, 1);
        let empty = guest.store.len();
        write_all(&mut guest, 3 * cluster as usize, false, 1);
        look(&image, &mut guest);
        let full = guest.store.len();
        assert!(full >= 300 * cluster);
        discard_all(&mut guest);
        look(&image, &mut guest);
        // L2 tables and refcount blocks stay.
        let len = guest.store.len();
        assert!(len < full, "{cluster}: {len} bytes");
        if cluster > 512 {
            assert!(len <= empty + 4 * cluster, "{cluster}: {len} bytes");
        }
    }
}

/// Without a detach in between, what was discarded is used again.
#[test]
fn freed_clusters_are_used_again() {
    if !has_qemu() {
        return;
    }
    let image = Spec::new(4096)
        .with(|it| {
            it.sectors = 8 * 500;
            it.is_filled = false;
        })
        .build();
    let mut guest = Guest::new(&image, 1);
    write_all(&mut guest, 4096, false, 9);
    let once = guest.store.len();
    for byte in 10..15 {
        discard_all(&mut guest);
        guest.give_back().unwrap();
        write_all(&mut guest, 4096, byte % 2 == 0, byte);
        guest.verify();
    }
    assert!(guest.store.len() < once * 2, "{} bytes", guest.store.len());
    look(&image, &mut guest);
}

/// A block device is taken up to its end, no further, and what is given back makes room.
#[test]
fn block_devices_run_full() {
    if !has_qemu() {
        return;
    }
    for (cluster, order) in [(512, 6), (512, 4), (4096, 4), (4096, 0)] {
        let image = Spec::new(cluster)
            .with(|it| {
                it.order = order;
                it.sectors = cluster / 512 * 6000;
                it.is_filled = false;
            })
            .build();
        let mut store = image.store.clone();
        let len = store.len().next_multiple_of(cluster);
        store.put_size(len);
        let store = store.into_device(len + 5000 * cluster, 0x5a);
        assert!(!store.can_grow());
        let mut guest = Guest::over(&image, store, image.disk.clone(), 1);
        let mut written = 0;
        let bytes = vec![0x33; cluster as usize];
        while guest.write(written, &bytes).is_ok() {
            guest.shadow[written as usize..][..bytes.len()].fill(0x33);
            written += cluster;
        }
        assert!(written > 4000 * cluster, "{cluster} {order}: {written}");
        guest.verify();
        look(&image, &mut guest);

        guest.discard(0, 100 * cluster, Discard::Forget).unwrap();
        guest.shadow[..100 * cluster as usize].fill(0);
        guest.give_back().unwrap();
        for number in 0..50 {
            let pos = number * 2 * cluster;
            guest.write(pos, &bytes[..512]).unwrap();
            guest.shadow[pos as usize..][..512].fill(0x33);
        }
        look(&image, &mut guest);
    }
}

/// A first write to an image costs few syncs, and the ones after it none.
#[test]
fn syncs_are_batched() {
    if !has_qemu() {
        return;
    }
    let image = Spec::new(65536)
        .with(|it| {
            it.sectors = 128 * 600;
            it.is_filled = false;
        })
        .build();
    let mut guest = Guest::new(&image, 1);
    write_all(&mut guest, 65536, false, 3);
    assert!(
        guest.store.syncs() < 600 / 32 + 6,
        "{}",
        guest.store.syncs()
    );
    look(&image, &mut guest);
}

/// On a device a larger refcount table is not put over what the old one does not count.
#[test]
fn larger_table_keeps_clear_of_tables() {
    if !has_qemu() {
        return;
    }
    let image = large();
    let header = Header::load(&image.store);
    let block = image.store.get_be64(header.reftable);
    let mut store = image.store.clone();
    // The L1 is at the first cluster that is not counted; nothing that is counted is free.
    let l1 = 4096 * 512;
    let table = store.get(header.l1_offset, header.l1_size as usize * 8);
    store.put(l1 + table.len() as u64, &[0; 512]);
    store.put(l1, &table);
    store.put(40, &l1.to_be_bytes());
    for index in 0..64u64 {
        store.put(header.reftable + index * 8, &block.to_be_bytes());
    }
    store.put(block, &[0, 0, 0, 0, 0, 0, 0, 1].repeat(64));
    let len = store.len().next_multiple_of(512);
    store.put_size(len);
    let store = store.into_device(len + 4096 * 512, 0x5a);
    let mut guest = Guest::over(&image, store, image.disk.clone(), 1);
    let error = guest.write(0, &[1; 512]).unwrap_err();
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
    assert!(guest.store.get(l1, table.len()) == table);
}
