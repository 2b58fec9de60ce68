// SPDX-License-Identifier: GPL-2.0

//! How a parser's table loads and stores reach the page cache of the image file.

use kernel::prelude::*;

use crate::{
    contract::{
        Error,
        Result,
        Tables,
        TablesMut,
        SECTOR_SIZE, //
    },
    image::Image,
    sys::{
        file::{
            BackingFile,
            Kind, //
        },
        io,
        peek::peek, //
    }, //
};

pub(crate) fn store_error(error: kernel::error::Error) -> Error {
    Error::Store(error.to_errno())
}

/// Loads from the page cache only: never sleeps, never calls the file system.
pub(crate) struct CachedTables<'a> {
    pub(crate) file: &'a BackingFile,
}

impl Tables for CachedTables<'_> {
    fn size(&self) -> Result<u64> {
        Ok(self.file.size())
    }

    fn load(&self, offset: u64, buf: &mut [u8]) -> Result {
        if peek(self.file, offset, buf) {
            Ok(())
        } else {
            Err(Error::WouldBlock)
        }
    }
}

/// Loads that may read from the file.
pub(crate) struct FileTables<'a> {
    pub(crate) file: &'a BackingFile,
    /// Try the page cache first; only on file systems where that is coherent.
    pub(crate) peekable: bool,
}

impl Tables for FileTables<'_> {
    fn size(&self) -> Result<u64> {
        Ok(self.file.size())
    }

    fn load(&self, offset: u64, buf: &mut [u8]) -> Result {
        if self.peekable && peek(self.file, offset, buf) {
            return Ok(());
        }
        io::read_exact(self.file, offset, buf).map_err(store_error)
    }
}

/// Size of the scratch memory: a page, of which most uses take a sector.
pub(crate) const SCRATCH_SIZE: usize = 4096;

const SECTOR: usize = SECTOR_SIZE as usize;

/// Loads and stores under the image's mutex.
pub(crate) struct LockedTables<'a> {
    image: &'a Image,
    file: &'a BackingFile,
    scratch: &'a mut [u8],
}

impl<'a> LockedTables<'a> {
    /// For those who hold the image's mutex, which `scratch` is the proof of.
    pub(crate) fn new(image: &'a Image, file: &'a BackingFile, scratch: &'a mut [u8]) -> Self {
        Self {
            image,
            file,
            scratch,
        }
    }

    /// Runs a change of the file: apart from direct writes in flight, and with lockless readers
    /// told to look again.
    fn change(&mut self, change: impl FnOnce(&mut [u8]) -> kernel::error::Result) -> Result {
        if self.image.is_poisoned() {
            return Err(Error::Store(EIO.to_errno()));
        }
        let _gate = self.image.exclude_direct_writes();
        let _sequence = self.image.begin_change();
        let changed = change(self.scratch);
        self.image.count_write();
        changed
            .inspect_err(|error| self.image.table_write_failed(*error))
            .map_err(store_error)
    }
}

impl Tables for LockedTables<'_> {
    fn size(&self) -> Result<u64> {
        Ok(self.file.size())
    }

    fn load(&self, offset: u64, buf: &mut [u8]) -> Result {
        let tables = FileTables {
            file: self.file,
            peekable: self.image.is_peekable(),
        };
        tables.load(offset, buf)
    }
}

impl TablesMut for LockedTables<'_> {
    fn store(&mut self, offset: u64, bytes: &[u8]) -> Result {
        let file = self.file;
        self.change(|_| io::write_all(file, offset, bytes))
    }

    fn fill(&mut self, offset: u64, len: u64, byte: u8) -> Result {
        let file = self.file;
        self.change(|scratch| io::fill(file, offset, len, byte, scratch))
    }

    fn copy_sector(&mut self, from: u64, len: u64, to: u64) -> Result {
        let file = self.file;
        let invalid = Error::Store(EINVAL.to_errno());
        let sector = self.scratch.get_mut(..SECTOR).ok_or(invalid)?;
        sector.fill(0);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let part = sector.get_mut(..len).ok_or(invalid)?;
        io::read_exact(file, from, part).map_err(store_error)?;
        self.change(|scratch| io::write_all(file, to, scratch.get(..SECTOR).ok_or(EINVAL)?))
    }

    fn sync(&mut self) -> Result {
        self.image.sync(self.file).map_err(store_error)
    }

    fn truncate(&mut self, size: u64) -> Result {
        // Unlike a failed write this leaves nothing in doubt: the space is unused either way.
        let _gate = self.image.exclude_direct_writes();
        let cut = self.file.truncate(size);
        self.image.count_write();
        cut.map_err(store_error)
    }

    fn can_grow(&self) -> bool {
        self.file.kind() == Kind::Regular
    }

    fn can_punch(&self) -> bool {
        self.can_grow() && self.image.holes.are_there(self.file)
    }
}
