// SPDX-License-Identifier: GPL-2.0

//! Copying out of a file's page cache without calling the file system.
//!
//! Sleeps nowhere, allocates nothing, takes no lock: may be called from `queue_rq`. The bytes may
//! change while they are copied; callers check what they got.

use core::ptr::NonNull;

use super::{
    bindings,
    file::BackingFile, //
};

const PAGE_SHIFT: u32 = bindings::PAGE_SHIFT;

/// A referenced, uptodate folio of a file.
///
/// # Invariants
///
/// The pointer is valid and this value owns one reference.
pub(super) struct Folio(NonNull<bindings::folio>);

impl Folio {
    /// Finds the folio that holds the byte at `pos`, if it is there and can be trusted.
    pub(super) fn find(file: &BackingFile, pos: u64) -> Option<Self> {
        let index = usize::try_from(pos >> PAGE_SHIFT).ok()?;
        // SAFETY: The mapping of an open file is valid; the call neither sleeps nor allocates.
        let folio = unsafe { bindings::lp_filemap_get_folio(file.mapping(), index) };
        // SAFETY: Looks at the value of the pointer only.
        if unsafe { bindings::lp_is_err(folio.cast()) } {
            return None;
        }
        // INVARIANT: The call took a reference for us.
        let folio = Self(NonNull::new(folio)?);
        let raw = folio.0.as_ptr();
        // SAFETY: We hold a reference, so the folio is valid. It was found in the page cache and
        // may have been truncated out of it since, so its mapping is compared again.
        let good = unsafe {
            bindings::lp_folio_test_uptodate(raw)
                && !bindings::lp_folio_test_hwpoison(raw)
                && (&raw const (*raw).__bindgen_anon_1.__bindgen_anon_1.mapping).read_volatile()
                    == file.mapping()
        };
        good.then_some(folio)
    }

    /// Whether reading this folio is to start the next readahead, which only a real read can do.
    pub(super) fn starts_readahead(&self) -> bool {
        // SAFETY: We hold a reference.
        unsafe { bindings::lp_folio_test_readahead(self.0.as_ptr()) }
    }

    /// Says that the folio was used, for page reclaim.
    pub(super) fn mark_accessed(&self) {
        // SAFETY: We hold a reference; the call does not sleep.
        unsafe { bindings::lp_folio_mark_accessed(self.0.as_ptr()) };
    }

    /// Bytes from `pos` to the end of the folio.
    pub(super) fn available(&self, pos: u64) -> usize {
        // SAFETY: We hold a reference; pure arithmetic on its size.
        unsafe { bindings::lp_folio_size(self.0.as_ptr()).saturating_sub(self.offset_of(pos)) }
    }

    fn offset_of(&self, pos: u64) -> usize {
        // The position came through `find`, so it fits.
        let pos = i64::try_from(pos).unwrap_or(i64::MAX);
        // SAFETY: We hold a reference; pure arithmetic on its index and size.
        unsafe { bindings::lp_offset_in_folio(self.0.as_ptr(), pos) }
    }

    /// Copies `len` bytes at file position `pos` to `to`.
    ///
    /// # Safety
    ///
    /// `to` is valid for writes of `len` bytes, and `len` is at most [`Folio::available`].
    pub(super) unsafe fn copy_to(&self, pos: u64, to: *mut u8, len: usize) {
        // SAFETY: The range lies in the folio and in `to`. No Rust reference to the bytes of the
        // folio exists; the C function copies whatever is there at the time.
        unsafe {
            bindings::lp_memcpy_from_folio(to.cast(), self.0.as_ptr(), self.offset_of(pos), len)
        };
    }
}

impl Drop for Folio {
    fn drop(&mut self) {
        // SAFETY: By the invariant the reference is ours.
        unsafe { bindings::lp_folio_put(self.0.as_ptr()) };
    }
}

/// Copies the bytes at `offset` into `buf` if they are all in the page cache and within the file;
/// `false` otherwise.
pub(crate) fn peek(file: &BackingFile, offset: u64, buf: &mut [u8]) -> bool {
    let mut pos = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        let Some(folio) = Folio::find(file, pos) else {
            return false;
        };
        let len = folio.available(pos).min(rest.len());
        let Some((now, later)) = rest.split_at_mut_checked(len) else {
            return false;
        };
        if now.is_empty() {
            return false;
        }
        // SAFETY: `now` is valid for `len` bytes, and `len` is not more than the folio has.
        unsafe { folio.copy_to(pos, now.as_mut_ptr(), len) };
        let Some(next) = pos.checked_add(len as u64) else {
            return false;
        };
        (pos, rest) = (next, later);
    }
    // After the copy: bytes beyond the end of the file are not the file's.
    pos <= file.size()
}
