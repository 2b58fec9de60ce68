// SPDX-License-Identifier: GPL-2.0

//! Requests, and the bytes behind them.
//!
//! A request is a chain of bios, a bio a run of bio_vecs. [`Request`] keeps a *cursor* in the
//! request's own memory: where in the chain the next byte is. A *piece* is what is left of the bio
//! at the cursor; data moves piece by piece, straight between the file and the bio's pages.
//!
//! Pages behind a request may be changed by user space at any time: no Rust reference to their
//! bytes is ever made.

use core::{
    marker::PhantomData,
    mem::{
        align_of,
        ManuallyDrop,
        MaybeUninit, //
    },
    ptr::NonNull, //
};

use kernel::{
    ffi::c_long,
    prelude::*,
    sync::{
        atomic::{
            ordering::Full,
            Atomic, //
        },
        ArcBorrow, //
    },
    types::NotThreadSafe, //
};

use super::{
    bindings,
    cgroup::BlockCgroup,
    disk::{
        device_of_queue,
        disk_of_queue,
        DiskOps, //
    },
    epoch::{
        self,
        Epochs, //
    },
    file::BackingFile,
    peek::Folio,
    rwsem::RwSemaphore, //
};

/// What the driver keeps in the memory blk-mq gives it with each request.
pub(super) struct Command {
    /// Next in a [`Backlog`](super::queue::Backlog).
    pub(super) next: Option<NonNull<bindings::request>>,
    /// The cursor: in which bio, and where in it. Null at the end, and if the request moves no data.
    bio: *mut bindings::bio,
    iter: bindings::bvec_iter,
    /// Bytes the cursor has moved past.
    done: u32,
    iocb: bindings::kiocb,
    /// Submitter and completion of a direct I/O; the last one to leave goes on with the request.
    refs: Atomic<i32>,
    result: c_long,
    /// Held for reading while a direct write is in flight.
    gate: *const RwSemaphore,
    /// Entered for the piece at the cursor; null: not entered.
    epochs: *const Epochs,
    epoch: i32,
    is_write: bool,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Make earlier writes durable.
    Flush,
    /// Free the range; what it reads as is not promised.
    Discard,
    /// Make the range read as zero.
    WriteZeroes {
        /// The range must stay allocated.
        keep: bool,
    },
    /// Something this driver never advertised.
    Other,
}

/// A request that was started and is ours to end.
///
/// # Invariants
///
/// The request is valid and started, belongs to a queue of driver `T`, and no other `Request` for
/// it exists. Its private memory holds an initialised [`Command`] whose cursor is in a bio of a
/// request that reads or writes, and so in its bio_vecs, or null.
pub(crate) struct Request<T: DiskOps> {
    raw: NonNull<bindings::request>,
    _driver: PhantomData<T>,
    _not_sync: NotThreadSafe,
}

// SAFETY: blk-mq lets a request be ended from any thread and context, and by the invariant nobody
// else has it.
unsafe impl<T: DiskOps> Send for Request<T> {}

/// What became of a direct I/O.
pub(crate) enum Direct<T: DiskOps> {
    /// It is in flight; [`DiskOps::direct_done`] gets the request back.
    Queued,
    /// It ended at once; the request and the number of bytes moved.
    Done(Request<T>, Result<usize>),
}

