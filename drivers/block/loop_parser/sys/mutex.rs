// SPDX-License-Identifier: GPL-2.0

//! A mutex that a fatal signal can interrupt.
//!
//! The kernel crate's mutex has no `mutex_lock_killable()`. An ioctl may wait long for a device
//! whose backing store hangs; killing the caller must work as it does with the C driver.

use core::{
    cell::UnsafeCell,
    ops::{
        Deref,
        DerefMut, //
    },
    pin::Pin, //
};

use kernel::{
    error::to_result,
    prelude::*,
    sync::LockClassKey,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};

use super::bindings;

/// A sleeping lock around `T`.
#[pin_data]
pub(crate) struct KillableMutex<T> {
    #[pin]
    raw: Opaque<bindings::mutex>,
    data: UnsafeCell<T>,
}

// SAFETY: The lock can be sent to another thread if the data can.
unsafe impl<T: Send> Send for KillableMutex<T> {}
// SAFETY: The lock gives access to the data to one thread at a time.
unsafe impl<T: Send> Sync for KillableMutex<T> {}

impl<T> KillableMutex<T> {
    /// Creates an initialiser; `key` tells lockdep the class of the lock.
    pub(crate) fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes, pinned, and `name` and `key` live for ever.
            raw <- Opaque::ffi_init(|slot| unsafe {
                bindings::lp_mutex_init(slot, name.as_char_ptr(), key.as_ptr())
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// A lock for a static, to be initialised by [`KillableMutex::init`].
    ///
    /// # Safety
    ///
    /// `init` is called before any other method.
    pub(super) const unsafe fn uninit(data: T) -> Self {
        Self {
            raw: Opaque::uninit(),
            data: UnsafeCell::new(data),
        }
    }

    /// Initialises what `uninit` made.
    ///
    /// # Safety
    ///
    /// Called once, and only for what `uninit` made.
    pub(super) unsafe fn init(&'static self, name: &'static CStr, key: Pin<&'static LockClassKey>) {
        // SAFETY: `self` is static and so does not move; nobody uses the lock yet.
        unsafe { bindings::lp_mutex_init(self.raw.get(), name.as_char_ptr(), key.as_ptr()) }
    }

    /// Locks; `EINTR` if the task was killed while it waited.
    pub(crate) fn lock_killable(&self) -> Result<MutexGuard<'_, T>> {
        // SAFETY: The mutex was initialised by `new`.
        to_result(unsafe { bindings::lp_mutex_lock_killable(self.raw.get()) })?;
        Ok(MutexGuard {
            lock: self,
            _not_send: NotThreadSafe,
        })
    }

    /// Locks, whatever happens to the task meanwhile.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        // SAFETY: The mutex was initialised by `new`.
        unsafe { bindings::mutex_lock(self.raw.get()) };
        MutexGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// Access to the data of a locked [`KillableMutex`].
///
/// # Invariants
///
/// The task holds the lock.
pub(crate) struct MutexGuard<'a, T> {
    lock: &'a KillableMutex<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the invariant this task alone may touch the data.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the invariant this task alone may touch the data.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the invariant the task holds the lock.
        unsafe { bindings::mutex_unlock(self.lock.raw.get()) };
    }
}
