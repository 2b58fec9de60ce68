// SPDX-License-Identifier: GPL-2.0

//! What is written to the header, and what an image has to be like to be written.

use loop_parser::contract::{Discard, Error, TablesMut};
use qcow_format::format::v2;
use testkit::store::Store;

use crate::{
    checker::{self, Header, COPIED, OFFSET},
    guest::Guest,
    image::{has_qemu, Base, Image, Spec},
};

fn built(change: impl FnOnce(&mut Spec)) -> Option<Image> {
    has_qemu().then(|| Spec::new(4096).with(change).build())
}

/// An image with nothing in it, of clusters that can have subclusters.
fn empty(is_extended: bool) -> Option<Image> {
    has_qemu().then(|| {
        let spec = Spec::new(16384).with(|it| {
            it.is_extended = is_extended;
            it.is_filled = false;
        });
        spec.build()
    })
}

/// The L1 entry of the first guest cluster, and its table.
fn first_table(store: &Store) -> (u64, u64) {
    let header = Header::load(store);
    let entry = store.get_be64(header.l1_offset);
    (header.l1_offset, entry & OFFSET)
}

fn put_be64(store: &mut Store, at: u64, value: u64) {
    store.put(at, &value.to_be_bytes());
}

/// Attaching and reading change nothing; the first write clears the autoclear bits, known or not, and
/// nothing else in the header.
#[test]
fn autoclear_bits_are_cleared_by_the_first_write() {
    let Some(image) = built(|_| {}) else { return };
    let mut store = image.store.clone();
    put_be64(&mut store, 88, 0x8000_0000_0000_0005);
    put_be64(&mut store, 80, 0x4000_0000_0000_0003);
    let before = store.to_vec();
    let mut guest = Guest::over(&image, store, image.disk.clone(), 1);
    guest.verify();
    assert!(guest.store.to_vec() == before);

    guest.write(0, &[1; 512]).unwrap();
    assert_eq!(guest.store.get_be64(88), 0);
    let header = guest.store.get(0, 4096);
    assert_eq!(header[..88], before[..88]);
    assert_eq!(header[96..], before[96..4096]);
}

/// So does the first discard.
#[test]
fn autoclear_bits_are_cleared_by_the_first_discard() {
    let Some(image) = built(|_| {}) else { return };
    let mut store = image.store.clone();
    put_be64(&mut store, 88, 1);
    let mut guest = Guest::over(&image, store, image.disk.clone(), 1);
    guest.discard(0, 4096, Discard::Forget).unwrap();
    assert_eq!(guest.store.get_be64(88), 0);
}

/// Somebody marks it dirty behind our back.
#[test]
fn dirty_in_the_meantime() {
    let Some(image) = built(|_| {}) else { return };
    let mut guest = Guest::new(&image, 1);
    put_be64(&mut guest.store, 72, 1);
    let error = guest.write(0, &[1; 512]).unwrap_err();
    assert!(matches!(error, Error::NeedsReadOnly(_)), "{error:?}");
}

/// Another program has the image before we write to it: what we know of it is out of date.
#[test]
fn changed_in_the_meantime() {
    let Some(image) = built(|it| it.version = 3) else {
        return;
    };
    let header = Header::load(&image.store);
    let word = |store: &Store, at| store.get_be32(at) ^ 1;
    let fields = [
        (4, word(&image.store, 4)),
        (20, 13),
        (36, header.l1_size as u32 + 1),
        (44, header.l1_offset as u32 + 4096),
        (52, header.reftable as u32 + 8 * 4096),
        (56, header.reftable_clusters as u32 + 1),
        (60, 1),
        (76, 4),
        (96, 5),
        (12, 2048),
    ];
    for (at, value) in fields {
        let mut guest = Guest::new(&image, 1);
        guest.store.put(16, &4u32.to_be_bytes());
        guest.store.put(2048, b"base");
        guest.store.put(at, &value.to_be_bytes());
        refuses_writes(&mut guest, &format!("field at {at}"));
    }
    // A larger disk is still the same image.
    let mut guest = Guest::new(&image, 1);
    let size = guest.disk.size + 512;
    put_be64(&mut guest.store, 24, size);
    guest.write(0, &[1; 512]).unwrap();
}

/// The same, by QEMU.
#[test]
fn snapshot_in_the_meantime() {
    let Some(image) = built(|_| {}) else { return };
    let mut guest = Guest::new(&image, 1);
    guest.store = image.qemu_img(&image.store, &["snapshot", "-c", "x"]);
    guest.verify();
    refuses_writes(&mut guest, "snapshot");
}

