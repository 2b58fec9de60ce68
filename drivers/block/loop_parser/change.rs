// SPDX-License-Identifier: GPL-2.0

//! `LOOP_CHANGE_FD`: another file of the same size under a read-only device; see `snapshot` for
//! devices that are not.

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
    configure::{
        open_image,
        reread_partitions, //
    },
    device::{
        AttachedFile,
        Config,
        Device, //
    },
    geometry::can_use_direct,
    snapshot,
    sys::{
        bdev::OpenMode,
        bindings::{
            LO_FLAGS_DIRECT_IO,
            LO_FLAGS_READ_ONLY, //
        },
        file::BackingFile, //
    }, //
};

/// Puts the file `fd` in the place of the device's file. The device has to be read-only and the
/// guest disk in the new file of the same size, or the new file a child of the device's. As with the
/// C driver there is an event, even if nothing came of it, but none for a child.
pub(crate) fn change_fd(device: &Device, mode: OpenMode, fd: u32) -> Result {
    let file = Arc::new(BackingFile::from_fd(fd)?, GFP_KERNEL)?;
    let disk = device.disk_ref();
    let changing = device.changing()?;
    let result = if !is_read_write(device)? {
        change(device, &file)
    } else if let Err(error) = snapshot::take(device, mode, &file) {
        Err(error)
    } else {
        return Ok(());
    };
    drop(changing);
    disk.suppress_uevents(false);
    if result.is_ok() {
        // Those of the old file have to go even if nobody is to look for new ones. The C driver leaves
        // them then.
        reread_partitions(device);
    }
    disk.uevent_change();
    result
}

fn is_read_write(device: &Device) -> Result<bool> {
    let config = device.config_killable()?;
    Ok(config.bound().is_ok() && !config.has_flag(LO_FLAGS_READ_ONLY))
}

fn change(device: &Device, file: &Arc<BackingFile>) -> Result {
    let choice = {
        let config = device.config_killable()?;
        check(&config)?;
        device.choice(&config)
    };
    drop(validate_file(file, device, Occasion::Change)?);
    // Whichever file is in here at the end is closed after the locks are gone: that can take the
    // `open_mutex` of another disk.
    let mut other = open_image(device, file, &choice, false)?;
    let new_image = other.user.image().clone();
    device.disk_ref().suppress_uevents(true);
    {
        let _validate = validate_file(file, device, Occasion::Change)?;
        let mut config = device.config_killable()?;
        check(&config)?;
        swap(device, &mut config, &mut other)?;
    }
    attributes::replace(device, other.user.image(), &new_image);
    Ok(())
}

fn check(config: &Config) -> Result {
    config.bound()?;
    if config.has_flag(LO_FLAGS_READ_ONLY) {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

/// Switches the files: puts the old one into `other`.
fn swap(device: &Device, config: &mut Config, other: &mut AttachedFile) -> Result {
    let disk = device.disk_ref();
    if config.capacity(other) != config.capacity(config.bound()?) {
        return Err(EINVAL);
    }
    // Direct I/O may follow; a failure shows again there.
    let _ = other.file.fsync();
    disk.media_change();
    let frozen = disk.freeze();
    if other.file.is_o_direct() {
        config.flags |= LO_FLAGS_DIRECT_IO;
    }
    if !can_use_direct(disk, config, other) {
        config.flags &= !LO_FLAGS_DIRECT_IO;
    }
    if let Some(attached) = &mut config.attached {
        core::mem::swap(attached, other);
    }
    config.enforce(&frozen);
    Ok(())
}
