// SPDX-License-Identifier: GPL-2.0

//! Bytes as they are: a raw disk below an image, what the driver's built-in parser makes of it, and flat
//! extents.

use loop_parser::contract::{
    Allocate, Disk, Error, Extent, Map, Placement, Range, Reservation, Reserved, Result, Tables,
    TablesMut, Unlinked,
};
use testkit::{device::Device, store::Store};

/// Guest position = host offset - `start`.
#[derive(Clone, Copy)]
struct Raw {
    start: u64,
    writable: bool,
}

/// A parent is never written to.
const READ_ONLY: Error = Error::Store(-30);

/// A device over a raw disk, which nobody writes to.
pub fn open(store: Store) -> Device {
    let (start, writable) = (0, false);
    let size = store.len();
    device(store, size, Raw { start, writable })
}

/// A device over `size` bytes of a file.
pub fn extent(store: Store, start: u64, size: u64) -> std::result::Result<Device, String> {
    if start + size > store.len() {
        return Err("an extent reaches past the end of its file".into());
    }
    let writable = true;
    Ok(device(store, size, Raw { start, writable }))
}

fn device(store: Store, size: u64, raw: Raw) -> Device {
    let disk = Disk {
        size,
        variant: "raw",
        ..Disk::default()
    };
    Device::new(store, disk, Box::new(raw), Box::new(raw))
}

impl Map for Raw {
    fn resolve_read(&self, _: &dyn Tables, pos: u64, len: u64) -> Result<Extent> {
        let offset = self.start + pos;
        Ok(Extent::Data { offset, len })
    }

    fn resolve_write(&self, _: &dyn Tables, pos: u64, len: u64) -> Result<Placement> {
        let offset = self.start + pos;
        match self.writable {
            true => Ok(Placement::InPlace { offset, len }),
            false => Err(READ_ONLY),
        }
    }

    fn reread_size(&self, tables: &dyn Tables) -> Result<u64> {
        tables.size()
    }
}

impl Allocate for Raw {
    fn begin(&mut self, _: &mut dyn TablesMut) -> Result {
        match self.writable {
            true => Ok(()),
            false => Err(READ_ONLY),
        }
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

    fn close(&mut self, _: &mut dyn TablesMut) -> Result {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes() -> Vec<u8> {
        (0..1024u32).map(|at| at.to_le_bytes()[0]).collect()
    }

    #[test]
    fn it_is_what_it_is_and_cannot_be_written_to() {
        let mut device = open(Store::new(&bytes()));
        assert_eq!(device.disk.size, 1024);
        assert_eq!(device.read(512, 512).unwrap(), bytes()[512..]);
        assert_eq!(device.write(0, &[1; 512]), Err(READ_ONLY));
    }

    #[test]
    fn an_extent_is_a_part_of_its_file() {
        let mut device = extent(Store::new(&bytes()), 512, 512).unwrap();
        assert_eq!(device.read(0, 512).unwrap(), bytes()[512..]);
        device.write(0, &[1; 512]).unwrap();
        let written = [&bytes()[..512], &[1; 512]].concat();
        assert_eq!(device.close().unwrap().to_vec(), written);
        assert!(extent(Store::new(&bytes()), 512, 1024).is_err());
    }
}
