// SPDX-License-Identifier: GPL-2.0

//! Images with anything at all in them: no panic, no endless work, no answer outside of the file.

use loop_parser::contract::Discard;
use testkit::{device::Device, rng::Rng, store::Store};
use vmdk_format::format::{self, Image};

use crate::{
    image::Spec,
    open::{open, request},
};

/// Something else in place of a few fields and entries.
/// Only in front of `end`: what is behind it is the allocator's.
fn spoil(store: &mut Store, end: u64, rng: &mut Rng) {
    let is_cowd = store.get(0, 4) == b"COWD";
    let tables = if is_cowd {
        [2048; 2]
    } else {
        [21 * 512, 26 * 512]
    };
    for _ in 0..1 + rng.below(5) {
        let at = match rng.below(5) {
            0 => 4 + rng.below(76),
            1 => tables[rng.below(2) as usize] + rng.below(64),
            2 => 512 + rng.below(512),
            3 => rng.below(4096),
            _ => rng.below(end - 8),
        };
        let value = match rng.below(5) {
            0 => 0,
            1 => u64::MAX >> rng.below(64),
            2 => end / 512 + rng.below(3),
            3 => rng.below(64),
            _ => rng.next_u64(),
        };
        let len = 1 + rng.below(8) as usize;
        store.put(at, &value.to_le_bytes()[..len]);
    }
}

#[test]
fn anything() {
    let mut rng = Rng::new(11);
    let specs = [
        Spec::new(2048, 8)
            .with_entries(64)
            .with_grains(&[0, 1, 2, 70]),
        Spec::new(2048, 1)
            .with_entries(7)
            .with_grains(&[0, 1])
            .with_zeros(&[9]),
        Spec::cowd(2048, 8).with_grains(&[0, 1, 2, 70]),
    ];
    let mut attached = 0;
    for round in 0..20_000 {
        let mut store = specs[round % specs.len()].build().store;
        let len = store.len();
        spoil(&mut store, len, &mut rng);
        if matches!(format::attach(&store, &request()), Ok(Image::Stream(_))) {
            continue;
        }
        let Ok(mut device) = open(store) else {
            continue;
        };
        attached += 1;
        let changes = rng.one_in(2);
        for _ in 0..8 {
            use_it(&mut device, &mut rng);
            if changes && rng.one_in(3) {
                spoil(&mut device.store, len, &mut rng);
            }
        }
        let _ = device.close();
    }
    assert!(attached > 5000, "{attached}");
}

/// What a driver does with a device, whatever comes of it. Nobody waits for ever.
fn use_it(device: &mut Device, rng: &mut Rng) {
    let size = device.disk.size;
    if size == 0 {
        return;
    }
    let pos = rng.below(size.min(1 << 20).div_ceil(512)) * 512;
    let len = (512 * (1 + rng.below(40))).min(size - pos);
    let loads = device.store.loads();
    let _ = device.resolve_read(pos, len);
    let _ = device.resolve_write(pos, len);
    let _ = device.begin(pos, &vec![1; len as usize]);
    if device.disk.features.discard && rng.one_in(2) {
        let _ = device.discard(pos, len, Discard::Forget);
    }
    if rng.one_in(4) {
        let _ = device.reread_size();
        let _ = device.trim();
    }
    assert!(device.store.loads() - loads < 40 << 20);
}
