// SPDX-License-Identifier: GPL-2.0

//! Entries that point to the image's own tables: the guest does not write over them.

use loop_parser::contract::{Discard, Error, Result};
use testkit::store::Store;

use crate::{
    checker::{self, Header, COPIED, OFFSET},
    guest::Guest,
    image::{has_qemu, Image, Spec},
};

const CLUSTER: u64 = 4096;

/// An image with data in its first clusters; host offset of their L2 table.
fn built(version: u32) -> Option<(Image, Store, u64)> {
    let image = has_qemu().then(|| {
        let spec = Spec::new(CLUSTER).with(|it| {
            it.version = version;
            it.is_filled = false;
        });
        spec.build()
    })?;
    let store = image.qemu_io(&image.store, &["write -P 7 0 64k".into()]);
    let table = store.get_be64(Header::load(&store).l1_offset) & OFFSET;
    Some((image, store, table))
}

/// What the guest does is refused, nothing but the header's corrupt bit changes, and nothing is written
/// to the places without one from then on.
#[track_caller]
fn is_refused(image: &Image, store: &Store, what: &str, work: impl FnOnce(&mut Guest) -> Result) {
    let disk = vec![7; image.disk.len()];
    let mut guest = Guest::over(image, store.clone(), disk, 1);
    let result = work(&mut guest).and_then(|()| guest.give_back());
    let Err(Error::Malformed(fault)) = result else {
        panic!("{what}: {result:?}");
    };
    assert!(fault.what.starts_with("qcow2 "), "{what}: {}", fault.what);
    let is_v3 = Header::load(store).version >= 3;
    let mut expected = store.clone();
    if is_v3 {
        let bits = store.get_be64(72) | 2;
        expected.put(72, &bits.to_be_bytes());
    }
    assert!(guest.store.to_vec() == expected.to_vec(), "{what}: changed");
    // Not even in place.
    for pos in [8 * CLUSTER, 9 * CLUSTER + 512] {
        let result = guest.write(pos, &[1; 512]);
        assert!(
            matches!(result, Err(Error::Malformed(_))),
            "{what}: {result:?}"
        );
    }
    assert!(guest.store.to_vec() == expected.to_vec(), "{what}: changed");
}

#[test]
fn clusters_in_tables() {
    for version in [2, 3] {
        let Some((image, store, table)) = built(version) else {
            return;
        };
        let header = Header::load(&store);
        let block = store.get_be64(header.reftable) & OFFSET;
        for (place, name) in [
            (header.l1_offset, "L1"),
            (header.reftable, "refcount table"),
            (block, "refcount block"),
            (table, "own L2 table"),
        ] {
            for flags in [COPIED, 0, COPIED | 1, 1] {
                if version < 3 && flags & 1 != 0 {
                    continue;
                }
                let mut store = store.clone();
                store.put(table, &(place | flags).to_be_bytes());
                // Room, so that nothing has to be made before the entry is looked at.
                let what = format!("v{version}, {name}, flags {flags:x}");
                is_refused(&image, &store, &what, |it| it.write(512, &[1; 512]));
                is_refused(&image, &store, &what, |it| {
                    it.discard(0, CLUSTER, Discard::Forget)
                });
                is_refused(&image, &store, &what, |it| {
                    it.discard(0, 512, Discard::Zero)
                });
                is_refused(&image, &store, &what, |it| {
                    it.discard(0, CLUSTER, Discard::ZeroInPlace)
                });
            }
        }
    }
}

/// What else an entry cannot be ends all writing, too.
#[test]
fn impossible_entries() {
    for version in [2, 3] {
        let Some((image, store, table)) = built(version) else {
            return;
        };
        let l1 = Header::load(&store).l1_offset;
        for (at, entry) in [
            (table, 1 << 40 | COPIED),
            (table, 1 << 40),
            (table, store.len() - CLUSTER + 512 | COPIED),
            (l1, 1 << 40 | COPIED),
            (l1, table + 512 | COPIED),
        ] {
            let mut store = store.clone();
            store.put(at, &u64::to_be_bytes(entry));
            let what = format!("v{version}, {entry:x} at {at}");
            is_refused(&image, &store, &what, |it| it.write(512, &[1; 512]));
        }
    }
}

#[test]
fn l2_tables_in_tables() {
    let Some((image, store, _)) = built(3) else {
        return;
    };
    let header = Header::load(&store);
    let block = store.get_be64(header.reftable) & OFFSET;
    for place in [header.l1_offset, header.reftable, block] {
        for flags in [COPIED, 0] {
            let mut store = store.clone();
            let entry = place | flags;
            store.put(header.l1_offset, &entry.to_be_bytes());
            let what = format!("L2 table at {entry:x}");
            // Far enough in it that its entry is 0.
            let pos = 400 * CLUSTER;
            let pos = pos.min(image.disk.len() as u64 / CLUSTER * CLUSTER - CLUSTER);
            is_refused(&image, &store, &what, |it| it.write(pos, &[1; 512]));
        }
    }
}

