// SPDX-License-Identifier: GPL-2.0

//! Resolving guest ranges of a stream.

use loop_parser::contract::{
    num::OUTSIDE,
    Compressed,
    Compression,
    Extent,
    Map,
    Placement,
    Result,
    Tables, //
};

use super::{
    directory::{
        Directory,
        Piece, //
    },
    grain::{
        Grain,
        Shape, //
    },
    scan::Scanned, //
};

/// How grains are found.
#[derive(Debug)]
pub(super) enum Index {
    /// Through the tables.
    Directory(Directory),
    /// By looking at the grains themselves: the tables are lost.
    Scanned(Scanned),
}

/// Where the guest ranges of a stream lie.
#[derive(Debug)]
pub struct StreamMap {
    shape: Shape,
    index: Index,
}

impl StreamMap {
    pub(super) fn new(shape: Shape, index: Index) -> Self {
        Self { shape, index }
    }

    fn find(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Piece> {
        if pos >= self.shape.size {
            return Err(OUTSIDE);
        }
        match &self.index {
            Index::Directory(directory) => directory.find(tables, &self.shape, pos, len),
            Index::Scanned(scanned) => scanned.find(tables, &self.shape, pos, len),
        }
    }

    /// The part of a grain that begins at guest position `pos`, up to `len` bytes.
    fn compressed(&self, grain: &Grain, pos: u64, len: u64) -> Result<Extent> {
        // All of them at most 2 MiB.
        let number = |value: u64| u32::try_from(value).map_err(|_| OUTSIDE);
        Ok(Extent::Compressed(Compressed {
            offset: grain.offset,
            stored: grain.stored,
            compression: Compression::Zlib,
            unit: number(self.shape.grain)?,
            least: number(grain.shown(&self.shape))?,
            skip: number(self.shape.within(pos))?,
            len: len.min(self.shape.left(pos)),
        }))
    }
}

impl Map for StreamMap {
    fn resolve_read(&self, tables: &dyn Tables, pos: u64, len: u64) -> Result<Extent> {
        Ok(match self.find(tables, pos, len)? {
            Piece::Grain(grain) => self.compressed(&grain, pos, len)?,
            Piece::Zero(len) => Extent::Zero { len },
            Piece::Missing(len) if self.shape.has_parent => Extent::Parent { len },
            Piece::Missing(len) => Extent::Zero { len },
        })
    }

    /// Nothing in a stream can be written in place, and nothing is allocated.
    fn resolve_write(&self, _tables: &dyn Tables, pos: u64, _len: u64) -> Result<Placement> {
        Ok(Placement::Allocate {
            pos: self.shape.start(pos),
            len: self.shape.grain,
        })
    }

    /// A stream is written from front to end, once.
    fn reread_size(&self, _tables: &dyn Tables) -> Result<u64> {
        Ok(self.shape.size)
    }
}
