// SPDX-License-Identifier: GPL-2.0

//! Sectors of a differencing image.
//!
//! Each sector has a bit that says whether it is here or in the parent. Nothing is copied from the
//! parent: what a guest writes is whole sectors, and only their bits are set.

use loop_parser::contract::{
    Error,
    Range,
    Reservation,
    Reserved,
    Result,
    TablesMut,
    SECTOR_SIZE, //
};

use super::{
    super::{
        bitmap,
        layout::Block,
        map::run_at,
        num::{
            add,
            mul,
            OUTSIDE, //
        },
    },
    Blocks, //
};

impl Blocks {
    /// Gives the sectors from `pos` on that are the parent's a place: in the block that they belong
    /// to, which is allocated if it has to be.
    pub(super) fn reserve_sectors(
        &mut self,
        tables: &mut dyn TablesMut,
        pos: u64,
        len: u64,
    ) -> Result<Reserved> {
        let block = self.block_of(tables, pos)?;
        let layout = &self.layout;
        let run = run_at(layout, tables, &block, pos, len)?;
        if run.is_set {
            return Ok(Reserved::Ready);
        }
        Ok(Reserved::Space(Reservation {
            pos,
            len: mul(run.sectors, SECTOR_SIZE, block.bitmap)?,
            offset: add(block.data, layout.within(pos), block.data)?,
            granule: SECTOR_SIZE,
            sync_before_publish: true,
        }))
    }

    /// The block of `pos`. A new one has no bits set.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if there is none, and the batmap says that it is full: with it all of a
    /// new block would hide the parent.
    fn block_of(&mut self, tables: &mut dyn TablesMut, pos: u64) -> Result<Block> {
        let index = self.layout.index(pos)?;
        if self.layout.load_entry(tables, index)?.is_none() {
            if self.layout.is_full(tables, index)? {
                return Err(Error::malformed(
                    "VHD batmap says that a block is full that is not there",
                    self.layout.entry_at(index)?,
                ));
            }
            let data = self.take(tables, index)?.data;
            if let Err(error) = self.point(tables, index, data) {
                self.release(data);
                return Err(error);
            }
        }
        let layout = &self.layout;
        let entry = layout.load_entry(tables, index)?;
        layout.locate(entry, layout.entry_at(index)?, tables.size()?)
    }

    /// Sets the bits of what was written.
    pub(super) fn publish_sectors(
        &self,
        tables: &mut dyn TablesMut,
        space: &Reservation,
        written: Range,
    ) -> Result {
        let offset = offset_of(space, written)?;
        let layout = &self.layout;
        let index = layout.index(written.pos)?;
        let at = layout.entry_at(index)?;

        // The file belongs to its owner, who may have changed it in the meantime.
        let block = layout.locate(layout.load_entry(tables, index)?, at, tables.size()?)?;
        if add(block.data, layout.within(written.pos), at)? != offset {
            return Err(Error::malformed("VHD BAT entry changed under us", at));
        }
        if written.len > layout.left_in_block(written.pos) {
            return Err(OUTSIDE);
        }
        let first = layout.within(written.pos) / SECTOR_SIZE;
        bitmap::set(tables, block.bitmap, first, written.len / SECTOR_SIZE)
    }
}

/// Host offset of what was written of `space`: whole sectors.
fn offset_of(space: &Reservation, written: Range) -> Result<u64> {
    let skip = written.pos.checked_sub(space.pos).ok_or(OUTSIDE)?;
    let end = skip.checked_add(written.len).ok_or(OUTSIDE)?;
    if end > space.len || skip % SECTOR_SIZE != 0 || written.len % SECTOR_SIZE != 0 {
        return Err(OUTSIDE);
    }
    space.offset.checked_add(skip).ok_or(OUTSIDE)
}
