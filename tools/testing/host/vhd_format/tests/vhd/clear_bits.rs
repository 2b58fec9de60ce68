// SPDX-License-Identifier: GPL-2.0

//! Writing to sectors of allocated blocks whose bits are clear.

use testkit::store::Op;

use crate::{
    alloc::{sector, MIB},
    image::{Bits, Spec},
    open,
    reader::Reader,
};

#[test]
fn clear_sectors_are_zeroed_before_their_bits_are_set() {
    let spec = Spec::dynamic(4 * MIB, 2 << 20).with_blocks(&[(0, Bits::Mixed(5))]);
    let image = spec.build();
    let expected = Reader::open(&image.store).unwrap().disk();
    let mut device = open(image.store).unwrap();
    let clear = (0..4096).find(|&s| !Bits::Mixed(5).get(s)).unwrap();
    device.store.record();
    device.write(clear * 512, &sector(1)).unwrap();
    let trace = device.store.take_trace();

    let mut shadow = expected;
    shadow[(clear * 512) as usize..][..512].copy_from_slice(&sector(1));
    assert!(device.read(0, 4 * MIB).unwrap() == shadow);
    // Zeros, sync, bits, data; in this order.
    let sync = trace.iter().position(|op| matches!(op, Op::Sync)).unwrap();
    assert!(trace[..sync]
        .iter()
        .all(|op| matches!(op, Op::Fill { byte: 0, .. })));
    assert!(matches!(
        trace[sync + 1],
        Op::Fill {
            byte: 0xff,
            len: 128,
            ..
        }
    ));
    assert!(matches!(trace[sync + 2], Op::Write { .. }));
    assert_eq!(trace.len(), sync + 3);
    // The rest of the chunk needs no more syncs.
    device.write(0, &vec![3; 512 * 1024]).unwrap();
    assert_eq!(device.store.syncs(), 1);
}

#[test]
fn tiny_blocks_with_clear_bits() {
    for block_size in [512u32, 1024, 2048] {
        for seed in 0..16 {
            let spec = Spec::dynamic(u64::from(block_size), block_size)
                .with_blocks(&[(0, Bits::Mixed(seed))]);
            let image = spec.build();
            let start = image.starts[0];
            let mut shadow = Reader::open(&image.store).unwrap().disk();
            let last = shadow.len() - 512;
            let mut device = open(image.store).unwrap();
            device.write(last as u64, &sector(1)).unwrap();
            shadow[last..].copy_from_slice(&sector(1));
            assert!(device.read(0, u64::from(block_size)).unwrap() == shadow);
            // Bits past the block are left alone.
            assert_eq!(device.store.get(start + 1, 511), [0; 511]);
        }
    }
}
