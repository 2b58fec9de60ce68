// SPDX-License-Identifier: GPL-2.0

//! Discards and write-zeroes.
//!
//! A raw file gets a hole. Of an image the parser says what becomes of a range: bytes that lie in the
//! file are made to read as zero there; space that lost its pointer is given back (`reclaim.rs`); and
//! where an image cannot say that it has zeros, they are written (`zeros.rs`).

use kernel::prelude::*;

use crate::{
    contract::{
        self,
        Discard,
        Discarded,
        Range,
        Unlinked,
        SECTOR_SIZE, //
    },
    device::{
        Binding,
        Device, //
    },
    image::{
        Allocation,
        Layer, //
    },
    layers,
    reclaim::{
        self,
        UnlinkedList, //
    },
    sys::{
        bindings::{
            LP_FALLOC_FL_KEEP_SIZE,
            LP_FALLOC_FL_PUNCH_HOLE,
            LP_FALLOC_FL_ZERO_RANGE, //
        },
        epoch::{
            Epoch,
            Epochs, //
        },
        io,
        limits,
        request::Request, //
    },
    tables::{
        store_error,
        LockedTables, //
    },
    zeros, //
};

/// Serves a discard or write-zeroes.
pub(crate) fn serve(request: &Request<Device>, binding: &Binding, how: Discard) -> Result {
    let device = request.device();
    if !limits::has_discard(device.disk_ref()) {
        return Err(EOPNOTSUPP);
    }
    let range = Range {
        pos: binding.guest_pos(request).ok_or(EIO)?,
        len: u64::from(request.len()),
    };
    let layer = Layer::new(binding.image(), binding.file());
    let result = if layer.image.is_raw() {
        fallocate(layer, mode_of(how), range)
    } else if range.pos % SECTOR_SIZE != 0 {
        // The window was moved since the limits were set.
        Err(EOPNOTSUPP)
    } else {
        let result = match layer.image.has_parts() {
            false => discard(layer, range, how),
            true => discard_in_parts(layer, range, how),
        };
        result.map_err(|error| {
            layer.image.report_write(&error);
            Error::from_errno(error.to_io_errno())
        })
    };
    match result {
        Err(EOPNOTSUPP) => {
            // The limits were set in the hope that the file system can; now we know better.
            Device::withdraw_fallocate(device, mode_of(how));
            Err(EOPNOTSUPP)
        }
        Err(ENOSPC) if !layer.image.is_raw() => Err(ENOSPC),
        Err(_) => Err(EIO),
        Ok(()) => Ok(()),
    }
}

fn mode_of(how: Discard) -> i32 {
    match how {
        Discard::Forget | Discard::Zero => LP_FALLOC_FL_PUNCH_HOLE,
        Discard::ZeroInPlace => LP_FALLOC_FL_ZERO_RANGE,
    }
}

fn fallocate(layer: Layer<'_>, mode: i32, range: Range) -> Result {
    let mode = mode | LP_FALLOC_FL_KEEP_SIZE;
    let result = layer.data().fallocate(mode, range.pos, range.len);
    layer.image.count_write();
    result
}

/// Deals with a range of a disk that is put together from others, in whole sectors.
// Not inlined, for the stack: most images have no parts.
#[inline(never)]
fn discard_in_parts(whole: Layer<'_>, range: Range, how: Discard) -> contract::Result {
    let outside = contract::Error::Store(EIO.to_errno());
    whole.image.begin_writing(whole.file)?;
    let mut left = range;
    while left.len > 0 {
        let layers::Located { len, spot } =
            layers::locate(whole.image, whole.file, left.pos, left.len)?;
        if let Some(spot) = spot {
            discard_in_part(spot.layer, Range { pos: spot.pos, len }, how)
                .map_err(|error| spot.layer.image.reported_write(error))?;
        }
        left.pos = left.pos.checked_add(len).ok_or(outside)?;
        left.len = left.len.checked_sub(len).ok_or(outside)?;
    }
    Ok(())
}

fn discard_in_part(part: Layer<'_>, range: Range, how: Discard) -> contract::Result {
    if part.image.is_raw() {
        return zero(part, range, how);
    }
    discard(part, range, how)
}

