// SPDX-License-Identifier: GPL-2.0

//! qcow and qcow2 images.

use loop_parser::contract::{Error, Parent, Result, Verdict};
use qcow_format::format::{self, v1, v2, NamedFile};
use testkit::{compressed, device::Device, store::Store};

use crate::{
    checker::{self, Header},
    explore::Forbidden,
    guest::{self, Format},
    input::Input,
};

/// Largest file: no entry can name what lies behind.
const MAX_SIZE: u64 = 1 << 60;
/// Look-ups stop after 128 clusters, which take two loads each, and one for the table.
const MAX_LOOK_UP: u64 = 2 * 130;

pub(crate) const VERSION_1: Format = Format {
    open: open_v1,
    is_sound: is_sound_v1,
    forbidden: forbidden_v1,
    compare: compare_v1,
    // An allocation can look at all entries, of which there are at most so many.
    max_loads: [32, MAX_LOOK_UP, 5 << 20],
};

pub(crate) const VERSION_2: Format = Format {
    open: open_v2,
    is_sound: is_sound_v2,
    forbidden: forbidden_v2,
    compare: compare_v2,
    // A header has at most 2 MiB of extensions, one every eight bytes, and a name of 1 KiB.
    max_loads: [1 << 19, MAX_LOOK_UP, 1 << 20],
};

/// A version 1 image: attached, looked at, written to.
pub fn version_1(bytes: &[u8]) {
    VERSION_1.run(&Input::parse(bytes, MAX_SIZE));
}

/// The header of a qcow2 image, its extensions, and what it is refused for. The image is all there is
/// of the input: fields are where they are in a file.
pub fn header(bytes: &[u8]) {
    let mut store = Store::new(bytes);
    // Tables that the header names are there, as long as that is no more than a hole.
    store.put_size((bytes.len() as u64).max(1 << 30));
    for size in [bytes.len() as u64, store.len()] {
        store.put_size(size);
        let loads = store.loads();
        if let Err(fault) = v2::attach(&store, "", false) {
            quote(&store, fault);
        }
        assert!(v2::attach(&store, "x", false).is_err());
        assert!(store.loads() - loads < 3 << 19, "attach is not bounded");
        VERSION_2.attach(&store);
    }
}

/// What an image was refused for has a name that lies within the file, if it has one.
fn quote(store: &Store, error: Error) {
    if let Some(range) = error.fault().and_then(|fault| v2::quote(store, fault)) {
        assert!(range.len > 0 && range.offset + range.len <= store.len());
    }
}

/// The tables of a qcow2 image that is only read.
pub fn map(bytes: &[u8]) {
    let input = Input::parse(bytes, MAX_SIZE);
    let Some(device) = VERSION_2.look(&input.store) else {
        return;
    };
    let size = device.disk.size;
    for step in &input.steps {
        if let Some(sectors) = (size / 512).checked_sub(1) {
            let pos = u64::from(step.place).min(sectors) * 512;
            let len = (u64::from(step.count) * 512 + 512).min(size - pos);
            // Damaged or not, as long as it is no panic.
            let _ = device.read(pos, len);
        }
    }
    if is_sound_v2(&input.store) {
        compare_readers(&device);
    }
}

/// The second reader sees the same disk.
pub(crate) fn compare_readers(device: &Device) {
    const MAX_DISK: u64 = 1 << 20;
    let size = device.disk.size;
    if size > MAX_DISK {
        return;
    }
    let Ok(disk) = device.read(0, size) else {
        return;
    };
    let mut base = guest::below().read(0, guest::below().disk.size).unwrap();
    if device.store.get_be64(8) == 0 {
        base.clear();
    }
    base.truncate(size as usize);
    let compressed = checker::Compressed::learn(&device.store, &disk);
    let mut other = checker::read(&device.store, &base, &compressed);
    other.truncate(disk.len());
    assert!(disk == other, "two readers see two disks");
}

/// A qcow2 image: attached, looked at, written to.
pub fn write(bytes: &[u8]) {
    VERSION_2.run(&Input::parse(bytes, MAX_SIZE));
}

/// The device over an image that was attached.
fn device<M, A, B>(
    store: &Store,
    attached: format::Attached<M, A>,
    build: impl FnOnce(A) -> B,
) -> Device
where
    M: loop_parser::contract::Map + 'static,
    B: loop_parser::contract::Allocate + 'static,
{
    let (map, alloc) = (Box::new(attached.map), Box::new(build(attached.alloc)));
    let device = Device::new(store.clone(), attached.disk, map, alloc);
    let device = device.with_decompressor(compressed::decompress);
    match attached.parent {
        Some(parent) => {
            name_parent(store, &parent);
            device.on_top_of(guest::below())
        }
        None => device,
    }
}

