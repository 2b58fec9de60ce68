// SPDX-License-Identifier: GPL-2.0

//! Whether the file system of an image has holes.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use crate::sys::file::BackingFile;

/// Whether a file can have holes, as far as that is known.
pub(crate) struct Holes(Atomic<u32>);

const UNKNOWN: u32 = 0;
const THERE: u32 = 1;
const NOT_THERE: u32 = 2;

/// What is punched to find out begins at a multiple of this many bytes, and is so long: no block of a
/// file system is larger.
const STEP: u64 = 1024 * 1024;

impl Holes {
    pub(crate) fn new() -> Self {
        Self(Atomic::new(UNKNOWN))
    }

    /// Whether holes can be punched into `file`. Only who may write to it asks, with the image locked: a
    /// file system says so only when it is asked for one, and the first one is asked for behind the end of
    /// the file, where there is nothing.
    pub(crate) fn are_there(&self, file: &BackingFile) -> bool {
        let known = self.0.load(Relaxed);
        if known != UNKNOWN {
            return known == THERE;
        }
        let are_there = can_punch_behind(file);
        let now = if are_there { THERE } else { NOT_THERE };
        self.0.store(now, Relaxed);
        are_there
    }
}

fn can_punch_behind(file: &BackingFile) -> bool {
    let Some(end) = file.size().checked_next_multiple_of(STEP) else {
        return false;
    };
    !matches!(file.punch_hole(end, STEP), Err(error) if error == EOPNOTSUPP)
}
