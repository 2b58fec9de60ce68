// SPDX-License-Identifier: GPL-2.0

//! Module parameters. They are declared in `shim.c`, because the kernel crate's parameters know
//! neither strings nor a setter of their own.

use kernel::prelude::*;

use super::bindings;

/// Parameters that are set when the module is loaded and never again.
#[derive(Clone, Copy)]
pub(crate) struct LoadTime {
    /// Devices to create at start; a limit for on-demand creation if it was given.
    pub(crate) max_loop: i32,
    /// Whether `max_loop` was given.
    pub(crate) max_loop_specified: bool,
    /// Partitions per device.
    pub(crate) max_part: i32,
    /// Requests in flight per device.
    pub(crate) hw_queue_depth: u32,
}

/// Reads the load-time parameters.
pub(crate) fn load_time() -> LoadTime {
    // SAFETY: These variables change only while the module is being loaded, before its init runs.
    unsafe {
        LoadTime {
            max_loop: bindings::lp_max_loop,
            max_loop_specified: bindings::lp_max_loop_specified,
            max_part: bindings::lp_max_part,
            hw_queue_depth: bindings::lp_hw_queue_depth.unsigned_abs(),
        }
    }
}

/// Stores the value of `max_part` that is in force, for user space to read.
pub(crate) fn set_max_part(value: i32) {
    // SAFETY: Called from module init only, before anything of the driver can be reached; sysfs
    // reads an aligned `int`, which cannot tear.
    unsafe { bindings::lp_max_part = value };
}

/// Whether formats are recognised (`loop.autodetect`).
pub(crate) fn autodetect() -> bool {
    // SAFETY: An aligned `bool`, written by the parameter code as a single byte.
    unsafe { (&raw const bindings::lp_autodetect).read_volatile() }
}

/// Longest parser choice, including the terminating NUL.
pub(crate) const PARSER_NAME_MAX: usize = bindings::LP_PARSER_NAME_MAX as usize;

/// Copies `loop.parser` into `buf` and returns the part that was filled.
pub(crate) fn default_parser(buf: &mut [u8; PARSER_NAME_MAX]) -> &[u8] {
    // SAFETY: The shim writes at most `LP_PARSER_NAME_MAX` bytes, NUL included.
    unsafe { bindings::lp_default_parser(buf.as_mut_ptr().cast()) };
    CStr::from_bytes_until_nul(buf).map_or(&[], CStr::to_bytes)
}
