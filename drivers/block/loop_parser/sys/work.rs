// SPDX-License-Identifier: GPL-2.0

//! The work queue of a device, and what a worker may do.

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    types::NotThreadSafe,
    workqueue::Queue, //
};

use super::bindings;

/// An owned work queue.
///
/// # Invariants
///
/// The pointer is a work queue that this value owns.
pub(crate) struct WorkQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Work queues may be used from any thread.
unsafe impl Send for WorkQueue {}
// SAFETY: Work queues exist to be shared.
unsafe impl Sync for WorkQueue {}

impl WorkQueue {
    /// Allocates the work queue of device `number`, like the C driver's: unbound and freezable.
    pub(crate) fn new(number: u32) -> Result<Self> {
        let number = i32::try_from(number).map_err(|_| EINVAL)?;
        // SAFETY: May sleep, as documented; nothing else is required.
        let queue = unsafe { bindings::lp_alloc_workqueue(number) };
        Ok(Self(NonNull::new(queue).ok_or(ENOMEM)?))
    }

    /// The kernel crate's view of it.
    pub(crate) fn queue(&self) -> &Queue {
        // SAFETY: By the invariant the work queue lives as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }

    /// Waits for everything that was queued so far.
    pub(crate) fn flush(&self) {
        // SAFETY: By the invariant the work queue is valid. May sleep.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: By the invariant it is ours, and nobody borrows it; the call waits for what is
        // queued. The owner flushed it, so that is not the very work that may be dropping it.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}

/// Marks the task as one that works for the block layer: its allocations start no I/O
/// (`PF_MEMALLOC_NOIO`) and its dirtying of pages is throttled by its own device only
/// (`PF_LOCAL_THROTTLE`). The task's flags are restored when this is dropped.
pub(crate) struct WorkerContext {
    flags: u32,
    _not_send: NotThreadSafe,
}

impl WorkerContext {
    /// Enters the context.
    pub(crate) fn enter() -> Self {
        Self {
            // SAFETY: Changes flags of the current task only.
            flags: unsafe { bindings::lp_worker_begin() },
            _not_send: NotThreadSafe,
        }
    }

    /// Lets other tasks run if one waits for this processor.
    pub(crate) fn cond_resched(&self) {
        // SAFETY: A worker may sleep.
        unsafe { bindings::lp_cond_resched() };
    }
}

impl Drop for WorkerContext {
    fn drop(&mut self) {
        // SAFETY: Same task as in `enter`, as this type is not `Send`.
        unsafe { bindings::lp_worker_end(self.flags) };
    }
}
