// SPDX-License-Identifier: GPL-2.0

//! Random files, and random damage.

use loop_parser::contract::Error;
use proptest::prelude::*;

use crate::{
    image::{Fill, Spec},
    open,
};

fn spec() -> impl Strategy<Value = Spec> {
    let fill = prop_oneof![
        4 => (0u64..300).prop_map(Fill::Data),
        1 => Just(Fill::Zero),
        1 => (0u64..10_000).prop_map(Fill::Unmapped),
        1 => Just(Fill::Missing),
    ];
    (1u64..100_000, any::<bool>()).prop_flat_map(move |(sectors, is_reversed)| {
        let count = sectors.div_ceil(8);
        // Close together, and anywhere.
        let number = prop_oneof![0..count.min(40), 0..count];
        let grains = proptest::collection::btree_map(number, fill.clone(), 0..60);
        grains.prop_map(move |grains| Spec {
            sectors,
            grains,
            is_reversed,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn content(spec in spec()) {
        let image = spec.build();
        let device = open(&image.store, false).unwrap();
        prop_assert!(device.read(0, device.disk.size).unwrap() == image.disk);
    }

    /// Damage is malformed or unsupported, or is not seen; nothing panics.
    #[test]
    fn damage(
        spec in spec(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        is_in_front in any::<bool>(),
        size in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut store = spec.build().store;
        for (index, byte) in changes {
            let len = if is_in_front { 512 } else { store.len() as usize };
            // It stays a file of this kind.
            store.put(index.index(len - 8) as u64 + 8, &[byte]);
        }
        if let Some(index) = size {
            store.put_size(8 + index.index(store.len() as usize) as u64);
        }
        let device = match open(&store, true) {
            Ok(device) => device,
            Err(error) => {
                let is_said = matches!(error, Error::Malformed(_) | Error::Unsupported(_));
                prop_assert!(is_said, "{:?}", error);
                return Ok(());
            }
        };
        let size = device.disk.size;
        for place in 0..50 {
            let pos = (u128::from(size / 512) * place / 50) as u64 * 512;
            if pos < size {
                match device.resolve_read(pos, size - pos) {
                    Ok(_) | Err(Error::Malformed(_)) => {}
                    Err(error) => prop_assert!(false, "{:?}", error),
                }
            }
        }
    }
}
