// SPDX-License-Identifier: GPL-2.0

//! Where things lie in a dynamic or differencing image ("Block Allocation Table and Data Blocks").

use loop_parser::contract::{
    Error,
    Result,
    Tables,
    SECTOR_SIZE, //
};

use super::{
    batmap::Batmap,
    num::{
        add,
        align_up,
        mul,
        Region,
        OUTSIDE, //
    },
    ondisk::{
        BAT_ENTRY_LEN,
        FOOTER_LEN,
        HEADER_LEN, //
    }, //
};

/// Largest dynamic disk in bytes: its sectors are counted in 32 bits. Windows and XenServer stop at
/// 2040 GiB.
pub(super) const MAX_DISK_SIZE: u64 = SECTOR_SIZE << 32;

/// An entry of the BAT: where a block lies.
///
/// | value | meaning |
/// |---|---|
/// | `ffffffff` | the block is not allocated: it reads as zero, or as the parent's bytes |
/// | other | first sector of the block: its bitmap, then its data |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatEntry(u32);

impl BatEntry {
    /// Not allocated.
    pub(super) const NONE: Self = Self(u32::MAX);

    /// Takes an entry as it was loaded. Any value is possible.
    pub(super) fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// The entry for a block at host offset `start`, if an entry can say so.
    pub(super) fn for_block(start: u64) -> Option<Self> {
        if start % SECTOR_SIZE != 0 {
            return None;
        }
        let entry = Self(u32::try_from(start / SECTOR_SIZE).ok()?);
        (!entry.is_none()).then_some(entry)
    }

    /// The value to store.
    pub(super) fn raw(self) -> u32 {
        self.0
    }

    /// The block is not allocated.
    pub(super) fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Host offset in bytes of the block.
    fn start(self) -> u64 {
        // 41 bits: nothing saturates.
        u64::from(self.0).saturating_mul(SECTOR_SIZE)
    }
}

/// An allocated block.
///
/// # Invariants
///
/// Lay within the file, outside its headers and BAT, when it was looked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Host offset in bytes of the bitmap.
    pub(super) bitmap: u64,
    /// Host offset in bytes of the data.
    pub(super) data: u64,
    /// Host offset in bytes of what comes after it.
    pub(super) end: u64,
}

/// Most sectors whose bits fit into one sector of a bitmap.
const SECTORS_PER_BITMAP_SECTOR: u64 = 4096;

/// The layout of an image with a BAT. Copied freely: kept small.
///
/// # Invariants
///
/// - `block_shift` is between 9 and 31.
/// - Footer copy, header and BAT do not overlap, and lay within the file at attach: none of their
///   ends overflows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Host offset in bytes of the dynamic header.
    pub(super) header: u64,
    /// Host offset in bytes of the BAT.
    pub(super) table: u64,
    /// Number of entries in the BAT; may be more than the disk needs.
    pub(super) entries: u32,
    /// Bytes of data in a block, as a shift count.
    pub(super) block_shift: u8,
    /// The creator is tapdisk 1.1 or later: there may be a batmap behind the BAT.
    pub(super) may_have_batmap: bool,
    /// The batmap, if there is one to be trusted.
    pub(super) batmap: Option<Batmap>,
    /// A differencing image: what it does not have itself is its parent's, not zero.
    pub(super) has_parent: bool,
}

impl Layout {
    /// Bytes of data in a block, a power of two.
    pub(super) fn block_size(&self) -> u64 {
        // By the invariant nothing wraps.
        1u64.wrapping_shl(u32::from(self.block_shift))
    }

    /// Bytes in front of a block's data: its bitmap, in whole sectors.
    pub(super) fn bitmap_len(&self) -> u64 {
        let sectors = self.block_size() / SECTOR_SIZE;
        // At most 2^10 sectors: nothing saturates.
        sectors
            .div_ceil(SECTORS_PER_BITMAP_SECTOR)
            .saturating_mul(SECTOR_SIZE)
    }

    /// Where the dynamic header lies.
    fn header_region(&self) -> Region {
        // By the invariant nothing saturates, here and below.
        Region {
            start: self.header,
            end: self.header.saturating_add(HEADER_LEN),
        }
    }

    /// Where the BAT lies.
    pub(super) fn table_region(&self) -> Region {
        let len = u64::from(self.entries).saturating_mul(BAT_ENTRY_LEN);
        Region {
            start: self.table,
            end: self.table.saturating_add(len),
        }
    }

