// SPDX-License-Identifier: GPL-2.0

//! `LOOP_SET_STATUS`, `LOOP_GET_STATUS` and their older and 32-bit forms.

use kernel::prelude::*;

use crate::{
    configure::reread_partitions,
    device::{
        Config,
        Device,
        FILE_NAME_SIZE, //
    },
    geometry::can_use_direct,
    sys::{
        bindings::{
            loop_info64,
            LO_CRYPT_CRYPTOAPI,
            LO_CRYPT_NONE,
            LO_CRYPT_XOR,
            LO_FLAGS_AUTOCLEAR,
            LO_FLAGS_DIRECT_IO,
            LO_FLAGS_PARTSCAN,
            LO_KEY_SIZE, //
        },
        uaccess::{
            CompatLoopInfo,
            OldLoopInfo, //
        }, //
    }, //
};

/// Flags that `LOOP_SET_STATUS` can set; `LO_FLAGS_AUTOCLEAR` it can clear, too.
const SETTABLE: u32 = LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN;

/// The validated part of a `loop_info64` that becomes configuration.
pub(crate) struct Settings {
    offset: u64,
    size_limit: u64,
    file_name: [u8; FILE_NAME_SIZE],
}

impl Settings {
    /// `EINVAL` for the encryption of old, `EOVERFLOW` for sizes that fit no file.
    pub(crate) fn from_info(info: &loop_info64) -> Result<Self> {
        if info.lo_encrypt_key_size > LO_KEY_SIZE {
            return Err(EINVAL);
        }
        match info.lo_encrypt_type {
            LO_CRYPT_NONE => {}
            LO_CRYPT_XOR => {
                pr_warn!("support for the xor transformation has been removed.\n");
                return Err(EINVAL);
            }
            LO_CRYPT_CRYPTOAPI => {
                pr_warn!("support for cryptoloop has been removed.  Use dm-crypt instead.\n");
                return Err(EINVAL);
            }
            _ => return Err(EINVAL),
        }
        if i64::try_from(info.lo_offset).is_err() || i64::try_from(info.lo_sizelimit).is_err() {
            return Err(EOVERFLOW);
        }
        let mut file_name = info.lo_file_name;
        if let Some(last) = file_name.last_mut() {
            *last = 0;
        }
        Ok(Self {
            offset: info.lo_offset,
            size_limit: info.lo_sizelimit,
            file_name,
        })
    }

    /// Makes them the device's.
    pub(crate) fn apply(&self, config: &mut Config) {
        config.offset = self.offset;
        config.size_limit = self.size_limit;
        config.file_name = self.file_name;
    }
}

/// `LOOP_SET_STATUS64`.
pub(crate) fn set_status(device: &Device, info: &loop_info64) -> Result {
    let mut config = device.config_killable()?;
    config.bound()?;
    let moved = config.offset != info.lo_offset || config.size_limit != info.lo_sizelimit;
    if moved {
        device.disk_ref().sync_and_invalidate();
    }
    let scan = apply(device, &mut config, info)?;
    if scan {
        device.disk_ref().set_partition_scan(true);
    }
    if moved {
        let capacity = config.capacity(config.bound()?);
        device.disk_ref().set_capacity(capacity);
    }
    drop(config);
    if scan {
        reread_partitions(device);
    }
    Ok(())
}

/// Applies a new status while no request is in flight. Returns whether partition scanning was
/// switched on.
fn apply(device: &Device, config: &mut Config, info: &loop_info64) -> Result<bool> {
    let disk = device.disk_ref();
    let frozen = disk.freeze();
    let settings = Settings::from_info(info)?;
    settings.apply(config);
    let scan = !config.has_flag(LO_FLAGS_PARTSCAN) && info.lo_flags & LO_FLAGS_PARTSCAN != 0;
    config.flags &= !LO_FLAGS_AUTOCLEAR;
    config.flags |= info.lo_flags & SETTABLE;
    if config.has_flag(LO_FLAGS_DIRECT_IO) && !can_use_direct(disk, config, config.bound()?) {
        config.flags &= !LO_FLAGS_DIRECT_IO;
    }
    config.enforce(&frozen);
    device.publish(config);
    Ok(scan)
}

