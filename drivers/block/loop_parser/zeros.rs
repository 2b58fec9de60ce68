// SPDX-License-Identifier: GPL-2.0

//! Zeros, written as data of the guest are: in place, or to space that is made for them.

use crate::{
    allocation,
    bounce,
    contract::{
        Placement,
        Result, //
    },
    image::Layer,
    sys::epoch::Epochs, //
};

/// Writes zeros to guest range `pos..pos + len`. Returns how many bytes that were from its start.
///
/// # Errors
///
/// Those of a write.
// Not inlined, for the stack.
#[inline(never)]
pub(crate) fn write(layer: Layer<'_>, pos: u64, len: u64) -> Result<u64> {
    loop {
        // Inside, the place that was resolved stays the range's.
        let epoch = layer.image.epochs().map(Epochs::enter);
        let unit = match layer.image.resolve_write(layer.file, pos, len)? {
            Placement::InPlace { offset, len: room } => return fill(layer, offset, room.min(len)),
            Placement::Allocate { pos, len } => (pos, len),
        };
        drop(epoch);
        if let Some(len) = write_new(layer, unit, pos, len)? {
            return Ok(len);
        }
    }
}

/// The same, for the start of a range that has no place yet. `None`: it may have one now.
#[inline(never)]
fn write_new(layer: Layer<'_>, unit: (u64, u64), pos: u64, len: u64) -> Result<Option<u64>> {
    let Some(space) = allocation::make_room(layer, unit, pos, len)? else {
        return Ok(None);
    };
    let (offset, room) = space.place(pos)?;
    let len = fill(layer, offset, room.min(len))?;
    allocation::finish(layer, space, pos, len)?;
    Ok(Some(len))
}

/// Writes zeros to the start of a range of the file, as many as a buffer has room for.
fn fill(layer: Layer<'_>, offset: u64, len: u64) -> Result<u64> {
    bounce::buffered(layer.image.pool()?, len, |bytes| {
        bytes.fill(0);
        layer.write_data(offset, bytes)
    })
}
