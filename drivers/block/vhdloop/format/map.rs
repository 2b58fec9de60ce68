// SPDX-License-Identifier: GPL-2.0

//! Resolving guest ranges.

use loop_parser::contract::{
    Error,
    Extent,
    Map,
    Placement,
    Result,
    Tables,
    SECTOR_SIZE, //
};

use super::{
    bitmap::{
        self,
        Run, //
    },
    footer::{
        self,
        Kind, //
    },
    layout::{
        BatEntry,
        Block,
        Layout, //
    },
    num::{
        add,
        mul, //
    },
    ondisk::FOOTER_DISK_TYPE,
    size::{
        self,
        SizeRule, //
    }, //
};

/// Most BAT entries that one call looks at to lengthen a run of zeros.
const MAX_ENTRY_LOADS: u64 = 128;

/// Bytes that are made writable at a time in a block with clear bits: every sync does this much.
const CHUNK: u64 = 512 * 1024;

/// Where the guest ranges of a VHD lie.
#[derive(Clone, Copy, Debug)]
pub struct VhdMap {
    variant: Variant,
    /// For the next look at the size of the disk.
    rule: SizeRule,
}

#[derive(Clone, Copy, Debug)]
enum Variant {
    /// The data lies in front of the footer.
    Fixed,
    /// Blocks behind a BAT.
    Blocks(Layout),
}

impl VhdMap {
    pub(super) fn fixed(rule: SizeRule) -> Self {
        Self {
            variant: Variant::Fixed,
            rule,
        }
    }

    pub(super) fn blocks(layout: Layout, rule: SizeRule) -> Self {
        Self {
            variant: Variant::Blocks(layout),
            rule,
        }
    }
}