#[track_caller]
fn refuses_writes(guest: &mut Guest, what: &str) {
    let before = guest.store.to_vec();
    let errors = [
        guest.write(0, &[1; 512]),
        guest.discard(0, 4096, Discard::Forget),
    ];
    for error in errors {
        assert!(
            matches!(error, Err(Error::NeedsReadOnly(_))),
            "{what}: {error:?}"
        );
    }
    assert!(guest.store.to_vec() == before, "{what}: changed");
}

/// What breaks the image, and what must be said of it.
fn is_found_corrupt(image: &Image, change: impl FnOnce(&mut Store), what: &str, pos: u64) {
    let mut store = image.store.clone();
    change(&mut store);
    let mut guest = Guest::over(image, store, image.disk.clone(), 1);
    let result = guest.write(pos, &[1; 512]).and_then(|()| guest.give_back());
    let Err(Error::Malformed(fault)) = result else {
        panic!("{what}: {result:?}");
    };
    assert!(fault.what.contains(what), "{what}: {}", fault.what);
    if Header::load(&guest.store).version >= 3 {
        assert_eq!(
            guest.store.get_be64(72) & 2,
            2,
            "{what}: not marked corrupt"
        );
        let error = v2::attach(&guest.store, "", true).unwrap_err();
        assert!(matches!(error, Error::NeedsReadOnly(_)), "{error:?}");
    }
    // Nothing is written any more.
    let before = guest.store.to_vec();
    assert!(guest.discard(0, 4096, Discard::Forget).is_err());
    assert!(guest.close().is_err());
    assert!(guest.store.to_vec() == before, "{what}");
}

#[test]
fn refcount_tables_that_cannot_be() {
    for version in [2, 3] {
        let Some(image) = built(|it| {
            it.version = version;
            it.is_filled = false;
        }) else {
            return;
        };
        let header = Header::load(&image.store);
        let reftable = header.reftable;
        let block = image.store.get_be64(reftable);
        let far = image.store.len().next_multiple_of(4096);
        for (value, what) in [
            (block + 512, "begins at no cluster"),
            (far + (1 << 20), "past the end"),
            (1 << 62, "past the end"),
            (header.l1_offset, "in another table"),
            (reftable, "in another table"),
        ] {
            let change = |store: &mut Store| put_be64(store, reftable, value);
            is_found_corrupt(&image, change, what, 0);
        }
    }
}

/// A cluster of the header-level tables that is said to be free is not handed out, on a device, where
/// free ones are looked for from the start.
#[test]
fn tables_are_not_free() {
    let Some(image) = built(|it| it.is_filled = false) else {
        return;
    };
    let header = Header::load(&image.store);
    let block = image.store.get_be64(header.reftable);
    for offset in [0, header.l1_offset, header.reftable] {
        let mut store = image.store.clone();
        store.put(block + offset / 4096 * 2, &[0, 0]);
        let len = store.len().next_multiple_of(4096);
        store.put_size(len);
        let store = store.into_device(len + 40 * 4096, 0x5a);
        let mut guest = Guest::over(&image, store, image.disk.clone(), 1);
        let error = guest.write(0, &[1; 512]).unwrap_err();
        let Error::Malformed(fault) = error else {
            panic!("{error:?}");
        };
        assert!(fault.what.contains("is 0"), "{}", fault.what);
        assert!(!guest.store.can_grow());
    }
}

/// A cluster in use whose count is 0 is found out when it is given back.
#[test]
fn counts_that_are_too_low() {
    let Some(image) = built(|it| it.is_compressed = true) else {
        return;
    };
    let header = Header::load(&image.store);
    let block = image.store.get_be64(header.reftable);
    let (_, table) = first_table(&image.store);
    // Guest cluster 1 is compressed.
    let entry = image.store.get_be64(table + 8);
    assert_ne!(entry & (1 << 62), 0);
    let host = (entry & ((1 << (70 - 12)) - 1)) / 4096;
    let change = |store: &mut Store| store.put(block + host * 2, &[0, 0]);
    is_found_corrupt(&image, change, "refcount of 0", 4096);
}

/// A shared L2 table is not written although its entry is not marked copied, and the count of what it
/// named goes down by one, from the highest there is as well.
#[test]
fn highest_count_goes_down() {
    let Some(image) = built(|it| {
        it.order = 1;
        it.snapshots = 1;
    }) else {
        return;
    };
    // Two more snapshots: 4 references would be too many for 2 bits.
    let more = image.qemu_img(&image.store, &["snapshot", "-c", "x1"]);
    let disk = image.qemu_read(&more);
    let mut guest = Guest::over(&image, more, disk, 1).without_failures();
    for _ in 0..60 {
        guest.step();
    }
    guest.close().unwrap();
    let report = checker::check(&guest.store);
    assert_eq!(report.errors, [""; 0]);
    assert_eq!(report.leaks, 0);
    image.qemu_check(&guest.store, "highest count");
}

