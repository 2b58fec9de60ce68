// SPDX-License-Identifier: GPL-2.0

//! Content ids: the numbers by which a child knows whether its parent was written to.

use loop_parser::contract::{
    num::{
        add,
        Region, //
    },
    Error,
    Result,
    Tables,
    TablesMut, //
};

use super::{
    line::{
        self,
        Line,
        Value, //
    },
    reader::{
        is_blank,
        Reader, //
    },
    MAX_LEN, //
};

/// The key of the CID.
pub(super) const KEY: &[u8] = b"CID";
/// The key of a longer one, of which the CID can be a part.
pub(super) const LONG_KEY: &[u8] = b"ddb.longContentID";

/// Most digits of a CID.
const MAX_DIGITS: usize = 8;

/// CIDs that mean something else: no parent, and, of VMware, a disk that was never opened.
const RESERVED: [u32; 2] = [0xffff_ffff, 0xffff_fffe];

/// Hexadecimal digits in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Digits {
    /// Host offset in bytes of the line that they are in.
    line: u64,
    /// Host offset in bytes of the first one.
    at: u64,
    /// How many there are, 1 to [`MAX_DIGITS`].
    len: usize,
}

/// Where the CID is, the number that is another after every use of the disk in which it was written to.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct ContentId {
    value: u32,
    digits: Digits,
    /// Those at the end of the longer content id, if that ends in the CID.
    long: Option<Digits>,
}

impl ContentId {
    /// # Errors
    ///
    /// [`Error::Malformed`] if the CID is no number.
    pub(super) fn new(tables: &dyn Tables, value: &Value, long: Option<&Value>) -> Result<Self> {
        let (digits, cid) = digits(tables, value)?;
        let long = match long {
            Some(long) => tail(tables, long, digits.len)?
                .filter(|(_, end)| *end == cid)
                .map(|(place, _)| place),
            None => None,
        };
        Ok(Self {
            value: cid,
            digits,
            long,
        })
    }

    /// The CID.
    pub(in super::super) fn value(&self) -> u32 {
        self.value
    }

    /// Stores another CID, made from `random`, with the same number of digits so that nothing moves; in
    /// the longer content id too, where that ended in the CID. Does not sync.
    ///
    /// The numbers follow one another in steps of a width that is random and odd: all others come before
    /// one comes again, however often this is called with the same `random`.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if the digits are not where they were: then nothing is stored.
    #[inline(never)]
    pub(in super::super) fn change(&mut self, tables: &mut dyn TablesMut, random: u32) -> Result {
        let old = self.check(&Loads(tables))?;
        let new = successor(old, random, self.digits.len);
        let mut text = [0; MAX_DIGITS];
        let text = write(new, &mut text, self.digits.len);
        if let Some(long) = self.long {
            tables.store(long.at, text)?;
        }
        tables.store(self.digits.at, text)?;
        self.value = new;
        Ok(())
    }

    /// Looks whether the digits are where they were, and answers what the CID is now.
    fn check(&self, tables: &dyn Tables) -> Result<u32> {
        let moved = |digits: Digits| Error::malformed("CID of VMDK is not where it was", digits.at);
        let here = self.digits;
        let found = setting(tables, here.line, KEY)?.map(|value| digits(tables, &value));
        let cid = match found {
            Some(Ok((found, cid))) if found == here => cid,
            _ => return Err(moved(here)),
        };
        if let Some(long) = self.long {
            let value = setting(tables, long.line, LONG_KEY)?;
            let found = value
                .map(|value| tail(tables, &value, here.len))
                .transpose()?;
            if found.flatten().map(|(place, _)| place) != Some(long) {
                return Err(moved(long));
            }
        }
        Ok(cid)
    }
}

/// The reading half of [`TablesMut`], which the kernel's compiler does not see in it.
struct Loads<'a>(&'a dyn TablesMut);

impl Tables for Loads<'_> {
    fn size(&self) -> Result<u64> {
        self.0.size()
    }

    fn load(&self, offset: u64, buf: &mut [u8]) -> Result {
        self.0.load(offset, buf)
    }
}

