// SPDX-License-Identifier: GPL-2.0

//! Random streams, and random damage.

use loop_parser::contract::{AttachRequest, Error};
use proptest::prelude::*;
use vmdk_format::format;

use crate::{
    attach,
    image::{Fill, Form, Spec},
    open, open_with,
};

fn spec() -> impl Strategy<Value = Spec> {
    let form = prop_oneof![Just(Form::Footer), Just(Form::Front), Just(Form::Qemu)];
    let fill = prop_oneof![Just(Fill::Text), Just(Fill::Random), Just(Fill::Zero)];
    (form, 1u64..3000, 0u32..8, 1u64..40, any::<bool>()).prop_flat_map(
        move |(form, sectors, grain, per_table, has_zero_grains)| {
            let spec = Spec::new(form, sectors).with(|it| {
                it.grain = 1 << grain;
                it.per_table = per_table;
                it.has_zero_grains = has_zero_grains;
            });
            let count = sectors.div_ceil(spec.grain);
            let grains = proptest::collection::btree_map(0..count, fill.clone(), 0..60);
            grains.prop_map(move |grains| Spec {
                grains,
                ..spec.clone()
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn content(spec in spec()) {
        let image = spec.build();
        let device = open(&image.store).unwrap();
        prop_assert_eq!(device.disk.size, spec.sectors * 512);
        prop_assert!(device.read(0, device.disk.size).unwrap() == image.disk);
    }

    /// Without its end, a stream shows what it has shown before, or nothing.
    #[test]
    fn without_an_end(spec in spec(), cut in 0.0..1.0) {
        let spec = spec.with(|it| it.form = Form::Footer);
        let image = spec.build();
        let mut store = image.store.clone();
        store.put_size(1024 + ((image.store.len() - 1024) as f64 * cut) as u64);
        let (device, warning) = open_with(&store, None).unwrap();
        prop_assert!(warning.is_some());
        for pos in (0..device.disk.size).step_by(512) {
            match device.read(pos, 512) {
                Ok(bytes) => prop_assert!(bytes[..] == image.disk[pos as usize..][..512]),
                Err(error) => prop_assert!(matches!(error, Error::Malformed(_))),
            }
        }
    }

    /// Damage is malformed or unsupported, or is not seen; nothing panics.
    #[test]
    fn damage(
        spec in spec(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        is_in_front in any::<bool>(),
        size in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let image = spec.build();
        let mut store = image.store;
        for (index, byte) in changes {
            let len = if is_in_front { 512 } else { store.len() as usize };
            store.put(index.index(len) as u64, &[byte]);
        }
        if let Some(index) = size {
            store.put_size(index.index(store.len() as usize) as u64);
        }
        let request = AttachRequest::default();
        // It can have become something else.
        if format::kind(&store, &request) != Ok(format::Kind::Stream) {
            return Ok(());
        }
        match attach(&store, &request) {
            Ok(_) => {}
            Err(error) => {
                let is_said = matches!(error, Error::Malformed(_) | Error::Unsupported(_));
                prop_assert!(is_said, "{:?}", error);
                return Ok(());
            }
        }
        let (device, _) = open_with(&store, None).unwrap();
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
