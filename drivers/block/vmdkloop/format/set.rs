// SPDX-License-Identifier: GPL-2.0

//! A disk that is put together from other files ("The Descriptor File"): a descriptor in a file of its
//! own names them.

use loop_parser::contract::{
    num,
    Allocate,
    AttachRequest,
    Disk,
    Error,
    Extent,
    Extents,
    HostRange,
    ListedExtent,
    Map,
    Placement,
    Range,
    Reservation,
    Reserved,
    Result,
    Tables,
    TablesMut,
    Unlinked, //
};

use super::{
    descriptor::{
        ContentId,
        Descriptor,
        ExtentLines,
        Place, //
    },
    Attached, //
};

/// Checks a descriptor, and every extent that it lists.
///
/// # Errors
///
/// As for [`Descriptor::load`] and [`ExtentLines::next`]; [`Error::Malformed`] if nothing is listed,
/// [`Error::NeedsReadOnly`] for a disk that can only be read if a writable one was asked for,
/// [`Error::Unsupported`] for a descriptor that is an extent of another disk.
pub fn attach(
    tables: &dyn Tables,
    request: &AttachRequest<'_>,
) -> Result<(Attached<ListMap, SetAllocator>, SetExtents)> {
    if request.part.is_some() {
        return Err(Error::unsupported(
            "extent of a VMDK is a descriptor that lists extents",
            0,
        ));
    }
    let len = tables.size()?;
    let descriptor = Descriptor::load(tables, HostRange { offset: 0, len }, Place::Own)?;
    if let (Some(fault), true) = (descriptor.read_only, request.writable) {
        return Err(Error::NeedsReadOnly(fault));
    }
    let extents = SetExtents(descriptor.extents);
    extents.check(tables)?;
    // What the lines add up to: that is not what the headers of sparse extents say.
    let size = descriptor.extents.size;
    let attached = Attached {
        disk: Disk {
            size,
            variant: descriptor.create_type.name(),
            identity: descriptor.identity(),
            ..Disk::default()
        },
        map: ListMap { size },
        alloc: SetAllocator {
            content: descriptor.content,
            random: request.random,
            is_open: false,
        },
        parent: descriptor.parent()?,
        warning: None,
    };
    Ok((attached, extents))
}

/// The extents that a descriptor lists.
#[derive(Clone, Copy, Debug)]
pub struct SetExtents(ExtentLines);

impl SetExtents {
    /// Looks at all of them.
    fn check(&self, tables: &dyn Tables) -> Result {
        let mut cursor = 0;
        while let Some((_, next)) = self.next(tables, cursor)? {
            cursor = next;
        }
        match cursor {
            0 => Err(Error::malformed("VMDK descriptor lists no extents", 0)),
            _ => Ok(()),
        }
    }
}

impl Extents for SetExtents {
    fn next(&self, tables: &dyn Tables, cursor: u64) -> Result<Option<(ListedExtent, u64)>> {
        self.0.next(tables, cursor)
    }
}

/// Maps nothing: the guest data lie in the extents. The driver does not ask it where.
#[derive(Clone, Copy, Debug)]
pub struct ListMap {
    /// Size of the disk in bytes.
    size: u64,
}

impl Map for ListMap {
    fn resolve_read(&self, _tables: &dyn Tables, _pos: u64, _len: u64) -> Result<Extent> {
        Err(num::OUTSIDE)
    }

    fn resolve_write(&self, _tables: &dyn Tables, _pos: u64, _len: u64) -> Result<Placement> {
        Err(num::OUTSIDE)
    }

    /// It stays what it was: the driver has the extents open.
    fn reread_size(&self, _tables: &dyn Tables) -> Result<u64> {
        Ok(self.size)
    }
}

/// Records in the descriptor that the disk is written to.
#[derive(Debug)]
pub struct SetAllocator {
    content: Option<ContentId>,
    random: u32,
    /// The CID has been changed since the disk was opened.
    is_open: bool,
}

impl Allocate for SetAllocator {
    /// Changes the CID, durably: a child that was made before must not be put on what is written now.
    fn begin(&mut self, tables: &mut dyn TablesMut) -> Result {
        if self.is_open {
            return Ok(());
        }
        if let Some(content) = &mut self.content {
            content.change(tables, self.random)?;
            tables.sync()?;
        }
        self.is_open = true;
        Ok(())
    }

    fn reserve(&mut self, _tables: &mut dyn TablesMut, _pos: u64, _len: u64) -> Result<Reserved> {
        Err(num::OUTSIDE)
    }

    fn publish(
        &mut self,
        _tables: &mut dyn TablesMut,
        _space: &Reservation,
        _written: Range,
    ) -> Result<Option<Unlinked>> {
        Err(num::OUTSIDE)
    }

    fn release(&mut self, _space: &Reservation) {}

    /// What is written after this needs another CID.
    fn close(&mut self, _tables: &mut dyn TablesMut) -> Result {
        self.is_open = false;
        Ok(())
    }
}
