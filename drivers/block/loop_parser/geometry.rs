// SPDX-License-Identifier: GPL-2.0

//! Queue limits and direct I/O: what the device promises about sizes and alignments.

use kernel::prelude::*;

use crate::{
    contract::SECTOR_SIZE,
    device::{
        AttachedFile,
        Config,
        Device, //
    },
    sys::{
        bdev::{
            BlockDevice,
            OpenMode, //
        },
        bindings::{
            LO_FLAGS_DIRECT_IO,
            LO_FLAGS_READ_ONLY, //
        },
        disk::Disk,
        limits::{
            self,
            queue_limits,
            LimitsUpdate, //
        }, //
    }, //
};

const SECTOR: u32 = SECTOR_SIZE as u32;

/// Whether requests can go to the file directly.
///
/// A raw file: only if every request would be aligned. An image: where its extents lie is not known
/// beforehand, so alignment is looked at extent by extent.
pub(crate) fn can_use_direct(
    disk: &Disk<Device>,
    config: &Config,
    attached: &AttachedFile,
) -> bool {
    if !attached.file.can_direct() {
        return false;
    }
    if !attached.user.image().is_raw() {
        return attached.user.may_go_direct();
    }
    let unit = attached.align.offset;
    let mask = u64::from(unit.max(1) - 1);
    limits::logical_block_size(disk) >= unit && config.offset & mask == 0
}

/// Fills in the limits for a file. `block_size` 0 means the default.
pub(crate) fn update_limits(
    config: &Config,
    attached: &AttachedFile,
    limits: &mut queue_limits,
    block_size: u32,
) {
    let file = &attached.file;
    let size = if block_size == 0 {
        default_block_size(config, attached)
    } else {
        block_size
    };
    limits.logical_block_size = size;
    limits.physical_block_size = size;
    limits.io_min = size;
    set_dma_alignment(config, attached, limits);
    limits.features &= !(limits::FEAT_WRITE_CACHE | limits::FEAT_ROTATIONAL);
    if file.has_fsync() && !config.has_flag(LO_FLAGS_READ_ONLY) {
        limits.features |= limits::FEAT_WRITE_CACHE;
    }
    if file
        .backing_device()
        .is_some_and(BlockDevice::is_rotational)
    {
        limits.features |= limits::FEAT_ROTATIONAL;
    }
    let (sectors, granularity) = discard(config, attached);
    limits.max_hw_discard_sectors = sectors;
    limits.max_write_zeroes_sectors = write_zeroes(config, attached);
    limits.discard_granularity = if sectors == 0 { 0 } else { granularity };
}

/// Direct I/O to a raw file wants blocks of the file's own unit. Guest disks have sectors of 512
/// bytes.
fn default_block_size(config: &Config, attached: &AttachedFile) -> u32 {
    if config.has_flag(LO_FLAGS_DIRECT_IO) && attached.user.image().is_raw() {
        attached.align.offset
    } else {
        SECTOR
    }
}

fn set_dma_alignment(config: &Config, attached: &AttachedFile, limits: &mut queue_limits) {
    limits.dma_alignment = if config.has_flag(LO_FLAGS_DIRECT_IO) {
        attached.align.memory_mask.max(SECTOR - 1)
    } else {
        SECTOR - 1
    };
}

/// Sectors of a write-zeroes.
fn write_zeroes(config: &Config, attached: &AttachedFile) -> u32 {
    let image = attached.user.image();
    if image.is_raw() || image.disk().features.write_zeroes {
        discard(config, attached).0
    } else {
        0
    }
}

/// Discard sectors and granularity in bytes. A discard of a raw file punches a hole, of a block
/// device writes zeroes. In an image it does both; parsers know nothing of windows that begin within
/// a sector.
fn discard(config: &Config, attached: &AttachedFile) -> (u32, u32) {
    let image = attached.user.image();
    let mut parts = image.parts().users();
    let file = parts
        .next()
        .map_or(image.data(&attached.file), |part| part.file());
    let in_image = image.disk().features.discard && config.offset % SECTOR_SIZE == 0;
    if !image.is_raw() && !in_image {
        return (0, 0);
    }
    if let Some(bdev) = file.block_device() {
        return (bdev.write_zeroes_sectors(), bdev.discard_granularity());
    }
    if !file.has_fallocate() {
        return (0, 0);
    }
    file.fs_block_size()
        .map_or((0, 0), |size| (u32::MAX >> 9, size))
}

/// `LOOP_SET_DIRECT_IO`.
pub(crate) fn set_direct(device: &Device, config: &mut Config, enable: bool) -> Result {
    let disk = device.disk_ref();
    config.bound()?;
    if enable == config.has_flag(LO_FLAGS_DIRECT_IO) {
        return Ok(());
    }
    let attached = config.bound()?;
    if enable {
        if !can_use_direct(disk, config, attached) {
            return Err(EINVAL);
        }
        // Dirty pages first. An error of an image's tables is reported only once: not to be lost.
        let synced = attached.user.sync();
        if !attached.user.image().is_raw() {
            synced?;
        }
    }
    let mut limits = LimitsUpdate::start(disk);
    let frozen = disk.freeze();
    config.flags ^= LO_FLAGS_DIRECT_IO;
    set_dma_alignment(config, config.bound()?, &mut limits);
    config.enforce(&frozen);
    limits.commit()
}

/// `LOOP_SET_BLOCK_SIZE`.
pub(crate) fn set_block_size(
    device: &Device,
    bdev: &BlockDevice,
    mode: OpenMode,
    block_size: usize,
) -> Result {
    let _claim = if mode.exclusive() {
        None
    } else {
        Some(bdev.claim()?)
    };
    let disk = device.disk_ref();
    let mut config = device.config_killable()?;
    config.bound()?;
    if limits::logical_block_size(disk) as usize == block_size {
        return Ok(());
    }
    disk.sync_and_invalidate();
    let mut limits = LimitsUpdate::start(disk);
    let truncated = u32::try_from(block_size & 0xffff_ffff).map_err(|_| EINVAL)?;
    update_limits(&config, config.bound()?, &mut limits, truncated);
    let frozen = disk.freeze();
    let result = limits.commit();
    if config.has_flag(LO_FLAGS_DIRECT_IO) && !can_use_direct(disk, &config, config.bound()?) {
        config.flags &= !LO_FLAGS_DIRECT_IO;
        config.enforce(&frozen);
    }
    result
}

/// `LOOP_SET_CAPACITY`: looks at the size again.
pub(crate) fn set_capacity(device: &Device, config: &Config) -> Result {
    let attached = config.bound()?;
    let image = attached.user.image();
    image.reread_size(&attached.file).map_err(|error| {
        image.report(&error);
        Error::from_errno(error.to_errno())
    })?;
    device.disk_ref().set_capacity(config.capacity(attached));
    Ok(())
}
