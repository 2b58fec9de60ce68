// SPDX-License-Identifier: GPL-2.0

//! The lines of a descriptor.

use loop_parser::contract::{
    num::Region,
    Error,
    HostRange,
    Result, //
};

use super::{
    extent::{
        Access,
        ExtentLine, //
    },
    reader::{
        is_blank,
        Reader,
        Word, //
    }, //
};

/// A line that says something.
pub(super) enum Line {
    /// `key = value`.
    Setting(Setting),
    /// `ACCESS sectors TYPE …`.
    Extent(ExtentLine),
    /// Neither, at this host offset.
    Unknown(u64),
}

impl Line {
    /// The error for a line that is neither a setting nor an extent.
    pub(super) fn unknown(at: u64) -> Error {
        Error::malformed(
            "line of VMDK descriptor is neither a setting nor an extent",
            at,
        )
    }
}

/// A line with a value.
pub(super) struct Setting {
    pub(super) key: Word,
    pub(super) value: Value,
}

/// Where a value lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    /// Host offset in bytes of the line that it is in.
    pub(super) line: u64,
    /// Without quotes, and without blanks outside them.
    region: Region,
    /// There is no quote, or there are two.
    is_whole: bool,
}

impl Value {
    pub(super) fn is_empty(&self) -> bool {
        self.region.start == self.region.end
    }

    /// Where it lies, whole or not.
    pub(super) fn range(&self) -> Region {
        self.region
    }

    /// Where it lies.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if the second quote is missing.
    pub(super) fn text(&self) -> Result<HostRange> {
        let len = self.region.end.saturating_sub(self.region.start);
        match self.is_whole {
            true => Ok(HostRange {
                offset: self.region.start,
                len,
            }),
            false => Err(no_quote(self.line)),
        }
    }
}

/// The error for a line in which only one quote is.
fn no_quote(line: u64) -> Error {
    Error::malformed("quote in VMDK descriptor is not closed", line)
}

/// The next line that says something, and behind it; `None` at the end. Called with the reader at the
/// beginning of a line, or behind the last one.
///
/// # Errors
///
/// Those of [`ExtentLine::parse`].
pub(super) fn next(reader: &mut Reader<'_>) -> Result<Option<Line>> {
    loop {
        reader.skip_blank_lines()?;
        let at = reader.at();
        match reader.peek()? {
            None => return Ok(None),
            Some(b'#') => reader.skip(|_| true)?,
            Some(_) => {
                if let Some(line) = parse(reader, at)? {
                    return Ok(Some(line));
                }
            }
        }
    }
}

/// The line at host offset `at`, of which nothing is read yet; `None` if it has a key that cannot be
/// known.
fn parse(reader: &mut Reader<'_>, at: u64) -> Result<Option<Line>> {
    let word = reader.word(b'=')?;
    reader.skip_blanks()?;
    if reader.peek_in_line()? == Some(b'=') {
        let value = value(reader, at)?;
        return Ok(Some(Line::Setting(Setting { key: word, value })));
    }
    if let Some(access) = Access::of(&word) {
        return ExtentLine::parse(reader, at, access).map(|extent| Some(Line::Extent(extent)));
    }
    // A key of several words?
    reader.skip(|byte| byte != b'=')?;
    if reader.peek_in_line()?.is_none() {
        return Ok(Some(Line::Unknown(at)));
    }
    reader.skip(|_| true)?;
    Ok(None)
}

/// The value behind the `=` that the reader is at, in the line at host offset `line`.
fn value(reader: &mut Reader<'_>, line: u64) -> Result<Value> {
    reader.advance();
    reader.skip_blanks()?;
    if let Some(value) = quoted(reader, line)? {
        reader.skip(|_| true)?;
        return Ok(value);
    }
    let start = reader.at();
    let mut end = start;
    while let Some(byte) = reader.peek_in_line()? {
        reader.advance();
        if !is_blank(byte) {
            end = reader.at();
        }
    }
    Ok(Value {
        line,
        region: Region { start, end },
        is_whole: true,
    })
}

/// What is between quotes, in the line at host offset `line`; `None` if no quote is here.
pub(super) fn quoted(reader: &mut Reader<'_>, line: u64) -> Result<Option<Value>> {
    if reader.peek_in_line()? != Some(b'"') {
        return Ok(None);
    }
    reader.advance();
    let start = reader.at();
    reader.skip(|byte| byte != b'"')?;
    let end = reader.at();
    let is_whole = reader.peek_in_line()?.is_some();
    if is_whole {
        reader.advance();
    }
    Ok(Some(Value {
        line,
        region: Region { start, end },
        is_whole,
    }))
}
