// SPDX-License-Identifier: GPL-2.0

//! The sample images, which are not part of the repository.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

/// A line of the samples' README.
#[derive(Clone, Debug)]
pub struct Sample {
    /// File name without ".xz".
    pub name: String,
    /// What it is, in words.
    pub what: String,
    /// Size of the guest disk in bytes.
    pub size: u64,
    /// SHA-256 of the guest disk in hex, or "all zero".
    pub digest: String,
}

/// Where the samples are: `$LP_SHARED_IMAGES`, or `../shared/images` beside the repository.
pub fn folder() -> PathBuf {
    env::var_os("LP_SHARED_IMAGES").map_or_else(
        // <repository>/tools/testing/host/testkit
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../../shared/images"),
        PathBuf::from,
    )
}

/// The samples whose name ends so; none if the samples are not there.
pub fn list(suffix: &str) -> Vec<Sample> {
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap_or_default();
    readme
        .lines()
        .filter_map(parse)
        .filter(|sample| sample.name.ends_with(suffix))
        .collect()
}

fn parse(line: &str) -> Option<Sample> {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let [_, name, _, what, size, digest, _] = cells[..] else {
        return None;
    };
    Some(Sample {
        name: name.split(' ').next()?.to_owned(),
        what: what.to_owned(),
        size: size.parse().ok()?,
        digest: digest.to_owned(),
    })
}

/// The bytes of a sample; `None` if it, or the program xz, is missing.
pub fn unpack(name: &str) -> Option<Vec<u8>> {
    let path = folder().join(format!("{name}.xz"));
    if !path.exists() {
        return None;
    }
    let output = Command::new("xz").arg("-dc").arg(&path).output().ok()?;
    output.status.success().then_some(output.stdout)
}

/// SHA-256 in hex of pieces that come one after the other.
#[derive(Default)]
pub struct Hash(Sha256);

impl Hash {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest.
    pub fn hex(self) -> String {
        self.0
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}
