// SPDX-License-Identifier: GPL-2.0

//! Looks up where the ranges of a disk lie: all of it if that is few runs, else some of it.

use loop_parser::contract::{Error, Extent, Placement, Result};
use testkit::device::Device;

/// Most runs that are looked up one after the other, for reading and for writing.
const MAX_RUNS: usize = 300;
/// Places all over the disk where it is looked up besides.
const PLACES: u64 = 40;

/// What must not be written by a guest: offsets in the file, from and to.
pub(crate) type Forbidden = Vec<(u64, u64)>;

/// Looks up a disk that is read. Its device panics if an answer breaks the contract, this does if it
/// took more than `max_loads`.
pub(crate) fn read(device: &Device, max_loads: u64) {
    let size = device.disk.size;
    let mut pos = 0;
    for _ in 0..MAX_RUNS {
        if pos >= size {
            break;
        }
        pos += read_at(device, pos, size - pos, max_loads);
    }
    for place in places(size) {
        for len in [512, 65536, size] {
            read_at(device, place, len.min(size - place), max_loads);
        }
    }
}

/// The same for a disk that is written.
pub(crate) fn write(device: &Device, max_loads: u64, forbidden: &Forbidden) {
    let size = device.disk.size;
    let mut pos = 0;
    for _ in 0..MAX_RUNS {
        if pos >= size {
            break;
        }
        pos += write_at(device, pos, size - pos, max_loads, forbidden);
    }
    for place in places(size) {
        write_at(device, place, size - place, max_loads, forbidden);
    }
}

/// Positions all over the disk, the last sector among them.
fn places(size: u64) -> impl Iterator<Item = u64> {
    let sectors = size / 512;
    (1..=PLACES)
        .map(move |place| (u128::from(sectors) * u128::from(place) / u128::from(PLACES)) as u64)
        .filter_map(|sector| sector.checked_sub(1))
        .map(|sector| sector * 512)
}

/// The store never fails, and the caller keeps to the contract: only the image can be to blame.
fn check_error(error: Error) {
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
}

fn bounded<T>(device: &Device, max_loads: u64, look: impl FnOnce() -> Result<T>) -> Option<T> {
    let before = device.store.loads();
    let result = look();
    let loads = device.store.loads() - before;
    assert!(loads <= max_loads, "{loads} loads");
    result.map_err(check_error).ok()
}

/// Looks up a range; answers how long it is of one kind.
fn read_at(device: &Device, pos: u64, len: u64, max_loads: u64) -> u64 {
    match bounded(device, max_loads, || device.resolve_read(pos, len)) {
        None => skip(device, pos, len),
        Some(Extent::Data { len, .. } | Extent::Zero { len } | Extent::Parent { len }) => len,
        Some(Extent::Compressed(unit)) => {
            assert!(unit.offset < device.store.len(), "nothing is there");
            assert!(unit.stored > 0);
            unit.len
        }
    }
}

fn write_at(device: &Device, pos: u64, len: u64, max_loads: u64, forbidden: &Forbidden) -> u64 {
    match bounded(device, max_loads, || device.resolve_write(pos, len)) {
        None => skip(device, pos, len),
        Some(Placement::InPlace { offset, len }) => {
            let end = offset + len;
            for &(start, stop) in forbidden {
                assert!(
                    end <= start || stop <= offset,
                    "in place in {start}..{stop}"
                );
            }
            len
        }
        Some(Placement::Allocate { pos: unit, len }) => unit + len - pos,
    }
}

/// Past what cannot be read.
fn skip(device: &Device, pos: u64, len: u64) -> u64 {
    match device.disk.unit {
        0 => len,
        unit => unit - pos % unit,
    }
}
