// SPDX-License-Identifier: GPL-2.0

//! VHDs.

use loop_parser::contract::{Parent, Result};
use testkit::{device::Device, store::Store};
use vhd_format::format;

use crate::{
    explore::Forbidden,
    guest::{self, Format},
    input::{Input, FIX_CHECKSUMS},
    vhd_image::fix,
    vhd_reader::{self, Reader},
};

/// Largest file: how long an allocation takes depends on the BAT, which is a part of it.
const MAX_SIZE: u64 = 1 << 26;

pub(crate) const VHD: Format = Format {
    open,
    is_sound,
    forbidden,
    compare,
    // An allocation looks at the whole BAT, in pieces of 64 bytes or more.
    max_loads: [40, 132, 4000 + MAX_SIZE / 64 * 2],
};

/// A VHD: attached, looked at, written to.
pub fn run(bytes: &[u8]) {
    let mut input = Input::parse(bytes, MAX_SIZE);
    if input.options & FIX_CHECKSUMS != 0 {
        fix_checksums(&mut input.store);
    }
    for options in ["size=chs", "size=current"] {
        let _ = format::attach(&input.store, options, false);
    }
    VHD.run(&input);
}

/// A device over a fixed image.
pub(crate) fn fixed(store: &Store) -> Device {
    open(store, false).expect("a fixed VHD")
}

/// Makes the checksums of footers and header right.
fn fix_checksums(store: &mut Store) {
    let size = store.len();
    let short = u64::from(size % 512 == 511);
    let mut places = vec![(0, 512, 64)];
    places.extend(
        size.checked_sub(512 - short)
            .map(|at| (at, 512 - short, 64)),
    );
    for (at, len, sum_at) in places {
        fix_one(store, at, len, sum_at, b"conectix");
        if size >= 24 {
            fix_one(store, store.get_be64(16), 1024, 36, b"cxsparse");
        }
    }
}

fn fix_one(store: &mut Store, at: u64, len: u64, sum_at: usize, cookie: &[u8]) {
    if at.checked_add(len).is_some_and(|end| end <= store.len()) {
        let mut bytes = store.get(at, len as usize);
        if bytes.starts_with(cookie) {
            fix(&mut bytes, sum_at);
            store.put(at, &bytes);
        }
    }
}

fn open(store: &Store, writable: bool) -> Result<Device> {
    let attached = format::attach(store, "", writable)?;
    // Not all that can be attached is recognised: only that it does not panic is asked.
    store.probe(format::probe);
    let device = Device::new(
        store.clone(),
        attached.disk,
        Box::new(attached.map),
        Box::new(attached.alloc),
    );
    match attached.parent {
        Some(parent) => {
            name_parent(store, &parent);
            Ok(device.on_top_of(guest::below()))
        }
        None => Ok(device),
    }
}

/// The names of a parent are bounded in number and length.
fn name_parent(store: &Store, parent: &format::VhdParent) {
    let mut buf = [0; 300];
    for index in 0.. {
        assert!(index <= 17, "names without end");
        match parent.name(store, index, &mut buf) {
            Ok(None) => break,
            Ok(Some(len)) => {
                let name = &buf[..len];
                assert!(len > 0 && !name.contains(&0) && !name.ends_with(b"/"));
            }
            Err(_) => {}
        }
    }
}

/// Footer, header and BAT.
fn forbidden(store: &Store) -> Forbidden {
    let footer = vhd_reader::front_footer(store).or_else(|| vhd_reader::end_footer(store));
    let Some(footer) = footer.filter(|footer| footer[60..64] != [0, 0, 0, 2]) else {
        return Vec::new();
    };
    let header = u64::from_be_bytes(footer[16..24].try_into().expect("eight bytes"));
    match header.checked_add(1024) {
        Some(end) if end <= store.len() => {}
        _ => return Vec::new(),
    }
    let table = store.get_be64(header + 16);
    let len = u64::from(store.get_be32(header + 28)) * 4;
    match table.checked_add(len) {
        Some(end) => vec![(0, 512), (header, header + 1024), (table, end)],
        None => Vec::new(),
    }
}

/// A good footer, blocks that lie apart, and a size and bitmaps that mean the same to all readers.
fn is_sound(store: &Store) -> bool {
    let Some(footer) = vhd_reader::front_footer(store).or_else(|| vhd_reader::end_footer(store))
    else {
        return false;
    };
    let Ok(disk) = format::attach(store, "", true).map(|attached| attached.disk) else {
        return false;
    };
    let Ok(reader) = Reader::open(store) else {
        return false;
    };
    if footer[60..64] == [0, 0, 0, 2] {
        return reader.size == disk.size && disk.size <= store.len();
    }
    let header = u64::from_be_bytes(footer[16..24].try_into().expect("eight bytes"));
    store.get_be32(header + 28) <= 4096
        && reader.size == disk.size
        && vhd_reader::faults(store).is_empty()
}

/// There is still a good footer that was there before.
fn compare(before: &Store, after: &Store) {
    let footers = |store| {
        [
            vhd_reader::front_footer(store),
            vhd_reader::end_footer(store),
        ]
    };
    let (old, new) = (footers(before), footers(after));
    let is_kept = new
        .iter()
        .flatten()
        .any(|it| old.contains(&Some(it.clone())));
    assert!(is_kept || old == [None, None], "the footer has changed");
}
