// SPDX-License-Identifier: GPL-2.0

//! Discards and write-zeroes.
//!
//! A raw file gets a hole. Of an image the parser says what becomes of a range: bytes that lie in the
//! file are made to read as zero there; space that lost its pointer is given back when that is
//! durable, many pieces after one sync.
//!
//! Space that was given back is not used again while the image is attached, so it does not matter
//! who still reads or writes there for a request that was sent before the discard had ended.

use kernel::prelude::*;

use crate::{
    contract::{
        self,
        Discard,
        Discarded,
        Range,
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
    sys::{
        bindings::{
            LP_FALLOC_FL_KEEP_SIZE,
            LP_FALLOC_FL_PUNCH_HOLE,
            LP_FALLOC_FL_ZERO_RANGE, //
        },
        io,
        limits,
        request::Request, //
    },
    tables::{
        store_error,
        LockedTables, //
    }, //
};

/// Pieces of space that are given back after one sync.
const BATCH: usize = 8;

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
    let layer = Layer {
        image: binding.image(),
        file: binding.file(),
    };
    let result = if layer.image.is_raw() {
        fallocate(layer, mode_of(how), range)
    } else if range.pos % SECTOR_SIZE != 0 {
        // The window was moved since the limits were set.
        Err(EOPNOTSUPP)
    } else {
        discard(layer, range, how).map_err(|error| {
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
    layer.file.fallocate(mode, range.pos, range.len)
}

/// Host ranges whose pointers were removed.
struct Freed {
    ranges: [Range; BATCH],
    count: usize,
}

impl Freed {
    const fn new() -> Self {
        Self {
            ranges: [Range { pos: 0, len: 0 }; BATCH],
            count: 0,
        }
    }

    fn push(&mut self, range: Range) {
        if let Some(slot) = self.ranges.get_mut(self.count) {
            *slot = range;
            self.count = self.count.saturating_add(1);
        }
    }

    fn is_full(&self) -> bool {
        self.count == BATCH
    }

    /// Gives the space back, once nothing durable points to it.
    fn give_back(&self, layer: Layer<'_>) -> contract::Result {
        if self.count == 0 {
            return Ok(());
        }
        layer.image.sync_together(layer.file).map_err(store_error)?;
        for range in self.ranges.iter().take(self.count) {
            // What cannot be punched is lost until a tool compacts the image; it is not used again.
            let _ = fallocate(layer, LP_FALLOC_FL_PUNCH_HOLE, *range);
        }
        Ok(())
    }
}

/// Deals with a range of an image, in whole sectors.
// Not inlined, for the stack.
#[inline(never)]
fn discard(layer: Layer<'_>, range: Range, how: Discard) -> contract::Result {
    layer.image.begin_writing(layer.file)?;
    let mut left = range;
    while left.len > 0 {
        let mut freed = Freed::new();
        let result = collect(layer, &mut left, how, &mut freed);
        freed.give_back(layer)?;
        result?;
    }
    Ok(())
}

/// Deals with the start of a range, until there is enough to give back or the range is empty.
fn collect(
    layer: Layer<'_>,
    left: &mut Range,
    how: Discard,
    freed: &mut Freed,
) -> contract::Result {
    let impossible = contract::Error::malformed("parser discarded an impossible range", 0);
    while left.len > 0 && !freed.is_full() {
        let len = match step(layer, *left, how)? {
            Discarded::Done { len } => len,
            Discarded::Zero { offset, len } => {
                let len = len.min(left.len);
                zero(layer, Range { pos: offset, len }, how)?;
                len
            }
            Discarded::Freed { len, offset, space } => {
                freed.push(Range {
                    pos: offset,
                    len: space,
                });
                len
            }
        };
        if len == 0 {
            return Err(impossible);
        }
        left.pos = left.pos.checked_add(len).ok_or(impossible)?;
        left.len = left.len.saturating_sub(len);
    }
    Ok(())
}

/// What the parser makes of the start of a range.
// Not inlined, for the stack.
#[inline(never)]
fn step(layer: Layer<'_>, range: Range, how: Discard) -> contract::Result<Discarded> {
    let size = layer.image.size(layer.file);
    let mut allocation = layer.image.allocation.lock();
    let Allocation { alloc, scratch, .. } = &mut *allocation;
    let mut tables = LockedTables::new(layer.image, layer.file, scratch);
    alloc.discard(&mut tables, range, size, how)
}

/// Makes a range of the file read as zero: by a hole if the file system has them, else with zeros,
/// which a discard is not worth.
fn zero(layer: Layer<'_>, range: Range, how: Discard) -> contract::Result {
    if layer.image.is_poisoned() {
        return Err(store_error(EIO));
    }
    match fallocate(layer, mode_of(how), range) {
        Err(EOPNOTSUPP) if how != Discard::Forget => {
            let mut allocation = layer.image.allocation.lock();
            let _gate = layer.image.exclude_direct_writes();
            let scratch = &mut *allocation.scratch;
            io::fill(layer.file, range.pos, range.len, 0, scratch)
        }
        result => result,
    }
    .map_err(store_error)
}