/// A compressed cluster that lies in a refcount block is not counted down.
#[test]
fn compressed_cluster_in_a_block() {
    let Some((image, mut store, table)) = built(3) else {
        return;
    };
    let block = store.get_be64(Header::load(&store).reftable) & OFFSET;
    store.put(table, &(1 << 62 | block).to_be_bytes());
    let mut guest = Guest::over(&image, store, vec![7; image.disk.len()], 1);
    let result = guest
        .discard(0, CLUSTER, Discard::Forget)
        .and_then(|()| guest.give_back());
    assert!(matches!(result, Err(Error::Malformed(_))), "{result:?}");
}

/// Nor is one that lies past the end of the file, whatever counts there are; a discard is refused as a write
/// is.
#[test]
fn compressed_cluster_past_the_end() {
    let Some((image, mut store, table)) = built(3) else {
        return;
    };
    let end = store.len().next_multiple_of(CLUSTER);
    store.put(table, &(1 << 62 | end).to_be_bytes());
    is_refused(&image, &store, "discard", |it| {
        it.discard(0, CLUSTER, Discard::Forget)
    });
    is_refused(&image, &store, "write", |it| it.write(0, &[1; 512]));
}

/// 64 clusters to a refcount block, 4096 to a cluster of the table, which moves when the disk is written.
fn grown() -> Option<(Guest, Header)> {
    let image = has_qemu().then(|| {
        let spec = Spec::new(512).with(|it| {
            it.order = 6;
            it.sectors = 20_000;
            it.is_filled = false;
        });
        spec.build()
    })?;
    let mut guest = Guest::new(&image, 1);
    let size = guest.disk.size;
    for pos in (0..size).step_by(100 * 512) {
        guest
            .write(pos, &vec![7; (size - pos).min(100 * 512) as usize])
            .unwrap();
    }
    let after = Header::load(&guest.store);
    assert_ne!(after.reftable, Header::load(&image.store).reftable);
    Some((guest, after))
}

fn entry_at(store: &Store, index: u64) -> u64 {
    let header = Header::load(store);
    let l1 = header.l1_offset + index / 64 * 8;
    (store.get_be64(l1) & OFFSET) + index % 64 * 8
}

/// The refcount table is where the header says, not where it was at attach.
#[test]
fn table_that_has_moved() {
    for flags in [COPIED, 0] {
        let Some((mut guest, header)) = grown() else {
            return;
        };
        let at = entry_at(&guest.store, 5);
        let place = header.reftable + 512;
        guest.store.put(at, &(place | flags).to_be_bytes());
        let before = guest.store.get(header.reftable, 4096);
        let result = guest.write(5 * 512, &[1; 512]);
        assert!(matches!(result, Err(Error::Malformed(_))), "{result:?}");
        assert!(guest.store.get(header.reftable, 4096) == before);
    }
}

/// The part of a write in front of a table is done, the rest is not.
#[test]
fn run_that_reaches_a_block() {
    let Some((mut guest, _)) = grown() else {
        return;
    };
    let block = checker::blocks(&guest.store)[3];
    for (index, place) in [(5, block - 512), (6, block)] {
        let at = entry_at(&guest.store, index);
        guest.store.put(at, &(place | COPIED).to_be_bytes());
    }
    let before = guest.store.get(block, 512);
    let result = guest.write(5 * 512, &[1; 1024]);
    assert!(matches!(result, Err(Error::Malformed(_))), "{result:?}");
    assert_eq!(guest.store.get(block - 512, 512), [1; 512]);
    assert!(guest.store.get(block, 512) == before);
}

/// What a block counts as free is not the block itself.
#[test]
fn blocks_are_not_free() {
    let Some((image, store, _)) = built(3) else {
        return;
    };
    let block = store.get_be64(Header::load(&store).reftable) & OFFSET;
    let mut store = store.clone();
    store.put(block + block / CLUSTER * 2, &[0, 0]);
    let len = store.len().next_multiple_of(CLUSTER);
    store.put_size(len);
    let store = store.into_device(len + 40 * CLUSTER, 0x5a);
    let mut guest = Guest::over(&image, store, vec![7; image.disk.len()], 1);
    let pos = 20 * CLUSTER;
    let result = guest.write(pos, &[1; 512]);
    let Err(Error::Malformed(fault)) = result else {
        panic!("{result:?}");
    };
    assert!(fault.what.contains("is 0"), "{}", fault.what);
}

/// An image with data in two L2 tables: clusters 5 to 20 and 22 to 37 of the file, behind their table
/// each. Table entry 1 names a refcount block that the first one counts, at cluster 38.
fn two_tables(version: u32) -> Option<(Image, Store)> {
    let image = has_qemu().then(|| {
        let spec = Spec::new(CLUSTER).with(|it| {
            it.version = version;
            it.sectors = 3 << 11;
            it.is_filled = false;
        });
        spec.build()
    })?;
    let writes = ["write -P 7 0 64k".into(), "write -P 7 2M 64k".into()];
    let mut store = image.qemu_io(&image.store, &writes);
    let header = Header::load(&store);
    for (index, number) in [(0, 4), (1, 21)] {
        let table = store.get_be64(header.l1_offset + index * 8) & OFFSET;
        assert_eq!(table, number * CLUSTER);
    }
    let extra = 38 * CLUSTER;
    store.put_size(extra + CLUSTER);
    store.put(header.reftable + 8, &extra.to_be_bytes());
    set_count(&mut store, 38, 1);
    Some((image, store))
}

