// SPDX-License-Identifier: GPL-2.0

//! Reading text byte by byte.

use loop_parser::contract::{
    num::Region,
    Error,
    Result,
    Tables, //
};

/// Bytes that are loaded at a time.
const WINDOW: usize = 64;

/// Reads a text from its beginning to the first NUL in it, or to its end.
pub(super) struct Reader<'a> {
    tables: &'a dyn Tables,
    /// Host offset in bytes of the next one.
    at: u64,
    /// Host offset in bytes of the end.
    end: u64,
    window: [u8; WINDOW],
    /// Bytes of the window that have been read.
    read: usize,
    /// Bytes of the window that have been loaded.
    loaded: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(tables: &'a dyn Tables, text: Region) -> Self {
        Self {
            tables,
            at: text.start,
            end: text.end,
            window: [0; WINDOW],
            read: 0,
            loaded: 0,
        }
    }

    /// Host offset in bytes of what [`Reader::peek`] looks at.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next byte, which is never 0; `None` at the end.
    pub(super) fn peek(&mut self) -> Result<Option<u8>> {
        if self.read >= self.loaded {
            self.load()?;
        }
        let loaded = self.window.get(..self.loaded).unwrap_or_default();
        Ok(loaded.get(self.read).copied().filter(|byte| *byte != 0))
    }

    fn load(&mut self) -> Result {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(WINDOW);
        self.read = 0;
        self.loaded = 0;
        let Some(window) = self.window.get_mut(..left.min(WINDOW)) else {
            return Ok(());
        };
        self.tables.load(self.at, window)?;
        self.loaded = window.len();
        Ok(())
    }

    /// Goes behind the byte that [`Reader::peek`] looked at, if there was one.
    pub(super) fn advance(&mut self) {
        if self.read < self.loaded {
            self.read = self.read.saturating_add(1);
            self.at = self.at.saturating_add(1);
        }
    }

    /// The next byte of this line; `None` at its end.
    pub(super) fn peek_in_line(&mut self) -> Result<Option<u8>> {
        Ok(self.peek()?.filter(|byte| !matches!(byte, b'\n' | b'\r')))
    }

    /// Goes behind the bytes for which `is_skipped` says yes, to the end of the line at most.
    pub(super) fn skip(&mut self, is_skipped: impl Fn(u8) -> bool) -> Result {
        while self.peek_in_line()?.is_some_and(&is_skipped) {
            self.advance();
        }
        Ok(())
    }

    pub(super) fn skip_blanks(&mut self) -> Result {
        self.skip(is_blank)
    }

    /// Goes to the first line of those that follow that is not blank, if this one is at its end.
    pub(super) fn skip_blank_lines(&mut self) -> Result {
        while self
            .peek()?
            .is_some_and(|byte| is_blank(byte) || matches!(byte, b'\n' | b'\r'))
        {
            self.advance();
        }
        Ok(())
    }

    /// Goes behind what is left of a word, up to a blank, the end of the line, or `end`.
    pub(super) fn word(&mut self, end: u8) -> Result<Word> {
        let mut word = Word::default();
        while let Some(byte) = self.peek_in_line()? {
            if is_blank(byte) || byte == end {
                break;
            }
            word.push(byte);
            self.advance();
        }
        Ok(word)
    }

    /// Goes behind a decimal number that ends with a blank or the line; `None` if there is no digit.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if something else follows it, or it is too large.
    pub(super) fn number(&mut self) -> Result<Option<u64>> {
        let at = self.at;
        let mut number: Option<u64> = None;
        while let Some(byte) = self.peek_in_line()? {
            let digit = match byte {
                byte if is_blank(byte) => break,
                b'0'..=b'9' => u64::from(byte.wrapping_sub(b'0')),
                _ if number.is_none() => break,
                _ => return Err(Error::malformed("number in VMDK descriptor is none", at)),
            };
            let tens = number.unwrap_or(0).checked_mul(10);
            let sum = tens.and_then(|tens| tens.checked_add(digit));
            let too_large = Error::malformed("number in VMDK descriptor is too large", at);
            number = Some(sum.ok_or(too_large)?);
            self.advance();
        }
        Ok(number)
    }
}

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c)
}

/// Bytes of a word that are kept. No key or value that is known here is longer.
const MAX_WORD: usize = 24;

/// A word, if it is not longer than those that are known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Word {
    bytes: [u8; MAX_WORD],
    /// How long it really is.
    len: usize,
}

impl Word {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
        }
        self.len = self.len.saturating_add(1);
    }

    /// Whether it is `word`, in upper or lower case.
    pub(super) fn is(&self, word: &[u8]) -> bool {
        self.len == word.len() && self.starts_with(word)
    }

    /// Whether it begins with `start`, in upper or lower case.
    pub(super) fn starts_with(&self, start: &[u8]) -> bool {
        let bytes = self.bytes.get(..self.len.min(MAX_WORD)).unwrap_or_default();
        let bytes = bytes.get(..start.len());
        bytes.is_some_and(|bytes| bytes.eq_ignore_ascii_case(start))
    }
}
