// SPDX-License-Identifier: GPL-2.0

//! The lines that list extents: `ACCESS sectors TYPE ["file" [offset [uuid [device]]]]`.

use loop_parser::contract::{
    num::{
        self,
        Region, //
    },
    Backing,
    Error,
    Fault,
    HostRange,
    ListedExtent,
    Result,
    Tables,
    MAX_EXTENTS,
    SECTOR_SIZE, //
};

use super::{
    line::{
        self,
        Line,
        Value, //
    },
    reader::{
        Reader,
        Word, //
    }, //
};

/// Largest disk in bytes; the positions on it are file positions.
const MAX_SIZE: u64 = 1 << 62;

/// What the guest may do with an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
    Nothing,
}

impl Access {
    /// `None` if it is another word.
    pub(super) fn of(word: &Word) -> Option<Self> {
        let known = [
            (&b"RW"[..], Access::ReadWrite),
            (b"RDONLY", Access::ReadOnly),
            (b"NOACCESS", Access::Nothing),
        ];
        let found = known.iter().find(|(name, _)| word.is(name));
        found.map(|(_, access)| *access)
    }
}

/// What an extent is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Bytes of a file as they are.
    Flat,
    /// A sparse file, which says itself of which kind it is.
    Sparse,
    /// Nothing: zeros.
    Zero,
    /// A device of ESX, or what stands for one.
    Raw,
    /// Something else.
    Unknown,
}

impl Kind {
    fn of(word: &Word) -> Self {
        let known = [
            (&b"FLAT"[..], Kind::Flat),
            (b"VMFS", Kind::Flat),
            (b"SPARSE", Kind::Sparse),
            (b"VMFSSPARSE", Kind::Sparse),
            (b"SESPARSE", Kind::Sparse),
            (b"ZERO", Kind::Zero),
            (b"VMFSRDM", Kind::Raw),
            (b"VMFSRAW", Kind::Raw),
        ];
        let found = known.iter().find(|(name, _)| word.is(name));
        found.map_or(Kind::Unknown, |(_, kind)| *kind)
    }
}

/// A line that lists an extent.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExtentLine {
    /// Host offset in bytes of the line.
    at: u64,
    access: Access,
    /// Length in bytes, a multiple of 512, not 0.
    len: u64,
    kind: Kind,
    name: Option<Value>,
    /// Where it begins in its file, in sectors.
    first: u64,
}

impl ExtentLine {
    /// Reads what follows the first word of the line at host offset `at`. What can follow the offset, the
    /// UUID of a partition and the name of a device of ESX, is not looked at.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if the size is missing, 0 or too large, or if the offset is no number.
    pub(super) fn parse(reader: &mut Reader<'_>, at: u64, access: Access) -> Result<Self> {
        let no_size = Error::malformed("VMDK extent has no size", at);
        reader.skip_blanks()?;
        let sectors = reader.number()?.filter(|sectors| *sectors > 0);
        let len = num::mul(sectors.ok_or(no_size)?, SECTOR_SIZE, at)?;
        reader.skip_blanks()?;
        let kind = Kind::of(&reader.word(b'"')?);
        reader.skip_blanks()?;
        let name = line::quoted(reader, at)?;
        let first = first_sector(reader)?;
        reader.skip(|_| true)?;
        Ok(Self {
            at,
            access,
            len,
            kind,
            name,
            first,
        })
    }

    /// Why it can only be read, if it has something that could be written.
    fn read_only(&self) -> Option<Fault> {
        (self.access == Access::ReadOnly && self.kind != Kind::Zero)
            .then_some(Fault::new("VMDK extent is read-only", self.at))
    }

    /// As part of a disk.
    fn listed(&self) -> Result<ListedExtent> {
        Ok(ListedExtent {
            at: self.at,
            len: self.len,
            writable: self.access == Access::ReadWrite,
            backing: self.backing()?,
        })
    }

    fn backing(&self) -> Result<Backing> {
        let unsupported = |what| Err(Error::unsupported(what, self.at));
        match self.kind {
            Kind::Zero => Ok(Backing::Zero),
            _ if self.access == Access::Nothing => {
                unsupported("VMDK extent that is not to be accessed")
            }
            Kind::Flat => Ok(Backing::Flat {
                name: self.name()?,
                offset: num::mul(self.first, SECTOR_SIZE, self.at)?,
            }),
            Kind::Sparse if self.first > 0 => unsupported("sparse VMDK extent inside of a file"),
            Kind::Sparse => Ok(Backing::Image { name: self.name()? }),
            Kind::Raw => unsupported("VMDK extent is a raw device of ESX"),
            Kind::Unknown => unsupported("VMDK extent is of an unknown type"),
        }
    }

    fn name(&self) -> Result<HostRange> {
        let name = self.name.map(|name| name.text()).transpose()?;
        name.filter(|name| name.len > 0)
            .ok_or(Error::malformed("VMDK extent has no file name", self.at))
    }
}

/// The number behind the file name; 0 if there is none.
fn first_sector(reader: &mut Reader<'_>) -> Result<u64> {
    reader.skip_blanks()?;
    let at = reader.at();
    match (reader.number()?, reader.peek_in_line()?) {
        (Some(sector), _) => Ok(sector),
        (None, None | Some(b'#')) => Ok(0),
        (None, Some(_)) => Err(Error::malformed("offset of VMDK extent is no number", at)),
    }
}

/// The lines of a descriptor that list extents.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct ExtentLines {
    /// Where the descriptor is.
    text: Region,
    /// How many lines there are.
    pub(in super::super) count: u64,
    /// Size in bytes of what they list.
    pub(in super::super) size: u64,
    read_only: Option<Fault>,
}

impl ExtentLines {
    /// None, in a descriptor that lies there.
    pub(super) fn new(text: Region) -> Self {
        Self {
            text,
            count: 0,
            size: 0,
            read_only: None,
        }
    }

    /// Takes another line into account.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if there are too many, or the disk is too large.
    pub(super) fn count_in(&mut self, extent: &ExtentLine) -> Result {
        let unsupported = |what| Err(Error::unsupported(what, extent.at));
        if self.count >= MAX_EXTENTS as u64 {
            return unsupported("VMDK has too many extents");
        }
        let size = num::add(self.size, extent.len, extent.at)?;
        if size > MAX_SIZE {
            return unsupported("VMDK is too large");
        }
        self.count = self.count.saturating_add(1);
        self.size = size;
        self.read_only = self.read_only.or(extent.read_only());
        Ok(())
    }

    /// The first of the lines that allow reading only.
    pub(super) fn read_only(&self) -> Option<Fault> {
        self.read_only
    }

    /// As [`Extents::next`](loop_parser::contract::Extents::next). The cursor is the host offset behind
    /// the line.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] for an extent without a file name, or whose name or offset is none;
    /// [`Error::Unsupported`] for one that cannot be served.
    #[inline(never)]
    pub(in super::super) fn next(
        &self,
        tables: &dyn Tables,
        cursor: u64,
    ) -> Result<Option<(ListedExtent, u64)>> {
        let start = match cursor {
            0 => self.text.start,
            behind if behind > self.text.start && behind <= self.text.end => behind,
            _ => return Err(num::OUTSIDE),
        };
        let rest = Region {
            start,
            end: self.text.end,
        };
        let mut reader = Reader::new(tables, rest);
        while let Some(line) = line::next(&mut reader)? {
            match line {
                Line::Extent(extent) => return Ok(Some((extent.listed()?, reader.at()))),
                Line::Setting(_) => {}
                Line::Unknown(at) => return Err(Line::unknown(at)),
            }
        }
        Ok(None)
    }
}
