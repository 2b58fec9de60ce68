// SPDX-License-Identifier: GPL-2.0

//! Loop devices on loop devices: no device may end up below itself.
//!
//! Our own devices, of whichever front module, can be followed down to the last file. What a device
//! of the C driver (beside which `loop_images.ko` runs) is bound to, cannot be seen from here, and
//! that driver does not see our devices either. A cycle through both is kept from closing at the
//! three places where it could:
//!
//! - an attach to a device of the C driver that has no size: only then can there be an unbound
//!   device of ours below it;
//! - a change of a bound device of ours to a device of the C driver: ours may be below that;
//! - a change of a device of the C driver that is below ours. Only a read-only one can be changed,
//!   so that is refused as a file to attach.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    device::Device,
    sys::{
        bdev::BlockDevice,
        file::{
            BackingFile,
            Kind, //
        },
        globals::VALIDATE,
        mutex::MutexGuard, //
    }, //
};

/// Most loop devices that are followed down.
const MAX_DEPTH: usize = 64;

/// What a file is validated for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// A device without a file gets one.
    Attach,
    /// A device with a file gets another.
    Change,
}

/// `VALIDATE`, if the file is a loop device. Nobody else has to wait for anybody. `EINTR` if the
/// task was killed while it waited.
fn validation_lock(file: &BackingFile) -> Result<Option<MutexGuard<'static, ()>>> {
    let on_loop = file.block_device().is_some_and(is_ours);
    on_loop.then(|| VALIDATE.lock_killable()).transpose()
}

/// Refuses files that lead, or could lead, back to `device`, and what is neither a regular file nor
/// a block device. What it found stays so while the result is held, which is `None` if nobody else
/// can change it.
///
/// # Errors
///
/// `EBADF`: the device itself. `EINVAL`: an unbound loop device, no such file, or a device of the C
/// driver that is not allowed here. `EINTR` if the task was killed while it waited.
pub(crate) fn validate_file(
    file: &BackingFile,
    device: &Device,
    occasion: Occasion,
) -> Result<Option<MutexGuard<'static, ()>>> {
    let lock = validation_lock(file)?;
    let mut below: Option<Arc<BackingFile>> = None;
    loop {
        let current = below.as_deref().unwrap_or(file);
        let Some(lower) = current.block_device() else {
            break;
        };
        if lower.is_of_stock_loop::<Device>() {
            validate_stock(lower, device, occasion)?;
        }
        let Some(lower) = lower.driver_data::<Device>() else {
            break;
        };
        if core::ptr::eq(lower, device) {
            return Err(EBADF);
        }
        below = Some(lower.bound_file().ok_or(EINVAL)?);
    }
    match file.kind() {
        Kind::Regular | Kind::Block => Ok(lock),
        Kind::Other => Err(EINVAL),
    }
}

/// Whether I/O on `file` ends up on `device` or on one of the files with the identities `above`: the
/// file is one of these, or a loop device, or on a file system on one, that has any of them below
/// it. Devices that are put together of others are not looked into, nor are the other files of a loop
/// device: its parents, extents and the file with its data. Who may have any file named
/// (`loop.parents=any`) can make a cycle of those, as of device-mapper devices.
pub(crate) fn leads_to(file: &Arc<BackingFile>, device: &Device, above: &[usize]) -> bool {
    let mut current = file.clone();
    for _ in 0..MAX_DEPTH {
        if above.contains(&current.inode_key()) {
            return true;
        }
        let next = match current
            .backing_device()
            .map(|bdev| bdev.driver_data::<Device>())
        {
            Some(Some(lower)) if core::ptr::eq(lower, device) => return true,
            Some(Some(lower)) => lower.bound_file(),
            _ => None,
        };
        match next {
            Some(file) => current = file,
            None => return false,
        }
    }
    // Nobody knows what is that deep down.
    true
}

fn is_ours(bdev: &BlockDevice) -> bool {
    bdev.driver_data::<Device>().is_some()
}

/// See the top of this file.
fn validate_stock(lower: &BlockDevice, device: &Device, occasion: Occasion) -> Result {
    let why = if occasion == Occasion::Change {
        "(LOOP_CHANGE_FD could make a cycle)"
    } else if lower.sectors() == 0 {
        "that has no size: nothing is attached to it"
    } else if lower.is_read_only() {
        "that is read-only: changing its file could make a cycle"
    } else {
        return Ok(());
    };
    pr_err!(
        "loop{}: refused: below it a device of the stock driver {why}\n",
        device.number()
    );
    Err(EINVAL)
}
