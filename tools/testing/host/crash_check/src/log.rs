// SPDX-License-Identifier: GPL-2.0

//! The log of dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst).
//!
//! A write is logged when a flush that came after it has completed, or at once if it was FUA. So
//! what lies in front of a flush is durable behind it; what lies between two flushes may or may not
//! survive.

use std::ops::Range;

use crate::bytes::le64;

const SECTOR: usize = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const METADATA: u64 = 16;

/// What reached the device.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Everything in front of it became durable.
    pub is_flush: bool,
    /// It is durable itself.
    pub is_fua: bool,
    /// The file system's own.
    pub is_metadata: bool,
    /// What it did.
    pub what: What,
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Nothing: a flush alone.
    Nothing,
    /// A write.
    Write {
        /// First sector.
        sector: u64,
        /// Where its data lie in the log.
        data: Range<usize>,
    },
    /// A discard; the RAM disk reads as zero there.
    Discard {
        /// First sector.
        sector: u64,
        /// Sectors.
        count: u64,
    },
    /// A mark: what the guest knew to be durable.
    Mark(u64),
}

/// A log.
#[derive(Debug, Default)]
pub struct Log {
    bytes: Vec<u8>,
    /// In the order in which they became durable, as far as they did.
    pub entries: Vec<Entry>,
}

impl Log {
    /// Reads a log.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, String> {
        if le64(&bytes, 0) != Some(MAGIC) {
            return Err("not a log of dm-log-writes".into());
        }
        let count = le64(&bytes, 16).unwrap_or(0);
        let mut entries = Vec::new();
        let mut at = SECTOR;
        for number in 0..count {
            let (entry, next) =
                parse_entry(&bytes, at).ok_or_else(|| format!("log ends in entry {number}"))?;
            entries.extend(entry);
            at = next;
        }
        Ok(Self { bytes, entries })
    }

    /// The data of a write.
    pub fn data(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }
}

/// The entry at `at`, and where the next one begins. The mark at the end, which is not the guest's,
/// is none.
fn parse_entry(bytes: &[u8], at: usize) -> Option<(Option<Entry>, usize)> {
    let sector = le64(bytes, at)?;
    let count = le64(bytes, at + 8)?;
    let flags = le64(bytes, at + 16)?;
    let start = at + SECTOR;
    let len = if flags & DISCARD == 0 { count } else { 0 };
    let data = start..start.checked_add(usize::try_from(len).ok()?.checked_mul(SECTOR)?)?;
    let next = data.end;
    if next > bytes.len() {
        return None;
    }
    let what = if flags & MARK != 0 {
        let len = usize::try_from(le64(bytes, at + 24)?).ok()?;
        match text(bytes, at + 32, len).and_then(|it| it.parse().ok()) {
            Some(mark) => What::Mark(mark),
            None => return Some((None, next)),
        }
    } else if flags & DISCARD != 0 {
        What::Discard { sector, count }
    } else if count == 0 {
        What::Nothing
    } else {
        What::Write { sector, data }
    };
    let entry = Entry {
        is_flush: flags & FLUSH != 0,
        is_fua: flags & FUA != 0,
        is_metadata: flags & METADATA != 0,
        what,
    };
    Some((Some(entry), next))
}

fn text(bytes: &[u8], at: usize, len: usize) -> Option<&str> {
    std::str::from_utf8(bytes.get(at..at.checked_add(len)?)?).ok()
}

/// Logs for tests.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// An entry, with the text of a mark or the data of a write.
    pub(crate) fn entry(sector: u64, count: u64, flags: u64, text: &str, data: &[u8]) -> Vec<u8> {
        let words = [sector, count, flags, text.len() as u64];
        let mut bytes: Vec<u8> = words.iter().flat_map(|it| it.to_le_bytes()).collect();
        bytes.extend(text.bytes());
        bytes.resize(SECTOR, 0);
        bytes.extend(data);
        bytes
    }

    /// A log of them.
    pub(crate) fn log(entries: &[Vec<u8>]) -> Vec<u8> {
        let words = [MAGIC, 1, entries.len() as u64, 512];
        let mut bytes: Vec<u8> = words.iter().flat_map(|it| it.to_le_bytes()).collect();
        bytes.resize(SECTOR, 0);
        bytes.extend(entries.concat());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{samples::*, *};

    #[test]
    fn entries_are_told_apart() {
        let log = Log::parse(log(&[
            entry(8, 2, METADATA, "", &[7; 1024]),
            entry(0, 0, FLUSH, "", &[]),
            entry(64, 1 << 40, DISCARD, "", &[]),
            entry(0, 0, MARK, "42", &[]),
            entry(1, 1, FUA, "", &[9; 512]),
            entry(0, 0, MARK, "dm-log-writes-end", &[]),
        ]))
        .unwrap();
        let [write, flush, discard, mark, fua] = &log.entries[..] else {
            panic!("{:?}", log.entries);
        };
        assert!(write.is_metadata && !write.is_flush && !write.is_fua);
        assert!(flush.is_flush && flush.what == What::Nothing);
        assert_eq!(
            discard.what,
            What::Discard {
                sector: 64,
                count: 1 << 40
            }
        );
        assert_eq!(mark.what, What::Mark(42));
        let What::Write { sector: 1, data } = &fua.what else {
            panic!("{fua:?}");
        };
        assert!(fua.is_fua);
        assert_eq!(log.data(data), [9; 512]);
    }

    #[test]
    fn logs_that_are_cut_are_refused() {
        let whole = log(&[entry(8, 2, 0, "", &[7; 1024])]);
        for len in [0, 100, 600, whole.len() - 1] {
            assert!(Log::parse(whole[..len].to_vec()).is_err(), "{len}");
        }
        assert!(Log::parse(vec![0; 512]).is_err());
    }
}
