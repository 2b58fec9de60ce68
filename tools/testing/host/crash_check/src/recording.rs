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

/// What the image lies on: a file in the same folder of the same ext4 or, of an image on a block
/// device, one that is not recorded.
#[derive(Clone, Debug)]
pub struct Parent {
    /// What the image calls it.
    pub name: String,
    /// Its content, which never changes.
    pub bytes: Vec<u8>,
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
    /// The names of files beside it that the disk is put together from.
    pub parts: Vec<String>,
    /// What it lies on, if it does.
    pub parent: Option<Parent>,
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
            parent: about.parent(&backing, folder)?,
            parts: about.parts(),
            backing,
            size: about.get("disk")?,
            before: disk::sectors(&read(folder.join("base"))?),
            log: Log::parse(read(folder.join("log"))?)?,
            model: Model::parse(&read_text(folder.join("events"))?, about.get("guest")?)?,
        })
    }
}

impl Parent {
    /// By its path: an image in the same folder names it without that.
    fn new(backing: &Backing, path: &str, bytes: Vec<u8>) -> Self {
        let name = match backing {
            Backing::Device => path,
            Backing::Ext4(_) => path.trim_start_matches('/'),
        };
        let name = name.into();
        Self { name, bytes }
    }

    /// The file still has to be what it was.
    pub fn judge(&self, found: &[u8]) -> Result<(), String> {
        if found.len() != self.bytes.len() {
            return Err(format!("the parent has {} bytes", found.len()));
        }
        let mut both = found.iter().zip(&self.bytes);
        match both.position(|(it, was)| it != was) {
            Some(at) => Err(format!("the parent has changed at {at}")),
            None => Ok(()),
        }
    }
}

/// Lines of a word and its value.
struct About(BTreeMap<String, String>);

impl About {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Self(lines.map(|(key, it)| (key.into(), it.into())).collect())
    }

    fn parent(&self, backing: &Backing, folder: &Path) -> Result<Option<Parent>, String> {
        let Some(path) = self.0.get("parent") else {
            return Ok(None);
        };
        let bytes = read(folder.join("parent"))?;
        Ok(Some(Parent::new(backing, path, bytes)))
    }

    fn parts(&self) -> Vec<String> {
        let names = self.0.get("parts").map_or("", String::as_str);
        names.split_whitespace().map(String::from).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_never_changes() {
        let path = "/parent.vhd";
        assert_eq!(Parent::new(&Backing::Device, path, Vec::new()).name, path);
        let parent = Parent::new(&Backing::Ext4("/image".into()), path, vec![7; 600]);
        assert_eq!(parent.name, "parent.vhd");
        assert_eq!(parent.judge(&[7; 600]), Ok(()));
        assert!(parent.judge(&[7; 599]).unwrap_err().contains("599"));
        let mut changed = [7; 600];
        changed[512] = 8;
        assert!(parent.judge(&changed).unwrap_err().contains("at 512"));
    }
}