impl<T: DiskOps> Request<T> {
    /// Takes over a request that blk-mq hands to `queue_rq`.
    ///
    /// # Safety
    ///
    /// `raw` is such a request, started, of a queue of driver `T`.
    pub(super) unsafe fn start(raw: NonNull<bindings::request>) -> Self {
        // SAFETY: The request is valid; its private memory is `cmd_size` bytes, which
        // `Disk::alloc` made the size of a `Command`, and is aligned like the request in front of
        // it. Writing the whole value initialises it.
        unsafe {
            // The bios of other requests have a length, but no bio_vecs.
            let bio = match (*raw.as_ptr()).cmd_flags & bindings::LP_REQ_OP_MASK {
                bindings::req_op_REQ_OP_READ | bindings::req_op_REQ_OP_WRITE => (*raw.as_ptr()).bio,
                _ => core::ptr::null_mut(),
            };
            let iter = if bio.is_null() {
                pin_init::zeroed()
            } else {
                (*bio).bi_iter
            };
            bindings::blk_mq_rq_to_pdu(raw.as_ptr())
                .cast::<Command>()
                .write(Command {
                    next: None,
                    bio,
                    iter,
                    done: 0,
                    iocb: pin_init::zeroed(),
                    refs: Atomic::new(0),
                    result: 0,
                    gate: core::ptr::null(),
                    epochs: core::ptr::null(),
                    epoch: 0,
                    is_write: false,
                });
        }
        // INVARIANT: By the requirement, and the command was just written.
        Self {
            raw,
            _driver: PhantomData,
            _not_sync: NotThreadSafe,
        }
    }

    /// Makes a `Request` again of one that went through [`Request::into_raw`].
    ///
    /// # Safety
    ///
    /// `raw` came out of `into_raw` of a `Request` of the same driver, once.
    pub(super) unsafe fn from_raw(raw: NonNull<bindings::request>) -> Self {
        // INVARIANT: It held when the request went into `into_raw`.
        Self {
            raw,
            _driver: PhantomData,
            _not_sync: NotThreadSafe,
        }
    }

    pub(super) fn into_raw(self) -> NonNull<bindings::request> {
        ManuallyDrop::new(self).raw
    }

    fn command(&self) -> *mut Command {
        // SAFETY: By the invariant the request is valid.
        unsafe { bindings::blk_mq_rq_to_pdu(self.raw.as_ptr()) }.cast()
    }

    fn flags(&self) -> u32 {
        // SAFETY: By the invariant the request is valid.
        unsafe { (*self.raw.as_ptr()).cmd_flags }
    }

    /// What the request asks for.
    pub(crate) fn op(&self) -> Op {
        match self.flags() & bindings::LP_REQ_OP_MASK {
            bindings::req_op_REQ_OP_READ => Op::Read,
            bindings::req_op_REQ_OP_WRITE => Op::Write,
            bindings::req_op_REQ_OP_FLUSH => Op::Flush,
            bindings::req_op_REQ_OP_DISCARD => Op::Discard,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes {
                keep: self.flags() & bindings::LP_REQ_NOUNMAP != 0,
            },
            _ => Op::Other,
        }
    }

    /// Position of the request on the device in bytes.
    pub(crate) fn pos(&self) -> u64 {
        // SAFETY: By the invariant the request is valid. The block layer checked the sector against
        // the capacity, whose bytes fit into an `i64`.
        unsafe { (*self.raw.as_ptr()).__sector }.wrapping_shl(9)
    }

    /// Length of the request in bytes.
    pub(crate) fn len(&self) -> u32 {
        // SAFETY: By the invariant the request is valid.
        unsafe { (*self.raw.as_ptr()).__data_len }
    }

    /// Whether this is memory being swapped in or out.
    pub(crate) fn is_swap(&self) -> bool {
        self.flags() & bindings::LP_REQ_SWAP != 0
    }

    /// Whom the request is charged to; `None` for the root group. All bios of a request have the
    /// same.
    pub(crate) fn cgroup(&self) -> Option<BlockCgroup> {
        // SAFETY: By the invariant the request is valid, and has the bios that are not ended. A bio
        // keeps its group.
        unsafe {
            let css = bindings::lp_request_blkcg(self.raw.as_ptr());
            NonNull::new(css).map(|css| BlockCgroup::get(css))
        }
    }

