// SPDX-License-Identifier: GPL-2.0

//! How format code reaches the tables of an image.

use super::Result;

/// Read access to an image's tables, through the page cache of the image file.
///
/// There is a non-blocking and a blocking implementation; format code cannot tell them apart, except
/// that the former may answer [`WouldBlock`](super::Error::WouldBlock), which is to be passed on.
/// Nothing is cached: the same load can give two answers.
pub trait Tables {
    /// Size of the file or block device in bytes, at this moment.
    fn size(&self) -> Result<u64>;

    /// Copies the bytes at host offset `offset` into `buf`.
    ///
    /// # Errors
    ///
    /// [`Store(-EIO)`](super::Error::Store) if the range is not wholly within the file.
    fn load(&self, offset: u64, buf: &mut [u8]) -> Result;

    /// Loads a big-endian 32-bit entry (VHD).
    fn load_be32(&self, offset: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.load(offset, &mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// Loads a big-endian 64-bit entry (qcow, qcow2).
    fn load_be64(&self, offset: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.load(offset, &mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Loads a little-endian 32-bit entry (VMDK).
    fn load_le32(&self, offset: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.load(offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Loads a little-endian 64-bit entry (seSparse).
    fn load_le64(&self, offset: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.load(offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Write access to an image's tables. Exists only under the image's mutex.
///
/// Stores go to the page cache: any of them may or may not survive a power failure, in any order,
/// until a [`TablesMut::sync`] that was called after them has returned. Stores are not atomic.
pub trait TablesMut: Tables {
    /// Stores `bytes` at host offset `offset`. A regular file grows as needed; the space skipped by
    /// growing reads as zero.
    ///
    /// # Errors
    ///
    /// [`Store`](super::Error::Store): `-ENOSPC`, `-EFBIG`, `-EIO`; nothing can be said then of the
    /// bytes in the range.
    fn store(&mut self, offset: u64, bytes: &[u8]) -> Result;

    /// Stores `len` times `byte` at host offset `offset`.
    fn fill(&mut self, offset: u64, len: u64, byte: u8) -> Result;

    /// Stores a whole sector at host offset `to`, at once: the `len` bytes (at most 512) at `from`,
    /// then zeros. For header-level sectors that must not be torn by being put together in pieces;
    /// parsers have no buffer of that size on the stack of the I/O path.
    fn copy_sector(&mut self, from: u64, len: u64, to: u64) -> Result;

    /// Makes everything stored so far durable, file size included. A failure is final: the driver
    /// makes the image read-only.
    fn sync(&mut self) -> Result;

    /// Cuts a regular file to `size` bytes; only ever called to drop space that nothing points to.
    fn truncate(&mut self, size: u64) -> Result;

    /// Whether the file can grow: true for a regular file, false for a block device, whose free
    /// space moreover holds old bytes.
    fn can_grow(&self) -> bool;

    /// Whether what [`Allocate::reclaim`](super::Allocate::reclaim) says can be punched leaves the file:
    /// false for a block device, and on a file system that has no holes. For discards, which may free
    /// places that are not used again only where that is so.
    fn can_punch(&self) -> bool;

    /// Stores a big-endian 32-bit entry.
    fn store_be32(&mut self, offset: u64, value: u32) -> Result {
        self.store(offset, &value.to_be_bytes())
    }
}
