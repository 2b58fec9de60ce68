// SPDX-License-Identifier: GPL-2.0

//! Detaching: `LOOP_CLR_FD`, autoclear, last close.

use kernel::{
    prelude::*,
    sync::ArcBorrow, //
};

use crate::{
    attributes,
    contract::SECTOR_SIZE,
    device::{
        AttachedFile,
        Config,
        Device,
        Phase, //
    },
    sys::{
        bindings::LO_FLAGS_AUTOCLEAR,
        disk::Closing,
        globals::VALIDATE,
        limits::LimitsUpdate, //
    }, //
};

/// `LOOP_CLR_FD`: detaches at the last close. If the caller is the only one who has the device
/// open, nobody else can open it from now on.
pub(crate) fn clear_fd(device: &Device) -> Result {
    // Others who are binding to this very device must see the rundown.
    let _validate = VALIDATE.lock_killable()?;
    let mut config = device.config_killable()?;
    config.bound()?;
    config.flags |= LO_FLAGS_AUTOCLEAR;
    if device.disk_ref().openers() == 1 {
        device.set_phase(&mut config, Phase::Rundown);
    }
    Ok(())
}

/// Detaches the file of a device in rundown. Called from the last close, with the disk's
/// `open_mutex` held; nobody else can change the device meanwhile.
pub(crate) fn detach(device: ArcBorrow<'_, Device>, closing: &Closing<'_, Device>) {
    let disk = device.disk_ref();
    let attached = {
        let mut config = device.config();
        config.choice = None;
        forget(&mut config)
    };

    reset_limits(&device);
    disk.invalidate();
    if let Some(attached) = &attached {
        attributes::hide(&device, attached.user.image());
    }
    disk.uevent_change();
    disk.media_change();
    // All partitions, those added by hand included. There is nobody to return an error to. The log
    // line is the C driver's, which tests look for.
    if let Err(error) = closing.drop_partitions() {
        pr_warn!(
            "__loop_clr_fd: partition scan of loop{} failed (rc={})\n",
            device.number(),
            error.to_errno()
        );
    }
    let binding = disk.freeze().rebind(None);
    drop(binding);
    if !device.always_scans() {
        disk.set_partition_scan(false);
    }
    // The image is finished before the device can be used again, the file is closed after, as with
    // the C driver, and so are those below it: here, not in the worker, where it would be done
    // some time later.
    let files = attached
        .as_ref()
        .map(|attached| (attached.file.clone(), attached.user.image().clone()));
    if let Some(attached) = attached {
        Device::close_in_worker(device, attached);
    }
    let mut config = device.config();
    config.flags = 0;
    device.set_phase(&mut config, Phase::Unbound);
    drop(config);
    drop(files);
}

/// Takes the file out of the configuration and forgets everything that was about it. The choice of a
/// parser is for the next attach, too, if this one has failed.
pub(crate) fn forget(config: &mut Config) -> Option<AttachedFile> {
    config.offset = 0;
    config.size_limit = 0;
    config.file_name.fill(0);
    config.attached.take()
}

pub(crate) fn reset_limits(device: &Device) {
    let mut limits = LimitsUpdate::start(device.disk_ref());
    // 512 fits.
    let sector = SECTOR_SIZE as u32;
    limits.logical_block_size = sector;
    limits.physical_block_size = sector;
    limits.io_min = sector;
    if limits.commit().is_err() {
        pr_warn!("loop{}: cannot reset the queue limits\n", device.number());
    }
}
