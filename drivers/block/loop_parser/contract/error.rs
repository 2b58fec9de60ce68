// SPDX-License-Identifier: GPL-2.0

//! Why a file, or one I/O on it, was refused.

/// What is wrong with an image, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong, in words that make sense in a kernel log ("BAT entry past the end of file").
    pub what: &'static str,
    /// Host offset in bytes of the field or table entry that shows it.
    pub at: u64,
}

impl Fault {
    /// Names a fault found at host offset `at`.
    pub const fn new(what: &'static str, at: u64) -> Self {
        Self { what, at }
    }
}

/// The outcome of a contract call that did not succeed.
///
/// Format code answers with these; the driver turns them into an errno (see [`Error::to_errno`])
/// and into at most one kernel-log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Non-blocking mode only: a table is not in the page cache. Ask again from a context that may
    /// sleep. Never seen outside the driver.
    WouldBlock,
    /// The backing store failed; the negative errno it gave.
    Store(i32),
    /// The image contradicts its specification or itself.
    Malformed(Fault),
    /// A valid image that needs something this parser does not have.
    Unsupported(Fault),
    /// The image may be served, but only to a read-only device.
    NeedsReadOnly(Fault),
    /// A parser option (`/sys/block/loopN/loop/parser`) that this parser does not know.
    BadOption,
}

/// Result of contract calls.
pub type Result<T = ()> = core::result::Result<T, Error>;

const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
const EOPNOTSUPP: i32 = 95;
const EUCLEAN: i32 = 117;

impl Error {
    /// Shorthand for a malformed image.
    pub const fn malformed(what: &'static str, at: u64) -> Self {
        Self::Malformed(Fault::new(what, at))
    }

    /// Shorthand for an unsupported feature.
    pub const fn unsupported(what: &'static str, at: u64) -> Self {
        Self::Unsupported(Fault::new(what, at))
    }

    /// The negative errno of a refused attach.
    ///
    /// Never `-EINVAL` for the content of an image: util-linux takes that for "this kernel has no
    /// LOOP_CONFIGURE" and tries the whole attach a second time.
    pub const fn to_errno(self) -> i32 {
        match self {
            Error::WouldBlock => -EAGAIN,
            Error::Store(errno) => errno,
            Error::Malformed(_) => -EUCLEAN,
            Error::Unsupported(_) => -EOPNOTSUPP,
            Error::NeedsReadOnly(_) => -EROFS,
            Error::BadOption => -EINVAL,
        }
    }

    /// The negative errno of a failed I/O: whatever is wrong with the image, a guest sees `EIO`;
    /// only what the backing store said (`ENOSPC`, …) is passed on.
    pub const fn to_io_errno(self) -> i32 {
        match self {
            Error::WouldBlock => -EAGAIN,
            Error::Store(errno) => errno,
            _ => -EIO,
        }
    }

    /// The fault to put into the kernel log, if the image is to blame.
    pub const fn fault(&self) -> Option<&Fault> {
        match self {
            Error::Malformed(fault) | Error::Unsupported(fault) | Error::NeedsReadOnly(fault) => {
                Some(fault)
            }
            _ => None,
        }
    }
}
