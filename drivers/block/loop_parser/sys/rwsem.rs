// SPDX-License-Identifier: GPL-2.0

//! A read-write semaphore whose read side may be released by another context.
//!
//! Keeps direct writes in flight (many at a time, each ended by an I/O completion) apart from
//! buffered writes to the same file (one at a time).

use kernel::{
    prelude::*,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};

use super::bindings;

/// `struct rw_semaphore`.
#[pin_data]
pub(crate) struct RwSemaphore {
    #[pin]
    raw: Opaque<bindings::rw_semaphore>,
}

// SAFETY: A semaphore may be used from any thread.
unsafe impl Send for RwSemaphore {}
// SAFETY: A semaphore exists to be shared.
unsafe impl Sync for RwSemaphore {}

impl RwSemaphore {
    /// Creates an initialiser.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes and pinned.
            raw <- Opaque::ffi_init(|slot| unsafe { bindings::lp_init_rwsem(slot) }),
        })
    }

    /// Waits for all readers to be gone and keeps new ones out while the guard lives.
    pub(crate) fn write(&self) -> WriteGuard<'_> {
        // SAFETY: The semaphore was initialised by `new`.
        unsafe { bindings::down_write(self.raw.get()) };
        WriteGuard {
            sem: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Enters the read side. May sleep.
    pub(super) fn down_read(&self) {
        // SAFETY: The semaphore was initialised by `new`.
        unsafe { bindings::lp_down_read_non_owner(self.raw.get()) };
    }

    /// Leaves the read side, from any context: does not sleep, and its lock keeps interrupts off.
    ///
    /// # Safety
    ///
    /// Balances exactly one [`RwSemaphore::down_read`].
    pub(super) unsafe fn up_read(&self) {
        // SAFETY: The read side is held by the requirement of this function.
        unsafe { bindings::lp_up_read_non_owner(self.raw.get()) };
    }
}

/// The write side of a [`RwSemaphore`].
pub(crate) struct WriteGuard<'a> {
    sem: &'a RwSemaphore,
    _not_send: NotThreadSafe,
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: The guard proves that the task holds the write side.
        unsafe { bindings::up_write(self.sem.raw.get()) };
    }
}
