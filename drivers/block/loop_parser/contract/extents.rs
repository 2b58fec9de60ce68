// SPDX-License-Identifier: GPL-2.0

//! What an image says of the files that its disk is put together from.

use super::{
    HostRange,
    Result,
    Tables, //
};

/// What an extent of a disk is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: it reads as zero and cannot be written.
    Zero,
    /// Bytes of a file as they are.
    Flat {
        /// Where the name is in the image: bytes in no certain encoding.
        name: HostRange,
        /// Host offset in bytes at which they begin in that file.
        offset: u64,
    },
    /// A file of the image's own format.
    Image {
        /// Where the name is in the image: bytes in no certain encoding.
        name: HostRange,
    },
}

/// An entry of a list of extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedExtent {
    /// Host offset in bytes of the entry, for the log.
    pub at: u64,
    /// Length in bytes, a multiple of 512, not 0.
    pub len: u64,
    /// The guest may write to it.
    pub writable: bool,
    /// What it is made of.
    pub backing: Backing,
}

/// Most extents that a disk can have: 16 TiB in parts of 2 GiB.
pub const MAX_EXTENTS: usize = 8192;

/// The extents that a disk is put together from, in their order on the disk, without gaps. They may be
/// many: the image reads them one by one.
pub trait Extents {
    /// The extent that follows the one for which `cursor` was returned, and the cursor for the next
    /// call; 0 is before the first. `None` behind the last.
    ///
    /// # Errors
    ///
    /// [`Malformed`](super::Error::Malformed) for an entry that cannot be right, though that was looked
    /// at when the image was attached: the file can have changed.
    fn next(&self, tables: &dyn Tables, cursor: u64) -> Result<Option<(ListedExtent, u64)>>;
}
