// SPDX-License-Identifier: GPL-2.0

//! The VHD format: fixed, dynamic and differencing images, as written by Virtual PC, Windows, QEMU, VirtualBox,
//! XenServer and others.
//!
//! Pure logic: no kernel, no `unsafe`, no allocation, no I/O. The module is compiled into
//! `vhdloop.ko` and, for the tests, into a host crate. Whatever comes from an image is checked
//! where it is used, with checked arithmetic: a bad image is an [`Error`], never a panic.
//!
//! The specification is Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0
//! (October 2006); section names in the comments are its own. What XenServer's tapdisk added is
//! named as such.
//!
//! Deliberately absent:
//!
//! - The locator code `Mac ` holds an alias record of Mac OS, which is no path: it is not looked at.
//! - The time stamp of the parent is not compared: Windows records 0, XenServer when the file changed.
//! - The batmap of tapdisk (one bit for "all bits of this block's bitmap are set") is never written:
//!   neither a write nor a discard makes a full block less full, and one that has become full is found
//!   to be so in its bitmap. If its checksum is wrong it is not consulted either.
//! - `saved_state`, `original_size` and the time stamps are ignored.

#![forbid(unsafe_code)]

mod alloc;
mod batmap;
mod bitmap;
mod checksum;
mod footer;
mod header;
mod layout;
mod map;
mod ondisk;
mod parent;
mod path;
mod probe;
mod size;
#[cfg(test)]
mod tests;
mod text;

use loop_parser::contract::{
    num,
    Disk,
    Error,
    Fault,
    Features,
    Result,
    State,
    Tables, //
};

pub use alloc::VhdAllocator;
pub use map::VhdMap;
pub use parent::VhdParent;
pub use probe::probe;

use footer::{
    Chosen,
    Kind, //
};
use size::SizeRule;

/// A VHD that was attached: everything the driver needs to serve it.
#[derive(Debug)]
pub struct Attached {
    /// What the device looks like.
    pub disk: Disk,
    /// Where guest ranges lie.
    pub map: VhdMap,
    /// Makes room for writes to unallocated blocks. Of no use to a read-only device.
    pub alloc: VhdAllocator,
    /// What a differencing image lies on.
    pub parent: Option<VhdParent>,
    /// Something is wrong with the image that does not keep it from being served. Worth one line in
    /// the kernel log.
    pub warning: Option<Fault>,
}

/// Checks an image and learns its layout. Reads a handful of sectors whatever the size of the
/// image, and never writes.
///
/// `options` chooses which of the recorded sizes is the disk's: empty for the one the image's
/// creator meant, `size=chs` or `size=current` to override. `writable` says that the device will be
/// read-write.
///
/// # Errors
///
/// - [`Error::BadOption`]: `options` is something else.
/// - [`Error::Unsupported`]: a VHD that this parser does not serve; the fault names the reason.
/// - [`Error::Malformed`]: the image contradicts the specification or itself.
/// - [`Error::NeedsReadOnly`]: the dynamic header's checksum is wrong and `writable` is set.
/// - [`Error::Store`], [`Error::WouldBlock`]: from `tables`.
pub fn attach(tables: &dyn Tables, options: &str, writable: bool) -> Result<Attached> {
    let rule = SizeRule::parse(options)?;
    let file_size = tables.size()?;
    let chosen = footer::choose(tables, file_size)?;

    match chosen.footer.kind {
        Kind::Fixed => attach_fixed(&chosen, rule),
        Kind::Dynamic | Kind::Differencing => {
            attach_blocks(tables, &chosen, rule, file_size, writable)
        }
    }
}

fn attach_fixed(chosen: &Chosen, rule: SizeRule) -> Result<Attached> {
    let size = size::of_fixed(chosen, rule)?;

    Ok(Attached {
        disk: describe(chosen, size, 0),
        map: VhdMap::fixed(rule),
        alloc: VhdAllocator::fixed(),
        parent: None,
        warning: chosen.damage.map(|damage| damage.fault),
    })
}

fn attach_blocks(
    tables: &dyn Tables,
    chosen: &Chosen,
    rule: SizeRule,
    file_size: u64,
    writable: bool,
) -> Result<Attached> {
    let header = header::load(tables, chosen, file_size)?;
    let mut layout = header.layout;
    let size = size::of_dynamic(chosen, rule, &layout)?;
    layout.batmap = batmap::load(tables, &layout, &chosen.footer, file_size)?;
    let parent = match chosen.footer.kind {
        Kind::Differencing => Some(VhdParent::new(chosen, &header)?),
        _ => None,
    };

    // Last, because a read-only attach needs everything else to be right.
    match header.damage {
        Some(fault) if writable => Err(Error::NeedsReadOnly(fault)),
        _ => Ok(Attached {
            disk: describe(chosen, size, layout.block_size()),
            map: VhdMap::blocks(layout, rule),
            alloc: VhdAllocator::blocks(layout, size.0),
            parent,
            warning: header.damage.or(chosen.damage.map(|damage| damage.fault)),
        }),
    }
}

fn describe(chosen: &Chosen, (size, size_source): (u64, &'static str), unit: u64) -> Disk {
    let kind = chosen.footer.kind;
    Disk {
        size,
        variant: match kind {
            Kind::Fixed => "fixed",
            Kind::Dynamic => "dynamic",
            Kind::Differencing => "differencing",
        },
        size_source,
        creator: chosen.footer.creator,
        unit,
        identity: chosen.footer.unique_id,
        state: chosen.damage.map_or(State::Clean, |damage| damage.state),
        features: Features {
            discard: true,
            write_zeroes: true,
            reuses_space: false,
        },
    }
}
