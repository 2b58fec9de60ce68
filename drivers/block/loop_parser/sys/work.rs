// SPDX-License-Identifier: GPL-2.0

//! The work queue of a device, what a worker may do, and work for later.

use core::{
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::{
    ffi::{
        c_long,
        c_void, //
    },
    prelude::*,
    types::{
        NotThreadSafe,
        Opaque, //
    },
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

/// Runs `job` as a worker, in its context, and waits for it. The last writes to an image must not depend on
/// who happens to be the last one to use it: on that task's permissions and limits, or on whether it is
/// being killed. (A kernel that is not built for several processors runs it in place.)
pub(crate) fn in_worker(job: impl FnOnce() -> Result + Send) -> Result {
    // SAFETY: Looks at the current task only.
    if unsafe { bindings::lp_is_worker() } {
        let _context = WorkerContext::enter();
        return job();
    }
    let mut job = Job {
        job: Some(job),
        result: Err(EIO),
    };
    run_elsewhere(&mut job);
    job.result
}

/// What a worker is to do, and how that ended.
struct Job<F> {
    job: Option<F>,
    result: Result,
}

fn run_elsewhere<F: FnOnce() -> Result + Send>(job: &mut Job<F>) {
    // SAFETY: `run_job` is for jobs of this type. The call comes back when it has returned: until then
    // nobody else uses `job`, which can be sent to another task, as what is in it can.
    unsafe { bindings::lp_work_on_cpu(Some(run_job::<F>), ptr::from_mut(job).cast()) };
}

/// # Safety
///
/// `job` is a valid `Job<F>` that nobody else uses.
unsafe extern "C" fn run_job<F: FnOnce() -> Result>(job: *mut c_void) -> c_long {
    // SAFETY: By the requirement.
    let job = unsafe { &mut *job.cast::<Job<F>>() };
    let _context = WorkerContext::enter();
    if let Some(run) = job.job.take() {
        job.result = run();
    }
    0
}

/// The task may use the memory reserves while this lives (`PF_MEMALLOC`): what it does frees memory.
pub(crate) struct MemoryReserves {
    flags: u32,
    _not_send: NotThreadSafe,
}

impl MemoryReserves {
    /// Opens the reserves.
    pub(crate) fn open() -> Self {
        Self {
            // SAFETY: Changes flags of the current task only.
            flags: unsafe { bindings::lp_memalloc_noreclaim_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for MemoryReserves {
    fn drop(&mut self) {
        // SAFETY: Same task as in `open`, as this type is not `Send`.
        unsafe { bindings::lp_memalloc_noreclaim_restore(self.flags) };
    }
}

/// Something to be done some time after it was asked for.
pub(crate) trait Later: Send + Sync + 'static {
    /// Does it, in a worker. `true`: once more, as long after.
    fn run(&self) -> bool;
}

/// A value with work that can be asked for in advance. Dropping it calls the work off.
#[pin_data(PinnedDrop)]
pub(crate) struct Deferred<T: Later> {
    #[pin]
    work: Opaque<bindings::delayed_work>,
    seconds: u32,
    #[pin]
    value: T,
}

// SAFETY: Delayed work may be used from any thread.
unsafe impl<T: Later> Send for Deferred<T> {}
// SAFETY: See above.
unsafe impl<T: Later> Sync for Deferred<T> {}

impl<T: Later> Deferred<T> {
    /// Creates an initialiser. The work is done `seconds` after it was asked for; a processor that
    /// sleeps is not woken for it.
    pub(crate) fn new(seconds: u32, value: impl PinInit<T>) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes and pinned.
            work <- Opaque::ffi_init(|slot| unsafe {
                bindings::lp_init_deferrable_work(slot, Some(run_deferred::<T>));
            }),
            seconds,
            value <- value,
        })
    }

    /// Asks for the work, unless that was done already. From any context.
    pub(crate) fn ask(&self) {
        // SAFETY: The work was initialised by `new`, and dropping `self` cancels it.
        unsafe { bindings::lp_schedule_delayed_work(self.work.get(), self.seconds) };
    }
}

impl<T: Later> Deref for Deferred<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

#[pinned_drop]
impl<T: Later> PinnedDrop for Deferred<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The work was initialised by `new`. May sleep.
        unsafe { bindings::cancel_delayed_work_sync(self.work.get()) };
    }
}

/// # Safety
///
/// Only to be called by the work queue for the work of a `Deferred<T>`.
unsafe extern "C" fn run_deferred<T: Later>(work: *mut bindings::work_struct) {
    // SAFETY: By the requirement; the drop of the value waits for this function.
    let deferred = unsafe {
        let delayed = kernel::container_of!(work, bindings::delayed_work, work);
        &*kernel::container_of!(Opaque::cast_from(delayed), Deferred<T>, work)
    };
    if deferred.value.run() {
        deferred.ask();
    }
}
