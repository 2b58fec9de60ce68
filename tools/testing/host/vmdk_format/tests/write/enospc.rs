// SPDX-License-Identifier: GPL-2.0

//! A full file system: nothing is lost, nothing is half done, and later writes succeed.

use loop_parser::contract::Discard;
use testkit::{
    rng::Rng,
    store::{Failure, ENOSPC},
};

use crate::{
    image::{check, disk, get32, problem, Header, Redundant},
    open::{below, open_on},
    rules::{child, kinds},
};

const SIZE: u64 = 1 << 20;

/// Every store of a random run fails once, in every way.
#[test]
fn every_store() {
    for (number, spec) in kinds().iter().enumerate() {
        for under in [0, SIZE / 2] {
            let spec = if under > 0 { child(spec) } else { spec.clone() };
            let can_discard = under == 0 || spec.has_zero_grains;
            for n in 0..60 {
                let failure = Failure::ALL[n as usize % 3];
                let mut rng = Rng::new(number as u64);
                let mut device = open_on(&spec, spec.build().store, under).unwrap();
                let mut shadow = device.read(0, SIZE).unwrap();
                device.store.fail_after(n, failure);
                for step in 0..12 {
                    let pos = rng.below(SIZE / 512) * 512;
                    let len = (512 * (1 + rng.below(20))).min(SIZE - pos);
                    let is_discard = can_discard && step % 4 == 3;
                    let byte = if is_discard { 0 } else { step as u8 + 1 };
                    let mut tries = 0;
                    loop {
                        let result = match is_discard {
                            true => device.discard(pos, len, Discard::Zero),
                            false => device.write(pos, &vec![byte; len as usize]),
                        };
                        let Err(error) = result else { break };
                        assert_eq!(error, ENOSPC);
                        tries += 1;
                        assert!(tries < 3, "{n} {failure:?}");
                        let redundant = Redundant::MayDiffer;
                        assert_eq!(problem(&device.store, redundant), None, "{n} {failure:?}");
                        // What was asked for may be partly there; nothing else changed.
                        let now = device.read(0, SIZE).unwrap();
                        for (at, (new, old)) in now.iter().zip(&shadow).enumerate() {
                            let is_in = (pos..pos + len).contains(&(at as u64));
                            assert!(new == old || is_in && *new == byte, "{at} {n} {failure:?}");
                        }
                    }
                    shadow[pos as usize..][..len as usize].fill(byte);
                }
                device.store.never_fail();
                assert!(device.read(0, SIZE).unwrap() == shadow, "{n} {failure:?}");
                let store = device.close().unwrap();
                check(&store);
                assert!(disk(&store, &below(under, SIZE)) == shadow);
            }
        }
    }
}

/// The file system is full for a while.
#[test]
fn full_for_a_while() {
    for spec in kinds() {
        let image = spec.build();
        let used = image.store.sectors().len();
        let grain = spec.grain_len();
        let mut device = open_on(&spec, image.store, 0).unwrap();
        device.store.set_capacity(Some(used + 40));
        let mut shadow = device.read(0, SIZE).unwrap();
        let mut failed = 0;
        for index in 0..SIZE / grain {
            let data = vec![index as u8 | 1; grain as usize];
            match device.write(index * grain, &data) {
                Ok(()) => {
                    shadow[(index * grain) as usize..][..grain as usize].copy_from_slice(&data)
                }
                Err(error) => {
                    assert_eq!(error, ENOSPC);
                    failed += 1;
                    assert!(device.read(0, SIZE).unwrap() == shadow || failed > 3);
                }
            }
            if failed > 8 {
                device.store.set_capacity(None);
            }
        }
        assert!(failed > 8);
        assert!(device.read(0, SIZE).unwrap() == shadow);
        let store = device.close().unwrap();
        check(&store);
        assert!(disk(&store, &[]) == shadow);
    }
}

/// The directory entry in the redundant set cannot be stored: no table is there at all.
#[test]
fn second_directory_entry() {
    let spec = kinds()[3].clone();
    let mut device = open_on(&spec, spec.build().store, 0).unwrap();
    device.write(0, &[1; 512]).unwrap();
    let before = device.read(0, SIZE).unwrap();
    for n in 0..8 {
        let pos = (100 + n * 3) * 4096;
        device.store.fail_after(n, Failure::Torn);
        let _ = device.write(pos, &[3; 512]);
        device.store.never_fail();
        // The copy of a grain's entry may be missing for a while, that of a table may not.
        assert_eq!(problem(&device.store, Redundant::MayDiffer), None, "{n}");
        let header = Header::load(&device.store);
        for index in 0..header.tables() {
            let has_table = |it| get32(&device.store, it + index * 4) != 0;
            let found: Vec<bool> = header.directories().map(has_table).collect();
            assert_eq!(found[0], found[1], "{n}");
        }
        device.write(pos, &[0; 512]).unwrap();
    }
    assert!(device.read(0, SIZE).unwrap() == before);
    check(&device.close().unwrap());
}
