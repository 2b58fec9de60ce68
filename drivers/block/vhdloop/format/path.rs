// SPDX-License-Identifier: GPL-2.0

//! Recorded names as paths of Linux: relative to the image's folder unless they begin with a slash.

use loop_parser::contract::{
    Error,
    Result, //
};

use super::text::{
    Encoding,
    Symbol,
    Text, //
};

/// A path that is being put together, component by component.
struct Path<'a> {
    buf: &'a mut [u8],
    len: usize,
    /// Where the component begins that is being written.
    start: usize,
    /// Length of the path without it.
    whole: usize,
    /// For faults.
    at: u64,
}

impl Path<'_> {
    fn push(&mut self, bytes: &[u8]) -> Result {
        let too_long = Error::malformed("name of VHD parent is too long", self.at);
        let end = self.len.checked_add(bytes.len()).ok_or(too_long)?;
        let place = self.buf.get_mut(self.len..end).ok_or(too_long)?;
        place.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    fn written(&self, from: usize) -> &[u8] {
        self.buf.get(from..self.len).unwrap_or_default()
    }

    fn begin_component(&mut self) -> Result {
        if !matches!(self.written(0), [] | [b'/']) {
            self.push(b"/")?;
        }
        self.start = self.len;
        Ok(())
    }

    /// Empty components and `.` are dropped.
    fn end_component(&mut self) {
        if matches!(self.written(self.start), b"" | b".") {
            self.len = self.whole;
        } else {
            self.whole = self.len;
        }
    }

    /// The length of the path.
    fn finish(&self) -> Result<usize> {
        let last = self.written(0).rsplit(|&byte| byte == b'/').next();
        match last {
            None | Some(b"" | b"..") => Err(Error::malformed(
                "name of VHD parent is not that of a file",
                self.at,
            )),
            _ => Ok(self.len),
        }
    }
}

/// Writes the path from code unit `first` of a name on. Returns its length.
fn write(
    text: &Text<'_>,
    first: u64,
    is_separator: fn(&Symbol) -> bool,
    is_absolute: bool,
    buf: &mut [u8],
) -> Result<usize> {
    let mut path = Path {
        buf,
        len: 0,
        start: 0,
        whole: 0,
        at: text.at(),
    };
    if is_absolute {
        path.push(b"/")?;
        path.whole = path.len;
    }
    let mut index = first;
    path.begin_component()?;
    while let Some(symbol) = text.symbol(index)? {
        if is_separator(&symbol) {
            path.end_component();
            path.begin_component()?;
        } else {
            path.push(symbol.bytes())?;
        }
        index = index.saturating_add(symbol.units);
    }
    path.end_component();
    path.finish()
}

/// The code unit behind the last one for which `is_separator` says yes.
fn last_component(text: &Text<'_>, is_separator: fn(&Symbol) -> bool) -> Result<u64> {
    let mut first = 0;
    let mut index = 0u64;
    while let Some(symbol) = text.symbol(index)? {
        index = index.saturating_add(symbol.units);
        if is_separator(&symbol) {
            first = index;
        }
    }
    Ok(first)
}

fn is_slash(symbol: &Symbol) -> bool {
    symbol.is(b'/')
}

fn is_windows_separator(symbol: &Symbol) -> bool {
    symbol.is(b'\\') || symbol.is(b'/')
}

/// Writes a path of Windows. Of one that does not begin at the image's folder only the last component
/// is of use here.
pub(super) fn write_windows(text: &Text<'_>, buf: &mut [u8]) -> Result<usize> {
    // `\\server\…` and `\…`.
    let has_root = text.symbol(0)?.is_some_and(|it| is_windows_separator(&it));
    if has_root || has_drive(text)? {
        return write_windows_name(text, buf);
    }
    write(text, 0, is_windows_separator, false, buf)
}

/// Whether a path begins with the letter of a drive: `C:\…` and `C:…`.
fn has_drive(text: &Text<'_>) -> Result<bool> {
    Ok(text.symbol(1)?.is_some_and(|it| it.is(b':')))
}

/// Writes the last component of a path of Windows.
pub(super) fn write_windows_name(text: &Text<'_>, buf: &mut [u8]) -> Result<usize> {
    let first = match last_component(text, is_windows_separator)? {
        0 if has_drive(text)? => 2,
        first => first,
    };
    write(text, first, is_windows_separator, false, buf)
}

/// A file URL that was taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Url {
    /// What XenServer writes: a path from the image's folder begins at this code unit, nothing in it
    /// is escaped.
    Relative(u64),
    /// An absolute path begins at this code unit.
    Absolute(u64),
}

/// Takes a file URL apart: `file://./name`, `file:///folder/name`, `file://localhost/folder/name`,
/// `file:/folder/name`.
///
/// # Errors
///
/// [`Error::Malformed`] if it is none of these.
pub(super) fn parse_url(text: &Text<'_>) -> Result<Url> {
    if starts_with(text, 0, b"file://./")? || starts_with(text, 0, b"file://../")? {
        return Ok(Url::Relative(7));
    }
    for (prefix, path) in [
        (&b"file:///"[..], 7),
        (b"file://localhost/", 16),
        (b"file:/", 5),
    ] {
        if starts_with(text, 0, prefix)? && !starts_with(text, path, b"//")? {
            return Ok(Url::Absolute(path));
        }
    }
    Err(Error::malformed(
        "name of VHD parent is not the URL of a local file",
        text.at(),
    ))
}

/// Whether these characters begin at code unit `first`, in upper or lower case.
fn starts_with(text: &Text<'_>, first: u64, prefix: &[u8]) -> Result<bool> {
    for (index, expected) in (first..).zip(prefix) {
        match text.symbol(index)? {
            Some(symbol) if symbol.bytes().eq_ignore_ascii_case(&[*expected]) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Writes the path of a file URL as seen from the image's folder. Of an absolute one only the last
/// component is of use there.
pub(super) fn write_url(text: &Text<'_>, buf: &mut [u8]) -> Result<usize> {
    match parse_url(text)? {
        Url::Relative(first) => write(text, first, is_slash, false, buf),
        Url::Absolute(_) => {
            let text = text.read_as(Encoding::Escaped);
            let first = last_component(&text, is_slash)?;
            write(&text, first, is_slash, false, buf)
        }
    }
}

/// Writes the path of a file URL that is absolute.
pub(super) fn write_absolute_url(text: &Text<'_>, buf: &mut [u8]) -> Result<usize> {
    match parse_url(text)? {
        Url::Absolute(first) => write(&text.read_as(Encoding::Escaped), first, is_slash, true, buf),
        Url::Relative(_) => Err(Error::malformed(
            "name of VHD parent is not absolute",
            text.at(),
        )),
    }
}
