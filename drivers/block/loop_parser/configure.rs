// SPDX-License-Identifier: GPL-2.0

//! Attaching: `LOOP_CONFIGURE`, `LOOP_SET_FD`, and what they share with `LOOP_CHANGE_FD`.

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
        Device,
        Phase, //
    },
    geometry::{
        self,
        can_use_direct, //
    },
    opening::Opening,
    select::{
        select,
        Choice, //
    },
    status::Settings,
    sys::{
        bdev::{
            BlockDevice,
            OpenMode, //
        },
        bindings::{
            loop_config,
            LO_FLAGS_AUTOCLEAR,
            LO_FLAGS_DIRECT_IO,
            LO_FLAGS_PARTSCAN,
            LO_FLAGS_READ_ONLY, //
        },
        file::BackingFile,
        limits::LimitsUpdate, //
    },
    unbind, //
};

/// Flags that `LOOP_CONFIGURE` takes.
const SETTABLE: u32 =
    LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN | LO_FLAGS_DIRECT_IO;

/// Binds the device to the file `request.fd`.
///
/// Everything that can refuse the attach comes before anything is changed: a refused one leaves the
/// device as it was.
pub(crate) fn configure(
    device: &Device,
    bdev: &BlockDevice,
    mode: OpenMode,
    request: &loop_config,
) -> Result {
    let file = Arc::new(BackingFile::from_fd(request.fd)?, GFP_KERNEL)?;
    // Under an exclusive owner the device must not change.
    let claim = if mode.exclusive() {
        None
    } else {
        Some(bdev.claim()?)
    };
    let choice = check(device, &file)?;
    if request.info.lo_flags & !SETTABLE != 0 {
        return Err(EINVAL);
    }
    let settings = Settings::from_info(&request.info)?;
    let mut flags = request.info.lo_flags;
    if !file.is_writable() || !mode.write() {
        flags |= LO_FLAGS_READ_ONLY;
    }
    let attached = open_image(device, &file, &choice, flags & LO_FLAGS_READ_ONLY == 0)?;
    let scan = bind(device, attached, settings, flags, request.block_size)?;
    if scan {
        reread_partitions(device);
    }
    drop(claim);
    Ok(())
}

/// The checks that need no look into the file. Returns the parser that was chosen for the device.
fn check(device: &Device, file: &BackingFile) -> Result<Choice> {
    let choice = {
        let config = device.config_killable()?;
        if config.phase() != Phase::Unbound {
            return Err(EBUSY);
        }
        device.choice(&config)
    };
    drop(validate_file(file, device, Occasion::Attach)?);
    Ok(choice)
}

/// Finds the parser and lets it attach the image. Takes no lock of the device: a module may have to
/// be loaded.
pub(crate) fn open_image(
    device: &Device,
    file: &Arc<BackingFile>,
    choice: &Choice,
    writable: bool,
) -> Result<AttachedFile> {
    let parser = select(file, choice, device)?;
    let opening = Opening {
        device,
        choice,
        writable,
    };
    AttachedFile::new(device, opening.open(file, parser)?)
}

/// Binds the device to an attached image. Returns whether to look for partitions.
fn bind(
    device: &Device,
    attached: AttachedFile,
    settings: Settings,
    flags: u32,
    block_size: u32,
) -> Result<bool> {
    let validate = validate_file(&attached.file, device, Occasion::Attach)?;
    let mut config = device.config_killable()?;
    if config.phase() != Phase::Unbound {
        return Err(EBUSY);
    }
    device.prepare_workers()?;
    let scan = {
        let disk = device.disk_ref();
        disk.suppress_uevents(true);
        let scan = bind_locked(device, &mut config, attached, settings, flags, block_size);
        disk.suppress_uevents(false);
        scan
    };
    let scan = match scan {
        Ok(scan) => scan,
        Err(Failure(error, attached)) => {
            unbind::forget(&mut config);
            config.flags = 0;
            unbind::reset_limits(device);
            drop(config);
            drop(validate);
            drop(attached);
            return Err(error);
        }
    };
    device.disk_ref().uevent_change();
    announce(device, &config);
    Ok(scan)
}

/// A failed bind gives the file back: it must be closed outside the lock.
struct Failure(Error, AttachedFile);

fn bind_locked(
    device: &Device,
    config: &mut Config,
    mut attached: AttachedFile,
    settings: Settings,
    flags: u32,
    block_size: u32,
) -> core::result::Result<bool, Failure> {
    let disk = device.disk_ref();
    config.flags = flags;
    settings.apply(config);
    if attached.file.is_o_direct() {
        config.flags |= LO_FLAGS_DIRECT_IO;
    }
    device.reset_withdrawn();
    let mut limits = LimitsUpdate::start(disk);
    geometry::update_limits(config, &attached, &mut limits, block_size);
    if let Err(error) = limits.commit() {
        return Err(Failure(error, attached));
    }
    // Direct I/O may follow: write back now what the page cache has, so that the single I/Os need
    // not. A failure shows there again.
    let _ = attached.file.fsync();
    if !can_use_direct(disk, config, &attached) {
        config.flags &= !LO_FLAGS_DIRECT_IO;
    }
    let direct = config.has_flag(LO_FLAGS_DIRECT_IO);
    if !attached.user.set_direct(direct) {
        config.flags &= !LO_FLAGS_DIRECT_IO;
    }
    let binding = KBox::new(config.binding(&attached), GFP_KERNEL);
    if let Err(error) = binding.map_err(Error::from).and_then(|new| disk.bind(new)) {
        return Err(Failure(error, attached));
    }
    disk.media_change();
    disk.set_read_only(config.has_flag(LO_FLAGS_READ_ONLY));
    let image = attached.user.image().clone();
    let capacity = config.capacity(&attached);
    config.attached = Some(attached);
    if device.always_scans() {
        config.flags |= LO_FLAGS_PARTSCAN;
    }
    device.publish(config);
    attributes::show(device, &image);
    disk.set_capacity(capacity);
    device.set_phase(config, Phase::Bound);
    let scan = config.has_flag(LO_FLAGS_PARTSCAN);
    if scan {
        disk.set_partition_scan(true);
    }
    Ok(scan)
}

/// The acknowledging log line of an image; raw files are as silent as with the C driver.
fn announce(device: &Device, config: &Config) {
    let Some(attached) = &config.attached else {
        return;
    };
    let image = attached.user.image();
    if image.is_raw() {
        return;
    }
    let mode = if config.has_flag(LO_FLAGS_READ_ONLY) {
        "read-only"
    } else {
        "read-write"
    };
    pr_info!(
        "loop{}: {} {} image, {} bytes, {mode}\n",
        device.number(),
        image.parser_name(),
        image.disk().variant,
        image.disk().size
    );
    if let Some(fault) = image.warning() {
        pr_warn!(
            "loop{}: {}: {} at byte {}; served nevertheless\n",
            device.number(),
            image.parser_name(),
            fault.what,
            fault.at
        );
    }
}

/// Looks for partitions; the caller holds no lock. The log line is the C driver's.
pub(crate) fn reread_partitions(device: &Device) {
    if let Err(error) = device.disk_ref().reread_partitions() {
        let name = device.shown().file_name;
        pr_warn!(
            "loop_reread_partitions: partition scan of loop{} ({}) failed (rc={})\n",
            device.number(),
            kernel::str::BStr::from_bytes(
                CStr::from_bytes_until_nul(&name).map_or(&[], CStr::to_bytes)
            ),
            error.to_errno()
        );
    }
}
