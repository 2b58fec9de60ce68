// SPDX-License-Identifier: GPL-2.0

//! The backing file ("Header", "Header extensions").

use loop_parser::contract::{
    Error,
    Result,
    Tables, //
};

use super::{
    super::name::{
        NamedFile,
        BACKING_FILE, //
    },
    extensions::{
        self,
        Extension, //
    },
    header::Header,
    ondisk::EXTENSION_BACKING_FORMAT, //
};

/// Names of QEMU's for formats that there are parsers for, and the parsers' names.
/// The last two are those of protocols, by which QEMU takes the bytes as they are.
const FORMATS: [(&[u8], &str); 7] = [
    (b"raw", "raw"),
    (b"qcow", "qcow"),
    (b"qcow2", "qcow2"),
    (b"vpc", "vhd"),
    (b"vmdk", "vmdk"),
    (b"file", "raw"),
    (b"host_device", "raw"),
];

/// Longest name of a format; QEMU has the same limit.
const MAX_FORMAT_LEN: usize = 15;

/// The backing file that a header names, if it does.
///
/// # Errors
///
/// As for [`NamedFile::new`]; [`Error::Unsupported`] for a format that there is no parser for.
#[inline(never)]
pub(super) fn load<T: Tables + ?Sized>(tables: &T, header: &Header) -> Result<Option<NamedFile>> {
    let Some(name) = header.backing_name else {
        return Ok(None);
    };
    let format = extensions::find(tables, header.extensions, EXTENSION_BACKING_FORMAT)?;
    let parser = match format {
        Some(format) => parser(tables, format)?,
        None => None,
    };
    NamedFile::new(tables, name, parser, BACKING_FILE).map(Some)
}

/// The parser for the format that is named there; `None` if none is. The name ends in front of a zero
/// byte.
fn parser<T: Tables + ?Sized>(tables: &T, format: Extension) -> Result<Option<&'static str>> {
    let unknown = Error::unsupported("format of qcow2 backing file has no parser", format.start);
    let mut buffer = [0; MAX_FORMAT_LEN];
    let len = usize::try_from(format.len).map_err(|_| unknown)?;
    let text = buffer.get_mut(..len).ok_or(unknown)?;
    tables.load(format.start, text)?;
    let len = text.iter().position(|byte| *byte == 0).unwrap_or(len);
    let text = text.get(..len).ok_or(unknown)?;
    if text.is_empty() {
        return Ok(None);
    }
    let found = FORMATS.iter().find(|(name, _)| *name == text);
    found.map(|(_, parser)| Some(*parser)).ok_or(unknown)
}