/// Sets the count of a cluster of a small file.
fn set_count(store: &mut Store, cluster: u64, count: u16) {
    let block = store.get_be64(Header::load(store).reftable) & OFFSET;
    store.put(block + cluster * 2, &count.to_be_bytes());
}

/// What the image needs is not handed out, whatever its count says. A device is looked through from
/// its start.
#[test]
fn tables_without_a_count() {
    for version in [2, 3] {
        let Some((image, store)) = two_tables(version) else {
            return;
        };
        let size = store.len() + 40 * CLUSTER;
        let header = Header::load(&store);
        let number = |place: u64| place / CLUSTER;
        for (cluster, name) in [
            (0, "header"),
            (number(header.reftable), "refcount table"),
            (2, "refcount block"),
            (number(header.l1_offset), "L1"),
            (4, "own L2 table"),
            (21, "another L2 table"),
            (38, "refcount block that another one counts"),
        ] {
            let mut store = store.clone();
            set_count(&mut store, cluster, 0);
            let store = store.into_device(size, 0x5a);
            let what = format!("v{version}, {name}");
            is_refused(&image, &store, &what, |it| {
                it.write(20 * CLUSTER, &[1; 512])
            });
        }
    }
}

/// Nor in a file, where what was freed is looked for from there on.
#[test]
fn tables_behind_what_was_freed() {
    let Some((image, mut store)) = two_tables(3) else {
        return;
    };
    set_count(&mut store, 21, 0);
    let table = store.get(21 * CLUSTER, CLUSTER as usize);
    let mut guest = Guest::over(&image, store, vec![7; image.disk.len()], 1);
    guest.discard(0, 16 * CLUSTER, Discard::Forget).unwrap();
    guest.give_back().unwrap();
    let result = guest.write(0, &[1; 16 * CLUSTER as usize]);
    let Err(Error::Malformed(fault)) = result else {
        panic!("{result:?}");
    };
    let l1 = Header::load(&guest.store).l1_offset;
    assert_eq!(
        (fault.what, fault.at),
        ("qcow2 refcount of an L2 table is 0", l1 + 8)
    );
    assert!(guest.store.get(21 * CLUSTER, CLUSTER as usize) == table);
    assert_eq!(Header::load(&guest.store).incompatible & 2, 2);
}

/// If it cannot be known what is free, a file grows; a device has no other space.
#[test]
fn table_that_cannot_be_read() {
    for is_device in [false, true] {
        let Some((image, mut store)) = two_tables(3) else {
            return;
        };
        if is_device {
            let size = store.len();
            store = store.into_device(size, 0);
        }
        // Entries for blocks far away.
        store.break_sector(Header::load(&store).reftable + 512);
        let mut guest = Guest::over(&image, store, vec![7; image.disk.len()], 1);
        guest.discard(0, 16 * CLUSTER, Discard::Forget).unwrap();
        guest.give_back().unwrap();
        let before = guest.store.len();
        let result = guest.write(0, &[1; 16 * CLUSTER as usize]);
        if is_device {
            assert!(matches!(result, Err(Error::Store(-5))), "{result:?}");
        } else {
            result.unwrap();
            assert!(guest.store.len() >= before + 16 * CLUSTER);
            assert_eq!(
                guest.read(15 * CLUSTER, CLUSTER).unwrap(),
                [1; CLUSTER as usize]
            );
        }
        let other = guest.read(2 << 20, 16 * CLUSTER).unwrap();
        assert_eq!(other, [7; 16 * CLUSTER as usize]);
    }
}

/// That a cluster has data no bounded look can tell: it is handed out, as QEMU does, and then there
/// twice.
#[test]
fn data_without_a_count_is_handed_out() {
    let Some((image, mut store)) = two_tables(3) else {
        return;
    };
    set_count(&mut store, 25, 0);
    let size = store.len() + 40 * CLUSTER;
    let store = store.into_device(size, 0x5a);
    let mut guest = Guest::over(&image, store, vec![7; image.disk.len()], 1);
    let pos = 3 << 19;
    guest.write(pos, &[1; CLUSTER as usize]).unwrap();
    let other = (2 << 20) + 3 * CLUSTER;
    for pos in [pos, other] {
        assert_eq!(guest.read(pos, CLUSTER).unwrap(), [1; CLUSTER as usize]);
    }
    assert_eq!(guest.read(other + CLUSTER, 512).unwrap(), [7; 512]);
    // Nothing that QEMU takes for sound: it is told.
    guest.close().unwrap();
    assert_ne!(checker::check(&guest.store).errors, [""; 0]);
}
