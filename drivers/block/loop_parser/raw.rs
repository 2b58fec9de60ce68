// SPDX-License-Identifier: GPL-2.0

//! The built-in parser for files that are what they are: guest position = host offset.

use kernel::prelude::*;

use crate::{
    contract::{
        self,
        Allocate,
        Disk,
        Error,
        Extent,
        Map,
        Placement,
        Probe,
        Reservation,
        Reserved,
        Tables,
        TablesMut,
        Verdict, //
    },
    parser::{
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
        let map = KBox::new(Identity, GFP_KERNEL).map_err(|_| Error::Store(ENOMEM.to_errno()))?;
        let alloc = KBox::new(Identity, GFP_KERNEL).map_err(|_| Error::Store(ENOMEM.to_errno()))?;
        Ok(Attached {
            disk: Disk {
                size: 0,
                variant: "raw",
                size_source: "file",
            },
            map,
            alloc,
            warning: None,
        })
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
}

impl Allocate for Identity {
    fn reserve(
        &mut self,
        _tables: &mut dyn TablesMut,
        _pos: u64,
        _len: u64,
    ) -> contract::Result<Reserved> {
        Ok(Reserved::Ready)
    }

    fn publish(&mut self, _tables: &mut dyn TablesMut, _space: &Reservation) -> contract::Result {
        Ok(())
    }

    fn release(&mut self, _space: &Reservation) {}

    fn close(&mut self, _tables: &mut dyn TablesMut) -> contract::Result {
        Ok(())
    }
}
