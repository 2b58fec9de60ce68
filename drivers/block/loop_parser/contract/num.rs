// SPDX-License-Identifier: GPL-2.0

//! For format code: checked arithmetic on numbers from an image, the errno values that it has an
//! opinion on, and what it says of headers that have changed.

use super::{
    Error,
    Fault,
    Result,
    Tables, //
};
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

/// I/O error: a caller broke the contract.
const EIO: i32 = 5;
/// File too large.
const EFBIG: i32 = 27;
/// No space left.
const ENOSPC: i32 = 28;
/// Quota exceeded.
const EDQUOT: i32 = 122;

/// The error for a call that breaks the contract (a position outside the disk).
pub const OUTSIDE: Error = Error::Store(-EIO);
/// The error for an image that cannot take another allocation unit.
pub const NO_ROOM: Error = Error::Store(-ENOSPC);

/// The error for an image that is as large as its format lets it be.
pub const TOO_LARGE: Error = Error::Store(-EFBIG);

/// Whether an error says that there is no room *now*: the same call can succeed later.
#[inline]
pub fn is_out_of_room(error: Error) -> bool {
    matches!(error, Error::Store(errno) if [-ENOSPC, -EFBIG, -EDQUOT].contains(&errno))
}

/// `a + b`, or a fault at host offset `at`.
#[inline]
pub fn add(a: u64, b: u64, at: u64) -> Result<u64> {
    a.checked_add(b)
        .ok_or(Error::malformed("offset overflows", at))
}

/// `a * b`, or a fault at host offset `at`.
#[inline]
pub fn mul(a: u64, b: u64, at: u64) -> Result<u64> {
    a.checked_mul(b)
        .ok_or(Error::malformed("product overflows", at))
}

/// `value` rounded up to a multiple of `unit`, or a fault at host offset `at`.
#[inline]
pub fn align_up(value: u64, unit: u64, at: u64) -> Result<u64> {
    value
        .checked_next_multiple_of(unit)
        .ok_or(Error::malformed("offset overflows", at))
}

/// A range of the image file, in bytes. `start <= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
}

impl Region {
    /// `len` bytes from `start`; a fault at host offset `at` if there is no such range.
    #[inline]
    pub fn new(start: u64, len: u64, at: u64) -> Result<Self> {
        let end = add(start, len, at)?;
        Ok(Self { start, end })
    }

    /// Whether the two have a byte in common.
    #[inline]
    pub fn overlaps(self, other: Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }
}

/// What becomes of a look whether a header still says what it did: `Ok(())` if so.
///
/// # Errors
///
/// [`Error::NeedsReadOnly`] with `what` if not, or if it is no good header any more: somebody else has
/// written to the image. What the store says is passed on.
pub fn ensure_same(is_same: Result<bool>, what: &'static str) -> Result {
    match is_same {
        Ok(true) => Ok(()),
        Err(error @ Error::Store(_)) => Err(error),
        _ => Err(Error::NeedsReadOnly(Fault::new(what, 0))),
    }
}

/// Loads an on-disk structure from host offset `at`.
#[inline]
pub fn load<S, T>(tables: &T, at: u64) -> Result<S>
where
    S: FromBytes + IntoBytes,
    T: Tables + ?Sized,
{
    let mut value = S::new_zeroed();
    tables.load(at, value.as_mut_bytes())?;
    Ok(value)
}
