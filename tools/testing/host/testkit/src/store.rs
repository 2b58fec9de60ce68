// SPDX-License-Identifier: GPL-2.0

//! An image file, or block device, in memory.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    rc::Rc,
};

use loop_parser::contract::{Error, Probe, Result, Tables, TablesMut, Verdict};

/// Bytes in a sector.
pub const SECTOR: u64 = 512;
/// A sector's content.
pub type Sector = Rc<[u8; 512]>;
/// Sectors by number; what is not there is zero.
pub type Sectors = BTreeMap<u64, Sector>;

/// `-ENOSPC`.
pub const ENOSPC: Error = Error::Store(-28);
/// `-EIO`.
pub const EIO: Error = Error::Store(-5);

/// What happened to a [`Store`], in order.
#[derive(Clone, Debug)]
pub enum Op {
    /// Bytes were stored.
    Write {
        /// Host offset in bytes.
        offset: u64,
        /// The bytes.
        bytes: Rc<[u8]>,
    },
    /// A range was filled with one byte.
    Fill {
        /// Host offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The byte.
        byte: u8,
    },
    /// The file was cut, or extended, to a size.
    Resize(u64),
    /// Everything became durable.
    Sync,
    /// Something that a test wants to know about.
    Mark(usize),
}

/// How a store fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing is stored.
    Nothing,
    /// The first half of the bytes is stored; of a table entry, nothing.
    Half,
    /// The first half of the bytes is stored, even of a table entry.
    Torn,
    /// The file grows if it had to, but no byte is stored.
    GrowOnly,
}

impl Failure {
    /// Those that can happen: table entries are not torn by a file system that is full.
    pub const ALL: [Failure; 3] = [Failure::Nothing, Failure::Half, Failure::GrowOnly];
}

/// An image in memory.
///
/// Sparse: sectors that were never written take no memory. It can record what is done to it (for
/// [`crash`](crate::crash)), fail on demand, and run full.
#[derive(Clone, Debug)]
pub struct Store {
    sectors: Sectors,
    size: u64,
    can_grow: bool,
    has_holes: bool,
    /// What was done, if that is recorded.
    trace: Option<Vec<Op>>,
    /// Stores until one fails, and how.
    fail_in: Option<(u64, Failure)>,
    /// Most sectors that may be in use.
    capacity: Option<usize>,
    /// `sync` fails.
    sync_fails: bool,
    /// A sector that cannot be loaded.
    bad_sector: Option<u64>,
    stores: u64,
    syncs: u64,
    loads: Cell<u64>,
    loaded_bytes: Cell<u64>,
}

