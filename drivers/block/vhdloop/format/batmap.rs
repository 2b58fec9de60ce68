// SPDX-License-Identifier: GPL-2.0

//! tapdisk's batmap, behind the BAT: a bit for each block that says that all bits of its bitmap are
//! set. Honoured, never written.

use loop_parser::contract::{
    Error,
    Result,
    Tables,
    SECTOR_SIZE, //
};

use super::{
    checksum,
    footer::Footer,
    layout::Layout,
    num::{
        self,
        add,
        mul,
        Region, //
    },
    ondisk::*, //
};

/// Most sectors that the checksum covers: what a disk of 2 TiB in blocks of 2 MiB needs.
const MAX_SECTORS: u64 = 256;

/// A batmap whose checksum was right.
///
/// # Invariants
///
/// Lay within the file at attach: its end does not overflow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batmap {
    /// Host offset in bytes.
    at: u64,
    /// Number of blocks whose bits the checksum covers.
    blocks: u32,
}

impl Batmap {
    /// Whether all sectors of block `index` are known to be present.
    pub(super) fn is_full<T: Tables + ?Sized>(&self, tables: &T, index: u64) -> Result<bool> {
        if index >= u64::from(self.blocks) {
            return Ok(false);
        }
        let mut byte = [0];
        tables.load(add(self.at, index / 8, self.at)?, &mut byte)?;
        let bit = u32::try_from(index % 8).unwrap_or(0);
        Ok(byte.map(|byte| byte.wrapping_shl(bit)) >= [0x80])
    }
}

/// Looks for the batmap header in the sector behind the BAT.
fn find<T: Tables + ?Sized>(
    tables: &T,
    layout: &Layout,
    file_size: u64,
) -> Result<Option<(u64, BatmapHeader)>> {
    if !layout.may_have_batmap {
        return Ok(None);
    }
    let at = layout.batmap_header_at()?;
    if add(at, BATMAP_HEADER_LEN, at)? > file_size {
        return Ok(None);
    }
    let header: BatmapHeader = num::load(tables, at)?;
    Ok((header.cookie == BATMAP_COOKIE).then_some((at, header)))
}

/// Finds the batmap of an image with this footer, in a file of `file_size` bytes. One that is damaged
/// or that lies outside the file is left alone: bitmaps say the same.
///
/// # Errors
///
/// [`Error::Unsupported`] if its header says that the data is encrypted.
pub(super) fn load<T: Tables + ?Sized>(
    tables: &T,
    layout: &Layout,
    footer: &Footer,
    file_size: u64,
) -> Result<Option<Batmap>> {
    let Some((at, header)) = find(tables, layout, file_size)? else {
        return Ok(None);
    };
    if header.keyhash == KEYHASH_ENCRYPTED {
        return Err(Error::unsupported(
            "encrypted VHD (tapdisk)",
            at.saturating_add(BATMAP_KEYHASH),
        ));
    }
    let sectors = summed_sectors(footer.current_size);
    let len = sectors.saturating_mul(SECTOR_SIZE);
    let is_there = sectors <= MAX_SECTORS
        && sectors <= u64::from(header.batmap_size.get())
        && matches!(header.batmap_offset.get().checked_add(len), Some(end) if end <= file_size);
    if !is_there || !has_checksum(tables, &header, len)? {
        return Ok(None);
    }
    let bits = u32::try_from(len.saturating_mul(8)).unwrap_or(0);
    // INVARIANT: just checked.
    Ok(Some(Batmap {
        at: header.batmap_offset.get(),
        blocks: bits.min(layout.entries),
    }))
}

/// How many sectors the checksum covers, for a disk of `size` bytes: whatever the size of its blocks,
/// as if they had 2 MiB.
fn summed_sectors(size: u64) -> u64 {
    size.wrapping_shr(24).div_ceil(SECTOR_SIZE).max(1)
}

/// Whether the checksum of the first `len` bytes of the map is right.
fn has_checksum<T: Tables + ?Sized>(tables: &T, header: &BatmapHeader, len: u64) -> Result<bool> {
    let value = match header.version.get() {
        BATMAP_1_1 => checksum::signed,
        BATMAP_1_2 => checksum::unsigned,
        _ => return Ok(false),
    };
    let sum = checksum::sum_at_by(tables, header.batmap_offset.get(), len, value)?;
    Ok(!sum == header.checksum.get())
}

/// End of the batmap and its header, 0 if there is none. Their space is not free, right or wrong.
///
/// # Errors
///
/// [`Error::Malformed`] if they are not within the file.
pub(super) fn end<T: Tables + ?Sized>(tables: &T, layout: &Layout, file_size: u64) -> Result<u64> {
    let Some((at, header)) = find(tables, layout, file_size)? else {
        return Ok(0);
    };
    let len = mul(u64::from(header.batmap_size.get()), SECTOR_SIZE, at)?;
    let map = Region::new(header.batmap_offset.get(), len, at)?;
    let end = map.end.max(add(at, BATMAP_HEADER_LEN, at)?);
    if end > file_size {
        return Err(Error::malformed(
            "VHD batmap lies past the end of the file",
            at,
        ));
    }
    Ok(end)
}
