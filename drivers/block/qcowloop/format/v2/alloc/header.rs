// SPDX-License-Identifier: GPL-2.0

//! What the header says of an image that is written.

use loop_parser::contract::{
    Error,
    Fault,
    Result,
    TablesMut, //
};

use super::super::{
    super::num::{
        align_up,
        ensure_same, //
    },
    header::{
        self,
        Header, //
    },
    layout::Layout,
    ondisk::{
        AUTOCLEAR,
        AUTOCLEAR_RAW_DATA,
        INCOMPATIBLE,
        INCOMPATIBLE_CORRUPT,
        INCOMPATIBLE_DIRTY, //
    },
};

/// Gets an image ready for the first write, durably: clears the autoclear bits of what is not kept up
/// to date here, all but that of a raw external data file, and completes the last cluster of a file.
///
/// # Errors
///
/// [`Error::NeedsReadOnly`] if the image has become dirty or corrupt since it was attached, or is not as
/// `layout` has it: somebody else has written to it.
pub(super) fn begin(tables: &mut dyn TablesMut, layout: &Layout) -> Result {
    let mut is_changed = false;
    if layout.version >= 3 {
        let unsound = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT;
        if tables.load_be64(INCOMPATIBLE)? & unsound != 0 {
            return Err(Error::NeedsReadOnly(Fault::new(
                "qcow2 was marked dirty or corrupt after it was attached",
                INCOMPATIBLE,
            )));
        }
    }
    check_unchanged(tables, layout)?;
    if layout.version >= 3 {
        let old = tables.load_be64(AUTOCLEAR)?;
        let kept = match layout.has_data_file {
            true => old & AUTOCLEAR_RAW_DATA,
            false => 0,
        };
        if old != kept {
            tables.store(AUTOCLEAR, &kept.to_be_bytes())?;
            is_changed = true;
        }
    }
    is_changed |= complete(tables, layout)?;
    match is_changed {
        true => tables.sync(),
        false => Ok(()),
    }
}

/// Checks that the header says what `layout` does. The disk can have become larger.
// Not inlined, for the stack.
#[inline(never)]
fn check_unchanged(tables: &dyn TablesMut, layout: &Layout) -> Result {
    let is_same = |Header { layout: now, .. }: Header| {
        let size = now.size;
        now == Layout { size, ..*layout }
    };
    ensure_same(
        header::load(tables, tables.size()?).map(is_same),
        "qcow2 header was changed by somebody else after it was attached",
    )
}

/// Completes the last cluster of a file with zeros. `false`: it was whole, or the file cannot grow.
pub(super) fn complete(tables: &mut dyn TablesMut, layout: &Layout) -> Result<bool> {
    let size = tables.size()?;
    let whole = align_up(size, layout.cluster_size(), size)?;
    if !tables.can_grow() || whole == size {
        return Ok(false);
    }
    tables.fill(size, whole.saturating_sub(size), 0)?;
    Ok(true)
}

/// Says in the header that the image is corrupt, durably; version 2 has no word for it. It is refused
/// for another reason already: if this fails, nothing can be done.
pub(super) fn mark_corrupt(tables: &mut dyn TablesMut, layout: &Layout) {
    if layout.version < 3 {
        return;
    }
    if let Ok(old) = tables.load_be64(INCOMPATIBLE) {
        let new = old | INCOMPATIBLE_CORRUPT;
        if tables.store(INCOMPATIBLE, &new.to_be_bytes()).is_ok() {
            let _ = tables.sync();
        }
    }
}
