// SPDX-License-Identifier: GPL-2.0

//! The header of a hosted sparse extent, and of a stream, which has it at both ends: the checks that hold
//! for all of them.

use loop_parser::contract::{
    num::{
        self,
        Region, //
    },
    Error,
    Result,
    Tables,
    SECTOR_SIZE, //
};

use super::{
    super::{
        descriptor,
        grains::layout::{
            GRAIN_SECTORS,
            MAX_DISK_SIZE,
            MAX_TABLE_ENTRIES, //
        }, //
    },
    ondisk::*, //
};

/// A header that was checked: sizes are within their limits. Nothing is said of whether directories lie
/// within the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Header {
    /// Its host offset in bytes.
    pub(in super::super) at: u64,
    /// 1, 2 or 3.
    pub(in super::super) version: u32,
    /// Size in bytes of the disk, or of the part of it that is in this file.
    pub(in super::super) size: u64,
    /// Bytes in a grain, a power of two.
    pub(in super::super) grain: u64,
    /// Entries in a grain table, 1 to 65536.
    pub(in super::super) entries: u64,
    /// Where there is room for a descriptor, within the file.
    pub(in super::super) descriptor: Option<Region>,
    /// Host offset in bytes of the grain directory; `None`: the header at the end of the file has it.
    pub(in super::super) directory: Option<u64>,
    /// Host offset in bytes of the redundant one, if it is of use.
    pub(in super::super) redundant: Option<u64>,
    /// Host offset in bytes at which the first grain can be, at most the size of the file.
    pub(in super::super) overhead: u64,
    /// A table entry of 1 is a grain of zeros.
    pub(in super::super) has_zero_grains: bool,
    /// The file is open elsewhere, or was not closed.
    pub(in super::super) is_unclean: bool,
    /// Grains are compressed, in zlib streams, behind headers.
    pub(in super::super) is_compressed: bool,
}

fn malformed<V>(what: &'static str, at: u64) -> Result<V> {
    Err(Error::malformed(what, at))
}

fn unsupported<V>(what: &'static str, at: u64) -> Result<V> {
    Err(Error::unsupported(what, at))
}

/// Reads and checks the header at host offset `at`.
///
/// # Errors
///
/// [`Error::Malformed`] and [`Error::Unsupported`]; the first of: magic, version, a size, flags,
/// compression, damage, limits, bounds.
// Not inlined, for the stack.
#[inline(never)]
pub(in super::super) fn load<T: Tables + ?Sized>(tables: &T, at: u64) -> Result<Header> {
    let file_size = tables.size()?;
    if Region::new(at, HEADER_LEN, at)?.end > file_size {
        return malformed("file is too short for a VMDK header", file_size);
    }
    let fields: HeaderFields = num::load(tables, at)?;
    let field = |offset: u64| at.saturating_add(offset);
    check_identity(&fields, at)?;
    if fields.capacity.get() == 0 && fields.desc_size.get() != 0 && fields.desc_offset.get() != 0 {
        // QEMU takes that for a descriptor of extents in other files.
        return unsupported("VMDK header has only a descriptor", field(CAPACITY));
    }
    let flags = fields.flags.get();
    let overhead = sectors(fields.overhead.get(), field(OVERHEAD))?;
    if overhead > file_size {
        return malformed("VMDK file is shorter than its overhead", field(OVERHEAD));
    }
    let directory = match fields.gd_offset.get() {
        GD_AT_END => None,
        offset => Some(sectors(offset, field(GD_OFFSET))?),
    };
    let redundant = match fields.rgd_offset.get() {
        // Older VirtualBox has none in streams, but says so in both places where it can be.
        0 | GD_AT_END => None,
        // Those of streams are never written to.
        _ if flags & FLAG_REDUNDANT == 0 || flags & FLAG_COMPRESSED != 0 => None,
        // What saturates lies past the end of any file.
        offset => Some(offset.saturating_mul(SECTOR_SIZE)),
    };
    Ok(Header {
        at,
        version: fields.version.get(),
        size: size(&fields, field(CAPACITY))?,
        grain: grain(&fields, field(GRAIN_SIZE))?,
        entries: entries(&fields, field(GTES_PER_GT))?,
        descriptor: text(&fields, at, file_size)?,
        directory,
        redundant,
        overhead,
        has_zero_grains: flags & FLAG_ZERO_GRAIN != 0,
        is_unclean: fields.unclean != 0,
        is_compressed: flags & FLAG_COMPRESSED != 0,
    })
}

