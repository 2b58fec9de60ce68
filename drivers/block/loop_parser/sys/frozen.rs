// SPDX-License-Identifier: GPL-2.0

//! What requests in flight look at without a lock.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    prelude::*,
    sync::atomic::{
        ordering::{
            Acquire,
            Full, //
        },
        Atomic, //
    }, //
};

/// A value that may be replaced only while no request is in flight.
///
/// # Invariants
///
/// The word is 0 or the address of a `T` that came from a `KBox` and belongs to this cell.
pub(crate) struct FrozenCell<T> {
    word: Atomic<usize>,
    _owns: PhantomData<KBox<T>>,
}

// SAFETY: The cell hands out shared references and owned boxes.
unsafe impl<T: Send> Send for FrozenCell<T> {}
// SAFETY: See above.
unsafe impl<T: Send + Sync> Sync for FrozenCell<T> {}

impl<T> FrozenCell<T> {
    /// An empty cell.
    pub(super) const fn new() -> Self {
        Self {
            word: Atomic::new(0),
            _owns: PhantomData,
        }
    }

    /// The value.
    ///
    /// # Safety
    ///
    /// A request is in flight in the queue that is frozen for [`FrozenCell::replace`], and stays so
    /// for the lifetime of the reference.
    pub(super) unsafe fn get(&self) -> Option<&T> {
        let ptr = self.word.load(Acquire) as *const T;
        // SAFETY: By the invariant; the value cannot be replaced while the request is in flight.
        unsafe { ptr.as_ref() }
    }

    /// Puts a value into an empty cell; gives it back if there is one already.
    pub(super) fn install(&self, value: KBox<T>) -> core::result::Result<(), KBox<T>> {
        let new = KBox::into_raw(value);
        match self.word.cmpxchg(0, new as usize, Full) {
            // INVARIANT: The cell was empty and owns the box now.
            Ok(_) => Ok(()),
            // SAFETY: It came from `into_raw` above and was not stored.
            Err(_) => Err(unsafe { KBox::from_raw(new) }),
        }
    }

    /// Replaces the value and returns the old one.
    ///
    /// # Safety
    ///
    /// No request is in flight in the queue.
    pub(super) unsafe fn replace(&self, value: Option<KBox<T>>) -> Option<KBox<T>> {
        let new = value.map_or(0, |value| KBox::into_raw(value) as usize);
        let old = self.word.xchg(new, Full) as *mut T;
        // SAFETY: By the invariant it came from `KBox::into_raw`; by the requirement nobody else
        // refers to it.
        NonNull::new(old).map(|old| unsafe { KBox::from_raw(old.as_ptr()) })
    }
}

impl<T> Drop for FrozenCell<T> {
    fn drop(&mut self) {
        // SAFETY: Nobody can have a reference into a cell that is being dropped.
        drop(unsafe { self.replace(None) });
    }
}
