// SPDX-License-Identifier: GPL-2.0

//! The dynamic header ("Dynamic Disk Header Format").

use loop_parser::contract::{
    Error,
    Fault,
    Identity,
    Result,
    Tables,
    SECTOR_SIZE, //
};

use super::{
    batmap,
    checksum,
    footer::{
        Chosen,
        Kind, //
    },
    layout::Layout,
    num::{
        self,
        add,
        mul,
        Region, //
    },
    ondisk::*, //
};

/// Smallest block in bytes: one sector.
const MIN_BLOCK_SIZE: u32 = 512;
/// Largest block in bytes: the largest power of two that the field can hold. 512 KiB and 2 MiB are
/// what is found in the wild.
const MAX_BLOCK_SIZE: u32 = 1 << 31;

/// Most entries in a BAT: enough for 2 TiB in blocks of 32 KiB. It bounds the time of the scan that
/// comes before the first allocation.
const MAX_ENTRIES: u32 = 1 << 26;

/// A dynamic header that was checked.
pub(super) struct Header {
    /// Where things lie.
    pub(super) layout: Layout,
    /// Unique id of the parent, if there is one.
    pub(super) parent_id: Identity,
    /// The checksum is wrong.
    pub(super) damage: Option<Fault>,
}

/// Reads and checks the dynamic header of a file of `file_size` bytes. A wrong checksum is not an
/// error here.
///
/// # Errors
///
/// [`Error::Malformed`] and [`Error::Unsupported`]; the first of: magic, version, block size, sizes,
/// bounds, overlaps.
pub(super) fn load<T: Tables + ?Sized>(
    tables: &T,
    chosen: &Chosen,
    file_size: u64,
) -> Result<Header> {
    let header = header_bounds(chosen, file_size)?;
    let fields: HeaderFields = num::load(tables, header.start)?;
    let damage = check_identity(tables, header, &fields)?;
    let block_shift = check_block_size(header, &fields)?;
    let table = table_bounds(chosen, header, &fields, file_size)?;

    // INVARIANT: the checks above.
    let layout = Layout {
        header: header.start,
        table: table.start,
        entries: fields.max_entries.get(),
        block_shift,
        may_have_batmap: chosen.footer.creator == CREATOR_TAPDISK
            && chosen.footer.creator_version >= TAPDISK_1_1,
        batmap: None,
        has_parent: chosen.footer.kind == Kind::Differencing,
    };
    Ok(Header {
        layout,
        parent_id: Identity(fields.parent_id),
        damage,
    })
}

/// Where the header lies: behind the footer copy, within the file, in front of the footer.
fn header_bounds(chosen: &Chosen, file_size: u64) -> Result<Region> {
    let at = chosen.place.at.saturating_add(FOOTER_DATA_OFFSET);
    let malformed = |what| Err(Error::malformed(what, at));
    let start = chosen.footer.data_offset;
    let Ok(header) = Region::new(start, HEADER_LEN, at) else {
        return malformed("VHD dynamic header lies past the end of the file");
    };
    if start < FOOTER_LEN {
        return malformed("VHD dynamic header overlaps the footer copy");
    }
    if header.end > file_size {
        return malformed("VHD dynamic header lies past the end of the file");
    }
    if overlaps_end(chosen, header) {
        return malformed("VHD dynamic header overlaps the footer");
    }
    Ok(header)
}

/// Whether a region reaches into the footer at the end of the file, if there is one.
fn overlaps_end(chosen: &Chosen, region: Region) -> bool {
    chosen.end.is_some_and(|end| region.end > end.at)
}

/// Magic, version, checksum. A wrong checksum is returned.
fn check_identity<T: Tables + ?Sized>(
    tables: &T,
    header: Region,
    fields: &HeaderFields,
) -> Result<Option<Fault>> {
    let at = header.start;
    if fields.cookie != HEADER_COOKIE {
        return Err(Error::malformed("no VHD dynamic header", at));
    }
    if fields.version.get() != VERSION_1_0 {
        return Err(Error::unsupported(
            "VHD dynamic header version is not 1.0",
            at.saturating_add(HEADER_VERSION),
        ));
    }
    let sum = checksum::sum_at(tables, at, HEADER_LEN)?;
    if checksum::matches(sum, fields.checksum.get()) {
        return Ok(None);
    }
    Ok(Some(Fault::new(
        "VHD dynamic header checksum is wrong: only a read-only attach is safe",
        at.saturating_add(HEADER_CHECKSUM),
    )))
}

