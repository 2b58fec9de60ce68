// SPDX-License-Identifier: GPL-2.0

//! Requests waiting for a worker.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::SpinLockIrq, //
};

use super::{
    bindings,
    disk::DiskOps,
    request::{
        Command,
        Request, //
    }, //
};

/// How many workers may serve one backlog.
pub(crate) const WORKERS: u32 = 4;

struct List {
    head: Option<NonNull<bindings::request>>,
    tail: Option<NonNull<bindings::request>>,
    len: u32,
    /// Bit n: worker n was woken and has not found the list empty yet.
    awake: u32,
}

// SAFETY: The list owns its requests, each of which was a `Request`, which is `Send`.
unsafe impl Send for List {}

/// A first-in, first-out list of requests, linked through their own memory.
#[pin_data]
pub(crate) struct Backlog<T: DiskOps> {
    #[pin]
    list: SpinLockIrq<List>,
    _driver: PhantomData<T>,
}

impl<T: DiskOps> Backlog<T> {
    /// Creates an initialiser for an empty list.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_spinlock_irq!(List {
                head: None,
                tail: None,
                len: 0,
                awake: 0,
            }),
            _driver: PhantomData,
        })
    }

    /// Appends a request, from any context. Returns the number of the worker to wake, if one more
    /// is wanted: the first, and more only as the list grows faster than it is served.
    #[must_use]
    pub(crate) fn push(&self, request: Request<T>) -> Option<u32> {
        let raw = request.into_raw();
        let mut list = self.list.lock();
        // SAFETY: The list owns the request now, and with it its command.
        unsafe { (*command(raw)).next = None };
        match list.tail.replace(raw) {
            // SAFETY: The list owns all its requests.
            Some(last) => unsafe { (*command(last)).next = Some(raw) },
            None => list.head = Some(raw),
        }
        list.len = list.len.saturating_add(1);
        let awake = list.awake.count_ones();
        if awake >= WORKERS || list.len <= awake.saturating_mul(2) {
            return None;
        }
        let worker = list.awake.trailing_ones();
        list.awake |= 1u32.checked_shl(worker)?;
        Some(worker)
    }

    /// Whether there is nothing to do and no worker is doing anything.
    pub(crate) fn is_idle(&self) -> bool {
        let list = self.list.lock();
        list.head.is_none() && list.awake == 0
    }

    /// Takes the oldest request. `None`: the list is empty and `worker` is asleep from now on.
    pub(crate) fn pop(&self, worker: u32) -> Option<Request<T>> {
        let mut list = self.list.lock();
        let Some(raw) = list.head else {
            list.awake &= !1u32.checked_shl(worker).unwrap_or(0);
            return None;
        };
        // SAFETY: The list owns all its requests.
        list.head = unsafe { (*command(raw)).next };
        if list.head.is_none() {
            list.tail = None;
        }
        list.len = list.len.saturating_sub(1);
        drop(list);
        // SAFETY: It came from `into_raw` in `push` and has just left the list.
        Some(unsafe { Request::from_raw(raw) })
    }
}

/// The private memory of a request; whether it may be looked at is up to the caller.
fn command(raw: NonNull<bindings::request>) -> *mut Command {
    // SAFETY: Computes an address from another, and looks at neither.
    unsafe { bindings::blk_mq_rq_to_pdu(raw.as_ptr()) }.cast()
}