impl Store {
    /// A regular file with these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut store = Self::from_parts(Sectors::new(), bytes.len() as u64, true);
        store.put(0, bytes);
        store
    }

    /// A store with these sectors.
    pub fn from_parts(sectors: Sectors, size: u64, can_grow: bool) -> Self {
        Self {
            sectors,
            size,
            can_grow,
            has_holes: true,
            trace: None,
            fail_in: None,
            capacity: None,
            sync_fails: false,
            bad_sector: None,
            stores: 0,
            syncs: 0,
            loads: Cell::new(0),
            loaded_bytes: Cell::new(0),
        }
    }

    /// The same on a file system that has no holes.
    pub fn without_holes(mut self) -> Self {
        self.has_holes = false;
        self
    }

    /// The same content on a block device of `size` bytes whose free space is full of junk.
    pub fn into_device(mut self, size: u64, junk: u8) -> Self {
        assert!(size >= self.size && size % SECTOR == 0);
        let end = self.size;
        self.size = size;
        self.can_grow = false;
        let first = end.div_ceil(SECTOR) * SECTOR;
        for sector in first / SECTOR..size / SECTOR {
            self.sectors.insert(sector, Rc::new([junk; 512]));
        }
        self
    }

    /// Sectors that are not all implicit zeros.
    pub fn sectors(&self) -> &Sectors {
        &self.sectors
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.size
    }

    /// Whether there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// All bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.get(0, self.size as usize)
    }

    /// Some bytes; panics outside the file. Not counted as a load.
    pub fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert!(self.copy_out(offset, &mut bytes), "read past the end");
        bytes
    }

    /// As [`Store::get`], a fixed number of them.
    pub fn get_array<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.copy_out(offset, &mut bytes), "read past the end");
        bytes
    }

    /// A big-endian 32-bit number.
    pub fn get_be32(&self, offset: u64) -> u32 {
        u32::from_be_bytes(self.get_array(offset))
    }

    /// A big-endian 64-bit number.
    pub fn get_be64(&self, offset: u64) -> u64 {
        u64::from_be_bytes(self.get_array(offset))
    }

    /// Puts bytes behind the back of everybody: not counted, not recorded, never failing. Extends
    /// the file if need be.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        apply_write(&mut self.sectors, offset, bytes);
        self.size = self.size.max(offset + bytes.len() as u64);
    }

    /// Changes the size behind the back of everybody.
    pub fn put_size(&mut self, size: u64) {
        apply_resize(&mut self.sectors, size);
        self.size = size;
    }

    /// Writes the content to a (sparse) file.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut file = File::create(path)?;
        file.set_len(self.size)?;
        for (sector, bytes) in &self.sectors {
            let at = sector * SECTOR;
            let len = SECTOR.min(self.size.saturating_sub(at)) as usize;
            file.seek(SeekFrom::Start(at))?;
            file.write_all(&bytes[..len])?;
        }
        Ok(())
    }

    /// Starts to record, and returns what there is now.
    pub fn record(&mut self) -> (Sectors, u64) {
        self.trace = Some(Vec::new());
        (self.sectors.clone(), self.size)
    }

    /// What was recorded.
    pub fn take_trace(&mut self) -> Vec<Op> {
        self.trace.take().unwrap_or_default()
    }

    /// What was recorded so far.
    pub fn trace(&self) -> &[Op] {
        self.trace.as_deref().unwrap_or(&[])
    }

    /// Records a mark.
    pub fn mark(&mut self, mark: usize) {
        self.note(|| Op::Mark(mark));
    }

    /// Lets the store after the next `n` ones fail, once, with `-ENOSPC`.
    pub fn fail_after(&mut self, n: u64, failure: Failure) {
        self.fail_in = Some((n, failure));
    }

    /// Whether the failure that was asked for has not happened yet.
    pub fn is_failure_due(&self) -> bool {
        self.fail_in.is_some()
    }

    /// Takes back [`Store::fail_after`].
    pub fn never_fail(&mut self) {
        self.fail_in = None;
    }

    /// What a parser says of the image, from what the driver shows it.
    pub fn probe(&self, probe: fn(&Probe<'_>) -> Verdict) -> Verdict {
        let head = self.get(0, self.size.min(Probe::HEAD as u64) as usize);
        let tail_len = self.size.min(Probe::TAIL as u64);
        let tail = self.get(self.size - tail_len, tail_len as usize);
        probe(&Probe {
            head: &head,
            tail: &tail,
            size: self.size,
        })
    }

    /// Lets every load fail that touches the sector of a host offset.
    pub fn break_sector(&mut self, offset: u64) {
        self.bad_sector = Some(offset / SECTOR);
    }

    /// Limits the number of sectors in use: beyond it a store into a hole gives `-ENOSPC`.
    pub fn set_capacity(&mut self, sectors: Option<usize>) {
        self.capacity = sectors;
    }

    /// Lets every sync fail with `-EIO`.
    pub fn set_sync_fails(&mut self, fails: bool) {
        self.sync_fails = fails;
    }

    /// Number of stores so far, failed ones included.
    pub fn stores(&self) -> u64 {
        self.stores
    }

    /// Number of syncs so far.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    /// Number of loads so far.
    pub fn loads(&self) -> u64 {
        self.loads.get()
    }

    /// Bytes loaded so far.
    pub fn loaded_bytes(&self) -> u64 {
        self.loaded_bytes.get()
    }

    /// A guest's bytes, written by the driver: subject to the same failures.
    pub fn write_data(&mut self, offset: u64, bytes: &[u8]) -> Result {
        self.write_or_fail(offset, bytes, SECTOR as usize)
    }

    /// Fills guest data with one byte: subject to the same failures, but no sector is torn.
    pub fn fill_data(&mut self, offset: u64, len: u64, byte: u8) -> Result {
        self.fill_or_fail(offset, len, byte, SECTOR)
    }

    fn copy_out(&self, offset: u64, buf: &mut [u8]) -> bool {
        let Some(end) = offset.checked_add(buf.len() as u64) else {
            return false;
        };
        if end > self.size {
            return false;
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let skip = (at % SECTOR) as usize;
            let n = (512 - skip).min(buf.len() - done);
            match self.sectors.get(&(at / SECTOR)) {
                Some(sector) => buf[done..done + n].copy_from_slice(&sector[skip..skip + n]),
                None => buf[done..done + n].fill(0),
            }
            done += n;
        }
        true
    }

    fn note(&mut self, op: impl FnOnce() -> Op) {
        if let Some(trace) = &mut self.trace {
            trace.push(op());
        }
    }

    /// Whether this store is to fail, and how.
    fn failure(&mut self, offset: u64, len: u64) -> Option<Failure> {
        self.stores += 1;
        match &mut self.fail_in {
            Some((0, failure)) => {
                let failure = *failure;
                self.fail_in = None;
                return Some(failure);
            }
            Some((n, _)) => *n -= 1,
            None => {}
        }
        let capacity = self.capacity?;
        let last = (offset + len).div_ceil(SECTOR);
        let new = (offset / SECTOR..last)
            .filter(|sector| !self.sectors.contains_key(sector))
            .count();
        (self.sectors.len() + new > capacity && new > 0).then_some(Failure::Nothing)
    }

    /// Checks a store against the size of the file.
    fn check_bounds(&self, offset: u64, len: u64) -> Result {
        let end = offset.checked_add(len).ok_or(EIO)?;
        if end > self.size && !self.can_grow {
            return Err(ENOSPC);
        }
        Ok(())
    }

    /// Stores; if that is to fail half-way, a multiple of `unit` bytes.
    fn write_or_fail(&mut self, offset: u64, bytes: &[u8], unit: usize) -> Result {
        self.check_bounds(offset, bytes.len() as u64)?;
        let failure = self.failure(offset, bytes.len() as u64);
        let end = offset + bytes.len() as u64;
        let part = match failure {
            None => bytes,
            Some(Failure::Nothing) => return Err(ENOSPC),
            Some(Failure::Half) if bytes.len() <= 8 => return Err(ENOSPC),
            Some(Failure::Half | Failure::Torn) => &bytes[..bytes.len() / 2 / unit * unit],
            Some(Failure::GrowOnly) => {
                if end > self.size {
                    self.resize(end);
                }
                return Err(ENOSPC);
            }
        };
        self.note(|| Op::Write {
            offset,
            bytes: part.into(),
        });
        self.put(offset, part);
        if failure.is_some() {
            Err(ENOSPC)
        } else {
            Ok(())
        }
    }

    /// Fills; if that is to fail half-way, a multiple of `unit` bytes.
    fn fill_or_fail(&mut self, offset: u64, len: u64, byte: u8, unit: u64) -> Result {
        self.check_bounds(offset, len)?;
        let failure = self.failure(offset, len);
        let part = match failure {
            None => len,
            Some(Failure::Half | Failure::Torn) => len / 2 / unit * unit,
            Some(Failure::Nothing | Failure::GrowOnly) => return Err(ENOSPC),
        };
        self.note(|| Op::Fill {
            offset,
            len: part,
            byte,
        });
        apply_fill(&mut self.sectors, offset, part, byte);
        self.size = self.size.max(offset + part);
        if failure.is_some() {
            Err(ENOSPC)
        } else {
            Ok(())
        }
    }

    fn resize(&mut self, size: u64) {
        self.note(|| Op::Resize(size));
        self.put_size(size);
    }
}