/// The value of the setting `key` in the line at host offset `line`, if that is there. No line is longer than
/// a descriptor, whatever is in its place now.
fn setting(tables: &dyn Tables, line: u64, key: &[u8]) -> Result<Option<Value>> {
    let rest = Region {
        start: line,
        end: tables.size()?.min(add(line, MAX_LEN, line)?).max(line),
    };
    match line::next(&mut Reader::new(tables, rest)) {
        Ok(Some(Line::Setting(setting))) if setting.key.is(key) && setting.value.line == line => {
            Ok(Some(setting.value))
        }
        Err(error @ (Error::Store(_) | Error::WouldBlock)) => Err(error),
        _ => Ok(None),
    }
}

/// The number that a value is.
///
/// # Errors
///
/// [`Error::Malformed`] if it is none.
pub(super) fn number(tables: &dyn Tables, value: &Value) -> Result<u32> {
    digits(tables, value).map(|(_, number)| number)
}

/// The digits at the beginning of a value, and the number that they are. Behind a blank anything may
/// follow.
fn digits(tables: &dyn Tables, value: &Value) -> Result<(Digits, u32)> {
    let none = Error::malformed("CID in VMDK descriptor is no number", value.line);
    let region = value.range();
    let mut reader = Reader::new(tables, region);
    let mut number: u32 = 0;
    let mut len: usize = 0;
    while let Some(byte) = reader.peek()?.filter(|byte| !is_blank(*byte)) {
        let digit = char::from(byte).to_digit(16).ok_or(none)?;
        number = number.checked_mul(16).ok_or(none)?;
        number |= digit;
        len = len.saturating_add(1);
        reader.advance();
    }
    if !(1..=MAX_DIGITS).contains(&len) {
        return Err(none);
    }
    let place = Digits {
        line: value.line,
        at: region.start,
        len,
    };
    Ok((place, number))
}

/// The number that the last eight digits of a value are, and where the last `len` of them lie; `None` if
/// there are not as many.
fn tail(tables: &dyn Tables, value: &Value, len: usize) -> Result<Option<(Digits, u32)>> {
    const LAST: u64 = MAX_DIGITS as u64;
    let region = value.range();
    let Some(start) = region.end.checked_sub(LAST) else {
        return Ok(None);
    };
    if start < region.start {
        return Ok(None);
    }
    let mut number: u32 = 0;
    let mut reader = Reader::new(tables, Region { start, ..region });
    for _ in 0..MAX_DIGITS {
        let digit = reader
            .peek()?
            .and_then(|byte| char::from(byte).to_digit(16));
        let Some(digit) = digit else {
            return Ok(None);
        };
        number = number.wrapping_shl(4) | digit;
        reader.advance();
    }
    let skipped = MAX_DIGITS.saturating_sub(len);
    let place = Digits {
        line: value.line,
        at: add(start, skipped as u64, start)?,
        len,
    };
    Ok(Some((place, number)))
}

/// The CID of `len` digits that follows `old`.
fn successor(old: u32, random: u32, len: usize) -> u32 {
    // With 8 digits nothing is cut off.
    let bits = len.saturating_mul(4);
    let mask = u32::try_from(bits)
        .ok()
        .and_then(|bits| u32::MAX.checked_shr(32u32.saturating_sub(bits)))
        .unwrap_or(u32::MAX);
    let mut new = old;
    loop {
        new = new.wrapping_add(random | 1) & mask;
        if !RESERVED.contains(&new) {
            return new;
        }
    }
}

/// Writes the last `len` digits of a number.
fn write(number: u32, text: &mut [u8; MAX_DIGITS], len: usize) -> &[u8] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut rest = number;
    for place in text.iter_mut().rev() {
        let digit = DIGITS.get((rest & 0xf) as usize);
        *place = digit.copied().unwrap_or(b'0');
        rest >>= 4;
    }
    text.get(MAX_DIGITS.saturating_sub(len)..)
        .unwrap_or_default()
}
