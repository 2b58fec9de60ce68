// SPDX-License-Identifier: GPL-2.0

//! A driver: uses a parser's [`Map`] and [`Allocate`] the way the kernel's does.

use std::rc::Rc;

use loop_parser::contract::{
    Allocate, Compressed, Discard, Discarded, Disk, Error, Extent, Map, Placement, Range,
    Reservation, Reserved, Result, Tables, TablesMut, Unlinked,
};

use crate::store::{Store, SECTOR};

/// What space is full of that was given back.
pub const FREED: u8 = 0xe7;

/// A device with an image in memory.
pub struct Device {
    /// What the parser says of the disk.
    pub disk: Disk,
    /// The image.
    pub store: Store,
    map: Box<dyn Map>,
    alloc: Box<dyn Allocate>,
    parent: Option<Box<Device>>,
    is_careless: bool,
    has_begun: bool,
    decompress: Option<Decompress>,
}

/// Decompresses a unit from bytes that hold it: exactly `unit` bytes, or `None` if the bytes are bad.
pub type Decompress = fn(&[u8], &Compressed) -> Option<Vec<u8>>;

/// A part of a guest write that waits for its place to be published.
#[derive(Clone, Debug)]
pub struct Pending {
    space: Reservation,
    pos: u64,
    data: Rc<[u8]>,
}

impl Device {
    /// A device over an attached image.
    pub fn new(store: Store, disk: Disk, map: Box<dyn Map>, alloc: Box<dyn Allocate>) -> Self {
        assert_eq!(disk.size % SECTOR, 0);
        Self {
            disk,
            store,
            map,
            alloc,
            parent: None,
            is_careless: false,
            has_begun: false,
            decompress: None,
        }
    }

    /// The same device, which can read units that are compressed.
    pub fn with_decompressor(mut self, decompress: Decompress) -> Self {
        self.decompress = Some(decompress);
        self
    }

    /// Breaks the rule that data is durable before its pointer: a test that does not notice is none.
    pub fn be_careless(&mut self) {
        self.is_careless = true;
    }

    /// The same device, with a layer below it.
    pub fn on_top_of(mut self, parent: Device) -> Self {
        self.parent = Some(Box::new(parent));
        self
    }

    /// Looks up the size of the disk again.
    pub fn reread_size(&mut self) -> Result {
        self.disk.size = self.map.reread_size(&self.store)?;
        Ok(())
    }

    /// Where the start of a range is read from. Panics if the answer breaks the contract.
    pub fn resolve_read(&self, pos: u64, len: u64) -> Result<Extent> {
        let extent = self.map.resolve_read(&self.store, pos, len)?;
        let (got, end) = match extent {
            Extent::Data { offset, len } => (len, offset + len),
            Extent::Zero { len } | Extent::Parent { len } => (len, 0),
            Extent::Compressed(unit) => {
                assert!(unit.unit.is_power_of_two() && unit.unit <= Compressed::MAX_UNIT);
                assert!(u64::from(unit.skip) + unit.len <= u64::from(unit.unit));
                (unit.len, 0)
            }
        };
        self.check_len(pos, len, got);
        assert!(end <= self.store.len(), "extent ends past the file");
        Ok(extent)
    }

    /// Where the start of a range is written to. Panics if the answer breaks the contract.
    pub fn resolve_write(&self, pos: u64, len: u64) -> Result<Placement> {
        let placement = self.map.resolve_write(&self.store, pos, len)?;
        match placement {
            Placement::InPlace { offset, len: got } => {
                self.check_len(pos, len, got);
                assert!(offset + got <= self.store.len(), "write past the file");
            }
            Placement::Allocate {
                pos: unit,
                len: unit_len,
            } => {
                assert!(unit <= pos && pos < unit + unit_len);
            }
        }
        Ok(placement)
    }

    fn check_len(&self, pos: u64, asked: u64, got: u64) {
        assert!(got > 0 && got <= asked && got % SECTOR == 0, "length {got}");
        assert!(pos + got <= self.disk.size);
    }

