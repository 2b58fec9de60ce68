// SPDX-License-Identifier: GPL-2.0

//! Runs of guest bytes: what maps of all versions resolve to.

use loop_parser::contract::{
    Error,
    Result, //
};

use super::num::{
    add,
    whole_sectors, //
};

/// Most clusters that one call looks at to lengthen a run.
const MAX_CLUSTERS: u64 = 128;

/// What a run of guest bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes of the file.
    Data {
        /// Host offset of the first one.
        offset: u64,
        /// They can be written in place. Never if they are looked up to be read.
        is_own: bool,
    },
    /// Zeros.
    Zero,
    /// Bytes of the backing file.
    Below,
    /// Bytes of a compressed cluster.
    Compressed {
        /// Host offset of the first compressed byte.
        offset: u64,
        /// Most bytes that belong to it.
        stored: u64,
    },
}

/// A run of guest bytes that are alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// What they are.
    pub(super) kind: Kind,
    /// Length in bytes, not 0.
    pub(super) len: u64,
}

impl Run {
    /// Whether `next` goes on where this run ends.
    fn continues(&self, next: &Run) -> bool {
        match (self.kind, next.kind) {
            (
                Kind::Data { offset, is_own },
                Kind::Data {
                    offset: next_offset,
                    is_own: next_is_own,
                },
            ) => is_own == next_is_own && offset.checked_add(self.len) == Some(next_offset),
            (Kind::Zero, Kind::Zero) | (Kind::Below, Kind::Below) => true,
            _ => false,
        }
    }

    /// Cuts a run of data, at offset `within` of a cluster, at the end of the file: of the cluster
    /// `there` bytes are there. What is missing reads as zero. `at` is where its entry was found.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if the file ends within the first sector of the run.
    pub(super) fn cut(self, within: u64, there: u64, at: u64) -> Result<Self> {
        let left = there.saturating_sub(within);
        if left >= self.len {
            return Ok(self);
        }
        let whole = whole_sectors(left);
        match (whole, left) {
            (0, 0) => Ok(Self {
                kind: Kind::Zero,
                len: self.len,
            }),
            (0, _) => Err(Error::malformed("qcow ends within a sector of data", at)),
            _ => Ok(Self { len: whole, ..self }),
        }
    }
}

/// The clusters of an image, one after the other.
pub(super) trait Pieces {
    /// The run at guest position `pos`, at most `len` bytes: in one cluster, or as far as there is no
    /// L2 table.
    fn piece(&mut self, pos: u64, len: u64) -> Result<Run>;

    /// Where the guest positions end that there are entries for.
    fn limit(&self) -> u64;
}

/// The run at guest position `pos`, up to `len` bytes: a piece, and what goes on where it ends. A
/// compressed cluster is always one by itself.
pub(super) fn find<P: Pieces>(pieces: &mut P, pos: u64, len: u64) -> Result<Run> {
    let mut run = pieces.piece(pos, len)?;
    let len = len.min(pieces.limit().saturating_sub(pos));
    for _ in 0..MAX_CLUSTERS {
        let left = len.saturating_sub(run.len);
        if left == 0 {
            break;
        }
        match pieces.piece(add(pos, run.len, pos)?, left) {
            Ok(next) if run.continues(&next) => run.len = run.len.saturating_add(next.len),
            Err(Error::WouldBlock) => return Err(Error::WouldBlock),
            // What was found so far is right; the rest is for the next call to find out.
            _ => break,
        }
    }
    Ok(run)
}