/// `LOOP_GET_STATUS64`.
pub(crate) fn get_status(device: &Device) -> Result<loop_info64> {
    let (mut info, file) = {
        let config = device.config_killable()?;
        let attached = config.bound()?;
        let info = loop_info64 {
            lo_number: device.number(),
            lo_offset: config.offset,
            lo_sizelimit: config.size_limit,
            lo_flags: config.flags,
            lo_file_name: config.file_name,
            ..pin_init::zeroed()
        };
        (info, attached.file.clone())
    };
    // Outside the lock: this calls the file system.
    let identity = file.identity()?;
    info.lo_device = identity.device;
    info.lo_inode = identity.inode;
    info.lo_rdevice = identity.rdevice;
    Ok(info)
}

/// What an older form of the structure says; offsets are signed there.
pub(crate) fn from_old(old: &OldLoopInfo) -> loop_info64 {
    loop_info64 {
        lo_number: old.lo_number.cast_unsigned_bits(),
        lo_device: old.lo_device,
        lo_inode: old.lo_inode,
        lo_rdevice: old.lo_rdevice,
        lo_offset: i64::from(old.lo_offset).cast_unsigned_bits(),
        lo_flags: old.lo_flags.cast_unsigned_bits(),
        lo_file_name: old.lo_name,
        ..pin_init::zeroed()
    }
}

/// The same for a 32-bit program.
pub(crate) fn from_compat(old: &CompatLoopInfo) -> loop_info64 {
    loop_info64 {
        lo_number: old.lo_number.cast_unsigned_bits(),
        lo_device: u64::from(old.lo_device),
        lo_inode: u64::from(old.lo_inode),
        lo_rdevice: u64::from(old.lo_rdevice),
        lo_offset: i64::from(old.lo_offset).cast_unsigned_bits(),
        lo_flags: old.lo_flags.cast_unsigned_bits(),
        lo_file_name: old.lo_name,
        ..pin_init::zeroed()
    }
}

/// The older form of a status; `EOVERFLOW` if a value does not fit.
pub(crate) fn to_old(info: &loop_info64) -> Result<OldLoopInfo> {
    Ok(OldLoopInfo {
        lo_number: i32::try_from(info.lo_number).map_err(|_| EOVERFLOW)?,
        hole1: 0,
        lo_device: info.lo_device,
        lo_inode: info.lo_inode,
        lo_rdevice: info.lo_rdevice,
        lo_offset: i32::try_from(info.lo_offset).map_err(|_| EOVERFLOW)?,
        lo_encrypt_type: 0,
        lo_encrypt_key_size: 0,
        lo_flags: i32::try_from(info.lo_flags).map_err(|_| EOVERFLOW)?,
        lo_name: info.lo_file_name,
        lo_encrypt_key: [0; 32],
        lo_init: [0; 2],
        reserved: [0; 4],
        hole2: [0; 4],
    })
}

/// The form for a 32-bit program; `EOVERFLOW` if a value does not fit.
pub(crate) fn to_compat(info: &loop_info64) -> Result<CompatLoopInfo> {
    Ok(CompatLoopInfo {
        lo_number: i32::try_from(info.lo_number).map_err(|_| EOVERFLOW)?,
        lo_device: u16::try_from(info.lo_device).map_err(|_| EOVERFLOW)?,
        hole1: 0,
        lo_inode: u32::try_from(info.lo_inode).map_err(|_| EOVERFLOW)?,
        lo_rdevice: u16::try_from(info.lo_rdevice).map_err(|_| EOVERFLOW)?,
        hole2: 0,
        lo_offset: i32::try_from(info.lo_offset).map_err(|_| EOVERFLOW)?,
        lo_encrypt_type: 0,
        lo_encrypt_key_size: 0,
        lo_flags: i32::try_from(info.lo_flags).map_err(|_| EOVERFLOW)?,
        lo_name: info.lo_file_name,
        lo_encrypt_key: [0; 32],
        lo_init: [0; 2],
        reserved: [0; 4],
    })
}

/// Reinterpretation of a signed number as C does it.
trait CastUnsigned {
    type Unsigned;
    fn cast_unsigned_bits(self) -> Self::Unsigned;
}

impl CastUnsigned for i32 {
    type Unsigned = u32;

    fn cast_unsigned_bits(self) -> u32 {
        u32::from_ne_bytes(self.to_ne_bytes())
    }
}

impl CastUnsigned for i64 {
    type Unsigned = u64;

    fn cast_unsigned_bits(self) -> u64 {
        u64::from_ne_bytes(self.to_ne_bytes())
    }
}
