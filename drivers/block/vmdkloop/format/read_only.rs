// SPDX-License-Identifier: GPL-2.0

//! The allocator of images that are never written.

use loop_parser::contract::{
    Allocate,
    Error,
    Range,
    Reservation,
    Reserved,
    Result,
    TablesMut,
    Unlinked, //
};

/// Read-only file system.
const EROFS: i32 = 30;

/// Makes no room for anything. The driver never asks it to: a writable device of such an image is
/// refused when it is attached.
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly;

const REFUSED: Error = Error::Store(-EROFS);

impl Allocate for ReadOnly {
    fn begin(&mut self, _tables: &mut dyn TablesMut) -> Result {
        Err(REFUSED)
    }

    fn reserve(&mut self, _tables: &mut dyn TablesMut, _pos: u64, _len: u64) -> Result<Reserved> {
        Err(REFUSED)
    }

    fn publish(
        &mut self,
        _tables: &mut dyn TablesMut,
        _space: &Reservation,
        _written: Range,
    ) -> Result<Option<Unlinked>> {
        Err(REFUSED)
    }

    fn release(&mut self, _space: &Reservation) {}

    fn close(&mut self, _tables: &mut dyn TablesMut) -> Result {
        Ok(())
    }
}
