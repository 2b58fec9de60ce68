// SPDX-License-Identifier: GPL-2.0

//! Making the redundant tables of a whole file equal to the primary ones.
//!
//! What there is no time for waits until a table is touched.

use loop_parser::contract::{
    Error,
    Result,
    TablesMut, //
};

use super::{
    super::layout::Entry,
    copy,
    pair::Slot,
    space::{
        spend,
        MAX_LOADS, //
    },
    GrainAllocator, //
};

/// Most redundant tables that are made anew, as each of them costs a sync. A power failure leaves those
/// without an entry that were added after the last sync.
const MAX_COPIES: u32 = 64;

impl GrainAllocator {
    /// Makes the redundant tables equal to the primary ones, and some of those that are not there. What
    /// is malformed is left as it is: nobody can write to what it has the entries of.
    ///
    /// # Errors
    ///
    /// Those of the store.
    #[inline(never)]
    pub(super) fn repair(&mut self, tables: &mut dyn TablesMut) -> Result {
        let mut left = MAX_LOADS;
        let mut copies = MAX_COPIES;
        match copy::check_directory(tables, &self.layout, &mut left) {
            Err(Error::Malformed(_) | Error::Unsupported(_)) => return Ok(()),
            result => result?,
        }
        for index in 0..self.layout.count() {
            match self.repair_table(tables, index, &mut left, &mut copies) {
                Ok(()) | Err(Error::Malformed(_)) => {}
                Err(Error::Unsupported(_)) => break,
                Err(error) => return Err(error),
            }
        }
        // It may have been for want of loads only.
        self.bad_copy = None;
        // What is stored to has to be looked at more closely.
        self.equal = None;
        Ok(())
    }

    /// # Errors
    ///
    /// [`Error::Unsupported`] if there is no time left.
    fn repair_table(
        &mut self,
        tables: &mut dyn TablesMut,
        index: u64,
        left: &mut u64,
        copies: &mut u32,
    ) -> Result {
        spend(left, 1)?;
        let slot = Slot::of_directory(&self.layout, index)?;
        let Some(at) = slot.redundant else {
            return Ok(());
        };
        let has_copy = tables.load_le32(at)? != Entry::NONE.0;
        let has_table = tables.load_le32(slot.primary)? != Entry::NONE.0;
        match (has_table, has_copy) {
            (false, false) => return Ok(()),
            (false, true) => return tables.store(at, &Entry::NONE.0.to_le_bytes()),
            (true, true) => {}
            (true, false) => match copies.checked_sub(1) {
                Some(left) => *copies = left,
                None => return Ok(()),
            },
        }
        spend(left, self.layout.table_len() / 64)?;
        self.pair_within(tables, index, left).map(|_| ())
    }
}
