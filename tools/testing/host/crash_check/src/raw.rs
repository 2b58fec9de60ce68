// SPDX-License-Identifier: GPL-2.0

//! A raw disk below an image: what the driver's built-in parser makes of it. Nobody writes to it.

use loop_parser::contract::{
    Allocate, Discard, Discarded, Disk, Error, Extent, HostRange, Map, Placement, Range,
    Reservation, Reserved, Result, Tables, TablesMut, Unlinked,
};
use testkit::{device::Device, store::Store};

/// Guest position = host offset.
struct Raw;

/// A parent is never written to.
const READ_ONLY: Error = Error::Store(-30);

/// A device over a raw disk.
pub fn open(store: Store) -> Device {
    let disk = Disk {
        size: store.len(),
        variant: "raw",
        ..Disk::default()
    };
    Device::new(store, disk, Box::new(Raw), Box::new(Raw))
}

impl Map for Raw {
    fn resolve_read(&self, _: &dyn Tables, pos: u64, len: u64) -> Result<Extent> {
        Ok(Extent::Data { offset: pos, len })
    }

    fn resolve_write(&self, _: &dyn Tables, _: u64, _: u64) -> Result<Placement> {
        Err(READ_ONLY)
    }

    fn reread_size(&self, tables: &dyn Tables) -> Result<u64> {
        tables.size()
    }
}

impl Allocate for Raw {
    fn begin(&mut self, _: &mut dyn TablesMut) -> Result {
        Err(READ_ONLY)
    }

    fn reserve(&mut self, _: &mut dyn TablesMut, _: u64, _: u64) -> Result<Reserved> {
        Err(READ_ONLY)
    }

    fn publish(
        &mut self,
        _: &mut dyn TablesMut,
        _: &Reservation,
        _: Range,
    ) -> Result<Option<Unlinked>> {
        Err(READ_ONLY)
    }

    fn release(&mut self, _: &Reservation) {}

    fn discard(
        &mut self,
        _: &mut dyn TablesMut,
        _: Range,
        _: u64,
        _: Discard,
    ) -> Result<Discarded> {
        Err(READ_ONLY)
    }

    fn reclaim(&mut self, _: &mut dyn TablesMut, _: Unlinked) -> Result<Option<HostRange>> {
        Err(READ_ONLY)
    }

    fn close(&mut self, _: &mut dyn TablesMut) -> Result {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_it_is_and_cannot_be_written_to() {
        let bytes: Vec<u8> = (0..1024u32).map(|at| at.to_le_bytes()[0]).collect();
        let mut device = open(Store::new(&bytes));
        assert_eq!(device.disk.size, 1024);
        assert_eq!(device.read(512, 512).unwrap(), bytes[512..]);
        assert_eq!(device.write(0, &[1; 512]), Err(READ_ONLY));
    }
}
