// SPDX-License-Identifier: GPL-2.0

//! Runs of guest bytes: what maps resolve to.

use loop_parser::contract::{
    num::add,
    Error,
    Extent,
    Result, //
};

/// Most pieces that one call looks at to lengthen a run.
const MAX_PIECES: u32 = 128;

/// What a run of guest bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes of the file.
    Data {
        /// Host offset of the first one.
        offset: u64,
    },
    /// Zeros.
    Zero,
    /// Bytes of the parent.
    Below,
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
                Kind::Data { offset },
                Kind::Data {
                    offset: next_offset,
                },
            ) => offset.checked_add(self.len) == Some(next_offset),
            (Kind::Zero, Kind::Zero) | (Kind::Below, Kind::Below) => true,
            _ => false,
        }
    }

    /// What a read is told of it.
    pub(super) fn extent(self) -> Extent {
        let len = self.len;
        match self.kind {
            Kind::Data { offset } => Extent::Data { offset, len },
            Kind::Zero => Extent::Zero { len },
            Kind::Below => Extent::Parent { len },
        }
    }
}

/// The grains of a file, one after the other.
pub(super) trait Pieces {
    /// The run at guest position `pos`, at most `len` bytes: in one grain, or as far as there is no
    /// table.
    fn piece(&mut self, pos: u64, len: u64) -> Result<Run>;

    /// Where the guest positions end that there are entries for.
    fn limit(&self) -> u64;
}

/// The run at guest position `pos`, up to `len` bytes: a piece, and what goes on where it ends.
pub(super) fn find<P: Pieces>(pieces: &mut P, pos: u64, len: u64) -> Result<Run> {
    let len = len.min(pieces.limit().saturating_sub(pos));
    let mut run = pieces.piece(pos, len)?;
    for _ in 1..MAX_PIECES {
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
