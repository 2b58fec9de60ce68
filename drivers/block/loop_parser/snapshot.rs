// SPDX-License-Identifier: GPL-2.0

//! `LOOP_CHANGE_FD` on a read-write device: a live snapshot.
//!
//! The new file is a child of the one that the device has. From then on that one is a layer below
//! and is not written any more. The guest disk stays what it is, so nobody is told: no media change,
//! no new disk sequence number, no look for partitions.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    attributes,
    chain::{
        validate_file,
        Occasion, //
    },
    device::{
        AttachedFile,
        Config,
        Device, //
    },
    geometry::{
        self,
        can_use_direct, //
    },
    opening::Opening,
    select::{
        detect,
        Choice, //
    },
    sys::{
        bdev::OpenMode,
        bindings::LO_FLAGS_DIRECT_IO,
        file::BackingFile,
        limits::{
            self,
            LimitsUpdate, //
        }, //
    }, //
};

/// Puts `file`, a child of the device's file, over it.
///
/// # Errors
///
/// `EINVAL` if the file is not open for reading and writing, or no such child; `EPERM` if the caller
/// has no write access to the device; `EIO` if the old file cannot be made durable; what an attach can
/// fail with. Then the device goes on with the file it has.
pub(crate) fn take(device: &Device, mode: OpenMode, file: &Arc<BackingFile>) -> Result {
    if !file.is_writable() || !file.is_readable() {
        return Err(EINVAL);
    }
    // A device that was told its file is raw can get a child of it, so the choice does not count. No
    // file is opened by a name here, so nothing has to be allowed.
    let parser = detect(file, device.number())?;
    if parser.is_raw() {
        return Err(EINVAL);
    }
    if !mode.write() {
        return Err(EPERM);
    }
    drop(validate_file(file, device, Occasion::Change)?);
    let below = device.config_killable()?.bound()?.user.as_parent()?;
    let opening = Opening {
        device,
        choice: &Choice::none(),
        writable: true,
    };
    // Dropped outside the lock, whichever it is in the end: see `change.rs`.
    let (user, parent) = opening.open_child(file, parser, &below)?;
    let mut other = AttachedFile::new(device, user)?;
    // Its code is the parser's, which is loaded as long as there is an image: dropped before that.
    let parent = parent;
    let new = other.user.image().clone();
    // Most of what there is to sync, while the device still works.
    below.image().sync(below.file())?;
    {
        let mut config = device.config_killable()?;
        let attached = config.bound()?;
        if !Arc::ptr_eq(attached.user.image(), below.image()) {
            return Err(EBUSY);
        }
        switch(device, &mut config, &mut other, || {
            // The first write since it was attached may just have changed what it is known by.
            opening.knows(&*parent, &below)
        })?;
    }
    attributes::replace(device, other.user.image(), &new);
    Ok(())
}

/// Switches the files: puts the old one into `other`. `is_parent` is asked when nothing is written to that
/// any more.
fn switch(
    device: &Device,
    config: &mut Config,
    other: &mut AttachedFile,
    is_parent: impl FnOnce() -> Result<bool>,
) -> Result {
    let disk = device.disk_ref();
    let mut limits = LimitsUpdate::start(disk);
    let frozen = disk.freeze();
    config.bound()?.user.finish()?;
    if !is_parent()? {
        return Err(EINVAL);
    }
    let block_size = limits::logical_block_size(disk);
    geometry::update_limits(config, other, &mut limits, block_size);
    limits.commit()?;
    if !can_use_direct(disk, config, other) {
        config.flags &= !LO_FLAGS_DIRECT_IO;
    }
    if let Some(attached) = &mut config.attached {
        core::mem::swap(attached, other);
    }
    config.enforce(&frozen);
    Ok(())
}
