// SPDX-License-Identifier: GPL-2.0

//! Whom I/O is charged to: the control group of the task that caused it.

use core::ptr::NonNull;

use kernel::{
    ffi::c_void,
    types::NotThreadSafe, //
};

use super::bindings;

/// A counted reference to the blkio side of a control group other than the root.
///
/// # Invariants
///
/// The pointer is valid and this value owns one reference to it.
pub(crate) struct BlockCgroup(NonNull<c_void>);

// SAFETY: These are reference-counted and shared between threads.
unsafe impl Send for BlockCgroup {}
// SAFETY: See above.
unsafe impl Sync for BlockCgroup {}

impl BlockCgroup {
    /// Takes a reference.
    ///
    /// # Safety
    ///
    /// `css` is valid: somebody holds a reference.
    pub(super) unsafe fn get(css: NonNull<c_void>) -> Self {
        // SAFETY: By the requirement.
        unsafe { bindings::lp_css_get(css.as_ptr()) };
        // INVARIANT: The reference was just taken.
        Self(css)
    }

    /// What tells it from all others that are referred to.
    pub(crate) fn key(&self) -> usize {
        self.0.as_ptr() as usize
    }
}

impl Drop for BlockCgroup {
    fn drop(&mut self) {
        // SAFETY: By the invariant the reference is ours.
        unsafe { bindings::lp_css_put(self.0.as_ptr()) };
    }
}

/// The current task, a kernel thread, does block I/O and allocates page cache in the name of a
/// control group until this is dropped.
pub(crate) struct Attribution {
    memory: Option<NonNull<c_void>>,
    previous: *mut c_void,
    _not_send: NotThreadSafe,
}

impl Attribution {
    /// Begins. Memory goes to the nearest group that counts memory, as with the C driver.
    pub(crate) fn enter(cgroup: &BlockCgroup) -> Self {
        // SAFETY: The group is valid by its invariant; the calls concern the current task only. A
        // task that is no kernel thread is left alone.
        unsafe {
            let css = cgroup.0.as_ptr();
            bindings::lp_associate_blkcg(css);
            let memory = NonNull::new(bindings::lp_get_memory_css(css));
            let previous = memory.map_or(core::ptr::null_mut(), |memory| {
                bindings::lp_set_active_memory(memory.as_ptr())
            });
            Self {
                memory,
                previous,
                _not_send: NotThreadSafe,
            }
        }
    }
}

impl Drop for Attribution {
    fn drop(&mut self) {
        // SAFETY: Same task as in `enter`, as this type is not `Send`; the reference to the memory
        // side was taken there.
        unsafe {
            bindings::lp_associate_blkcg(core::ptr::null_mut());
            if let Some(memory) = self.memory {
                bindings::lp_restore_active_memory(self.previous);
                bindings::lp_css_put(memory.as_ptr());
            }
        }
    }
}
