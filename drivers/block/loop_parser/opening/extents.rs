// SPDX-License-Identifier: GPL-2.0

//! The files that a disk is put together from.

use kernel::{
    prelude::*,
    str::BStr,
    sync::atomic::ordering::Relaxed, //
};

use crate::{
    contract::{
        self,
        Backing,
        Disk,
        Error as ImageError,
        Extents,
        Fault,
        HostRange,
        ListedExtent,
        Parent,
        Part,
        Tables,
        MAX_EXTENTS,
        SECTOR_SIZE, //
    },
    images::Use,
    parser::Attached,
    parts::Parts,
    raw,
    select::Choice,
    sys::file::BackingFile,
    tables::FileTables,
    user::ImageUser, //
};

use super::{
    levels::{
        Above,
        Descent, //
    },
    names::{
        Buffer,
        Role, //
    },
    path_of, //
};

/// What is wrong with a list that is not what it was when the image was attached.
const CHANGED: &str = "extents that do not add up to the disk";

/// The list of a disk's extents, and what its image is.
pub(super) struct List<'a> {
    pub(super) extents: &'a dyn Extents,
    /// The file that has the list, and the name of its parser.
    pub(super) above: Above<'a>,
    /// What the extents do not have is below.
    pub(super) has_parent: bool,
    /// Size of the whole disk in bytes.
    pub(super) size: u64,
    /// What the files are used for.
    pub(super) purpose: Use,
}

impl List<'_> {
    fn is_writable(&self) -> bool {
        matches!(self.purpose, Use::Data(_))
    }
}

/// Whether what a parser made of a file can be `len` bytes of a disk, and nothing else.
fn is_part(attached: &Attached, len: u64) -> bool {
    let names_others =
        attached.parent.is_some() || attached.data.is_some() || attached.extents.is_some();
    // Requests in flight are known to the whole only.
    let is_apart = !attached.disk.features.reuses_space;
    !names_others && is_apart && attached.disk.size >= len
}

/// An extent's file, as the list has it.
struct Entry {
    parser: &'static str,
    name: HostRange,
}

impl Parent for Entry {
    fn parser(&self) -> Option<&'static str> {
        Some(self.parser)
    }

    fn name(
        &self,
        tables: &dyn Tables,
        index: usize,
        buf: &mut [u8],
    ) -> contract::Result<Option<usize>> {
        if index > 0 {
            return Ok(None);
        }
        let too_long = ImageError::malformed("file name that is too long", self.name.offset);
        let len = usize::try_from(self.name.len).map_err(|_| too_long)?;
        tables.load(self.name.offset, buf.get_mut(..len).ok_or(too_long)?)?;
        Ok(Some(len))
    }

    fn check(&self, _file: &Disk) -> contract::Result {
        Ok(())
    }
}

