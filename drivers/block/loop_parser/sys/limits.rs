// SPDX-License-Identifier: GPL-2.0

//! Queue limits. Locking: the limits lock comes before a queue freeze.

use core::{
    mem::MaybeUninit,
    ops::{
        Deref,
        DerefMut, //
    }, //
};

use kernel::{
    error::to_result,
    prelude::*,
    types::NotThreadSafe, //
};

use super::{
    bindings,
    disk::{
        Disk,
        DiskOps, //
    }, //
};

pub(crate) use super::bindings::queue_limits;
pub(crate) use super::bindings::{
    LP_BLK_FEAT_ROTATIONAL as FEAT_ROTATIONAL,
    LP_BLK_FEAT_WRITE_CACHE as FEAT_WRITE_CACHE, //
};

/// An update of a disk's limits, under the limits lock. Nothing changes unless it is committed.
///
/// # Invariants
///
/// The task holds the limits lock of the disk's queue.
pub(crate) struct LimitsUpdate<'a, T: DiskOps> {
    disk: &'a Disk<T>,
    limits: queue_limits,
    _not_send: NotThreadSafe,
}

impl<'a, T: DiskOps> LimitsUpdate<'a, T> {
    /// Takes the lock and a copy of the limits in force.
    pub(crate) fn start(disk: &'a Disk<T>) -> Self {
        let mut limits = MaybeUninit::<queue_limits>::zeroed();
        // SAFETY: The queue is valid; the call fills `limits`: numbers, of which all zero is valid,
        // too.
        let limits = unsafe {
            bindings::lp_queue_limits_start_update(disk.queue(), limits.as_mut_ptr());
            limits.assume_init()
        };
        Self {
            disk,
            limits,
            _not_send: NotThreadSafe,
        }
    }

    /// The same, if nobody holds the lock.
    pub(crate) fn try_start(disk: &'a Disk<T>) -> Option<Self> {
        let mut limits = MaybeUninit::<queue_limits>::zeroed();
        // SAFETY: As in `start`.
        let (limits, locked) = unsafe {
            let locked =
                bindings::lp_queue_limits_try_start_update(disk.queue(), limits.as_mut_ptr());
            (limits.assume_init(), locked)
        };
        // Not `then_some`: to drop a value is to unlock.
        locked.then(|| Self {
            disk,
            limits,
            _not_send: NotThreadSafe,
        })
    }

    /// Puts the changed limits in force; `EINVAL` if they make no sense. For a disk without I/O, or
    /// one that is frozen: requests could see half of the change.
    pub(crate) fn commit(mut self) -> Result {
        // SAFETY: The lock is held since `start`; the call drops it.
        let ret =
            unsafe { bindings::queue_limits_commit_update(self.disk.queue(), &mut self.limits) };
        core::mem::forget(self);
        to_result(ret)
    }
}

impl<T: DiskOps> Deref for LimitsUpdate<'_, T> {
    type Target = queue_limits;

    fn deref(&self) -> &queue_limits {
        &self.limits
    }
}

impl<T: DiskOps> DerefMut for LimitsUpdate<'_, T> {
    fn deref_mut(&mut self) -> &mut queue_limits {
        &mut self.limits
    }
}

impl<T: DiskOps> Drop for LimitsUpdate<'_, T> {
    fn drop(&mut self) {
        // SAFETY: The lock is held since `start`; this is what `queue_limits_cancel_update` does.
        unsafe { bindings::mutex_unlock(&raw mut (*self.disk.queue()).limits_lock) };
    }
}

/// The logical block size in force, in bytes.
pub(crate) fn logical_block_size<T: DiskOps>(disk: &Disk<T>) -> u32 {
    // SAFETY: The queue is valid; an aligned word that changes only under the limits lock.
    unsafe { (&raw const (*disk.queue()).limits.logical_block_size).read_volatile() }
}

/// Whether discards are advertised.
pub(crate) fn has_discard<T: DiskOps>(disk: &Disk<T>) -> bool {
    // SAFETY: As above.
    unsafe { (&raw const (*disk.queue()).limits.max_discard_sectors).read_volatile() != 0 }
}
