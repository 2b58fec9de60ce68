// SPDX-License-Identifier: GPL-2.0

//! The built-in parser for files that are what they are: guest position = host offset.

use kernel::prelude::*;

use crate::{
    contract::{
        self,
        Allocate,
        Discard,
        Discarded,
        Disk,
        Error,
        Extent,
        Map,
        Placement,
        Probe,
        Range,
        Reservation,
        Reserved,
        Tables,
        TablesMut,
        Unlinked,
        Verdict, //
    },
    parser::{
        boxed,
        AttachRequest,
        Attached,
        Parser, //
    }, //
};

pub(crate) const NAME: &CStr = c"raw";

/// The raw parser.
pub(crate) struct Raw;

/// Identity. Also its own allocator: a file has room for every byte, or the file system says no.
struct Identity;

impl Parser for Raw {
    /// The fallback claims nothing: it gets what nobody else wants.
    fn probe(&self, _probe: &Probe<'_>) -> Verdict {
        Verdict::NotMine
    }

    /// Reads nothing of the file.
    fn attach(
        &self,
        _tables: &dyn Tables,
        request: &AttachRequest<'_>,
    ) -> contract::Result<Attached> {
        if !request.options.is_empty() {
            return Err(Error::BadOption);
        }
        let disk = Disk {
            size: 0,
            variant: "raw",
            size_source: "file",
            ..Disk::default()
        };
        Ok(Attached::new(disk, boxed(Identity)?, boxed(Identity)?))
    }
}

impl Map for Identity {
    fn resolve_read(&self, _tables: &dyn Tables, pos: u64, len: u64) -> contract::Result<Extent> {
        Ok(Extent::Data { offset: pos, len })
    }

    fn resolve_write(
        &self,
        _tables: &dyn Tables,
        pos: u64,
        len: u64,
    ) -> contract::Result<Placement> {
        Ok(Placement::InPlace { offset: pos, len })
    }

    /// The driver asks the file system.
    fn reread_size(&self, tables: &dyn Tables) -> contract::Result<u64> {
        tables.size()
    }
}

impl Allocate for Identity {
    fn begin(&mut self, _tables: &mut dyn TablesMut) -> contract::Result {
        Ok(())
    }

    fn reserve(
        &mut self,
        _tables: &mut dyn TablesMut,
        _pos: u64,
        _len: u64,
    ) -> contract::Result<Reserved> {
        Ok(Reserved::Ready)
    }

    fn publish(
        &mut self,
        _tables: &mut dyn TablesMut,
        _space: &Reservation,
        _written: Range,
    ) -> contract::Result<Option<Unlinked>> {
        Ok(None)
    }

    fn release(&mut self, _space: &Reservation) {}

    /// A file is its own range: the driver asks the file system.
    fn discard(
        &mut self,
        _tables: &mut dyn TablesMut,
        range: Range,
        _size: u64,
        _how: Discard,
    ) -> contract::Result<Discarded> {
        Ok(Discarded::Zero {
            offset: range.pos,
            len: range.len,
        })
    }

    fn close(&mut self, _tables: &mut dyn TablesMut) -> contract::Result {
        Ok(())
    }
}
