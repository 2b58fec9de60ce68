// SPDX-License-Identifier: GPL-2.0

//! `LOOP_CHANGE_FD` on a read-write device: a live snapshot.
//!
//! The new file is a child of the one that the device has. From then on that one is a layer below
//! and is not written any more. The guest disk stays what it is, so nobody is told: no media change,
//! no new disk sequence number, no look for partitions.
//!
//! With the queue frozen the files are only switched: nothing is read or written then, as whoever holds
//! a lock of a file system may be waiting for memory, and so for the device. The old image is finished
//! when the device works again. Until that is done, whatever makes the new one durable makes the old
//! one durable, too: what the guest has written before is in there.

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
    },
    user::ImageUser, //
};

/// Puts `file`, a child of the device's file, over it.
///
/// # Errors
///
/// `EINVAL` if the file is not open for reading and writing, or no such child; `EPERM` if the caller
/// has no write access to the device; `EIO` if the old file cannot be made durable; what an attach can
/// fail with. Then the device goes on with the file it has, unless it was only after the change that
/// the old one could not be made durable: then the device has the new one, and cannot be written.
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
    // The first write since it was attached changes what it is known by, which the child is compared with.
    let mut begins = below.image().begins();
    // Dropped outside the lock, whichever it is in the end: see `change.rs`.
    let (user, parent) = opening.open_child(file, parser, &below)?;
    let mut other = AttachedFile::new(device, user)?;
    // Its code is the parser's, which is loaded as long as there is an image: dropped before that.
    let parent = parent;
    let new = other.user.image().clone();
    // Most of what there is to sync, while nothing is changed yet.
    below.sync()?;
    new.unsettle();
    while !switch(device, &mut other, &below, begins)? {
        begins = below.image().begins();
        if !opening.knows(&*parent, &below)? {
            return Err(EINVAL);
        }
    }
    attributes::replace(device, other.user.image(), &new);
    new.settled(other.user.finish())
}

/// Switches the files: puts the old one into `other`. `false`: it was told once more than `begins` times
/// that there will be writes.
///
/// # Errors
///
/// `EBUSY` if the device does not have the image of `below` any more; `EINTR` if the task was killed.
fn switch(
    device: &Device,
    other: &mut AttachedFile,
    below: &ImageUser,
    begins: u32,
) -> Result<bool> {
    let mut config = device.config_killable()?;
    if !Arc::ptr_eq(config.bound()?.user.image(), below.image()) {
        return Err(EBUSY);
    }
    let disk = device.disk_ref();
    let mut limits = LimitsUpdate::start(disk);
    let block_size = limits::logical_block_size(disk);
    // Asks the file system.
    geometry::update_limits(&config, other, &mut limits, block_size);
    let frozen = disk.freeze();
    if below.image().begins() != begins {
        return Ok(false);
    }
    limits.commit()?;
    if !can_use_direct(disk, &config, other) {
        config.flags &= !LO_FLAGS_DIRECT_IO;
    }
    if let Some(attached) = &mut config.attached {
        core::mem::swap(attached, other);
    }
    config.enforce(&frozen);
    Ok(true)
}
