// SPDX-License-Identifier: GPL-2.0

//! Header extensions ("Header extensions").

use loop_parser::contract::{
    Error,
    Result,
    Tables, //
};

use super::{
    super::num::{
        self,
        add,
        align_up,
        Region, //
    },
    ondisk::*, //
};

/// Most extensions that are looked at; there are six kinds.
const MAX_EXTENSIONS: usize = 64;

/// The data of an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extension {
    /// Host offset in bytes.
    pub(super) start: u64,
    /// Length in bytes.
    pub(super) len: u64,
}

/// Checks all extensions in `region`.
///
/// # Errors
///
/// As for [`find`].
pub(super) fn check<T: Tables + ?Sized>(tables: &T, region: Region) -> Result {
    // There is none of this kind: it ends them.
    find(tables, region, EXTENSION_END).map(|_| ())
}

/// Looks for the first extension of a kind in `region`.
///
/// # Errors
///
/// [`Error::Malformed`] for one that does not end in the region, [`Error::Unsupported`] if there are
/// too many.
pub(super) fn find<T: Tables + ?Sized>(
    tables: &T,
    region: Region,
    kind: u32,
) -> Result<Option<Extension>> {
    let mut at = region.start;
    for _ in 0..MAX_EXTENSIONS {
        let start = add(at, EXTENSION_HEADER_LEN, at)?;
        if start > region.end {
            return Ok(None);
        }
        let fields: ExtensionFields = num::load(tables, at)?;
        let len = u64::from(fields.len.get());
        let end = add(start, len, at)?;
        let found = fields.kind.get();
        if found == EXTENSION_END {
            return Ok(None);
        }
        if end > region.end {
            return Err(Error::malformed("qcow2 header extension is too long", at));
        }
        if found == kind {
            return Ok(Some(Extension { start, len }));
        }
        at = align_up(end, EXTENSION_ALIGN, at)?;
    }
    Err(Error::unsupported(
        "qcow2 header has more than 64 extensions",
        region.start,
    ))
}
