// SPDX-License-Identifier: GPL-2.0

//! Waiting for requests that are on their way: sleepable RCU.
//!
//! Like [`kernel::sync::Srcu`], but with readers that may leave in another context than they have
//! entered in, as the completion of an I/O does.

use kernel::{
    prelude::*,
    types::Opaque, //
};

use super::bindings;

/// `struct srcu_struct`. Dropping it may sleep.
///
/// # Invariants
///
/// It was initialised.
#[pin_data(PinnedDrop)]
pub(crate) struct Epochs {
    #[pin]
    raw: Opaque<bindings::srcu_struct>,
}

// SAFETY: It may be used from any thread.
unsafe impl Send for Epochs {}
// SAFETY: It exists to be shared.
unsafe impl Sync for Epochs {}

impl Epochs {
    /// Creates an initialiser. Fails for want of memory.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // INVARIANT: Else there is no value.
            raw <- Opaque::try_ffi_init(|slot| {
                // SAFETY: `slot` is valid for writes and pinned.
                kernel::error::to_result(unsafe { bindings::lp_init_srcu(slot) })
            }),
        })
    }

    /// Enters: [`Epochs::wait`] waits until the guard is gone. Does not sleep.
    pub(crate) fn enter(&self) -> Epoch<'_> {
        // SAFETY: By the invariant.
        let index = unsafe { bindings::lp_srcu_down_read(self.raw.get()) };
        Epoch {
            epochs: self,
            index,
        }
    }

    /// Waits for all who have entered before the call. May sleep. Not to be called by one of them,
    /// or with something held that one of them may wait for.
    pub(crate) fn wait(&self) {
        // SAFETY: By the invariant.
        unsafe { bindings::synchronize_srcu_expedited(self.raw.get()) };
    }
}

#[pinned_drop]
impl PinnedDrop for Epochs {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the invariant. Guards borrow the value, and those that were taken apart belong to
        // requests, which end before what they are bound to goes: nobody is inside.
        unsafe { bindings::cleanup_srcu_struct(self.raw.get()) };
    }
}

/// Somebody who has entered.
pub(crate) struct Epoch<'a> {
    epochs: &'a Epochs,
    index: i32,
}

impl Epoch<'_> {
    /// Takes the guard apart, for [`leave`].
    pub(super) fn into_raw(self) -> (*const Epochs, i32) {
        let raw = (core::ptr::from_ref(self.epochs), self.index);
        core::mem::forget(self);
        raw
    }
}

impl Drop for Epoch<'_> {
    fn drop(&mut self) {
        // SAFETY: `enter` has returned this index, and the guard leaves once.
        unsafe { leave(self.epochs, self.index) };
    }
}

/// Leaves. From any context but an NMI: tree SRCU, which Kconfig asks for, allows that.
///
/// # Safety
///
/// The arguments come from [`Epoch::into_raw`], once, and the value still exists.
pub(super) unsafe fn leave(epochs: *const Epochs, index: i32) {
    // SAFETY: By the requirement, and the invariant of the value.
    unsafe { bindings::lp_srcu_up_read((*epochs).raw.get(), index) };
}
