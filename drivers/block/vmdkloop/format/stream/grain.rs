// SPDX-License-Identifier: GPL-2.0

//! Grains of a stream.

use loop_parser::contract::{
    num::{
        self,
        add,
        mul, //
    },
    Error,
    Result,
    Tables,
    SECTOR_SIZE, //
};

use super::ondisk::*;

/// What all grains of a stream have in common. Copied freely.
///
/// # Invariants
///
/// `grain` is a power of two, from 512 to [`MAX_GRAIN`]; `size` and `capacity` are multiples of 512, and
/// `size` is the smaller one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes in a grain.
    pub(super) grain: u64,
    /// Bytes that the stream has grains for.
    pub(super) capacity: u64,
    /// Bytes of these that are shown.
    pub(super) size: u64,
    /// What the stream has no grain for is the parent's; else it is zeros.
    pub(super) has_parent: bool,
}

impl Shape {
    /// Offset of guest position `pos` in its grain.
    pub(super) fn within(&self, pos: u64) -> u64 {
        pos & self.grain.wrapping_sub(1)
    }

    /// Guest position of the grain of `pos`.
    pub(super) fn start(&self, pos: u64) -> u64 {
        pos.saturating_sub(self.within(pos))
    }

    /// Bytes from guest position `pos` to the end of its grain.
    pub(super) fn left(&self, pos: u64) -> u64 {
        self.grain.saturating_sub(self.within(pos))
    }
}

/// A grain whose header was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grain {
    /// Guest position at which it begins, in bytes; within the disk.
    pub(super) start: u64,
    /// Host offset of its compressed bytes.
    pub(super) offset: u64,
    /// How many these are.
    pub(super) stored: u32,
}

/// What begins at the start of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A grain.
    Grain(Grain),
    /// A marker.
    Marker {
        /// Its type.
        kind: u32,
        /// Sectors of metadata behind its own one.
        sectors: u64,
    },
    /// The file ends before it does.
    Cut,
}

impl Grain {
    /// Host offset of the first sector behind it. It may lie past the end of the file: the last
    /// grain need not be filled up.
    pub(super) fn end(&self) -> Result<u64> {
        let end = add(self.offset, u64::from(self.stored), self.offset)?;
        num::align_up(end, SECTOR_SIZE, self.offset)
    }

    /// The bytes of the grain that are shown: of the last one, less than of others.
    pub(super) fn shown(&self, shape: &Shape) -> u64 {
        shape.size.saturating_sub(self.start).min(shape.grain)
    }
}

/// Takes apart what lies at host offset `at`.
///
/// # Errors
///
/// [`Error::Malformed`] for a grain that cannot be one: too large, or of no place on the disk.
pub(super) fn load(tables: &dyn Tables, shape: &Shape, at: u64) -> Result<Item> {
    let malformed = |what| Err(Error::malformed(what, at));
    let file_size = tables.size()?;
    let offset = add(at, GRAIN_HEADER_LEN, at)?;
    if offset > file_size {
        return Ok(Item::Cut);
    }
    let header: GrainHeader = num::load(tables, at)?;
    let stored = header.size.get();
    if stored == 0 {
        return marker(tables, at, header.lba.get());
    }
    if u64::from(stored) > max_stored(shape.grain) {
        return malformed("VMDK grain has more compressed bytes than there can be");
    }
    let start = mul(header.lba.get(), SECTOR_SIZE, at)?;
    if start >= shape.capacity || shape.within(start) != 0 {
        return malformed("VMDK grain has no place on the disk");
    }
    if add(offset, u64::from(stored), at)? > file_size {
        return Ok(Item::Cut);
    }
    Ok(Item::Grain(Grain {
        start,
        offset,
        stored,
    }))
}

/// The marker at host offset `at`, if all of its own sector is there.
fn marker(tables: &dyn Tables, at: u64, sectors: u64) -> Result<Item> {
    if add(at, SECTOR_SIZE, at)? > tables.size()? {
        return Ok(Item::Cut);
    }
    let kind = tables.load_le32(add(at, MARKER_TYPE, at)?)?;
    Ok(Item::Marker { kind, sectors })
}
