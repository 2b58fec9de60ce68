// SPDX-License-Identifier: GPL-2.0

//! Names as they are recorded in an image, taken apart into characters.

use loop_parser::contract::{
    Error,
    Result,
    Tables, //
};

use super::num::{
    add,
    mul, //
};

/// Most code units in a name: Linux has no longer paths.
const MAX_UNITS: u64 = 4096;

/// How a name is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// UTF-16, low byte first.
    Utf16Le,
    /// UTF-16, high byte first.
    Utf16Be,
    /// Bytes that are taken as they are.
    Bytes,
    /// Bytes, some of them as `%` and two digits.
    Escaped,
}

impl Encoding {
    /// Bytes in a code unit.
    fn unit_len(self) -> u64 {
        match self {
            Self::Utf16Le | Self::Utf16Be => 2,
            Self::Bytes | Self::Escaped => 1,
        }
    }
}

/// A character of a name, as Linux writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    bytes: [u8; 4],
    len: usize,
    /// How many code units it took.
    pub(super) units: u64,
}

impl Symbol {
    fn byte(byte: u8, units: u64) -> Self {
        Self {
            bytes: [byte, 0, 0, 0],
            len: 1,
            units,
        }
    }

    /// UTF-8, three bytes for half of a surrogate pair, or the one byte that was recorded.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// It is this character, and was recorded as such.
    pub(super) fn is(&self, ascii: u8) -> bool {
        self.units == 1 && self.bytes() == [ascii]
    }
}

/// A name in an image.
///
/// # Invariants
///
/// Has at most [`MAX_UNITS`] code units, all of which lay within the file when it was looked up.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    tables: &'a dyn Tables,
    /// Host offset in bytes.
    at: u64,
    units: u64,
    encoding: Encoding,
}

impl<'a> Text<'a> {
    /// The name of `len` bytes at host offset `at`. Zeros behind it do not belong to it.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`]: it ends in half a code unit, is too long, or not within the file.
    pub(super) fn new(
        tables: &'a dyn Tables,
        encoding: Encoding,
        at: u64,
        len: u64,
    ) -> Result<Self> {
        let unit_len = encoding.unit_len();
        let (Some(units), Some(0)) = (len.checked_div(unit_len), len.checked_rem(unit_len)) else {
            return Err(Error::malformed("name of VHD parent has an odd length", at));
        };
        if units > MAX_UNITS {
            return Err(Error::malformed("name of VHD parent is too long", at));
        }
        if add(at, len, at)? > tables.size()? {
            return Err(Error::malformed(
                "name of VHD parent lies past the end of the file",
                at,
            ));
        }
        let mut text = Self {
            tables,
            at,
            units,
            encoding,
        };
        while let Some(last) = text.units.checked_sub(1) {
            if text.unit(last)? != 0 {
                break;
            }
            text.units = last;
        }
        // INVARIANT: just checked.
        Ok(text)
    }

    /// The name of at most `len` bytes at host offset `at`, which ends at the first zero.
    ///
    /// # Errors
    ///
    /// As [`Text::new`].
    pub(super) fn until_nul(
        tables: &'a dyn Tables,
        encoding: Encoding,
        at: u64,
        len: u64,
    ) -> Result<Self> {
        let mut text = Self::new(tables, encoding, at, len)?;
        for index in 0..text.units {
            if text.unit(index)? == 0 {
                text.units = index;
                break;
            }
        }
        Ok(text)
    }

    /// The same code units in another encoding of the same width.
    pub(super) fn read_as(self, encoding: Encoding) -> Self {
        Self { encoding, ..self }
    }

    /// Host offset in bytes, for faults.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Number of code units.
    pub(super) fn units(&self) -> u64 {
        self.units
    }

    fn unit(&self, index: u64) -> Result<u16> {
        let at = add(
            self.at,
            mul(index, self.encoding.unit_len(), self.at)?,
            self.at,
        )?;
        let mut pair = [0; 2];
        match self.encoding {
            Encoding::Utf16Le => {
                self.tables.load(at, &mut pair)?;
                Ok(u16::from_le_bytes(pair))
            }
            Encoding::Utf16Be => {
                self.tables.load(at, &mut pair)?;
                Ok(u16::from_be_bytes(pair))
            }
            Encoding::Bytes | Encoding::Escaped => {
                let mut byte = [0];
                self.tables.load(at, &mut byte)?;
                Ok(byte.map(u16::from)[0])
            }
        }
    }

    /// Code unit `index`, if there is one.
    fn unit_or_none(&self, index: u64) -> Result<Option<u16>> {
        if index >= self.units {
            return Ok(None);
        }
        self.unit(index).map(Some)
    }

    /// The character at code unit `index`; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] for a zero, and for a slash that is not a separator.
    pub(super) fn symbol(&self, index: u64) -> Result<Option<Symbol>> {
        let Some(unit) = self.unit_or_none(index)? else {
            return Ok(None);
        };
        let symbol = match self.encoding {
            Encoding::Utf16Le | Encoding::Utf16Be => {
                utf16(unit, self.unit_or_none(index.saturating_add(1))?)
            }
            Encoding::Bytes => Symbol::byte(low_byte(unit), 1),
            Encoding::Escaped => self.unescape(index, unit)?,
        };
        let is_hidden_slash = symbol.units > 1 && symbol.bytes() == b"/";
        if symbol.bytes() == [0] || is_hidden_slash {
            return Err(Error::malformed(
                "name of VHD parent contains a NUL or an escaped slash",
                self.at,
            ));
        }
        Ok(Some(symbol))
    }

    /// The byte at `index`, which may be escaped. What only looks like an escape stands for itself.
    fn unescape(&self, index: u64, unit: u16) -> Result<Symbol> {
        let plain = Symbol::byte(low_byte(unit), 1);
        if !plain.is(b'%') {
            return Ok(plain);
        }
        let high = self.unit_or_none(index.saturating_add(1))?.and_then(digit);
        let low = self.unit_or_none(index.saturating_add(2))?.and_then(digit);
        Ok(match (high, low) {
            // Both are less than 16.
            (Some(high), Some(low)) => Symbol::byte(high.wrapping_shl(4) | low, 3),
            _ => plain,
        })
    }
}

/// The value of a hexadecimal digit.
fn digit(unit: u16) -> Option<u8> {
    let value = char::from_u32(u32::from(unit))?.to_digit(16)?;
    u8::try_from(value).ok()
}

fn low_byte(unit: u16) -> u8 {
    let [_, low] = unit.to_be_bytes();
    low
}

/// The character that begins with `unit`. Half of a pair becomes three bytes, by the rule of UTF-8:
/// file names on Windows can contain such.
fn utf16(unit: u16, next: Option<u16>) -> Symbol {
    let mut bytes = [0; 4];
    match char::decode_utf16([unit].into_iter().chain(next)).next() {
        Some(Ok(character)) => Symbol {
            len: character.encode_utf8(&mut bytes).len(),
            units: if character.len_utf16() == 2 { 2 } else { 1 },
            bytes,
        },
        _ => Symbol {
            bytes: [
                0xed,
                0x80 | low_byte(unit.wrapping_shr(6) & 0x3f),
                0x80 | low_byte(unit & 0x3f),
                0,
            ],
            len: 3,
            units: 1,
        },
    }
}
