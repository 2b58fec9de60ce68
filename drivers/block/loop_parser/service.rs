// SPDX-License-Identifier: GPL-2.0

//! Serving requests.
//!
//! A read whose table entries and data are all in the page cache is served where it comes in
//! ([`serve_cached`]): that calls no file-system method, allocates nothing and does not sleep, so
//! no lock its submitter may hold matters. Everything else goes to a worker ([`serve`]).
//!
//! Each piece of a request (what one bio has left) is resolved to an extent and moved straight
//! between the file and the bio's pages, extent by extent.

use kernel::prelude::*;

use crate::{
    allocation,
    bounce,
    contract::{
        Compressed,
        Discard,
        Error,
        Extent,
        Placement, //
    },
    device::{
        Binding,
        Device, //
    },
    discard,
    image::{
        Layer,
        Whose, //
    },
    layers::{
        self,
        Found, //
    },
    retry,
    sys::{
        epoch::Epochs,
        file::DioAlign,
        request::{
            Direct,
            Op,
            Request, //
        },
        work::MemoryReserves, //
    }, //
};

type LoopRequest = Request<Device>;

/// Longest read that is served in the submitter's context, in bytes.
const CACHED_LIMIT: u32 = 64 << 10;

/// What became of a step.
enum Step {
    /// There is more to do.
    Next(LoopRequest),
    /// The request is in flight, or ended.
    Gone,
}

/// Serves a read from the page cache as far as that goes. Returns the request, its cursor behind
/// what was served, if a worker has to do the rest.
pub(crate) fn serve_cached(request: LoopRequest) -> Option<LoopRequest> {
    if request.op() != Op::Read || request.len() > CACHED_LIMIT {
        return Some(request);
    }
    request.enter_epoch(epochs);
    let complete = match request.binding() {
        Some(binding) if binding.serves_cached_reads() => copy_cached(&request, binding),
        _ => false,
    };
    if complete {
        request.end(Ok(()));
        return None;
    }
    request.leave_epoch();
    Some(request)
}

/// What a request enters before a piece of it is resolved: see `reclaim.rs`.
fn epochs(binding: &Binding) -> Option<&Epochs> {
    binding.image().epochs()
}