fn check_identity(fields: &HeaderFields, at: u64) -> Result {
    let field = |offset: u64| at.saturating_add(offset);
    let flags = fields.flags.get();
    if fields.magic != MAGIC {
        return malformed("no VMDK header", at);
    }
    if !VERSIONS.contains(&fields.version.get()) {
        return unsupported("VMDK version is not 1, 2 or 3", field(VERSION));
    }
    if flags & FLAGS_INCOMPATIBLE & !(FLAG_COMPRESSED | FLAG_MARKERS) != 0 {
        return unsupported("VMDK has an unknown incompatible flag", field(FLAGS));
    }
    if flags & FLAG_CHECK != 0 && fields.check != CHECK_BYTES {
        return malformed("VMDK was damaged by a transfer as text", field(CHECK));
    }
    check_compression(fields, at)
}

fn check_compression(fields: &HeaderFields, at: u64) -> Result {
    let field = |offset: u64| at.saturating_add(offset);
    let flags = fields.flags.get();
    let is_compressed = flags & FLAG_COMPRESSED != 0;
    if is_compressed != (flags & FLAG_MARKERS != 0) {
        return unsupported(
            "VMDK has compressed grains without markers, or markers without them",
            field(FLAGS),
        );
    }
    match fields.compression.get() {
        COMPRESSION_NONE if !is_compressed => Ok(()),
        COMPRESSION_DEFLATE if is_compressed => Ok(()),
        COMPRESSION_NONE | COMPRESSION_DEFLATE => malformed(
            "VMDK flags and compression contradict each other",
            field(COMPRESSION),
        ),
        _ => unsupported("VMDK is compressed in an unknown way", field(COMPRESSION)),
    }
}

/// `count` sectors in bytes.
fn sectors(count: u64, at: u64) -> Result<u64> {
    num::mul(count, SECTOR_SIZE, at)
}

fn size(fields: &HeaderFields, at: u64) -> Result<u64> {
    match sectors(fields.capacity.get(), at)? {
        size if size <= MAX_DISK_SIZE => Ok(size),
        _ => malformed("VMDK disk is larger than any disk can be", at),
    }
}

fn grain(fields: &HeaderFields, at: u64) -> Result<u64> {
    let count = fields.grain_size.get();
    if !GRAIN_SECTORS.contains(&count) || !count.is_power_of_two() {
        return malformed(
            "VMDK grain is not of 1 to 65536 sectors, a power of two",
            at,
        );
    }
    sectors(count, at)
}

fn entries(fields: &HeaderFields, at: u64) -> Result<u64> {
    match u64::from(fields.gtes_per_gt.get()) {
        count @ 1..=MAX_TABLE_ENTRIES => Ok(count),
        _ => malformed("VMDK grain table is not of 1 to 65536 entries", at),
    }
}

/// Where the descriptor is, if there is room for one.
fn text(fields: &HeaderFields, at: u64, file_size: u64) -> Result<Option<Region>> {
    let field = |offset: u64| at.saturating_add(offset);
    let (offset, count) = (fields.desc_offset.get(), fields.desc_size.get());
    if offset == 0 || count == 0 {
        return Ok(None);
    }
    let len = sectors(count, field(DESC_SIZE))?;
    if len > descriptor::MAX_LEN {
        return unsupported("VMDK descriptor is larger than 1 MiB", field(DESC_SIZE));
    }
    let start = sectors(offset, field(DESC_OFFSET))?;
    let region = Region::new(start, len, field(DESC_OFFSET))?;
    if start < HEADER_LEN {
        return malformed("VMDK descriptor lies in the header", field(DESC_OFFSET));
    }
    if region.end > file_size {
        return malformed(
            "VMDK descriptor lies past the end of the file",
            field(DESC_OFFSET),
        );
    }
    Ok(Some(region))
}
