// SPDX-License-Identifier: GPL-2.0

//! Looking at what a power failure has left.

use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
};

use loop_parser::contract::Identity;
use testkit::{
    rng::Rng,
    store::{Sectors, Store, ENOSPC},
    tools::TempDir,
};

use crate::{
    checker::{Checker, Sound},
    disk, ext4,
    files::Files,
    image::{self, said, Attached},
    recording::{Backing, Recording},
    stamp,
};

/// One in so many images is written to.
const RECOVERED: u64 = 3;
/// Writes to such an image, besides one to each of its files: those are only then opened for writing.
const WRITES: usize = 6;
/// Generation of those writes.
const AFTERWARDS: u64 = u64::MAX;

/// What was found, if nothing is wrong.
#[derive(Debug)]
pub struct Seen {
    /// Bytes of the image that hold nothing.
    pub unused: u64,
    /// The guest's disk.
    pub guest: Vec<u8>,
    /// What changes when that does; zeros if nothing has to.
    pub content_id: Identity,
}

/// Looks at disks of one recording.
pub struct Inspector {
    folder: TempDir,
    checker: Checker,
    /// The image when it was attached last.
    before: Option<Seen>,
}

impl Inspector {
    /// With this checker.
    pub fn new(checker: Checker) -> Self {
        Self {
            folder: TempDir::new(),
            checker,
            before: None,
        }
    }

    /// Looks at a disk: the image attaches, its structure is sound, every sector is old or new, and
    /// it can be worked with.
    pub fn inspect(
        &mut self,
        it: &Recording,
        disk: Sectors,
        rng: &mut Rng,
    ) -> Result<Seen, String> {
        let check = AssertUnwindSafe(|| self.inspect_or_panic(it, disk, rng));
        panic::catch_unwind(check).unwrap_or_else(|it| Err(message(&*it)))
    }

    /// Looks at a disk whose image is not attached. What is found later has been written since.
    pub fn inspect_detached(&mut self, it: &Recording, disk: Sectors) -> Result<(), String> {
        let look = AssertUnwindSafe(|| self.look(it, disk));
        let looked = panic::catch_unwind(look).unwrap_or_else(|it| Err(message(&*it)));
        let (sound, seen, _) = looked?;
        let was_attached = self.before.replace(seen).is_some();
        match was_attached {
            true => sound.closed(),
            false => Ok(()),
        }
    }

    fn inspect_or_panic(
        &mut self,
        it: &Recording,
        disk: Sectors,
        rng: &mut Rng,
    ) -> Result<Seen, String> {
        let (_, seen, mut device) = self.look(it, disk)?;
        if rng.one_in(RECOVERED) {
            work(&mut device, seen.guest.clone(), rng).map_err(|it| format!("afterwards: {it}"))?;
            let files = device.close().map_err(|it| format!("close: {it:?}"))?;
            self.check_structure(&files)
                .and_then(Sound::closed)
                .map_err(|it| format!("afterwards: {it}"))?;
        }
        Ok(seen)
    }

    fn look(&mut self, it: &Recording, disk: Sectors) -> Result<(Sound, Seen, Attached), String> {
        let files = self.files(it, disk)?;
        let sound = self.check_structure(&files)?;
        let device = image::attach(&it.format, files, it.parent.as_ref())?;
        let seen = Seen {
            unused: sound.unused,
            guest: device.read().map_err(said)?,
            content_id: image::content_id(&it.format, device.disk()),
        };
        it.model.judge(&seen.guest)?;
        self.before.as_ref().map_or(Ok(()), |it| it.judge(&seen))?;
        Ok((sound, seen, device))
    }

    /// The image on a disk.
    fn files(&self, it: &Recording, disk: Sectors) -> Result<Files, String> {
        match &it.backing {
            Backing::Device => Ok(Store::from_parts(disk, it.size, false).into()),
            Backing::Ext4(name) => {
                let path = self.path("disk");
                disk::save(&disk, it.size, &path).map_err(|it| it.to_string())?;
                ext4::recover(&path)?;
                if let Some(parent) = &it.parent {
                    parent.judge(&ext4::read(&path, &parent.name)?)?;
                }
                let read = |name: &str| {
                    let bytes = ext4::read(&path, name)?;
                    let size = bytes.len() as u64;
                    Ok::<_, String>(Store::from_parts(disk::sectors(&bytes), size, true))
                };
                let part = |part: &String| Ok((part.clone(), read(&format!("/{part}"))?));
                Ok(Files {
                    image: read(name)?,
                    parts: it.parts.iter().map(part).collect::<Result<_, String>>()?,
                })
            }
        }
    }

    fn check_structure(&mut self, files: &Files) -> Result<Sound, String> {
        let folder = self.path("files");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder)
            .and_then(|()| files.save(&folder, "image"))
            .map_err(|it| it.to_string())?;
        self.checker.check(&folder.join("image"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }
}

impl Seen {
    /// Judges what came of it while it was attached.
    fn judge(&self, later: &Self) -> Result<(), String> {
        let is_same = self.content_id == later.content_id;
        if is_same && self.content_id != Identity::default() && self.guest != later.guest {
            return Err("the disk has changed, but not its content ID".into());
        }
        Ok(())
    }
}

/// The image can be written to, and everything else stays as it was.
fn work(device: &mut Attached, mut guest: Vec<u8>, rng: &mut Rng) -> Result<(), String> {
    let whole = (0, device.disk().size);
    let mut ranges = device.ranges();
    ranges.resize(ranges.len() + WRITES, whole);
    for (start, len) in ranges {
        let sector = start / 512 + rng.below(len / 512);
        let bytes = stamp::make(sector, AFTERWARDS);
        let at = sector * 512;
        match device.write(at, &bytes) {
            Ok(()) => guest[at as usize..][..512].copy_from_slice(&bytes),
            // What was leaked on a block device is missing there.
            Err(ENOSPC) => {}
            Err(error) => return Err(format!("write of sector {sector}: {error:?}")),
        }
    }
    device.flush().map_err(|it| format!("flush: {it:?}"))?;
    if device.read().map_err(said)? != guest {
        return Err("the disk differs from what it was and what was written".into());
    }
    Ok(())
}

/// What a panic said.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(guest: u8, id: u8) -> Seen {
        Seen {
            unused: 0,
            guest: vec![guest; 512],
            content_id: Identity([id; 16]),
        }
    }

    #[test]
    fn a_disk_that_changes_gets_another_id() {
        for (later, good) in [
            ((1, 1), true),
            ((2, 2), true),
            ((1, 2), true),
            ((2, 1), false),
        ] {
            let later = seen(later.0, later.1);
            assert_eq!(seen(1, 1).judge(&later).is_ok(), good);
        }
        // No ID at all.
        assert_eq!(seen(1, 0).judge(&seen(2, 0)), Ok(()));
    }
}
