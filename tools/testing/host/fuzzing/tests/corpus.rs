// SPDX-License-Identifier: GPL-2.0

//! Every seed, and every input that has once shown a fault, goes through its target.

#![allow(missing_docs)]

use std::{fs, panic, path::Path};

use fuzzing::{input::Input, seeds, TARGETS};

/// Puts an input through a target; its name, if that panics.
fn run(target: fn(&[u8]), name: String, bytes: &[u8]) -> Option<String> {
    panic::catch_unwind(|| target(bytes)).err().map(|_| name)
}

#[test]
fn seeds_of_all_targets() {
    let mut failed = Vec::new();
    for (name, target) in TARGETS {
        let seeds = seeds::of(name);
        assert!(seeds.len() > 20, "{name} has {} seeds", seeds.len());
        for (number, seed) in seeds.iter().enumerate() {
            failed.extend(run(target, format!("{name} {number}"), seed));
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// `regressions/TARGET/NAME`: an input in hex; what comes behind a `#` is a comment.
#[test]
fn regressions() {
    let mut failed = Vec::new();
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("regressions")
            .join(name);
        for file in fs::read_dir(folder).into_iter().flatten() {
            let path = file.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            failed.extend(run(target, path.display().to_string(), &from_hex(&text)));
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .filter_map(|line| line.split('#').next())
        .flat_map(str::bytes)
        .filter(u8::is_ascii_hexdigit)
        .collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

#[test]
fn inputs_are_what_they_were_made_of() {
    for name in ["qcow1", "qcow2_write", "vhd"] {
        for seed in seeds::of(name) {
            let input = Input::parse(&seed, u64::MAX);
            let again = Input::bytes(input.options, &input.steps, &input.store);
            assert!(again == seed, "{name}");
        }
    }
}
