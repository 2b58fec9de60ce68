// SPDX-License-Identifier: GPL-2.0

//! Module parameters. A front module declares them in C (`front/params.h`), because the kernel
//! crate's parameters know neither strings nor a setter of their own.

use kernel::prelude::*;

use super::bindings;

/// The parameters of a front module.
///
/// # Invariants
///
/// The pointer is that of a variable of `module`, which the kernel's parameter code may write to at
/// any time, and nobody else but [`Params::set_max_part`]. The module stays loaded as long as this
/// is used: by its own init, by callers who have a device or the control node of it open, or by
/// those whom unloading it waits for.
#[derive(Clone, Copy)]
pub struct Params {
    raw: *mut bindings::lp_params,
    module: &'static ThisModule,
}

// SAFETY: The variable belongs to no thread.
unsafe impl Send for Params {}
// SAFETY: What may be written to while it is read is read by words that cannot tear, or under the
// lock of the module's parameters; see each method.
unsafe impl Sync for Params {}

/// Longest parser choice, including the terminating NUL.
pub(crate) const PARSER_NAME_MAX: usize = bindings::LP_PARSER_NAME_MAX as usize;

/// Which files an image may name; in the order of `front/params.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parents {
    /// None.
    None,
    /// Those in its own folder, and below.
    Beneath,
    /// All.
    Any,
}

impl Params {
    /// # Safety
    ///
    /// `raw` is a variable of `module`, written by the kernel's parameter code only.
    pub unsafe fn new(raw: *mut bindings::lp_params, module: &'static ThisModule) -> Self {
        // INVARIANT: By the requirement.
        Self { raw, module }
    }

    /// Devices to create at start.
    pub(crate) fn max_loop(&self) -> i32 {
        // SAFETY: By the invariant; its mode is 0444: written only before the module's init.
        unsafe { (*self.raw).max_loop }
    }

    /// Whether `max_loop` was given: then it limits creation on demand, too.
    pub(crate) fn max_loop_specified(&self) -> bool {
        // SAFETY: As in `max_loop`.
        unsafe { (*self.raw).max_loop_specified }
    }

    /// Partitions per device.
    pub(crate) fn max_part(&self) -> i32 {
        // SAFETY: As in `max_loop`.
        unsafe { (&raw const (*self.raw).max_part).read_volatile() }
    }

    /// Stores the value of `max_part` that is in force, for user space to read.
    pub(crate) fn set_max_part(&self, value: i32) {
        // SAFETY: By the invariant. The parameter code only reads it by now (its mode is 0444), and
        // an aligned `int` cannot tear.
        unsafe { (&raw mut (*self.raw).max_part).write_volatile(value) };
    }

    /// Requests in flight per device.
    pub(crate) fn hw_queue_depth(&self) -> u32 {
        // SAFETY: As in `max_loop`.
        unsafe { (*self.raw).hw_queue_depth }.unsigned_abs()
    }

    /// Number of the first device.
    pub(crate) fn first(&self) -> i32 {
        // SAFETY: As in `max_loop`.
        unsafe { (*self.raw).first }
    }

    /// Whether formats are recognised.
    pub(crate) fn autodetect(&self) -> bool {
        // SAFETY: By the invariant; an aligned `bool`, written as a single byte.
        unsafe { (&raw const (*self.raw).autodetect).read_volatile() }
    }

    /// Which files an image may name whose format was recognised.
    pub(crate) fn parents(&self) -> Parents {
        // SAFETY: By the invariant; an aligned `int` cannot tear.
        match unsafe { (&raw const (*self.raw).parents).read_volatile() } {
            2 => Parents::Any,
            1 => Parents::Beneath,
            _ => Parents::None,
        }
    }

    /// Copies the default choice of parser into `buf` and returns the part that was filled.
    pub(crate) fn default_parser<'a>(&self, buf: &'a mut [u8; PARSER_NAME_MAX]) -> &'a [u8] {
        // SAFETY: By the invariant; the shim takes the lock of the module's parameters and writes
        // at most `LP_PARSER_NAME_MAX` bytes, NUL included.
        unsafe {
            bindings::lp_read_string_param(
                self.module.as_ptr(),
                buf.as_mut_ptr().cast(),
                (&raw const (*self.raw).parser).cast(),
            );
        }
        CStr::from_bytes_until_nul(buf).map_or(&[], CStr::to_bytes)
    }
}