/// An image with a zero flag on a cluster that keeps its place: the stale bytes never show.
#[test]
fn stale_bytes_under_a_zero_flag() {
    let Some(image) = built(|it| it.is_filled = false) else {
        return;
    };
    let commands = ["write -P 7 0 16384", "write -z 0 16384"].map(String::from);
    let store = image.qemu_io(&image.store, &commands);
    let (_, table) = first_table(&store);
    let entry = store.get_be64(table);
    assert!(entry & 1 == 1 && entry >> 63 == 1, "{entry:#x}");
    let host = entry & OFFSET;
    let mut guest = Guest::over(&image, store, image.disk.clone(), 1);
    guest.write(1024, &[5; 512]).unwrap();
    guest.shadow[1024..1536].fill(5);
    guest.verify();
    // In the place that it had.
    assert_eq!(guest.store.get_be64(table), host | (1 << 63));
    guest.close().unwrap();
    image.qemu_check(&guest.store, "stale bytes");
    assert!(image.qemu_read(&guest.store) == guest.shadow);
}

/// Discards over a backing file do not bring back what is below.
#[test]
fn nothing_is_uncovered() {
    for version in [2, 3] {
        let Some(image) = built(|it| {
            it.version = version;
            it.base = Base::Raw(300);
        }) else {
            return;
        };
        let mut guest = Guest::new(&image, 1);
        let size = guest.disk.size;
        let bytes = vec![3; size as usize];
        guest.write(0, &bytes).unwrap();
        guest.discard(0, size, Discard::Forget).unwrap();
        guest.shadow.fill(0);
        guest.verify();
        guest.close().unwrap();
        image.qemu_check(&guest.store, "covered");
        assert!(image.qemu_read(&guest.store) == guest.shadow);
    }
}

/// An L2 table that is not marked as only ours: what it points to is not zeroed in place, whatever its
/// entries say.
#[test]
fn shared_table_with_copied_entries() {
    let Some(image) = built(|_| {}) else { return };
    let mut store = image.store.clone();
    let (l1, table) = first_table(&store);
    put_be64(&mut store, l1, table);
    let is_ours = |index: &u64| store.get_be64(table + index * 8) >> 62 == 2;
    let index = (0..64).find(is_ours).unwrap();
    let place = store.get_be64(table + index * 8) & OFFSET;
    let pos = index * 4096;
    for (how, len) in [(Discard::Forget, 512), (Discard::ZeroInPlace, 512)] {
        let mut guest = Guest::over(&image, store.clone(), image.disk.clone(), 1);
        let before = guest.store.get(place, 512);
        guest.discard(pos, len, how).unwrap();
        assert!(guest.store.get(place, 512) == before, "{how:?}");
    }
}

/// The same of one that a snapshot has, too, when it is copied. QEMU leaves no such entries in it.
#[test]
fn snapshot_with_copied_entries() {
    let Some(image) = built(|_| {}) else { return };
    let mut store = image.qemu_img(&image.store, &["snapshot", "-c", "x"]);
    let (_, table) = first_table(&store);
    let size = image.disk.len();
    let end = table + size.div_ceil(4096) as u64 * 8;
    let mut marked = 0;
    for at in (table..end).step_by(8) {
        let entry = store.get_be64(at);
        if entry & OFFSET != 0 {
            assert_eq!(entry >> 62, 0);
            put_be64(&mut store, at, entry | COPIED);
            marked += 1;
        }
    }
    assert!(marked > 8, "{marked}");
    let mut guest = Guest::over(&image, store, image.disk.clone(), 1);
    guest.write(0, &vec![7; size]).unwrap();
    guest.shadow.fill(7);
    guest.verify();
    guest.close().unwrap();
    image.qemu_check(&guest.store, "snapshot");
    let before = image.qemu_img(&guest.store, &["snapshot", "-a", "x"]);
    assert!(image.qemu_read(&before) == image.disk);
}

/// A cluster that has a place, of which the end of the file leaves two sectors, is completed; the end
/// of a device is final.
#[test]
fn cut_clusters() {
    for is_extended in [false, true] {
        let Some(image) = empty(is_extended) else {
            return;
        };
        let mut guest = Guest::new(&image, 1);
        guest.write(0, &[9; 16384]).unwrap();
        let (_, table) = first_table(&guest.store);
        let host = guest.store.get_be64(table) & OFFSET;
        guest.store.put_size(host + 1024);
        guest.shadow[..1024].fill(9);
        let device = guest.store.clone().into_device(host + 1024, 0);
        let mut on_device = Guest::over(&image, device, guest.shadow.clone(), 1);
        on_device.write(512, &[5; 512]).unwrap();
        assert_eq!(on_device.write(2048, &[5; 512]), Err(Error::Store(-28)));

        guest.write(2048, &[5; 512]).unwrap();
        guest.shadow[2048..2560].fill(5);
        guest.verify();
        guest.close().unwrap();
        image.qemu_check(&guest.store, "cut cluster");
        assert!(image.qemu_read(&guest.store) == guest.shadow);
    }
}