    /// How many bytes the BAT has entries for.
    pub(super) fn covered(&self) -> u64 {
        // Less than 2^63: nothing saturates.
        u64::from(self.entries).saturating_mul(self.block_size())
    }

    /// The largest size in bytes that the disk can have. Its size now is for the driver to know: it
    /// can change under us, up to this.
    pub(super) fn limit(&self) -> u64 {
        self.covered().min(MAX_DISK_SIZE)
    }

    /// Number of blocks that the disk can have, all of which have an entry.
    pub(super) fn blocks(&self) -> u64 {
        self.limit().div_ceil(self.block_size().max(1))
    }

    /// The block of guest position `pos`.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] with `-EIO` if no disk with this BAT has the position.
    pub(super) fn index(&self, pos: u64) -> Result<u64> {
        if pos >= self.limit() {
            return Err(OUTSIDE);
        }
        // By the invariant nothing wraps.
        Ok(pos.wrapping_shr(u32::from(self.block_shift)))
    }

    /// Offset of guest position `pos` in its block.
    pub(super) fn within(&self, pos: u64) -> u64 {
        pos & self.block_size().wrapping_sub(1)
    }

    /// Bytes from guest position `pos` to the end of its block.
    pub(super) fn left_in_block(&self, pos: u64) -> u64 {
        self.block_size().saturating_sub(self.within(pos))
    }

    /// Guest position and length in bytes of the block of `pos`. The last one can reach past the end
    /// of the disk.
    pub(super) fn guest_range(&self, pos: u64) -> (u64, u64) {
        (pos.saturating_sub(self.within(pos)), self.block_size())
    }

    /// Host offset in bytes of the BAT entry of block `index`.
    pub(super) fn entry_at(&self, index: u64) -> Result<u64> {
        if index >= u64::from(self.entries) {
            return Err(OUTSIDE);
        }
        let at = self.table;
        add(at, mul(index, BAT_ENTRY_LEN, at)?, at)
    }

    /// Loads the BAT entry of block `index`.
    pub(super) fn load_entry<T: Tables + ?Sized>(
        &self,
        tables: &T,
        index: u64,
    ) -> Result<BatEntry> {
        tables
            .load_be32(self.entry_at(index)?)
            .map(BatEntry::from_raw)
    }

    /// Checks where an entry points. The file may have changed since the last time: to be done at
    /// every use. `entry_at` is where the entry was found, `file_size` the size of the file now.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if the block is not wholly within the file, or overlaps the footer
    /// copy, the header or the BAT.
    pub(super) fn locate(&self, entry: BatEntry, entry_at: u64, file_size: u64) -> Result<Block> {
        let bitmap = entry.start();
        let data = add(bitmap, self.bitmap_len(), entry_at)?;
        let end = add(data, self.block_size(), entry_at)?;
        let block = Region { start: bitmap, end };

        if end > file_size {
            return Err(Error::malformed(
                "VHD BAT entry points past the end of the file",
                entry_at,
            ));
        }
        if block.start < FOOTER_LEN
            || block.overlaps(self.header_region())
            || block.overlaps(self.table_region())
        {
            return Err(Error::malformed(
                "VHD BAT entry points into the headers",
                entry_at,
            ));
        }
        // INVARIANT: just checked.
        Ok(Block { bitmap, data, end })
    }

    /// Whether the batmap says that all sectors of block `index` are present, if it is allocated. Then
    /// its bitmap is not looked at.
    pub(super) fn is_full<T: Tables + ?Sized>(&self, tables: &T, index: u64) -> Result<bool> {
        match &self.batmap {
            Some(batmap) => batmap.is_full(tables, index),
            None => Ok(false),
        }
    }

    /// Where tapdisk puts the batmap header: in the first sector behind the BAT.
    pub(super) fn batmap_header_at(&self) -> Result<u64> {
        align_up(self.table_region().end, SECTOR_SIZE, self.table)
    }

    /// End of what lies at a known place: footer copy, header and BAT in whole sectors.
    pub(super) fn headers_end(&self) -> Result<u64> {
        let table_end = self.batmap_header_at()?;
        Ok(table_end.max(self.header_region().end).max(FOOTER_LEN))
    }
}
