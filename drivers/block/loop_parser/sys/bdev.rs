// SPDX-License-Identifier: GPL-2.0

//! Block devices: the one a call came through, and the ones that back files.

use kernel::{
    error::to_result,
    prelude::*,
    types::Opaque, //
};

use super::{
    bindings,
    disk::{
        device_of_disk,
        DiskOps, //
    }, //
};

/// A borrowed `struct block_device`.
#[repr(transparent)]
pub(crate) struct BlockDevice(Opaque<bindings::block_device>);

/// How a block device was opened.
#[derive(Clone, Copy)]
pub(crate) struct OpenMode(pub(super) bindings::blk_mode_t);

impl OpenMode {
    /// Open for writing.
    pub(crate) fn write(self) -> bool {
        self.0 & bindings::LP_BLK_OPEN_WRITE != 0
    }

    /// Open exclusively.
    pub(crate) fn exclusive(self) -> bool {
        self.0 & bindings::LP_BLK_OPEN_EXCL != 0
    }
}

impl BlockDevice {
    /// # Safety
    ///
    /// `ptr` is a block device that lives at least as long as `'a`.
    pub(super) unsafe fn from_raw<'a>(ptr: *mut bindings::block_device) -> &'a Self {
        // SAFETY: By the requirement, and `Self` is transparent.
        unsafe { &*ptr.cast() }
    }

    fn as_ptr(&self) -> *mut bindings::block_device {
        self.0.get()
    }

    /// Whether this is a loop device (or a partition of one) that belongs to the C driver, which has
    /// the loop devices' major number when driver `T` has not.
    pub(crate) fn is_of_stock_loop<T: DiskOps>(&self) -> bool {
        // SAFETY: The disk lives as long as its block devices; its major number is constant.
        let major = unsafe { (*(*self.as_ptr()).bd_disk).major };
        u32::try_from(major) == Ok(bindings::LP_LOOP_MAJOR) && self.driver_data::<T>().is_none()
    }

    /// Size in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        // SAFETY: The device is valid.
        unsafe { bindings::lp_bdev_nr_sectors(self.as_ptr()) }
    }

    /// Whether the device can only be read.
    pub(crate) fn is_read_only(&self) -> bool {
        // SAFETY: The device is valid.
        unsafe { bindings::lp_bdev_read_only(self.as_ptr()) }
    }

    /// The driver's device, if this is a disk (or a partition) of this very driver.
    pub(crate) fn driver_data<T: DiskOps>(&self) -> Option<&T> {
        // SAFETY: The disk lives as long as its block devices.
        unsafe { device_of_disk::<T>((*self.as_ptr()).bd_disk) }
    }

    /// Logical block size in bytes.
    pub(crate) fn logical_block_size(&self) -> u32 {
        // SAFETY: The device is valid.
        unsafe { bindings::lp_bdev_logical_block_size(self.as_ptr()) }
    }

    /// Memory alignment that I/O needs, as a mask.
    pub(crate) fn dma_alignment(&self) -> u32 {
        // SAFETY: The device is valid.
        unsafe { bindings::lp_bdev_dma_alignment(self.as_ptr()) }
    }

    /// Whether the device rotates.
    pub(crate) fn is_rotational(&self) -> bool {
        // SAFETY: The device is valid.
        unsafe { bindings::lp_bdev_rot(self.as_ptr()) }
    }

    /// Most sectors of one write-zeroes command.
    pub(crate) fn write_zeroes_sectors(&self) -> u32 {
        // SAFETY: The device is valid.
        unsafe { bindings::lp_bdev_write_zeroes_sectors(self.as_ptr()) }
    }

    /// Discard granularity in bytes.
    pub(crate) fn discard_granularity(&self) -> u32 {
        // SAFETY: The device is valid.
        unsafe { bindings::lp_bdev_discard_granularity(self.as_ptr()) }
    }

    /// Claims the device for the time of a reconfiguration; `EBUSY` if somebody else has it.
    pub(crate) fn claim(&self) -> Result<Claim<'_>> {
        // SAFETY: The device is valid; `CLAIM_HOLDER` is the address of a static, unique to us.
        to_result(unsafe {
            bindings::bd_prepare_to_claim(
                self.as_ptr(),
                (&raw const CLAIM_HOLDER).cast_mut().cast(),
                core::ptr::null(),
            )
        })?;
        Ok(Claim(self))
    }
}

/// Its address tells the block layer who holds a claim.
static CLAIM_HOLDER: u8 = 0;

/// A claim on a block device, given back when dropped.
pub(crate) struct Claim<'a>(&'a BlockDevice);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // SAFETY: The claim was made in `BlockDevice::claim` with the same holder.
        unsafe {
            bindings::bd_abort_claiming(
                self.0.as_ptr(),
                (&raw const CLAIM_HOLDER).cast_mut().cast(),
            )
        };
    }
}