/// Copies pieces until the request is complete or something is not in the page cache.
fn copy_cached(request: &LoopRequest, binding: &Binding) -> bool {
    loop {
        let piece = request.piece();
        if piece == 0 {
            return true;
        }
        let Some(pos) = binding.guest_pos(request) else {
            return false;
        };
        let (image, file) = (binding.image(), binding.file());
        // The worker meets an error again and reports it.
        let Ok(found) = layers::find_cached(image, file, pos, u64::from(piece)) else {
            return false;
        };
        match (found.extent, image.whose(file, found.whose)) {
            (Extent::Zero { len }, _) => request.zero(bounded(len, piece)),
            (Extent::Data { offset, len }, Some(layer)) => {
                let count = bounded(len, piece);
                if request.copy_cached(layer.data(), offset, count) < count {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

/// Serves a request in a worker.
pub(crate) fn serve(request: LoopRequest) {
    // To swap memory out is to get memory.
    let _reserves = request.is_swap().then(MemoryReserves::open);
    let mut request = request;
    loop {
        let Some(binding) = request.binding() else {
            return request.end(Err(EIO));
        };
        let result = match request.op() {
            Op::Read => {
                match read_piece(request) {
                    Step::Next(next) => request = left(next),
                    Step::Gone => return,
                }
                continue;
            }
            _ if binding.is_read_only() && request.op() != Op::Flush => Err(EIO),
            Op::Write => {
                match write_piece(request) {
                    Step::Next(next) => request = left(next),
                    Step::Gone => return,
                }
                continue;
            }
            Op::Flush => flush(binding),
            Op::Discard => discard::serve(&request, binding, Discard::Forget),
            Op::WriteZeroes { keep: true } => {
                discard::serve(&request, binding, Discard::ZeroInPlace)
            }
            Op::WriteZeroes { keep: false } => discard::serve(&request, binding, Discard::Zero),
            Op::Other => Err(EIO),
        };
        return request.end(result);
    }
}

/// A piece of the request was moved.
fn left(request: LoopRequest) -> LoopRequest {
    request.leave_epoch();
    request
}

/// Goes on with a request whose direct I/O has ended. Returns it if there is more to do; may run
/// in interrupt context.
pub(crate) fn direct_done(request: LoopRequest, moved: Result<usize>) -> Option<LoopRequest> {
    match settle(request, moved) {
        Step::Next(request) if request.piece() == 0 => {
            request.end(Ok(()));
            None
        }
        Step::Next(request) => Some(request),
        Step::Gone => None,
    }
}

fn bounded(len: u64, limit: u32) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX).min(limit)
}

/// Fails a write for what is wrong with the image or its file. Its first `done` bytes are good.
fn refuse(request: LoopRequest, done: u32, error: Error) -> Step {
    if let Some(binding) = request.binding() {
        binding.image().report_write(&error);
    }
    request.fail_after(done, kernel::error::Error::from_errno(error.to_io_errno()));
    Step::Gone
}

/// Fails a request that is good up to the cursor, for something that was reported.
fn fail_here(request: LoopRequest, error: Error) -> Step {
    let done = request.done();
    request.fail_after(done, kernel::error::Error::from_errno(error.to_io_errno()));
    Step::Gone
}

/// Moves on behind what an I/O has moved, or ends the request with its error.
fn settle(request: LoopRequest, moved: Result<usize>) -> Step {
    match moved {
        Ok(0) => {
            // The file ends here. As with the C driver, the rest reads as zero and fails.
            if request.op() == Op::Read {
                let done = request.done();
                request.zero_rest();
                request.fail_after(done, EIO);
            } else {
                request.fail(EIO);
            }
            Step::Gone
        }
        Ok(count) => {
            request.advance(u32::try_from(count).unwrap_or(u32::MAX));
            Step::Next(request)
        }
        Err(error) => {
            request.fail(error);
            Step::Gone
        }
    }
}

fn read_piece(request: LoopRequest) -> Step {
    let piece = request.piece();
    if piece == 0 {
        request.end(Ok(()));
        return Step::Gone;
    }
    request.enter_epoch(epochs);
    let found = match place(&request) {
        Some((binding, pos)) => {
            layers::find_blocking(binding.image(), binding.file(), pos, u64::from(piece))
        }
        None => Err(Error::Store(EIO.to_errno())),
    };
    match found {
        Ok(Found {
            extent: Extent::Zero { len },
            ..
        }) => {
            request.zero(bounded(len, piece));
            Step::Next(request)
        }
        Ok(Found {
            extent: Extent::Data { offset, len },
            whose,
        }) => move_data(request, whose, offset, bounded(len, piece)),
        Ok(Found {
            extent: Extent::Compressed(unit),
            whose,
        }) => match read_compressed(&request, whose, &unit) {
            Ok(_) => Step::Next(request),
            Err(error) => fail_here(request, error),
        },
        Ok(_) => fail_here(request, Error::Store(EIO.to_errno())),
        Err(error) => fail_here(request, error),
    }
}

/// Copies what a piece wants of a compressed unit in one of the images.
// Not inlined: other reads need less stack.
#[inline(never)]
fn read_compressed(
    request: &LoopRequest,
    whose: Whose,
    unit: &Compressed,
) -> crate::contract::Result<u64> {
    let io_error = Error::Store(EIO.to_errno());
    let binding = request.binding().ok_or(io_error)?;
    let layer = binding.image().whose(binding.file(), whose);
    let layer = layer.ok_or(io_error)?;
    bounce::decompressed(layer, unit, u64::from(request.piece()), |bytes| {
        request.copy_from(bytes);
        Ok(())
    })
}

fn write_piece(request: LoopRequest) -> Step {
    let piece = request.piece();
    let done = request.done();
    if piece == 0 {
        request.end(Ok(()));
        return Step::Gone;
    }
    let placement = match place(&request) {
        Some((binding, pos)) => {
            let (image, file) = (binding.image(), binding.file());
            image.begin_writing(file).and_then(|()| {
                request.enter_epoch(epochs);
                layers::find_for_write(image, file, pos, u64::from(piece))
            })
        }
        None => Err(Error::Store(EIO.to_errno())),
    };
    match placement {
        Ok((whose, Placement::InPlace { offset, len })) => {
            move_data(request, whose, offset, bounded(len, piece))
        }
        Ok((_, Placement::Allocate { pos, len })) => {
            // Nobody inside waits for other allocations.
            request.leave_epoch();
            match write_new(&request, (pos, len)) {
                Ok(()) => Step::Next(request),
                // What was written to unpublished space is not there.
                Err(error) => refuse(request, done, error),
            }
        }
        Err(error) => refuse(request, done, error),
    }
}

/// What the request's device is bound to, and the guest position of the cursor.
fn place(request: &LoopRequest) -> Option<(&Binding, u64)> {
    let binding = request.binding()?;
    Some((binding, binding.guest_pos(request)?))
}

/// Moves `count` bytes between the cursor and host offset `offset` of one of the images. That is done
/// directly if the device is in that mode, the file is its own, and the extent is aligned for it.
fn move_data(request: LoopRequest, whose: Whose, offset: u64, count: u32) -> Step {
    let Some(binding) = request.binding() else {
        return fail_here(request, Error::Store(EIO.to_errno()));
    };
    let direct = binding.direct().filter(|_| whose == Whose::OWN);
    if direct.is_some_and(|align| is_aligned(&request, align, offset, count)) {
        let is_write = request.op() == Op::Write;
        let moved = request.transfer_direct(offset, count, |binding| {
            let gate = binding.image().direct_write_gate();
            (binding.file(), gate.filter(|_| is_write))
        });
        return match moved {
            Direct::Queued => Step::Gone,
            Direct::Done(request, moved) => settle(request, moved),
        };
    }
    let Some(layer) = binding.image().whose(binding.file(), whose) else {
        return fail_here(request, Error::Store(EIO.to_errno()));
    };
    let moved = transfer(&request, layer, offset, count);
    if matches!(moved, Ok(0)) && request.op() == Op::Read && layer.image.data_file().is_some() {
        // What lies behind the end of such a file is zeros.
        request.zero(count);
        return Step::Next(request);
    }
    settle(request, moved)
}

/// The block layer has aligned whole bios; where an extent begins or ends is not its business.
fn is_aligned(request: &LoopRequest, align: DioAlign, offset: u64, count: u32) -> bool {
    let mask = u64::from(align.offset.max(1) - 1);
    (offset | u64::from(count)) & mask == 0 && request.is_memory_aligned(count, align.memory_mask)
}

/// A transfer through the page cache, repeated if it failed for a reason that passes.
fn transfer(request: &LoopRequest, layer: Layer<'_>, offset: u64, count: u32) -> Result<usize> {
    let _gate = match request.op() {
        Op::Write => layer.image.exclude_direct_writes(),
        _ => None,
    };
    let moved = retry::data(|| request.transfer(layer.data(), offset, count));
    if request.op() == Op::Write {
        layer.image.count_write();
    }
    moved
}

/// Writes to guest range `unit`, which has no place yet, as far as the piece reaches into it. When
/// this returns the cursor is behind what was written, and that is published.
// Not inlined: reads need less stack.
#[inline(never)]
fn write_new(request: &LoopRequest, unit: (u64, u64)) -> crate::contract::Result {
    let io_error = Error::Store(EIO.to_errno());
    let (binding, at) = place(request).ok_or(io_error)?;
    let (image, file) = (binding.image(), binding.file());
    let place = layers::locate(image, file, at, u64::from(request.piece()))?;
    let spot = place.spot.ok_or(io_error)?;
    write_space(request, spot.layer, unit, (spot.pos, place.len))
        .map_err(|error| spot.layer.image.reported_write(error))
}

/// The same, in the image that has the place, for `len` bytes at position `at` of it: what is behind them
/// may be another image's, though the unit is longer.
#[inline(never)]
fn write_space(
    request: &LoopRequest,
    layer: Layer<'_>,
    unit: (u64, u64),
    (at, len): (u64, u64),
) -> crate::contract::Result {
    let Some(space) = allocation::make_room(layer, unit, at, len)? else {
        return Ok(());
    };
    let (offset, room) = space.place(at)?;
    let count = bounded(room.min(len), request.piece());
    write_all(request, layer, offset, count)?;
    allocation::finish(layer, space, at, u64::from(count))
}

/// Writes `count` bytes from the cursor to host offset `offset`.
fn write_all(
    request: &LoopRequest,
    layer: Layer<'_>,
    offset: u64,
    count: u32,
) -> crate::contract::Result {
    let io_error = Error::Store(EIO.to_errno());
    let (mut offset, mut left) = (offset, count);
    while left > 0 {
        let moved = transfer(request, layer, offset, left)
            .map_err(|error| Error::Store(error.to_errno()))?;
        let moved = bounded(moved as u64, left);
        if moved == 0 {
            return Err(io_error);
        }
        request.advance(moved);
        left = left.saturating_sub(moved);
        offset = offset.checked_add(u64::from(moved)).ok_or(io_error)?;
    }
    Ok(())
}

/// All tables of completed writes are in the page cache already, so one fsync does it.
fn flush(binding: &Binding) -> Result {
    binding.image().sync(binding.file()).map_err(|_| EIO)
}
