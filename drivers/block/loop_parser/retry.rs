// SPDX-License-Identifier: GPL-2.0

//! Data I/O to the backing file that failed for a reason that passes. Syncs and table writes are never
//! tried again: the pages are clean after a failed writeback, and the error is reported once.

use kernel::prelude::*;

/// How often such an I/O is tried.
const ATTEMPTS: u32 = 3;

/// Does an I/O that can be done from its beginning any number of times.
pub(crate) fn data<T>(mut io: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..ATTEMPTS {
        match io() {
            Err(EAGAIN | EINTR | ENOMEM) => {}
            result => return result,
        }
    }
    io()
}
