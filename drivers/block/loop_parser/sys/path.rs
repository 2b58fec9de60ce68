// SPDX-License-Identifier: GPL-2.0

//! Names in the tree of files.

use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};

use kernel::{
    error::to_result,
    prelude::*, //
};

use super::{
    bindings,
    creds::Credentials,
    file::{
        BackingFile,
        Kind, //
    }, //
};

/// A place in the tree of files.
///
/// # Invariants
///
/// Mount and dentry are valid, the dentry has an inode, and this value owns a reference to both.
pub(crate) struct Path(bindings::path);

impl Path {
    /// The folder a file is in. `None` if there is none that could be used: the file has no name
    /// (any more), or is mounted on its own.
    pub(crate) fn folder_of(file: &BackingFile) -> Option<Self> {
        let path = file.path();
        // SAFETY: The path of an open file is valid and constant, and so is the root of its mount.
        // `dget_parent` and `mntget` take references.
        unsafe {
            let (mnt, dentry) = ((*path).mnt, (*path).dentry);
            let is_named = !bindings::lp_is_root(dentry) && !bindings::lp_d_unlinked(dentry);
            if !is_named || dentry == (*mnt).mnt_root {
                return None;
            }
            // INVARIANT: The parent of a dentry is a folder.
            Some(Self(bindings::path {
                mnt: bindings::mntget(mnt),
                dentry: bindings::dget_parent(dentry),
            }))
        }
    }

    /// Looks up `name`, which must not begin with a slash, in this folder and beneath: `EXDEV` if it
    /// leaves that, or leads to another mount; `ELOOP` if over a magic link. With the current
    /// credentials.
    pub(crate) fn beneath(&self, name: &CStr) -> Result<Self> {
        let flags = bindings::LP_LOOKUP_FOLLOW
            | bindings::LP_LOOKUP_BENEATH
            | bindings::LP_LOOKUP_NO_XDEV
            | bindings::LP_LOOKUP_NO_MAGICLINKS;
        let mut found = MaybeUninit::<bindings::path>::zeroed();
        // SAFETY: By the invariant the folder is valid; `found` is valid for writes.
        to_result(unsafe {
            bindings::vfs_path_lookup(
                self.0.dentry,
                self.0.mnt,
                name.as_char_ptr(),
                flags,
                found.as_mut_ptr(),
            )
        })?;
        // SAFETY: The call succeeded and has stored a path with references.
        // INVARIANT: What is looked up in full has an inode.
        Ok(Self(unsafe { found.assume_init() }))
    }

    /// Looks up a path from the root of the current task, not over magic links. With the current
    /// credentials.
    pub(crate) fn absolute(name: &CStr) -> Result<Self> {
        let mut found = MaybeUninit::<bindings::path>::zeroed();
        // SAFETY: `found` is valid for writes.
        to_result(unsafe {
            bindings::kern_path(
                name.as_char_ptr(),
                bindings::LP_LOOKUP_FOLLOW | bindings::LP_LOOKUP_NO_MAGICLINKS,
                found.as_mut_ptr(),
            )
        })?;
        // SAFETY: The call succeeded and has stored a path with references.
        // INVARIANT: What is looked up in full has an inode.
        Ok(Self(unsafe { found.assume_init() }))
    }

    /// Writes the path, as the current task sees it, to the end of `buffer` and returns where it
    /// begins. The end is a NUL.
    pub(crate) fn show(&self, buffer: &mut [u8]) -> Result<usize> {
        let len = i32::try_from(buffer.len()).map_err(|_| EINVAL)?;
        let start = buffer.as_mut_ptr();
        // SAFETY: By the invariant the path is valid; `buffer` is valid for writes of `len` bytes.
        let path = unsafe { bindings::d_path(&raw const self.0, start.cast(), len) };
        let path = kernel::error::from_err_ptr(path)?;
        Ok((path as usize).saturating_sub(start as usize))
    }

    fn inode(&self) -> NonNull<bindings::inode> {
        // SAFETY: By the invariant the dentry has an inode.
        unsafe { NonNull::new_unchecked(bindings::lp_d_inode(self.0.dentry)) }
    }

    /// What the file is.
    pub(crate) fn kind(&self) -> Kind {
        // SAFETY: By the invariant the inode is valid; its type never changes.
        let mode = unsafe { (&raw const (*self.inode().as_ptr()).i_mode).read_volatile() };
        Kind::of_mode(mode)
    }

    /// Whether another path leads to the same file.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.inode() == other.inode()
    }

    /// Whether an open file is this one.
    pub(crate) fn is(&self, file: &BackingFile) -> bool {
        let (ours, theirs) = (self.inode().as_ptr(), file.inode());
        // SAFETY: Both inodes are valid; the device number of a node never changes.
        let same_device = || unsafe { (*ours).i_rdev == (*theirs).i_rdev };
        core::ptr::eq(ours, theirs)
            || (self.kind() == Kind::Block && file.kind() == Kind::Block && same_device())
    }

    /// Whether the current credentials allow to read the file, and, if `writable`, to write it:
    /// `EACCES` if not.
    pub(crate) fn may_open(&self, writable: bool) -> Result {
        let mask = match writable {
            true => bindings::LP_MAY_READ_WRITE_OPEN,
            false => bindings::LP_MAY_READ_OPEN,
        };
        // SAFETY: By the invariant the path is valid. May sleep.
        to_result(unsafe { bindings::lp_permission(&raw const self.0, mask) })?;
        // SAFETY: By the invariant the path is valid.
        if self.kind() == Kind::Block && unsafe { bindings::lp_forbids_devices(&raw const self.0) }
        {
            return Err(EACCES);
        }
        Ok(())
    }

    /// Opens the file for reading, or for both, in the name of `credentials`. Nothing is checked here
    /// that [`Path::may_open`] checks.
    pub(crate) fn open(&self, credentials: &Credentials, writable: bool) -> Result<BackingFile> {
        let flags = match writable {
            true => bindings::LP_O_RDWR,
            false => bindings::LP_O_RDONLY,
        };
        // SAFETY: By the invariant the path is valid, and so are the credentials. May sleep.
        let file = unsafe { bindings::dentry_open(&raw const self.0, flags, credentials.as_ptr()) };
        let file = NonNull::new(kernel::error::from_err_ptr(file)?).ok_or(EINVAL)?;
        // SAFETY: `dentry_open` returned a reference that nobody else has.
        unsafe { BackingFile::from_opened(file) }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        // SAFETY: By the invariant the references are ours to drop. May sleep.
        unsafe { bindings::path_put(&raw const self.0) };
    }
}
