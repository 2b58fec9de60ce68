// SPDX-License-Identifier: GPL-2.0

//! The ioctls of a loop device.

use kernel::prelude::*;

use crate::{
    change,
    configure,
    device::Device,
    geometry,
    status,
    sys::{
        bdev::{
            BlockDevice,
            OpenMode, //
        },
        bindings::{
            loop_config,
            loop_info64,
            LOOP_CHANGE_FD,
            LOOP_CLR_FD,
            LOOP_CONFIGURE,
            LOOP_GET_STATUS,
            LOOP_GET_STATUS64,
            LOOP_SET_BLOCK_SIZE,
            LOOP_SET_CAPACITY,
            LOOP_SET_DIRECT_IO,
            LOOP_SET_FD,
            LOOP_SET_STATUS,
            LOOP_SET_STATUS64, //
        },
        uaccess, //
    },
    unbind, //
};

/// An ioctl of a native program.
pub(crate) fn native(
    device: &Device,
    bdev: &BlockDevice,
    mode: OpenMode,
    cmd: u32,
    arg: usize,
) -> Result {
    match cmd {
        LOOP_SET_FD => {
            let config = loop_config {
                fd: descriptor(arg),
                ..pin_init::zeroed()
            };
            configure::configure(device, bdev, mode, &config)
        }
        LOOP_CONFIGURE => configure::configure(device, bdev, mode, &uaccess::read(arg)?),
        LOOP_CHANGE_FD => change::change_fd(device, mode, descriptor(arg)),
        LOOP_CLR_FD => unbind::clear_fd(device),
        LOOP_SET_STATUS => {
            may_change(mode)?;
            status::set_status(device, &status::from_old(&uaccess::read(arg)?))
        }
        LOOP_SET_STATUS64 => {
            may_change(mode)?;
            status::set_status(device, &uaccess::read(arg)?)
        }
        LOOP_GET_STATUS => {
            let info = get_status(device, arg)?;
            uaccess::write(arg, &status::to_old(&info)?)
        }
        LOOP_GET_STATUS64 => {
            let info = get_status(device, arg)?;
            uaccess::write(arg, &info)
        }
        LOOP_SET_BLOCK_SIZE => {
            may_change(mode)?;
            geometry::set_block_size(device, bdev, mode, arg)
        }
        LOOP_SET_CAPACITY => {
            may_change(mode)?;
            geometry::set_capacity(device, &*device.config_killable()?)
        }
        LOOP_SET_DIRECT_IO => {
            may_change(mode)?;
            geometry::set_direct(device, &mut *device.config_killable()?, arg != 0)
        }
        _ => {
            // The C driver takes its lock before it looks at the number.
            drop(device.config_killable()?);
            Err(EINVAL)
        }
    }
}

/// An ioctl of a 32-bit program.
pub(crate) fn compat(
    device: &Device,
    bdev: &BlockDevice,
    mode: OpenMode,
    cmd: u32,
    arg: usize,
) -> Result {
    // compat_ptr() for those that take a pointer: the upper half is not the caller's.
    let pointer = arg & 0xffff_ffff;
    match cmd {
        LOOP_SET_STATUS => {
            may_change(mode)?;
            status::set_status(device, &status::from_compat(&uaccess::read(pointer)?))
        }
        LOOP_GET_STATUS => {
            let info = get_status(device, pointer)?;
            uaccess::write(pointer, &status::to_compat(&info)?)
        }
        LOOP_SET_CAPACITY | LOOP_CLR_FD | LOOP_GET_STATUS64 | LOOP_SET_STATUS64
        | LOOP_CONFIGURE => native(device, bdev, mode, cmd, pointer),
        LOOP_SET_FD | LOOP_CHANGE_FD | LOOP_SET_BLOCK_SIZE | LOOP_SET_DIRECT_IO => {
            native(device, bdev, mode, cmd, arg)
        }
        _ => Err(ENOIOCTLCMD),
    }
}

fn get_status(device: &Device, arg: usize) -> Result<loop_info64> {
    if arg == 0 {
        return Err(EINVAL);
    }
    status::get_status(device)
}

/// Changing a device takes write access to it, or privilege.
fn may_change(mode: OpenMode) -> Result {
    if mode.write() || uaccess::capable_sys_admin() {
        Ok(())
    } else {
        Err(EPERM)
    }
}

/// A file descriptor in an ioctl's argument: an `unsigned int`, as C would convert it.
fn descriptor(arg: usize) -> u32 {
    (arg & 0xffff_ffff) as u32
}
