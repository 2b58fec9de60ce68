// SPDX-License-Identifier: GPL-2.0

//! Images that other programs made.

use loop_parser::contract::Verdict;
use qcow_format::format;
use testkit::{
    samples::{self, Hash},
    store::Store,
    tools,
};

use crate::open;

#[test]
fn guest_content_is_right() {
    let list = samples::list(".qcow2");
    if list.is_empty() {
        tools::say("SKIP: all .qcow2 samples: none (set LP_SHARED_IMAGES)");
    }
    for sample in list {
        let Some(bytes) = samples::unpack(&sample.name) else {
            tools::say(&format!("SKIP: {} cannot be unpacked", sample.name));
            continue;
        };
        let store = Store::new(&bytes);
        assert_eq!(store.probe(format::probe_qcow2), Verdict::Mine);
        let device = open(store).unwrap();
        assert_eq!(device.disk.size, sample.size, "{}", sample.name);
        let mut hash = Hash::default();
        hash.update(&device.read(0, sample.size).unwrap());
        assert_eq!(hash.hex(), sample.digest, "{}", sample.name);
    }
}

#[test]
fn other_formats_are_not_mine() {
    for suffix in [".vhd", ".vmdk", ".raw", ".qcow"] {
        for sample in samples::list(suffix) {
            let Some(bytes) = samples::unpack(&sample.name) else {
                continue;
            };
            let store = Store::new(&bytes);
            assert_eq!(store.probe(format::probe_qcow2), Verdict::NotMine);
            let is_qcow = suffix == ".qcow";
            let verdict = store.probe(format::probe_qcow);
            assert_eq!(verdict == Verdict::Mine, is_qcow, "{}", sample.name);
        }
    }
}