/// Deals with a range of an image, in whole sectors. What it frees is given back when it returns.
// Not inlined, for the stack.
#[inline(never)]
fn discard(layer: Layer<'_>, range: Range, how: Discard) -> contract::Result {
    let impossible = contract::Error::malformed("parser discarded an impossible range", 0);
    layer.image.begin_writing(layer.file)?;
    let mut left = range;
    let mut result = Ok(());
    while left.len > 0 && result.is_ok() {
        result = step(layer, left, how).and_then(|len| {
            if len == 0 {
                return Err(impossible);
            }
            left.pos = left.pos.checked_add(len).ok_or(impossible)?;
            left.len = left.len.saturating_sub(len);
            Ok(())
        });
    }
    reclaim::give_back_all(layer)?;
    result
}

/// Deals with the start of a range. Returns how much that was.
#[inline(never)]
fn step(layer: Layer<'_>, range: Range, how: Discard) -> contract::Result<u64> {
    // Until zeros are where the range lies, that place is not to become another's.
    let (discarded, _epoch) = ask(layer, range, how)?;
    match discarded {
        Discarded::Done { len } => Ok(len),
        Discarded::Zero { offset, len } => {
            let len = len.min(range.len);
            zero(layer, Range { pos: offset, len }, how)?;
            Ok(len)
        }
        Discarded::Write { len } => zeros::write(layer, range.pos, len.min(range.len)),
        Discarded::Freed { len, space } => {
            unlink(layer, space)?;
            Ok(len)
        }
    }
}

/// Gives space back, soon.
#[inline(never)]
fn unlink(layer: Layer<'_>, space: Unlinked) -> contract::Result {
    let mut full = UnlinkedList::new();
    let mut allocation = layer.image.allocation.lock();
    allocation.unlinked.push(space, &mut full);
    drop(allocation);
    reclaim::give_back(layer, &full)
}

/// What the parser makes of the start of a range. Those who are allocating in it copy what was there
/// before, and would bring it back: they are waited for.
// Not inlined, for the stack.
#[inline(never)]
fn ask(
    layer: Layer<'_>,
    range: Range,
    how: Discard,
) -> contract::Result<(Discarded, Option<Epoch<'_>>)> {
    let Layer { image, file, .. } = layer;
    let mut allocation = image.allocation.lock();
    let len = loop {
        match allocation.pending.free_from(range.pos, range.len) {
            0 => image.pending_changed.wait(&mut allocation),
            len => break len,
        }
    };
    let range = Range { len, ..range };
    // After the wait: the disk may have become larger.
    let size = image.known_size(file);
    let epoch = image.epochs().map(Epochs::enter);
    let Allocation { alloc, scratch, .. } = &mut *allocation;
    let mut tables = LockedTables::new(image, file, scratch);
    let discarded = alloc.discard(&mut tables, range, size, how)?;
    // Only who has something to zero stays inside.
    let is_zero = matches!(discarded, Discarded::Zero { .. });
    Ok((discarded, epoch.filter(|_| is_zero)))
}

/// Makes a range of the file read as zero: by a hole if the file system has them, else with zeros,
/// which a discard is not worth.
fn zero(layer: Layer<'_>, range: Range, how: Discard) -> contract::Result {
    if layer.image.is_poisoned() {
        return Err(store_error(EIO));
    }
    match fallocate(layer, mode_of(how), range) {
        // A block device can have larger sectors than the disk.
        Err(EINVAL) if how == Discard::Forget => Ok(()),
        Err(EOPNOTSUPP | EINVAL) if how != Discard::Forget => {
            // A raw file has no memory for that; what it is a part of has.
            let memory = match layer.whole {
                Some(whole) if layer.image.is_raw() => whole.image,
                _ => layer.image,
            };
            let mut allocation = memory.allocation.lock();
            let _gate = layer.image.exclude_direct_writes();
            let scratch = &mut *allocation.scratch;
            let filled = io::fill(layer.data(), range.pos, range.len, 0, scratch);
            layer.image.count_write();
            filled
        }
        result => result,
    }
    .map_err(store_error)
}
