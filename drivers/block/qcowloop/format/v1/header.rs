// SPDX-License-Identifier: GPL-2.0

//! The header of version 1: the checks that make a [`Layout`] of it.

use loop_parser::contract::{
    Error,
    Result,
    Tables, //
};

use super::{
    super::name::is_name,
    super::num::{
        self,
        Region, //
    },
    layout::Layout,
    ondisk::*, //
};

/// A header that was checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Where things lie.
    pub(super) layout: Layout,
    /// Where the name of the backing file lies, if there is one.
    pub(super) backing_name: Option<Region>,
}

fn malformed<V>(what: &'static str, at: u64) -> Result<V> {
    Err(Error::malformed(what, at))
}

fn unsupported<V>(what: &'static str, at: u64) -> Result<V> {
    Err(Error::unsupported(what, at))
}

/// Reads and checks the header of a file of `file_size` bytes.
///
/// # Errors
///
/// [`Error::Malformed`] and [`Error::Unsupported`]; the first of: magic, version, encryption, shift
/// counts, limits, bounds, overlaps.
pub(super) fn load<T: Tables + ?Sized>(tables: &T, file_size: u64) -> Result<Header> {
    if file_size < HEADER_LEN {
        return malformed("file is too short for a qcow header", file_size);
    }
    let fields: HeaderFields = num::load(tables, 0)?;
    check_identity(&fields)?;
    check_shifts(&fields)?;
    let mut layout = Layout {
        cluster_bits: u32::from(fields.cluster_bits),
        l2_bits: u32::from(fields.l2_bits),
        l1_offset: fields.l1_offset.get(),
        l1_size: 0,
        size: fields.size.get(),
        name: None,
    };
    layout.l1_size = l1_size(&layout)?;
    let backing_name = backing_name(tables, &fields, file_size)?;
    layout.name = backing_name;
    check_l1(&layout, file_size)?;
    // INVARIANT: the checks above.
    Ok(Header {
        layout,
        backing_name,
    })
}

fn check_identity(fields: &HeaderFields) -> Result {
    if fields.magic != num::MAGIC {
        return malformed("no qcow header", 0);
    }
    match fields.version.get() {
        1 => {}
        2 | 3 => return unsupported("versions 2 and 3 are for the parser qcow2", VERSION),
        _ => return unsupported("qcow version is not 1, 2 or 3", VERSION),
    }
    match fields.crypt_method.get() {
        CRYPT_NONE => Ok(()),
        CRYPT_AES => unsupported("qcow is encrypted with AES", CRYPT_METHOD),
        _ => unsupported("qcow is encrypted in an unknown way", CRYPT_METHOD),
    }
}

fn check_shifts(fields: &HeaderFields) -> Result {
    if !CLUSTER_BITS_RANGE.contains(&fields.cluster_bits) {
        return malformed("qcow cluster is not of 512 bytes to 64 KiB", CLUSTER_BITS);
    }
    if !L2_BITS_RANGE.contains(&fields.l2_bits) {
        return malformed("qcow L2 table is not of 64 to 8192 entries", L2_BITS);
    }
    Ok(())
}

/// Number of entries in the L1: it follows from the size of the disk.
fn l1_size(layout: &Layout) -> Result<u64> {
    if layout.size < MIN_SIZE {
        return malformed("qcow disk has less than 2 bytes", SIZE);
    }
    let entries = layout.size.div_ceil(layout.l2_covers().max(1));
    if entries > MAX_L1_LEN / TABLE_ENTRY_LEN {
        return unsupported("qcow L1 table is larger than 2 GiB", SIZE);
    }
    Ok(entries)
}

/// Where the name of the backing file lies: behind the header, in the file. One of no bytes names
/// nothing.
fn backing_name<T: Tables + ?Sized>(
    tables: &T,
    fields: &HeaderFields,
    file_size: u64,
) -> Result<Option<Region>> {
    let start = fields.backing_offset.get();
    let len = fields.backing_size.get();
    if start == 0 || len == 0 {
        return Ok(None);
    }
    if len > MAX_BACKING_NAME {
        return malformed("name of qcow backing file is too long", BACKING_SIZE);
    }
    let name = Region::new(start, u64::from(len), BACKING_OFFSET)?;
    if start < HEADER_LEN {
        return malformed(
            "name of qcow backing file overlaps the header",
            BACKING_OFFSET,
        );
    }
    if name.end > file_size {
        return malformed(
            "name of qcow backing file lies past the end of the file",
            BACKING_OFFSET,
        );
    }
    Ok(is_name(tables, name)?.then_some(name))
}

/// The L1 lies within the file, and not over anything else.
fn check_l1(layout: &Layout, file_size: u64) -> Result {
    let l1 = Region::new(layout.l1_offset, layout.l1_len(), L1_OFFSET)?;
    if l1.end > file_size {
        return malformed("qcow L1 table lies past the end of the file", L1_OFFSET);
    }
    if l1.start < HEADER_LEN {
        return malformed("qcow L1 table overlaps the header", L1_OFFSET);
    }
    if layout.name.is_some_and(|name| name.overlaps(l1)) {
        return malformed(
            "qcow L1 table overlaps the name of the backing file",
            L1_OFFSET,
        );
    }
    Ok(())
}