    /// The driver's device.
    pub(crate) fn device(&self) -> ArcBorrow<'_, T> {
        // SAFETY: By the invariant the queue is one of driver `T`, and its disk was added. The
        // device came from an `Arc` that lives until the disk is freed, which waits for all
        // requests.
        unsafe { ArcBorrow::from_raw(device_of_queue::<T>((*self.raw.as_ptr()).q)) }
    }

    /// What the device is bound to; stays valid until this request ends.
    pub(crate) fn binding(&self) -> Option<&T::Binding> {
        // SAFETY: As in `device`. This request is in flight in the queue of that very disk, and is
        // so as long as `self` is borrowed: what ends it takes `self`.
        unsafe {
            let disk = disk_of_queue::<T>((*self.raw.as_ptr()).q);
            disk.binding().get()
        }
    }

    /// Enters the epoch of what `pick` picks of the binding. Left with [`Request::leave_epoch`], when
    /// a direct I/O has ended, and with the request.
    pub(crate) fn enter_epoch(
        &self,
        pick: impl for<'b> FnOnce(&'b T::Binding) -> Option<&'b Epochs>,
    ) {
        self.leave_epoch();
        let Some(epoch) = self.binding().and_then(pick).map(Epochs::enter) else {
            return;
        };
        let command = self.command();
        // SAFETY: By the invariant the command is initialised, and only we use it.
        unsafe { ((*command).epochs, (*command).epoch) = epoch.into_raw() };
    }

    /// Leaves the epoch, if one was entered. From any context.
    pub(crate) fn leave_epoch(&self) {
        let command = self.command();
        // SAFETY: By the invariant the command is ours. If it has epochs, these are part of the
        // binding, which stays until the request ends, and were entered and not left.
        unsafe {
            let epochs = core::mem::replace(&mut (*command).epochs, core::ptr::null());
            if !epochs.is_null() {
                epoch::leave(epochs, (*command).epoch);
            }
        }
    }

    /// Bytes left in the piece at the cursor; 0 when the cursor is at the end of the request, and
    /// for requests that move no data.
    pub(crate) fn piece(&self) -> u32 {
        let command = self.command();
        // SAFETY: By the invariant the command is initialised, and only we use it.
        unsafe {
            if (*command).bio.is_null() {
                0
            } else {
                (*command).iter.bi_size
            }
        }
    }

    /// Bytes left in the piece that may be written to: those of a read.
    fn room(&self) -> u32 {
        match self.op() {
            Op::Read => self.piece(),
            _ => 0,
        }
    }

    /// Bytes the cursor has moved past.
    pub(crate) fn done(&self) -> u32 {
        // SAFETY: By the invariant the command is initialised.
        unsafe { (*self.command()).done }
    }

    /// Moves the cursor by `count` bytes, at most to the end of the piece.
    pub(crate) fn advance(&self, count: u32) {
        let command = self.command();
        if self.piece() == 0 {
            return;
        }
        // SAFETY: By the invariant the command is initialised, and as the piece is not empty its
        // cursor is in a bio. The index moves only past bio_vecs whose bytes are counted by
        // `bi_size`.
        unsafe {
            let iter = &mut (*command).iter;
            let count = count.min(iter.bi_size);
            let mut offset = iter.bi_offset.saturating_add(count);
            let mut index = iter.bi_idx;
            let left = iter.bi_size.saturating_sub(count);
            while offset > 0 {
                let len = (*(*(*command).bio).bi_io_vec.add(index as usize)).bv_len;
                if offset < len {
                    break;
                }
                offset = offset.saturating_sub(len);
                index = index.saturating_add(1);
            }
            iter.bi_idx = index;
            iter.bi_offset = offset;
            iter.bi_size = left;
            (*command).done = (*command).done.saturating_add(count);
            if left == 0 {
                self.next_bio();
            }
        }
    }

    /// Moves the cursor to the next bio.
    ///
    /// # Safety
    ///
    /// The cursor is at the end of a bio.
    unsafe fn next_bio(&self) {
        let command = self.command();
        // SAFETY: By the invariant and the requirement the bio is valid, and so is the next, if
        // there is one: blk-mq keeps the chain until the request ends.
        unsafe {
            (*command).bio = (*(*command).bio).bi_next;
            if !(*command).bio.is_null() {
                (*command).iter = (*(*command).bio).bi_iter;
            }
        }
    }

    /// The single-page run of bytes at the cursor, at most `limit` long.
    ///
    /// # Safety
    ///
    /// The piece is not empty.
    unsafe fn page_run(&self, limit: u32) -> bindings::bio_vec {
        let command = self.command();
        // SAFETY: By the requirement the cursor is at a bio_vec. The pages of one bio_vec are
        // contiguous in the memory map (`bvec_try_merge_page`).
        unsafe {
            let iter = (*command).iter;
            let (index, done, size) = (iter.bi_idx, iter.bi_offset, iter.bi_size);
            let vec = *(*(*command).bio).bi_io_vec.add(index as usize);
            let start = vec.bv_offset.wrapping_add(done);
            let page_size = bindings::LP_PAGE_SIZE as u32;
            let offset = start % page_size;
            let len = vec
                .bv_len
                .saturating_sub(done)
                .min(size)
                .min(page_size.saturating_sub(offset))
                .min(limit);
            bindings::bio_vec {
                bv_page: vec.bv_page.add((start / page_size) as usize),
                bv_offset: offset,
                bv_len: len,
            }
        }
    }

    /// Zeroes `count` bytes at the cursor, at most to the end of the piece, and moves past them.
    /// Only reads have bytes to be zeroed.
    pub(crate) fn zero(&self, count: u32) {
        let mut left = count.min(self.room());
        while left > 0 {
            // SAFETY: The piece has `left` bytes.
            let run = unsafe { self.page_run(left) };
            // SAFETY: The run lies within one page of the request, which is a read and so to be
            // written to.
            unsafe { bindings::lp_memzero_bvec(&run) };
            self.advance(run.bv_len);
            left = left.saturating_sub(run.bv_len);
        }
    }

    /// Zeroes everything from the cursor to the end of the request.
    pub(crate) fn zero_rest(&self) {
        loop {
            let room = self.room();
            if room == 0 {
                break;
            }
            self.zero(room);
        }
    }

    /// Copies `bytes` to the cursor, at most to the end of the piece, and moves past them. Only reads
    /// have bytes to be copied to.
    pub(crate) fn copy_from(&self, bytes: &[u8]) {
        let mut rest = bytes;
        loop {
            let most = u32::try_from(rest.len())
                .unwrap_or(u32::MAX)
                .min(self.room());
            if most == 0 {
                break;
            }
            // SAFETY: The piece has `most` bytes.
            let mut run = unsafe { self.page_run(most) };
            let Some((now, later)) = rest.split_at_checked(run.bv_len as usize) else {
                break;
            };
            // SAFETY: The run lies within one page of the request, which is a read and so to be
            // written to, and has the length of `now`.
            unsafe { bindings::lp_memcpy_to_bvec(&mut run, now.as_ptr().cast()) };
            self.advance(run.bv_len);
            rest = later;
        }
    }

    /// Copies up to `count` bytes at file position `offset` from the page cache to the cursor and
    /// moves past them. Stops where the page cache does not have them. Returns the bytes copied, 0
    /// for other requests than reads. Neither sleeps nor allocates.
    pub(crate) fn copy_cached(&self, file: &BackingFile, offset: u64, count: u32) -> u32 {
        let mut copied = 0;
        let count = count.min(self.room());
        while copied < count {
            let pos = offset.wrapping_add(u64::from(copied));
            let Some(folio) = Folio::find(file, pos) else {
                break;
            };
            let available = u32::try_from(folio.available(pos)).unwrap_or(u32::MAX);
            let mut left = available.min(count.saturating_sub(copied));
            let end = pos.saturating_add(u64::from(left));
            if left == 0 || end > file.size() || folio.starts_readahead() {
                break;
            }
            folio.mark_accessed();
            while left > 0 {
                let at = offset.wrapping_add(u64::from(copied));
                // SAFETY: The piece has `left` bytes, and so has the folio at `at`. The run lies
                // within one page of the request, which is a read and so to be written to, and
                // which `kmap_local_page` makes addressable.
                let run = unsafe {
                    let run = self.page_run(left);
                    let page = bindings::kmap_local_page(run.bv_page).cast::<u8>();
                    let to = page.add(run.bv_offset as usize);
                    folio.copy_to(at, to, run.bv_len as usize);
                    bindings::kunmap_local(page.cast());
                    run
                };
                self.advance(run.bv_len);
                copied = copied.saturating_add(run.bv_len);
                left = left.saturating_sub(run.bv_len);
            }
        }
        copied
    }

    /// Prepares the command's kiocb for `count` bytes at the cursor and calls the file. If that fails
    /// nothing was started.
    ///
    /// # Safety
    ///
    /// The piece has at least `count` bytes, and `count` is not 0. If `complete` is given, it frees
    /// or ends nothing that belongs to the request, and the file stays, until the file's method has
    /// returned something else than `-EIOCBQUEUED`, or `complete` was called.
    unsafe fn submit(
        &self,
        file: &BackingFile,
        offset: u64,
        count: u32,
        complete: Option<unsafe extern "C" fn(*mut bindings::kiocb, c_long)>,
    ) -> Result<isize> {
        let command = self.command();
        let mut iter = MaybeUninit::<bindings::iov_iter>::zeroed();
        let is_write = self.op() == Op::Write;
        let pos = i64::try_from(offset).map_err(|_| EIO)?;
        let method = if is_write {
            file.write_iter()
        } else {
            file.ops().read_iter
        }
        .ok_or(EIO)?;
        // SAFETY: By the invariant the command is ours; the bio_vecs from the cursor on are valid
        // and have at least `count` bytes, as `segments` found. The method needs the iterator only
        // until it returns. A zeroed kiocb is valid.
        unsafe {
            let segments = self.segments(count);
            let vec = (*(*command).bio)
                .bi_io_vec
                .add((*command).iter.bi_idx as usize);
            let rw = if is_write {
                bindings::ITER_SOURCE
            } else {
                bindings::ITER_DEST
            };
            bindings::iov_iter_bvec(iter.as_mut_ptr(), rw, vec, segments, count as usize);
            (*iter.as_mut_ptr()).iov_offset = (*command).iter.bi_offset as usize;

            let iocb = &raw mut (*command).iocb;
            iocb.write(pin_init::zeroed());
            (*iocb).ki_filp = file.as_ptr();
            (*iocb).ki_pos = pos;
            (*iocb).ki_ioprio = self.ioprio();
            if complete.is_some() {
                (*iocb).ki_complete = complete;
                (*iocb).ki_flags = bindings::LP_IOCB_DIRECT;
            }
            (*command).is_write = is_write;
            if is_write {
                bindings::lp_kiocb_start_write(iocb);
            }
            Ok(method(iocb, iter.as_mut_ptr()))
        }
    }

    /// How many bio_vecs from the cursor on it takes to hold `count` bytes.
    ///
    /// # Safety
    ///
    /// The piece has at least `count` bytes, and `count` is not 0.
    unsafe fn segments(&self, count: u32) -> usize {
        let command = self.command();
        // SAFETY: By the requirement the bio_vecs hold `count` bytes, where the loop ends.
        unsafe {
            let iter = (*command).iter;
            let (index, done) = (iter.bi_idx as usize, iter.bi_offset);
            let vecs = (*(*command).bio).bi_io_vec;
            let mut have = (*vecs.add(index)).bv_len.saturating_sub(done);
            let mut segments = 1;
            while have < count {
                have = have.saturating_add((*vecs.add(index + segments)).bv_len);
                segments += 1;
            }
            segments
        }
    }

    fn ioprio(&self) -> u16 {
        // SAFETY: By the invariant the request is valid; its first bio carries the priority.
        unsafe {
            let bio = (*self.raw.as_ptr()).bio;
            if bio.is_null() {
                0
            } else {
                (*bio).bi_ioprio
            }
        }
    }

    /// Moves `count` bytes between the cursor and file position `offset` through the page cache.
    /// Does not move the cursor. Returns the bytes moved.
    pub(crate) fn transfer(&self, file: &BackingFile, offset: u64, count: u32) -> Result<usize> {
        let count = count.min(self.piece());
        if count == 0 {
            return Ok(0);
        }
        // SAFETY: The piece has `count` bytes. Without a completion the call is synchronous.
        let moved = unsafe { self.submit(file, offset, count, None) }?;
        // SAFETY: The write ended with the call.
        unsafe { self.end_write() };
        to_count(moved)
    }

    /// Whether the memory of the next `count` bytes at the cursor starts and ends, page run by page
    /// run, where none of the address bits in `mask` is set.
    pub(crate) fn is_memory_aligned(&self, count: u32, mask: u32) -> bool {
        let count = count.min(self.piece());
        if count == 0 {
            return true;
        }
        let command = self.command();
        // SAFETY: By the invariant the command is ours, and the bio_vecs from the cursor on hold
        // at least `count` bytes, which is what `segments` found.
        unsafe {
            let iter = (*command).iter;
            let (index, done) = (iter.bi_idx as usize, iter.bi_offset);
            let vecs = (*(*command).bio).bi_io_vec.add(index);
            let segments = self.segments(count);
            let mut bits = (*vecs).bv_offset.wrapping_add(done);
            for nth in 1..segments {
                bits |= (*vecs.add(nth)).bv_offset;
                bits |= (*vecs.add(nth - 1)).bv_len;
            }
            bits & mask == 0
        }
    }

    /// Starts a direct transfer of `count` bytes between the cursor and position `offset` of the
    /// file that `target` picks from the binding. A write holds the read side of the semaphore it
    /// picks meanwhile. Does not move the cursor.
    pub(crate) fn transfer_direct(
        self,
        offset: u64,
        count: u32,
        target: impl for<'b> FnOnce(&'b T::Binding) -> (&'b BackingFile, Option<&'b RwSemaphore>),
    ) -> Direct<T> {
        let count = count.min(self.piece());
        let Some((file, gate)) = self.binding().map(target) else {
            return Direct::Done(self, Err(EIO));
        };
        // The references are to parts of the binding, which stays until the request has ended.
        let (file, gate) = (core::ptr::from_ref(file), gate.map(core::ptr::from_ref));
        if count == 0 {
            return Direct::Done(self, Ok(0));
        }
        let command = self.command();
        // SAFETY: By the invariant the command is ours until the call below; the gate is part of
        // the binding.
        unsafe {
            if let Some(gate) = gate {
                (*gate).down_read();
            }
            (*command).gate = gate.unwrap_or(core::ptr::null());
            (*command).refs = Atomic::new(2);
        }
        // SAFETY: The piece has `count` bytes. The request lives on until both references are gone:
        // it is ended by `direct_done` or by our caller, whoever is last. The file is part of the
        // binding, which lives as long.
        let moved = unsafe { self.submit(&*file, offset, count, Some(direct_complete::<T>)) };
        match moved {
            Ok(queued) if queued == -(bindings::LP_EIOCBQUEUED as isize) => {
                // Given up before the count says so: from then on the request is the completion's.
                let raw = self.into_raw();
                // SAFETY: We still hold a reference, so the command is there.
                if unsafe { (*command).refs.fetch_sub(1, Full) } != 1 {
                    return Direct::Queued;
                }
                // SAFETY: The completion has come and gone, and has left us the result and the
                // request, which went through `into_raw` above.
                let (request, result) = unsafe { (Self::from_raw(raw), (*command).result) };
                // SAFETY: The I/O has ended.
                unsafe { request.end_direct() };
                Direct::Done(request, to_count(result))
            }
            Ok(moved) => {
                // SAFETY: Any other value: it ended at once and there will be no completion.
                unsafe { self.end_direct() };
                Direct::Done(self, to_count(moved))
            }
            Err(error) => {
                // SAFETY: Nothing was started; `is_write` is false, as it is between two calls.
                unsafe { self.end_direct() };
                Direct::Done(self, Err(error))
            }
        }
    }

    /// Drops the write access to the file system that `submit` took.
    ///
    /// # Safety
    ///
    /// Once after each `submit`, when its I/O has ended.
    unsafe fn end_write(&self) {
        let command = self.command();
        // SAFETY: By the invariant the command is ours, and `is_write` says that access was taken.
        unsafe {
            if core::mem::replace(&mut (*command).is_write, false) {
                bindings::lp_kiocb_end_write(&raw mut (*command).iocb);
            }
        }
    }

    /// What is due when a direct I/O has ended.
    ///
    /// # Safety
    ///
    /// As for `end_write`.
    unsafe fn end_direct(&self) {
        let command = self.command();
        // SAFETY: Passed on.
        unsafe { self.end_write() };
        // SAFETY: `transfer_direct` took the read side of the gate, if it is set; the gate is part
        // of what the device is bound to and outlives the request.
        unsafe {
            let gate = core::mem::replace(&mut (*command).gate, core::ptr::null());
            if !gate.is_null() {
                (*gate).up_read();
            }
        }
        self.leave_epoch();
    }

    /// Ends the request.
    pub(crate) fn end(self, result: Result) {
        self.leave_epoch();
        // SAFETY: By the invariant the request is ours to end, once; `into_raw` gives it up.
        unsafe {
            let status = status(result);
            bindings::blk_mq_end_request(self.into_raw().as_ptr(), status);
        }
    }

    /// Ends the request with success for what the cursor has moved past and `error` for the rest.
    pub(crate) fn fail(self, error: Error) {
        let done = self.done();
        self.fail_after(done, error);
    }

    /// Ends the request with success for its first `done` bytes and `error` for the rest.
    pub(crate) fn fail_after(self, done: u32, error: Error) {
        let done = done - done % 512;
        if done > 0 && done < self.len() {
            // SAFETY: By the invariant the request is ours. Fewer bytes than it has are ended, so
            // it stays alive.
            unsafe {
                bindings::blk_update_request(self.raw.as_ptr(), bindings::LP_BLK_STS_OK, done)
            };
        }
        self.end(Err(error));
    }
}

