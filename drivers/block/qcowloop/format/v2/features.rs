// SPDX-License-Identifier: GPL-2.0

//! Incompatible features that this parser does not know: their numbers, and what the image calls
//! them ("Feature name table").

use loop_parser::contract::{
    Error,
    Fault,
    HostRange,
    Tables, //
};

use super::{
    super::num::Region,
    extensions::{
        self,
        Extension, //
    },
    ondisk::*, //
};

/// Most entries of a feature name table that are looked at.
const MAX_NAMES: u64 = 256;

/// What is said of an unknown bit, for each of them: faults have no text of their own.
const UNKNOWN: [&str; 64] = [
    "unknown incompatible feature bit 0",
    "unknown incompatible feature bit 1",
    "unknown incompatible feature bit 2",
    "unknown incompatible feature bit 3",
    "unknown incompatible feature bit 4",
    "unknown incompatible feature bit 5",
    "unknown incompatible feature bit 6",
    "unknown incompatible feature bit 7",
    "unknown incompatible feature bit 8",
    "unknown incompatible feature bit 9",
    "unknown incompatible feature bit 10",
    "unknown incompatible feature bit 11",
    "unknown incompatible feature bit 12",
    "unknown incompatible feature bit 13",
    "unknown incompatible feature bit 14",
    "unknown incompatible feature bit 15",
    "unknown incompatible feature bit 16",
    "unknown incompatible feature bit 17",
    "unknown incompatible feature bit 18",
    "unknown incompatible feature bit 19",
    "unknown incompatible feature bit 20",
    "unknown incompatible feature bit 21",
    "unknown incompatible feature bit 22",
    "unknown incompatible feature bit 23",
    "unknown incompatible feature bit 24",
    "unknown incompatible feature bit 25",
    "unknown incompatible feature bit 26",
    "unknown incompatible feature bit 27",
    "unknown incompatible feature bit 28",
    "unknown incompatible feature bit 29",
    "unknown incompatible feature bit 30",
    "unknown incompatible feature bit 31",
    "unknown incompatible feature bit 32",
    "unknown incompatible feature bit 33",
    "unknown incompatible feature bit 34",
    "unknown incompatible feature bit 35",
    "unknown incompatible feature bit 36",
    "unknown incompatible feature bit 37",
    "unknown incompatible feature bit 38",
    "unknown incompatible feature bit 39",
    "unknown incompatible feature bit 40",
    "unknown incompatible feature bit 41",
    "unknown incompatible feature bit 42",
    "unknown incompatible feature bit 43",
    "unknown incompatible feature bit 44",
    "unknown incompatible feature bit 45",
    "unknown incompatible feature bit 46",
    "unknown incompatible feature bit 47",
    "unknown incompatible feature bit 48",
    "unknown incompatible feature bit 49",
    "unknown incompatible feature bit 50",
    "unknown incompatible feature bit 51",
    "unknown incompatible feature bit 52",
    "unknown incompatible feature bit 53",
    "unknown incompatible feature bit 54",
    "unknown incompatible feature bit 55",
    "unknown incompatible feature bit 56",
    "unknown incompatible feature bit 57",
    "unknown incompatible feature bit 58",
    "unknown incompatible feature bit 59",
    "unknown incompatible feature bit 60",
    "unknown incompatible feature bit 61",
    "unknown incompatible feature bit 62",
    "unknown incompatible feature bit 63",
];

/// The error for an image with these unknown incompatible bits, at least one: about the lowest.
pub(super) fn refuse(unknown: u64) -> Error {
    let index = usize::try_from(unknown.trailing_zeros()).unwrap_or_default();
    let what = UNKNOWN
        .get(index)
        .unwrap_or(&"unknown incompatible feature bit");
    Error::unsupported(what, INCOMPATIBLE)
}

/// The bit that an image was refused for.
pub(super) fn refused_bit(fault: &Fault) -> Option<u8> {
    let index = UNKNOWN.iter().position(|what| *what == fault.what)?;
    u8::try_from(index).ok()
}

/// Where the name of an incompatible bit is written, in an extension in `region`. If the file cannot
/// be read, or the table is wrong, there is none.
pub(super) fn name<T: Tables + ?Sized>(tables: &T, region: Region, bit: u8) -> Option<HostRange> {
    let table = extensions::find(tables, region, EXTENSION_FEATURE_NAMES);
    let Extension { start, len } = table.ok()??;
    let count = (len / FEATURE_NAME_LEN).min(MAX_NAMES);
    for index in 0..count {
        let at = start.checked_add(index.checked_mul(FEATURE_NAME_LEN)?)?;
        let mut key = [0; 2];
        tables.load(at, &mut key).ok()?;
        if key == [FEATURE_INCOMPATIBLE, bit] {
            return Some(HostRange {
                offset: at.checked_add(FEATURE_NAME_TEXT)?,
                len: FEATURE_NAME_LEN.checked_sub(FEATURE_NAME_TEXT)?,
            });
        }
    }
    None
}
