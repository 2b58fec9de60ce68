// SPDX-License-Identifier: GPL-2.0

//! A folder that `tools/testing/crash/record` has left.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use testkit::store::Sectors;

use crate::{disk, log::Log, model::Model};

/// What the image is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// The recorded device itself.
    Device,
    /// A file on an ext4 on the device; its path there.
    Ext4(String),
}

/// A recording.
#[derive(Debug)]
pub struct Recording {
    /// The kind of image.
    pub kind: String,
    /// Its format.
    pub format: String,
    /// What it is on.
    pub backing: Backing,
    /// Size of the recorded device in bytes.
    pub size: u64,
    /// What the device held before.
    pub before: Sectors,
    /// What reached the device.
    pub log: Log,
    /// What the guest may find.
    pub model: Model,
}

impl Recording {
    /// Reads a recording.
    pub fn load(folder: &Path) -> Result<Self, String> {
        let about = About::parse(&read_text(folder.join("about"))?);
        let backing = match about.get::<String>("backing")?.as_str() {
            "device" => Backing::Device,
            "ext4" => Backing::Ext4(about.get("file")?),
            other => return Err(format!("backing '{other}' is not known")),
        };
        Ok(Self {
            kind: about.get("kind")?,
            format: about.get("format")?,
            backing,
            size: about.get("disk")?,
            before: disk::sectors(&read(folder.join("base"))?),
            log: Log::parse(read(folder.join("log"))?)?,
            model: Model::parse(&read_text(folder.join("events"))?, about.get("guest")?)?,
        })
    }
}

/// Lines of a word and its value.
struct About(BTreeMap<String, String>);

impl About {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Self(lines.map(|(key, it)| (key.into(), it.into())).collect())
    }

    fn get<T: FromStr>(&self, key: &str) -> Result<T, String> {
        let value = self
            .0
            .get(key)
            .ok_or_else(|| format!("about: no '{key}'"))?;
        value
            .parse()
            .map_err(|_| format!("about: '{key} {value}' makes no sense"))
    }
}

fn read(path: PathBuf) -> Result<Vec<u8>, String> {
    fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
}

fn read_text(path: PathBuf) -> Result<String, String> {
    fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
}
