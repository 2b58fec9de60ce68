// SPDX-License-Identifier: GPL-2.0

//! Names of other files, which all versions record in the same way: a path, of so many bytes. As QEMU
//! reads it, it ends in front of a zero byte: some programs pad it.

use loop_parser::contract::{
    Disk,
    Error,
    Parent,
    Result,
    Tables, //
};

use super::num::{
    add,
    Region, //
};

/// Another file that an image names.
#[derive(Clone, Copy, Debug)]
pub struct NamedFile {
    /// Where its name lies.
    name: Region,
    /// The parser that serves it, if its format is stated.
    parser: Option<&'static str>,
    words: &'static Words,
}

/// What is said of names that are not good.
#[derive(Debug)]
pub(super) struct Words {
    gone: &'static str,
    protocol: &'static str,
    too_long: &'static str,
}

/// Of a backing file's.
pub(super) const BACKING_FILE: &Words = &Words {
    gone: "name of qcow backing file has gone",
    protocol: "qcow backing file is named by a URL or json:, not by a path",
    too_long: "name of qcow backing file is too long",
};

/// Of an external data file's.
pub(super) const DATA_FILE: &Words = &Words {
    gone: "name of qcow2 data file has gone",
    protocol: "qcow2 data file is named by a URL or json:, not by a path",
    too_long: "name of qcow2 data file is too long",
};

/// Bytes of a name that are looked at at a time.
const CHUNK: usize = 64;

impl NamedFile {
    /// # Errors
    ///
    /// [`Error::Malformed`] if the name is no name of a file, [`Error::Unsupported`] if it is not a
    /// path but something that QEMU would open by a protocol.
    pub(super) fn new<T: Tables + ?Sized>(
        tables: &T,
        name: Region,
        parser: Option<&'static str>,
        words: &'static Words,
    ) -> Result<Self> {
        check(tables, name, words)?;
        Ok(Self {
            name,
            parser,
            words,
        })
    }
}

/// Whether something is named there.
pub(super) fn is_name<T: Tables + ?Sized>(tables: &T, name: Region) -> Result<bool> {
    if name.start == name.end {
        return Ok(false);
    }
    let mut first = [0];
    tables.load(name.start, &mut first)?;
    Ok(first != [0])
}

/// Looks at a name byte by byte, and answers its length. A colon in front of the first slash ends the
/// name of a protocol, `json` among them.
#[inline(never)]
fn check<T: Tables + ?Sized>(tables: &T, name: Region, words: &Words) -> Result<u64> {
    let mut buffer = [0; CHUNK];
    let mut at = name.start;
    let mut has_slash = false;
    while at < name.end {
        let left = usize::try_from(name.end.saturating_sub(at)).unwrap_or(CHUNK);
        let Some(chunk) = buffer.get_mut(..left.min(CHUNK)) else {
            break;
        };
        tables.load(at, chunk)?;
        for byte in chunk {
            match *byte {
                0 => return Ok(at.saturating_sub(name.start)),
                b':' if !has_slash => return Err(Error::unsupported(words.protocol, name.start)),
                b'/' => has_slash = true,
                _ => {}
            }
            at = add(at, 1, at)?;
        }
    }
    Ok(at.saturating_sub(name.start))
}

impl Parent for NamedFile {
    fn parser(&self) -> Option<&'static str> {
        self.parser
    }

    /// There is one name.
    fn name(&self, tables: &dyn Tables, index: usize, buf: &mut [u8]) -> Result<Option<usize>> {
        if index > 0 {
            return Ok(None);
        }
        let too_long = Error::malformed(self.words.too_long, self.name.start);
        // The file may have changed since the attach.
        let len = check(tables, self.name, self.words)?;
        if len == 0 {
            return Err(Error::malformed(self.words.gone, self.name.start));
        }
        let len = usize::try_from(len).map_err(|_| too_long)?;
        let place = buf.get_mut(..len).ok_or(too_long)?;
        tables.load(self.name.start, place)?;
        Ok(Some(len))
    }

    /// Nothing is recorded of it but its name.
    fn check(&self, _parent: &Disk) -> Result {
        Ok(())
    }
}