/// An image that QEMU made: the entry of guest cluster 0 has a zero flag, and a place past the end of the
/// file. It reads as zero, and gets another place when it is written to.
#[test]
fn zero_flag_past_the_end() {
    for is_extended in [false, true] {
        let Some(image) = empty(is_extended) else {
            return;
        };
        let store = image.qemu_io(&image.store, &["write -P 7 0 65536".into()]);
        let (_, table) = first_table(&store);
        for (flags, far) in [(1 << 63, 1 << 30), (0, 1 << 30), (1 << 63, 0), (0, 0)] {
            let mut store = store.clone();
            let place = store.len().next_multiple_of(16384) + far;
            let zero = u64::from(!is_extended);
            put_be64(&mut store, table, place | flags | zero);
            if is_extended {
                put_be64(&mut store, table + 8, 0xffff_ffff << 32);
            }
            let mut disk = vec![0; image.disk.len()];
            disk[16384..65536].fill(7);
            assert!(image.qemu_read(&store) == disk);
            let mut guest = Guest::over(&image, store, disk, 1).without_failures();
            guest.verify();
            guest.write(1024, &[5; 512]).unwrap();
            guest.shadow[1024..1536].fill(5);
            guest.verify();
            let word = guest.store.get_be64(table);
            assert!(word & OFFSET != place || far == 0, "{word:x}");
            guest.close().unwrap();
            // The place that was overwritten at the start is leaked.
            image.qemu_finds_only_leaks(&guest.store).unwrap();
            assert!(image.qemu_read(&guest.store) == guest.shadow);
        }
    }
}

/// What is discarded there is just not there any more.
#[test]
fn discard_of_a_zero_flag_past_the_end() {
    let Some(image) = built(|it| it.is_filled = false) else {
        return;
    };
    let store = image.qemu_io(&image.store, &["write -P 7 0 16384".into()]);
    let (_, table) = first_table(&store);
    for how in [Discard::Forget, Discard::Zero, Discard::ZeroInPlace] {
        let mut store = store.clone();
        put_be64(&mut store, table, 1 << 63 | 1 << 30 | 1);
        let mut disk = vec![0; image.disk.len()];
        disk[4096..16384].fill(7);
        let mut guest = Guest::over(&image, store, disk, 1).without_failures();
        guest.discard(0, 4096, how).unwrap();
        guest.verify();
        guest.close().unwrap();
    }
}

/// The end of a file is not cut off because its counts say that nobody uses it: only what we made, or
/// freed, is.
#[test]
fn only_our_own_is_cut_off() {
    let Some(image) = built(|it| it.is_filled = false) else {
        return;
    };
    let store = image.qemu_io(&image.store, &["write -P 7 0 65536".into()]);
    let (_, table) = first_table(&store);
    let header = Header::load(&store);
    let block = store.get_be64(header.reftable);
    let mut disk = vec![0; image.disk.len()];
    disk[..65536].fill(7);
    // The last two clusters are in use and not counted; the guest frees one in front of them.
    let mut store = store.clone();
    for index in [14, 15] {
        let host = (store.get_be64(table + index * 8) & OFFSET) / 4096;
        assert_eq!(host, store.len() / 4096 - 16 + index);
        store.put(block + host * 2, &[0, 0]);
    }
    let len = store.len();
    for is_written in [false, true] {
        let mut guest = Guest::over(&image, store.clone(), disk.clone(), 1);
        guest.discard(13 * 4096, 4096, Discard::Zero).unwrap();
        guest.shadow[13 * 4096..14 * 4096].fill(0);
        if is_written {
            guest.write(20 * 4096, &[3; 512]).unwrap();
            guest.shadow[20 * 4096..][..512].fill(3);
        }
        guest.close().unwrap();
        assert!(guest.store.len() >= len);
        guest.verify();
        // What was made is given back.
        assert!(guest.store.len() <= len + 2 * 4096);
    }
    // Freed up to the end, it is cut off.
    let sound = image.qemu_io(&image.store, &["write -P 7 0 65536".into()]);
    let mut guest = Guest::over(&image, sound, disk, 1);
    for index in [12, 13, 15, 14] {
        guest.discard(index * 4096, 4096, Discard::Zero).unwrap();
        guest.give_back().unwrap();
    }
    guest.close().unwrap();
    assert_eq!(guest.store.len(), len - 2 * 4096);
}