impl Tables for Store {
    fn size(&self) -> Result<u64> {
        Ok(self.size)
    }

    fn load(&self, offset: u64, buf: &mut [u8]) -> Result {
        self.loads.set(self.loads.get() + 1);
        self.loaded_bytes
            .set(self.loaded_bytes.get() + buf.len() as u64);
        let sectors = offset / SECTOR..offset.saturating_add(buf.len() as u64).div_ceil(SECTOR);
        let is_bad = self.bad_sector.is_some_and(|it| sectors.contains(&it));
        if !is_bad && self.copy_out(offset, buf) {
            Ok(())
        } else {
            Err(EIO)
        }
    }
}

impl TablesMut for Store {
    fn store(&mut self, offset: u64, bytes: &[u8]) -> Result {
        self.write_or_fail(offset, bytes, 1)
    }

    fn fill(&mut self, offset: u64, len: u64, byte: u8) -> Result {
        self.fill_or_fail(offset, len, byte, 1)
    }

    fn copy_sector(&mut self, from: u64, len: u64, to: u64) -> Result {
        let mut sector = [0; 512];
        let len = usize::try_from(len).expect("more than a sector");
        self.load(from, &mut sector[..len])?;
        self.store(to, &sector)
    }

    fn sync(&mut self) -> Result {
        self.syncs += 1;
        if self.sync_fails {
            return Err(EIO);
        }
        self.note(|| Op::Sync);
        Ok(())
    }

    fn truncate(&mut self, size: u64) -> Result {
        assert!(self.can_grow, "a block device was cut");
        assert!(size <= self.size, "truncate made the file larger");
        self.resize(size);
        Ok(())
    }

    fn can_grow(&self) -> bool {
        self.can_grow
    }

    fn can_punch(&self) -> bool {
        self.can_grow && self.has_holes
    }
}

/// Puts bytes into sectors.
pub fn apply_write(sectors: &mut Sectors, offset: u64, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        let skip = (at % SECTOR) as usize;
        let n = (512 - skip).min(bytes.len() - done);
        let sector = sectors
            .entry(at / SECTOR)
            .or_insert_with(|| Rc::new([0; 512]));
        Rc::make_mut(sector)[skip..skip + n].copy_from_slice(&bytes[done..done + n]);
        done += n;
    }
}

/// Fills a range of sectors.
pub fn apply_fill(sectors: &mut Sectors, offset: u64, len: u64, byte: u8) {
    let end = offset + len;
    let whole: Sector = Rc::new([byte; 512]);
    let mut at = offset;
    while at < end {
        let n = (SECTOR - at % SECTOR).min(end - at);
        if n == SECTOR {
            sectors.insert(at / SECTOR, whole.clone());
        } else {
            apply_write(sectors, at, &vec![byte; n as usize]);
        }
        at += n;
    }
}

/// Drops what lies past `size`.
pub fn apply_resize(sectors: &mut Sectors, size: u64) {
    sectors.split_off(&size.div_ceil(SECTOR));
    if size % SECTOR != 0 {
        if let Some(last) = sectors.get_mut(&(size / SECTOR)) {
            Rc::make_mut(last)[(size % SECTOR) as usize..].fill(0);
        }
    }
}