    /// Reads guest bytes.
    pub fn read(&self, pos: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let done = bytes.len() as u64;
            match self.resolve_read(pos + done, len - done)? {
                Extent::Data { offset, len } => bytes.extend(self.store.get(offset, len as usize)),
                Extent::Zero { len } => bytes.resize(bytes.len() + len as usize, 0),
                Extent::Parent { len } => bytes.extend(self.read_parent(pos + done, len)?),
                Extent::Compressed(unit) => bytes.extend(self.read_compressed(&unit)?),
            }
        }
        Ok(bytes)
    }

    /// Reads from a unit that is compressed.
    fn read_compressed(&self, unit: &Compressed) -> Result<Vec<u8>> {
        let decompress = self.decompress.expect("nobody can decompress");
        let there = self.store.len().saturating_sub(unit.offset);
        let stored = there.min(u64::from(unit.stored)) as usize;
        let bytes = self.store.get(unit.offset, stored);
        let bad = Error::malformed("compressed unit is damaged", unit.offset);
        let whole = decompress(&bytes, unit).ok_or(bad)?;
        assert_eq!(whole.len(), unit.unit as usize);
        Ok(whole[unit.skip as usize..][..unit.len as usize].to_vec())
    }

    /// Reads what lies below, zeros past its end.
    fn read_parent(&self, pos: u64, len: u64) -> Result<Vec<u8>> {
        let parent = self.parent.as_ref().expect("the image has no parent");
        let there = parent.disk.size.saturating_sub(pos).min(len);
        let mut bytes = parent.read(pos, there)?;
        bytes.resize(len as usize, 0);
        Ok(bytes)
    }

    /// Writes guest bytes, one allocation after the other.
    pub fn write(&mut self, pos: u64, data: &[u8]) -> Result {
        let mut done = 0;
        while done < data.len() {
            let at = pos + done as u64;
            match self.begin(at, &data[done..])? {
                Begun::Written(len) => done += len,
                Begun::Pending(pending, len) => {
                    self.finish(pending)?;
                    done += len;
                }
            }
        }
        Ok(())
    }

    /// Tells the parser, once, that there will be writes.
    fn begin_writing(&mut self) -> Result {
        if !self.has_begun {
            self.alloc.begin(&mut self.store)?;
            self.has_begun = true;
        }
        Ok(())
    }

    /// Tells the parser once more before the next write, as a driver does when one of several writers has
    /// gone.
    pub fn begin_again(&mut self) {
        self.has_begun = false;
    }

    /// As a driver does it, tells the parser once more if a write has met something malformed.
    fn noted<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(Error::Malformed(_)) = result {
            self.begin_again();
        }
        result
    }

    /// Takes the first steps of a guest write, up to where its place is reserved.
    pub fn begin(&mut self, pos: u64, data: &[u8]) -> Result<Begun> {
        let begun = self.try_begin(pos, data);
        self.noted(begun)
    }

    fn try_begin(&mut self, pos: u64, data: &[u8]) -> Result<Begun> {
        self.begin_writing()?;
        let mut retries = 0;
        loop {
            let left = data.len() as u64;
            match self.resolve_write(pos, left)? {
                Placement::InPlace { offset, len } => {
                    self.store.write_data(offset, &data[..len as usize])?;
                    return Ok(Begun::Written(len as usize));
                }
                Placement::Allocate { .. } => {
                    match self.alloc.reserve(&mut self.store, pos, left)? {
                        Reserved::Ready => retries += 1,
                        Reserved::Space(space) => return Ok(self.pending(space, pos, data)),
                    }
                }
            }
            assert!(retries < 4, "reserve and resolve disagree");
        }
    }

    fn pending(&self, space: Reservation, pos: u64, data: &[u8]) -> Begun {
        assert!(space.pos <= pos && pos < space.pos + space.len);
        assert!(space.offset + space.len <= self.store.len());
        if space.granule == 0 {
            let old = self.store.get(space.offset, space.len as usize);
            assert!(old.iter().all(|&byte| byte == 0), "space is not zero");
        } else {
            assert!(space.granule.is_power_of_two());
        }

        let len = (space.pos + space.len - pos).min(data.len() as u64) as usize;
        let data = Rc::from(&data[..len]);
        Begun::Pending(Pending { space, pos, data }, len)
    }

    /// Writes the bytes and publishes the place; gives it back if the bytes cannot be written.
    pub fn finish(&mut self, pending: Pending) -> Result {
        let result = self.fill_in(&pending);
        if result.is_err() {
            self.alloc.release(&pending.space);
        }
        match self.noted(result)? {
            Some(unlinked) => self.give_back(unlinked),
            None => Ok(()),
        }
    }

    fn fill_in(&mut self, pending: &Pending) -> Result<Option<Unlinked>> {
        let Pending { space, pos, data } = pending;
        let (pos, data) = self.completed(space, *pos, data)?;
        let offset = space.offset + (pos - space.pos);
        self.store.write_data(offset, &data)?;
        if space.sync_before_publish && !self.is_careless {
            self.store.sync()?;
        }
        let written = match space.granule {
            // The rest of it reads as zero already.
            0 => Range {
                pos: space.pos,
                len: space.len,
            },
            _ => Range {
                pos,
                len: data.len() as u64,
            },
        };
        self.alloc.publish(&mut self.store, space, written)
    }

    /// The bytes for a place, completed to whole granules with what was read there before.
    fn completed(&self, space: &Reservation, pos: u64, data: &[u8]) -> Result<(u64, Vec<u8>)> {
        if space.granule == 0 {
            return Ok((pos, data.to_vec()));
        }
        let end = pos + data.len() as u64;
        let start = (pos / space.granule * space.granule).max(space.pos);
        let stop = end.next_multiple_of(space.granule);
        let stop = stop.min(space.pos + space.len);
        let mut bytes = self.read_or_zero(start, pos)?;
        bytes.extend(data);
        bytes.extend(self.read_or_zero(end, stop)?);
        Ok((start, bytes))
    }

    /// Reads guest bytes; zeros past the end of the disk.
    fn read_or_zero(&self, start: u64, end: u64) -> Result<Vec<u8>> {
        let there = end.min(self.disk.size).saturating_sub(start);
        let mut bytes = self.read(start, there)?;
        bytes.resize((end - start) as usize, 0);
        Ok(bytes)
    }

    /// Gives back space that lost its pointer. There are no other requests to wait for.
    fn give_back(&mut self, space: Unlinked) -> Result {
        // What is compressed may end past the end of the file.
        assert!(space.offset < self.store.len(), "space past the file");
        if !self.is_careless {
            self.store.sync()?;
        }
        if let Some(hole) = self.alloc.reclaim(&mut self.store, space)? {
            // What was compressed may have ended past the end of the file.
            let len = hole.len.min(self.store.len().saturating_sub(hole.offset));
            // A hole, but nobody may rely on that.
            self.store.fill_data(hole.offset, len, FREED)?;
        }
        Ok(())
    }

    /// Discards a guest range, or makes it zero.
    pub fn discard(&mut self, pos: u64, len: u64, how: Discard) -> Result {
        let mut done = 0;
        while done < len {
            done += self.discard_step(pos + done, len - done, how)?;
        }
        Ok(())
    }

    /// Does so with the start of a range. Panics if the answer breaks the contract.
    fn discard_step(&mut self, pos: u64, len: u64, how: Discard) -> Result<u64> {
        self.begin_writing()?;
        let range = Range { pos, len };
        let discarded = self
            .alloc
            .discard(&mut self.store, range, self.disk.size, how);
        match self.noted(discarded)? {
            Discarded::Done { len: got } => {
                self.check_len(pos, len, got);
                Ok(got)
            }
            Discarded::Zero { offset, len: got } => {
                self.check_len(pos, len, got);
                assert!(offset + got <= self.store.len(), "zeros past the file");
                self.store.fill_data(offset, got, 0)?;
                Ok(got)
            }
            Discarded::Write { len: got } => {
                self.check_len(pos, len, got);
                assert_ne!(how, Discard::Forget);
                self.write(pos, &vec![0; got as usize])?;
                Ok(got)
            }
            Discarded::Freed { len: got, space } => {
                self.check_len(pos, len, got);
                self.give_back(space)?;
                Ok(got)
            }
        }
    }

    /// Gives a place back without having tried.
    pub fn give_up(&mut self, pending: &Pending) {
        self.alloc.release(&pending.space);
    }

    /// A guest's flush.
    pub fn flush(&mut self) -> Result {
        self.store.sync()
    }

    /// The last use of the device.
    pub fn close(mut self) -> Result<Store> {
        self.alloc.close(&mut self.store)?;
        Ok(self.store)
    }

    /// As [`Device::close`], but the device stays usable.
    pub fn trim(&mut self) -> Result {
        self.has_begun = false;
        self.alloc.close(&mut self.store)
    }

    /// The size of the image.
    pub fn image_len(&self) -> u64 {
        self.store.size().unwrap()
    }
}

impl Pending {
    /// The place that was reserved.
    pub fn space(&self) -> &Reservation {
        &self.space
    }
}

/// How far [`Device::begin`] came.
#[derive(Debug)]
pub enum Begun {
    /// So many bytes were written in place.
    Written(usize),
    /// So many bytes wait for [`Device::finish`].
    Pending(Pending, usize),
}
