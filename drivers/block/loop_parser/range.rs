// SPDX-License-Identifier: GPL-2.0

//! Guest ranges, cut to whole sectors for parsers and what these answer cut back.

use core::cmp::min;

use crate::contract::{
    Compressed,
    Error,
    Extent,
    Placement,
    Result,
    SECTOR_SIZE, //
};

/// A guest range as parsers see it: whole sectors of the disk. A window may begin anywhere in a
/// sector, and so may what a request asks for.
pub(crate) struct GuestRange {
    /// Start of the first sector.
    pub(crate) start: u64,
    /// Length up to the end of the last sector.
    pub(crate) span: u64,
    /// Bytes of the first sector that were not asked for.
    skip: u64,
    /// What was asked for.
    len: u64,
}

impl GuestRange {
    /// Raw files have no sectors.
    pub(crate) const fn whole(pos: u64, len: u64) -> Self {
        Self {
            start: pos,
            span: len,
            skip: 0,
            len,
        }
    }

    pub(crate) fn in_sectors(pos: u64, len: u64) -> Option<Self> {
        let skip = pos % SECTOR_SIZE;
        let span = skip
            .checked_add(len)?
            .checked_next_multiple_of(SECTOR_SIZE)?;
        (len > 0).then_some(Self {
            start: pos.saturating_sub(skip),
            span,
            skip,
            len,
        })
    }

    /// How many of `len` bytes from `start` on were asked for. A parser is not trusted to make
    /// progress or to stay within what it was asked.
    fn cut(&self, len: u64) -> Result<u64> {
        match len.checked_sub(self.skip) {
            Some(left) if left > 0 && len <= self.span => Ok(min(left, self.len)),
            _ => Err(Error::malformed(
                "parser resolved to an impossible extent",
                0,
            )),
        }
    }

    fn skip(&self, offset: u64) -> Result<u64> {
        let past_end = Error::malformed("extent past the end of the address space", offset);
        offset.checked_add(self.skip).ok_or(past_end)
    }

    pub(crate) fn cut_extent(&self, extent: Extent) -> Result<Extent> {
        Ok(match extent {
            Extent::Data { offset, len } => Extent::Data {
                offset: self.skip(offset)?,
                len: self.cut(len)?,
            },
            Extent::Zero { len } => Extent::Zero {
                len: self.cut(len)?,
            },
            Extent::Parent { len } => Extent::Parent {
                len: self.cut(len)?,
            },
            Extent::Compressed(unit) => Extent::Compressed(self.cut_compressed(unit)?),
        })
    }

    /// What was resolved has to lie within a unit of a size that can be.
    fn cut_compressed(&self, unit: Compressed) -> Result<Compressed> {
        let impossible = Error::malformed("parser resolved to an impossible unit", unit.offset);
        let end = u64::from(unit.skip).checked_add(unit.len);
        let is_possible = unit.unit.is_power_of_two()
            && unit.unit <= Compressed::MAX_UNIT
            && end.is_some_and(|end| end <= u64::from(unit.unit));
        if !is_possible {
            return Err(impossible);
        }
        let skip = u32::try_from(self.skip).map_err(|_| impossible)?;
        Ok(Compressed {
            skip: unit.skip.checked_add(skip).ok_or(impossible)?,
            len: self.cut(unit.len)?,
            ..unit
        })
    }

    pub(crate) fn cut_placement(&self, placement: Placement) -> Result<Placement> {
        match placement {
            Placement::InPlace { offset, len } => Ok(Placement::InPlace {
                offset: self.skip(offset)?,
                len: self.cut(len)?,
            }),
            Placement::Allocate { pos, len } => {
                let end = pos.checked_add(len);
                if pos > self.start || end.is_none_or(|end| end <= self.start) {
                    return Err(Error::malformed("parser resolved to an impossible unit", 0));
                }
                Ok(placement)
            }
        }
    }
}
