// SPDX-License-Identifier: GPL-2.0

//! Which of the recorded sizes is the size of the disk.
//!
//! The footer holds three: `original_size` (never counts), `current_size`, and a geometry whose
//! product is at most 127 GiB. Virtual PC, and QEMU after it, let the geometry count; everybody
//! else lets `current_size`.

use loop_parser::contract::{
    Error,
    Result,
    SECTOR_SIZE, //
};

use super::{
    footer::Chosen,
    layout::{
        Layout,
        MAX_DISK_SIZE, //
    },
    ondisk::{
        FOOTER_CURRENT_SIZE,
        FOOTER_GEOMETRY, //
    }, //
};

/// Creators whose geometry is the size. Every other one, known or unknown, means `current_size`.
const CHS_CREATORS: [[u8; 4]; 2] = [*b"vpc ", *b"qemu"];

/// The product of the largest geometry: it means "this size or more".
const MAX_CHS_SIZE: u64 = 65535 * 16 * 255 * SECTOR_SIZE;

/// How the user wants the size chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SizeRule {
    /// As the creator meant it.
    Auto,
    /// By the geometry.
    Chs,
    /// By `current_size`.
    Current,
}

impl SizeRule {
    /// Parses the parser option.
    pub(super) fn parse(options: &str) -> Result<Self> {
        match options {
            "" => Ok(Self::Auto),
            "size=chs" => Ok(Self::Chs),
            "size=current" => Ok(Self::Current),
            _ => Err(Error::BadOption),
        }
    }
}

/// The size of a fixed disk in bytes, and by which field it was chosen.
///
/// # Errors
///
/// [`Error::Malformed`] if the size is 0 or the data does not fit in front of the footer.
pub(super) fn of_fixed(chosen: &Chosen, rule: SizeRule) -> Result<(u64, &'static str)> {
    choose(chosen, rule, chosen.place.at)
}

/// The size of a disk with a BAT in bytes, and by which field it was chosen.
///
/// # Errors
///
/// [`Error::Malformed`] if the size is 0 or the BAT does not cover it, [`Error::Unsupported`] if
/// its sectors cannot be counted in 32 bits.
pub(super) fn of_dynamic(
    chosen: &Chosen,
    rule: SizeRule,
    layout: &Layout,
) -> Result<(u64, &'static str)> {
    let (size, source) = choose(chosen, rule, layout.covered())?;
    if size > MAX_DISK_SIZE {
        return Err(Error::unsupported(
            "dynamic VHD larger than 2 TiB",
            chosen.place.at.saturating_add(FOOTER_CURRENT_SIZE),
        ));
    }
    Ok((size, source))
}

/// Chooses the size of the disk in bytes, and says by which field. `covered` is how much the image
/// can hold.
fn choose(chosen: &Chosen, rule: SizeRule, covered: u64) -> Result<(u64, &'static str)> {
    let footer = &chosen.footer;
    let by_chs = match rule {
        SizeRule::Chs => true,
        SizeRule::Current => false,
        SizeRule::Auto => {
            CHS_CREATORS.contains(&footer.creator)
                && footer.chs_size != 0
                && footer.chs_size != MAX_CHS_SIZE
                && footer.chs_size <= covered
        }
    };
    let (size, source, field) = if by_chs {
        (footer.chs_size, "chs", FOOTER_GEOMETRY)
    } else {
        let whole = footer.current_size & !SECTOR_SIZE.wrapping_sub(1);
        (whole, "current_size", FOOTER_CURRENT_SIZE)
    };

    let at = chosen.place.at.saturating_add(field);
    if size == 0 {
        return Err(Error::malformed("size of the disk is 0", at));
    }
    if size > covered {
        return Err(Error::malformed(
            "disk is larger than its image can hold",
            at,
        ));
    }
    Ok((size, source))
}
