// SPDX-License-Identifier: GPL-2.0

//! Checked arithmetic on numbers from an image, and the errno values that format code has an
//! opinion on.

use loop_parser::contract::{
    Error,
    Fault,
    Result,
    Tables,
    SECTOR_SIZE, //
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
/// Operation not supported.
const EOPNOTSUPP: i32 = 95;
/// Quota exceeded.
const EDQUOT: i32 = 122;

/// What all versions of the format begin with.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// The error for a call that breaks the contract (a position outside the disk).
pub(super) const OUTSIDE: Error = Error::Store(-EIO);
/// The error for a call that the image's features rule out, or that the driver has to do without.
pub(super) const NOT_SUPPORTED: Error = Error::Store(-EOPNOTSUPP);
/// The error for an image that cannot take another cluster.
pub(super) const NO_ROOM: Error = Error::Store(-ENOSPC);
/// The error for an image that is as large as its format lets it be.
pub(super) const TOO_LARGE: Error = Error::Store(-EFBIG);

/// What becomes of a look whether the header still says what it did: `Ok(())` if so.
///
/// # Errors
///
/// [`Error::NeedsReadOnly`] with `what` if not, or if it is no good header any more: somebody else has
/// written to the image. What the store says is passed on.
pub(super) fn ensure_same(is_same: Result<bool>, what: &'static str) -> Result {
    match is_same {
        Ok(true) => Ok(()),
        Err(error @ Error::Store(_)) => Err(error),
        _ => Err(Error::NeedsReadOnly(Fault::new(what, 0))),
    }
}

/// Whether an error says that there is no room *now*: the same call can succeed later.
pub(super) fn is_out_of_room(error: Error) -> bool {
    matches!(error, Error::Store(errno) if [-ENOSPC, -EFBIG, -EDQUOT].contains(&errno))
}

/// `a + b`, or a fault at host offset `at`.
pub(super) fn add(a: u64, b: u64, at: u64) -> Result<u64> {
    a.checked_add(b)
        .ok_or(Error::malformed("offset overflows", at))
}

/// `a * b`, or a fault at host offset `at`.
pub(super) fn mul(a: u64, b: u64, at: u64) -> Result<u64> {
    a.checked_mul(b)
        .ok_or(Error::malformed("product overflows", at))
}

/// `value` rounded up to a multiple of `unit`, or a fault at host offset `at`.
pub(super) fn align_up(value: u64, unit: u64, at: u64) -> Result<u64> {
    value
        .checked_next_multiple_of(unit)
        .ok_or(Error::malformed("offset overflows", at))
}

/// A size in bytes without the part of a sector at its end: QEMU does not show that either.
pub(super) fn whole_sectors(size: u64) -> u64 {
    size & !SECTOR_SIZE.wrapping_sub(1)
}

/// `2^shift`; 0 if that is not a 64-bit number.
pub(super) fn pow2(shift: u32) -> u64 {
    1u64.checked_shl(shift).unwrap_or(0)
}

/// The `shift` low bits; all of them if there are no more than 64.
pub(super) fn low_bits(shift: u32) -> u64 {
    pow2(shift).wrapping_sub(1)
}

/// A range of the image file, in bytes. `start <= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// First byte.
    pub(super) start: u64,
    /// First byte behind it.
    pub(super) end: u64,
}

impl Region {
    /// `len` bytes from `start`; a fault at host offset `at` if there is no such range.
    pub(super) fn new(start: u64, len: u64, at: u64) -> Result<Self> {
        let end = add(start, len, at)?;
        Ok(Self { start, end })
    }

    /// Whether the two have a byte in common.
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }
}

/// Loads an on-disk structure from host offset `at`.
pub(super) fn load<S, T>(tables: &T, at: u64) -> Result<S>
where
    S: FromBytes + IntoBytes,
    T: Tables + ?Sized,
{
    let mut value = S::new_zeroed();
    tables.load(at, value.as_mut_bytes())?;
    Ok(value)
}

/// The bits from `start` to before `end`.
pub(super) fn bits_between(start: u32, end: u32) -> u64 {
    low_bits(end) & !low_bits(start)
}
