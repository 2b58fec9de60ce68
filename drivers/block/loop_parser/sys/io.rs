// SPDX-License-Identifier: GPL-2.0

//! Synchronous reads and writes of small kernel buffers, for tables.
//!
//! Each call brings its own `kiocb` with no flags set: unlike `kernel_read()` and `kernel_write()`
//! it inherits neither `O_DIRECT` nor `O_APPEND` from the user's descriptor, and always goes through
//! the page cache, on file systems that have one.
//!
//! Others may pass the memory on to hardware, or to another machine: 9p looks for its pages. Not all
//! of them know what memory of a module is, so buffers have to come from the stack or the heap.

use core::mem::MaybeUninit;

use kernel::{
    ffi::c_void,
    prelude::*, //
};

use super::{
    bindings,
    file::BackingFile, //
};

/// Most segments of one call.
const SEGMENTS: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// One call of the file's `read_iter` or `write_iter`. Returns the bytes moved.
///
/// # Safety
///
/// The first `segments` of `vecs` are valid for `count` bytes in all: for writes by the kernel if
/// `direction` is `Read`, for reads otherwise.
unsafe fn transfer(
    file: &BackingFile,
    direction: Direction,
    offset: u64,
    vecs: &[bindings::kvec],
    count: usize,
) -> Result<usize> {
    let mut iocb = MaybeUninit::<bindings::kiocb>::zeroed();
    let mut iter = MaybeUninit::<bindings::iov_iter>::zeroed();
    let pos = i64::try_from(offset).map_err(|_| EFBIG)?;
    // SAFETY: All bytes zero is a valid `kiocb` (a synchronous one without flags); the iterator is
    // initialised by the call; `vecs` outlives it. The methods may sleep.
    let ret = unsafe {
        let iocb = iocb.as_mut_ptr();
        (*iocb).ki_filp = file.as_ptr();
        (*iocb).ki_pos = pos;
        let rw = match direction {
            Direction::Read => bindings::ITER_DEST,
            Direction::Write => bindings::ITER_SOURCE,
        };
        bindings::iov_iter_kvec(iter.as_mut_ptr(), rw, vecs.as_ptr(), vecs.len(), count);
        match direction {
            Direction::Read => file.ops().read_iter.ok_or(EINVAL)?(iocb, iter.as_mut_ptr()),
            Direction::Write => {
                let write_iter = file.write_iter().ok_or(EBADF)?;
                bindings::lp_kiocb_start_write(iocb);
                let ret = write_iter(iocb, iter.as_mut_ptr());
                bindings::lp_kiocb_end_write(iocb);
                ret
            }
        }
    };
    if ret < 0 {
        return Err(Error::from_errno(i32::try_from(ret).unwrap_or(-5)));
    }
    usize::try_from(ret).map_err(|_| EIO)
}

/// Fills `buf` from file position `offset`. `EIO` if the file ends before.
pub(crate) fn read_exact(file: &BackingFile, offset: u64, buf: &mut [u8]) -> Result {
    if read(file, offset, buf)? == buf.len() {
        Ok(())
    } else {
        Err(EIO)
    }
}

/// Fills `buf` from file position `offset`, or as much of it as there is before the file ends.
/// Returns how much that is.
pub(crate) fn read(file: &BackingFile, offset: u64, buf: &mut [u8]) -> Result<usize> {
    let len = buf.len();
    let mut pos = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        let vec = bindings::kvec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        };
        // SAFETY: The segment is the exclusively borrowed rest of the buffer.
        let moved = unsafe { transfer(file, Direction::Read, pos, &[vec], rest.len()) }?;
        if moved == 0 {
            break;
        }
        pos = pos.checked_add(moved as u64).ok_or(EIO)?;
        rest = rest.get_mut(moved..).ok_or(EIO)?;
    }
    Ok(len.saturating_sub(rest.len()))
}

/// Writes all of `bytes` at file position `offset`.
pub(crate) fn write_all(file: &BackingFile, offset: u64, bytes: &[u8]) -> Result {
    let mut pos = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let vec = bindings::kvec {
            iov_base: rest.as_ptr().cast_mut().cast::<c_void>(),
            iov_len: rest.len(),
        };
        // SAFETY: The segment is the borrowed rest of the buffer and is only read.
        let moved = unsafe { transfer(file, Direction::Write, pos, &[vec], rest.len()) }?;
        if moved == 0 {
            return Err(EIO);
        }
        pos = pos.checked_add(moved as u64).ok_or(EIO)?;
        rest = rest.get(moved..).ok_or(EIO)?;
    }
    Ok(())
}

/// Writes `len` times `byte` at file position `offset`, from `scratch`.
pub(crate) fn fill(
    file: &BackingFile,
    offset: u64,
    len: u64,
    byte: u8,
    scratch: &mut [u8],
) -> Result {
    scratch.fill(byte);
    let vec = bindings::kvec {
        iov_base: scratch.as_ptr().cast_mut().cast::<c_void>(),
        iov_len: scratch.len(),
    };
    let most = scratch.len().saturating_mul(SEGMENTS);
    let vecs = [vec; SEGMENTS];
    let mut pos = offset;
    let mut rest = len;
    while rest > 0 {
        let count = usize::try_from(rest).unwrap_or(usize::MAX).min(most);
        // SAFETY: Every segment is the same borrowed memory, which is only read; together they
        // have at least `count` bytes.
        let moved = unsafe { transfer(file, Direction::Write, pos, &vecs, count) }? as u64;
        if moved == 0 {
            return Err(EIO);
        }
        pos = pos.checked_add(moved).ok_or(EIO)?;
        rest = rest.saturating_sub(moved);
        // SAFETY: Table writes happen in contexts that may sleep.
        unsafe { bindings::lp_cond_resched() };
    }
    Ok(())
}