/// There is one name, without zero bytes.
fn name_parent(store: &Store, parent: &NamedFile) {
    let mut buf = [0; 1023];
    let len = parent.name(store, 0, &mut buf).unwrap().unwrap();
    assert!(len > 0 && !buf[..len].contains(&0));
    assert_eq!(parent.name(store, 1, &mut buf), Ok(None));
    let mut short = vec![0; len - 1];
    assert!(parent.name(store, 0, &mut short).is_err());
    parent.parser();
}

fn open_v1(store: &Store, _writable: bool) -> Result<Device> {
    let attached = v1::attach(store, "")?;
    assert_eq!(store.probe(format::probe_qcow), Verdict::Mine);
    Ok(device(store, attached, |alloc| alloc))
}

fn open_v2(store: &Store, writable: bool) -> Result<Device> {
    let attached = v2::attach(store, "", writable)?;
    assert_eq!(store.probe(format::probe_qcow2), Verdict::Mine);
    Ok(device(store, attached, |blueprint| blueprint.build()))
}

fn forbidden_v1(store: &Store) -> Forbidden {
    let [cluster_bits, l2_bits] = store.get_array(32);
    let covered = store.get_be64(24).div_ceil(1 << (cluster_bits + l2_bits));
    let l1 = store.get_be64(40);
    let name = match store.get_be64(8) {
        0 => 0..0,
        at => at..at + u64::from(store.get_be32(16)),
    };
    vec![(0, 48), (l1, l1 + covered * 8), (name.start, name.end)]
}

fn forbidden_v2(store: &Store) -> Forbidden {
    let header = Header::load(store);
    let reftable_len = header.reftable_clusters * header.cluster;
    vec![
        (0, header.cluster),
        (header.l1_offset, header.l1_offset + header.l1_size * 8),
        (header.reftable, header.reftable + reftable_len),
    ]
}

/// Nothing is there twice, and nothing past the end of the file.
fn is_sound_v1(store: &Store) -> bool {
    let [cluster_bits, l2_bits] = store.get_array(32);
    let covered = store.get_be64(24).div_ceil(1 << (cluster_bits + l2_bits));
    if covered << l2_bits > 1 << 14 {
        return false;
    }
    let mut places = forbidden_v1(store);
    let l1 = store.get_be64(40);
    for index in 0..covered {
        let table = store.get_be64(l1 + index * 8);
        let Some(end) = table.checked_add(8 << l2_bits) else {
            return false;
        };
        if table == 0 {
            continue;
        }
        if end > store.len() {
            return false;
        }
        places.push((table, end));
        for number in 0..1 << l2_bits {
            places.extend(place_v1(store.get_be64(table + number * 8), cluster_bits));
        }
    }
    places.retain(|place| place.0 != place.1);
    places.sort_unstable();
    let is_apart = places.windows(2).all(|pair| pair[0].1 <= pair[1].0);
    is_apart && places.iter().all(|place| place.1 <= store.len())
}

/// From where to where a cluster lies. None is as large as the file.
fn place_v1(entry: u64, cluster_bits: u8) -> Option<(u64, u64)> {
    if entry == 0 {
        return None;
    }
    if entry >> 63 == 0 {
        return Some((entry, entry.saturating_add(1 << cluster_bits)));
    }
    let start = entry & ((1 << (63 - cluster_bits)) - 1);
    Some((start, start + (entry << 1 >> (64 - cluster_bits))))
}

/// Refcounts that agree with what refers to the clusters; only of images that are soon looked at.
fn is_sound_v2(store: &Store) -> bool {
    let header = Header::load(store);
    header.l1_size <= 64
        && header.size <= 16 << 20
        && header.reftable_clusters * header.cluster <= 2 << 20
        && checker::blocks(store).len() as u64 * header.per_block() <= 1 << 18
        && header.snapshots <= 4
        && header.snapshot_tables(store).0.iter().all(|it| it.1 <= 64)
        && header.incompatible & 3 == 0
        && checker::check(store).errors.is_empty()
}

/// Nothing of the headers changes.
fn compare_v1(before: &Store, after: &Store) {
    for (start, end) in &forbidden_v1(before)[..1] {
        let len = (end - start) as usize;
        assert_eq!(before.get(*start, len), after.get(*start, len));
    }
}

/// Of the header, what changes is where the refcount table lies, that the image is corrupt, and that
/// there is nothing that a program has to know of that is none of ours.
fn compare_v2(before: &Store, after: &Store) {
    let mut allowed = vec![48..60];
    if before.get_be32(4) >= 3 {
        allowed.extend([79..80, 88..96]);
        let bits = before.get_array::<1>(79)[0] ^ after.get_array::<1>(79)[0];
        assert_eq!(bits & !2, 0);
        let autoclear = after.get_be64(88);
        assert!(autoclear == 0 || autoclear == before.get_be64(88));
    }
    let len = Header::load(before).cluster.min(before.len()) as usize;
    let (old, new) = (before.get(0, len), after.get(0, len));
    for (at, (old, new)) in old.iter().zip(&new).enumerate() {
        assert!(
            old == new || allowed.iter().any(|it| it.contains(&at)),
            "{at}"
        );
    }
}
