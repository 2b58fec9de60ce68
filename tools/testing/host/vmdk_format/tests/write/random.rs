// SPDX-License-Identifier: GPL-2.0

//! Images and writes of all kinds, at random.

use loop_parser::contract::Discard;
use proptest::prelude::*;

use crate::{
    image::{check, disk, Spec},
    open::{below, open_on},
    rules::child,
};

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn anything(
        (bits, entries, sectors) in (0u32..=8, 1u64..=600, 1u64..3000),
        (is_cowd, has_redundant, has_zeros, has_tables) in
            (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        grains in proptest::collection::vec((0u64..400, any::<bool>()), 0..20),
        under in proptest::option::of(1u64..3000),
        steps in proptest::collection::vec((any::<u64>(), 1u64..30, 0u8..250), 1..30),
    ) {
        let mut spec = match is_cowd {
            true => Spec::cowd(sectors, 1 << bits),
            false => Spec::new(sectors, 1 << bits).with_entries(entries),
        };
        if !is_cowd {
            spec.has_redundant = has_redundant;
            spec.has_zero_grains = has_zeros;
            spec.has_tables = has_tables;
        }
        let count = sectors.div_ceil(spec.grain);
        let mut seen = std::collections::BTreeSet::new();
        for (grain, is_zero) in grains {
            if seen.insert(grain % count) {
                match is_zero && spec.has_zero_grains {
                    true => spec.zeros.push(grain % count),
                    false => spec.grains.push(grain % count),
                }
            }
        }
        let under_len = under.unwrap_or(0) * 512;
        if under.is_some() {
            spec = child(&spec);
        }
        let size = spec.bytes();
        let under = below(under_len, size);
        let mut device = open_on(&spec, spec.build().store, under_len).unwrap();
        let has_discard = device.disk.features.discard;
        let mut shadow = disk(&device.store, &under);
        prop_assert!(device.read(0, size).unwrap() == shadow);
        for (index, (at, len, byte)) in steps.into_iter().enumerate() {
            let first = at % sectors;
            let len = len.min(sectors - first) * 512;
            match byte {
                0..50 if has_discard => {
                    let how = if byte % 2 == 0 { Discard::Zero } else { Discard::ZeroInPlace };
                    device.discard(first * 512, len, how).unwrap();
                    shadow[first as usize * 512..][..len as usize].fill(0);
                }
                _ => {
                    device.write(first * 512, &vec![byte; len as usize]).unwrap();
                    shadow[first as usize * 512..][..len as usize].fill(byte);
                }
            }
            if index == 15 {
                device.trim().unwrap();
            }
        }
        prop_assert!(device.read(0, size).unwrap() == shadow);
        let store = device.close().unwrap();
        check(&store);
        prop_assert!(disk(&store, &under) == shadow);
    }
}