impl Descent<'_> {
    /// Opens all files of a list.
    #[inline(never)]
    pub(super) fn open_extents(&self, list: &List<'_>) -> Result<Parts> {
        let (file, _) = list.above;
        let refused = |error: ImageError| self.refused_list(list, &error);
        let tables = FileTables {
            file,
            peekable: file.is_peekable(),
        };
        let mut parts = Parts::default();
        let (mut cursor, mut left, mut warnings) = (0, list.size, 0_usize);
        while let Some((extent, next)) = list.extents.next(&tables, cursor).map_err(refused)? {
            if parts.len() >= MAX_EXTENTS {
                let most = "more extents than this driver allows";
                return Err(refused(ImageError::unsupported(most, extent.at)));
            }
            left = match left.checked_sub(extent.len) {
                Some(left) if extent.len > 0 && extent.len % SECTOR_SIZE == 0 => left,
                _ => return Err(refused(ImageError::malformed(CHANGED, extent.at))),
            };
            if self.open_extent(list, &extent, &mut parts, warnings == 0)? {
                warnings = warnings.saturating_add(1);
            }
            cursor = next;
        }
        if left > 0 {
            return Err(refused(ImageError::malformed(CHANGED, 0)));
        }
        if warnings > 1 {
            self.warn_of_more(list, warnings.saturating_sub(1));
        }
        Ok(parts)
    }

    /// Opens one. Returns whether something is wrong with it, though it can be served; that is logged if
    /// `is_loud`.
    #[inline(never)]
    fn open_extent(
        &self,
        list: &List<'_>,
        extent: &ListedExtent,
        parts: &mut Parts,
        is_loud: bool,
    ) -> Result<bool> {
        let (base, name) = match extent.backing {
            Backing::Zero => return parts.push_zeros(extent.len).map(|()| false),
            Backing::Flat { name, offset } => (Some(offset), name),
            Backing::Image { name } => (None, name),
        };
        if list.is_writable() && !extent.writable {
            let fault = Fault::new("extent that can only be read", extent.at);
            return Err(self.refused_list(list, &ImageError::NeedsReadOnly(fault)));
        }
        let user = self.open_file(list, extent, base, name)?;
        // Of one that is in use already it was said, or that use has brought it about.
        let is_new = user.image().users.load(Relaxed) == 1;
        let fault = user.image().warning().copied().filter(|_| is_new);
        if let Some(fault) = fault.filter(|_| is_loud) {
            self.warn(list, user.file(), fault);
        }
        parts.push_image(extent.len, user, base.unwrap_or(0))?;
        Ok(fault.is_some())
    }

    /// Opens an extent's file, whose first byte is at `base` of it if it is raw.
    #[inline(never)]
    fn open_file(
        &self,
        list: &List<'_>,
        extent: &ListedExtent,
        base: Option<u64>,
        name: HostRange,
    ) -> Result<ImageUser> {
        let (_, by) = list.above;
        let part = Part {
            len: extent.len,
            has_parent: list.has_parent,
        };
        let parser = match base {
            Some(_) => raw::NAME,
            None => by,
        };
        let entry = Entry {
            parser: parser.to_str().map_err(|_| EINVAL)?,
            name,
        };
        let role = Role::Extent {
            writable: list.is_writable(),
            part: base.is_none().then_some(part),
        };
        let mut level = self.open_named(list.above, &entry, role)?;
        match base {
            Some(base) => self.check_flat(by, role, &level.file, base, extent.len)?,
            // What the file has behind that is not on the disk.
            None if is_part(&level.attached, extent.len) => level.attached.disk.size = extent.len,
            None => {
                let why = fmt!("its parser does not make a part of a disk of it");
                self.opening.log_about(by, role.name(), &level.file, why);
                return Err(EUCLEAN);
            }
        }
        let choice = match base {
            Some(_) => Choice::none(),
            None => Choice::part(part),
        };
        self.use_level(level, KVec::new(), list.purpose, choice, (by, role))
    }

    /// The file has to have all of its extent.
    // Not inlined, for the stack.
    #[inline(never)]
    fn check_flat(&self, by: &CStr, role: Role, file: &BackingFile, base: u64, len: u64) -> Result {
        let size = file.stat_size();
        if base.checked_add(len).is_some_and(|end| end <= size) {
            return Ok(());
        }
        self.opening.log_about(
            by,
            role.name(),
            file,
            fmt!("has {size} bytes, less than the list of extents says"),
        );
        Err(EUCLEAN)
    }

    /// Logs why a list is refused. Returns what the caller is told.
    #[inline(never)]
    fn refused_list(&self, list: &List<'_>, error: &ImageError) -> Error {
        let (file, by) = list.above;
        let Some(fault) = error.fault().filter(|_| list.purpose == Use::Parent) else {
            return self.opening.refused(by, error);
        };
        self.opening.log_about(
            by,
            Role::Parent.name(),
            file,
            fmt!("{} at byte {}", fault.what, fault.at),
        );
        Error::from_errno(error.to_errno())
    }

    /// Logs what is wrong with a file that is served nevertheless.
    #[inline(never)]
    fn warn(&self, list: &List<'_>, file: &BackingFile, fault: Fault) {
        let (_, by) = list.above;
        let mut buffer = Buffer::new();
        pr_warn!(
            "loop{}: {}: extent \"{}\": {} at byte {}; served nevertheless\n",
            self.opening.device.number(),
            BStr::from_bytes(by.to_bytes()),
            path_of(file, &mut buffer),
            fault.what,
            fault.at
        );
    }

    /// The same of all the others.
    fn warn_of_more(&self, list: &List<'_>, count: usize) {
        let (_, by) = list.above;
        pr_warn!(
            "loop{}: {}: something is wrong with {count} more extents; served nevertheless\n",
            self.opening.device.number(),
            BStr::from_bytes(by.to_bytes())
        );
    }
}