impl<T: DiskOps> Drop for Request<T> {
    fn drop(&mut self) {
        self.leave_epoch();
        // A request that nobody ended would hang its submitter for ever.
        // SAFETY: By the invariant the request is ours to end.
        unsafe { bindings::blk_mq_end_request(self.raw.as_ptr(), bindings::LP_BLK_STS_IOERR) };
    }
}

fn status(result: Result) -> bindings::blk_status_t {
    match result {
        Ok(()) => bindings::LP_BLK_STS_OK,
        // SAFETY: A pure function.
        Err(error) => unsafe { bindings::errno_to_blk_status(error.to_errno()) },
    }
}

fn to_count(moved: isize) -> Result<usize> {
    usize::try_from(moved).map_err(|_| Error::from_errno(i32::try_from(moved).unwrap_or(-5)))
}

/// `ki_complete` of direct I/O. May run in interrupt context.
///
/// # Safety
///
/// Called once, by the file system, for a kiocb that `transfer_direct` of driver `T` submitted.
unsafe extern "C" fn direct_complete<T: DiskOps>(iocb: *mut bindings::kiocb, result: c_long) {
    // SAFETY: The kiocb is part of a command, which is the private memory of a request, and which
    // the reference that is dropped here has kept. Whoever drops the last one goes on with the
    // request; the submitter has let go of its `Request` before it drops its own.
    unsafe {
        let command = kernel::container_of!(iocb, Command, iocb);
        (*command).result = result;
        if (*command).refs.fetch_sub(1, Full) != 1 {
            return;
        }
        let Some(raw) = NonNull::new(bindings::blk_mq_rq_from_pdu(command.cast())) else {
            return;
        };
        // The submitter has left the request to us.
        let request = Request::<T>::from_raw(raw);
        request.end_direct();
        T::direct_done(request, to_count(result));
    }
}

pub(super) const COMMAND_SIZE: usize = core::mem::size_of::<Command>();

// The command lies right behind the request, whose size is a multiple of its alignment.
const _: () = assert!(align_of::<Command>() <= align_of::<bindings::request>());