impl Map for VhdMap {
    fn resolve_read(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Extent> {
        match &self.variant {
            Variant::Fixed => {
                let (offset, len) = fixed(tables, pos, len)?;
                Ok(Extent::Data { offset, len })
            }
            Variant::Blocks(layout) => read(layout, tables, pos, len),
        }
    }

    fn resolve_write(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Placement> {
        match &self.variant {
            Variant::Fixed => {
                let (offset, len) = fixed(tables, pos, len)?;
                Ok(Placement::InPlace { offset, len })
            }
            Variant::Blocks(layout) => write(layout, tables, pos, len),
        }
    }

    fn reread_size(&self, tables: &dyn Tables) -> Result<u64> {
        let chosen = footer::choose(tables, tables.size()?)?;
        let (size, _) = match (&self.variant, chosen.footer.kind) {
            (Variant::Fixed, Kind::Fixed) => size::of_fixed(&chosen, self.rule)?,
            (Variant::Blocks(layout), kind)
                if kind != Kind::Fixed && layout.has_parent == (kind == Kind::Differencing) =>
            {
                size::of_dynamic(&chosen, self.rule, layout)?
            }
            _ => {
                return Err(Error::malformed(
                    "VHD is of another type than it was when attached",
                    chosen.place.at.saturating_add(FOOTER_DISK_TYPE),
                ))
            }
        };
        Ok(size)
    }
}

/// Offset and length of a range of a fixed disk: as much of it as the file still has. The driver
/// keeps to the size of the disk, which ends in front of the footer.
pub(super) fn fixed<T: Tables + ?Sized>(tables: &T, pos: u64, len: u64) -> Result<(u64, u64)> {
    let left = tables.size()?.saturating_sub(pos) & !SECTOR_SIZE.wrapping_sub(1);
    if left == 0 {
        return Err(Error::malformed("fixed VHD was truncated", pos));
    }
    Ok((pos, len.min(left)))
}

/// What the BAT and a bitmap say of the start of a guest range.
pub(super) enum Found {
    /// The block is not allocated.
    Unallocated,
    /// The first bytes of the range lie in a block.
    Allocated {
        /// Host offset of the first one.
        offset: u64,
        /// How many bytes have equal bits.
        len: u64,
        /// Their bits.
        is_set: bool,
    },
}

/// Looks up the start of guest range `pos..pos + len`.
pub(super) fn find<T: Tables + ?Sized>(
    layout: &Layout,
    tables: &T,
    pos: u64,
    len: u64,
) -> Result<Found> {
    let index = layout.index(pos)?;
    let entry = layout.load_entry(tables, index)?;
    if entry.is_none() {
        return Ok(Found::Unallocated);
    }
    let block = layout.locate(entry, layout.entry_at(index)?, tables.size()?)?;
    let run = run_at(layout, tables, &block, pos, len)?;

    Ok(Found::Allocated {
        offset: add(block.data, layout.within(pos), block.data)?,
        len: mul(run.sectors, SECTOR_SIZE, block.bitmap)?,
        is_set: run.is_set,
    })
}

/// The run of equal bits at guest position `pos`, which lies in `block`: at most `len` bytes or what
/// is left of the block.
pub(super) fn run_at<T: Tables + ?Sized>(
    layout: &Layout,
    tables: &T,
    block: &Block,
    pos: u64,
    len: u64,
) -> Result<Run> {
    let max = len.min(layout.left_in_block(pos)) / SECTOR_SIZE;
    if layout.is_full(tables, layout.index(pos)?)? {
        return Ok(Run {
            is_set: true,
            sectors: max.max(1),
        });
    }
    let first = layout.within(pos) / SECTOR_SIZE;
    bitmap::run(tables, block.bitmap, first, max)
}

fn read(layout: &Layout, tables: &dyn Tables, pos: u64, len: u64) -> Result<Extent> {
    let len = match find(layout, tables, pos, len)? {
        Found::Unallocated => unallocated_len(layout, tables, pos, len)?,
        Found::Allocated {
            offset,
            len,
            is_set: true,
        } => return Ok(Extent::Data { offset, len }),
        Found::Allocated { len, .. } => len,
    };
    Ok(if layout.has_parent {
        Extent::Parent { len }
    } else {
        Extent::Zero { len }
    })
}

/// How many of the `len` bytes at `pos`, whose block is not allocated, lie in a run of blocks that
/// are not.
pub(super) fn unallocated_len<T: Tables + ?Sized>(
    layout: &Layout,
    tables: &T,
    pos: u64,
    len: u64,
) -> Result<u64> {
    let len = len.min(layout.limit().saturating_sub(pos));
    let mut found = layout.left_in_block(pos);

    for _ in 0..MAX_ENTRY_LOADS {
        if found >= len {
            break;
        }
        let index = layout.index(add(pos, found, pos)?)?;
        match layout.load_entry(tables, index) {
            Ok(BatEntry::NONE) => found = found.saturating_add(layout.block_size()),
            Err(Error::WouldBlock) => return Err(Error::WouldBlock),
            // What was found so far is right; the rest is for the next call to find out.
            _ => break,
        }
    }
    Ok(found.min(len))
}

/// A block of a dynamic image is given a place as a whole. One at a time, too, its clear sectors are made
/// ready, though chunk by chunk: a discard that comes first makes it a block without a place. In a
/// differencing image each sector is given a place by itself, so only the sectors that are to be written
/// count.
fn write(layout: &Layout, tables: &dyn Tables, pos: u64, len: u64) -> Result<Placement> {
    let (pos, len) = match find(layout, tables, pos, len)? {
        Found::Allocated {
            offset,
            len,
            is_set: true,
        } => return Ok(Placement::InPlace { offset, len }),
        Found::Unallocated if layout.has_parent => (pos, len.min(layout.left_in_block(pos))),
        Found::Allocated { len, .. } if layout.has_parent => (pos, len),
        Found::Unallocated | Found::Allocated { .. } => layout.guest_range(pos),
    };
    Ok(Placement::Allocate { pos, len })
}

/// Offset in its block, and length, of the chunk of guest position `pos`.
pub(super) fn chunk_within(layout: &Layout, pos: u64) -> (u64, u64) {
    let len = CHUNK.min(layout.block_size());
    (layout.within(pos) & !len.wrapping_sub(1), len)
}