/// The block size as a shift count.
fn check_block_size(header: Region, fields: &HeaderFields) -> Result<u8> {
    let block_size = fields.block_size.get();
    let is_valid = (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size);
    match u8::try_from(block_size.trailing_zeros()) {
        Ok(shift) if is_valid && block_size.is_power_of_two() => Ok(shift),
        _ => Err(Error::malformed(
            "VHD block size is not a power of two of at least 512",
            header.start.saturating_add(HEADER_BLOCK_SIZE),
        )),
    }
}

/// Where the BAT lies: within the file, and not over anything else.
fn table_bounds(
    chosen: &Chosen,
    header: Region,
    fields: &HeaderFields,
    file_size: u64,
) -> Result<Region> {
    let entries = fields.max_entries.get();
    if entries > MAX_ENTRIES {
        return Err(Error::unsupported(
            "VHD BAT has more than 2^26 entries",
            header.start.saturating_add(HEADER_MAX_ENTRIES),
        ));
    }
    let at = header.start.saturating_add(HEADER_TABLE_OFFSET);
    let start = fields.table_offset.get();
    let len = mul(u64::from(entries), BAT_ENTRY_LEN, at)?;
    let table = Region::new(start, len, at)?;

    let malformed = |what| Err(Error::malformed(what, at));
    if start % SECTOR_SIZE != 0 {
        return malformed("VHD BAT does not begin at a sector");
    }
    if table.end > file_size {
        return malformed("VHD BAT lies past the end of the file");
    }
    if start < FOOTER_LEN || table.overlaps(header) {
        return malformed("VHD BAT overlaps the headers");
    }
    if overlaps_end(chosen, table) {
        return malformed("VHD BAT overlaps the footer");
    }
    Ok(table)
}

/// End of the highest header-level structure: footer copy, header, BAT, batmap, locators.
///
/// # Errors
///
/// [`Error::Malformed`] if one of them is not within the file: growing the file would give it space
/// that is a block's.
pub(super) fn structures_end<T: Tables + ?Sized>(
    tables: &T,
    layout: &Layout,
    file_size: u64,
) -> Result<u64> {
    let mut end = layout
        .headers_end()?
        .max(batmap::end(tables, layout, file_size)?);
    for index in 0..LOCATORS {
        end = end.max(locator_end(tables, layout, index, file_size)?);
    }
    Ok(end)
}

/// Host offset of parent locator `index` of the header at host offset `header`.
pub(super) fn locator_at(header: u64, index: u64) -> Result<u64> {
    let first = add(header, HEADER_LOCATORS, header)?;
    add(first, mul(index, LOCATOR_LEN, first)?, first)
}

/// Bytes that a parent locator has set aside.
pub(super) fn locator_space(locator: &Locator) -> u64 {
    let space = u64::from(locator.data_space.get());
    if space < SECTOR_SIZE {
        // Less than 2^18: nothing saturates.
        space.saturating_mul(SECTOR_SIZE)
    } else {
        space
    }
}

/// End of the space that a parent locator has set aside, 0 for an unused one.
fn locator_end<T: Tables + ?Sized>(
    tables: &T,
    layout: &Layout,
    index: u64,
    file_size: u64,
) -> Result<u64> {
    let at = locator_at(layout.header, index)?;
    let locator: Locator = num::load(tables, at)?;
    let space = locator_space(&locator);
    let len = space.max(u64::from(locator.data_length.get()));
    if locator.code.get() == 0 || len == 0 {
        return Ok(0);
    }
    let region = Region::new(locator.data_offset.get(), len, at)?;
    if region.end > file_size {
        return Err(Error::malformed(
            "VHD parent locator lies past the end of the file",
            at,
        ));
    }
    Ok(region.end)
}
