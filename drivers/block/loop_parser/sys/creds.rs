// SPDX-License-Identifier: GPL-2.0

//! In whose name files are opened.

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    types::NotThreadSafe, //
};

use super::{
    bindings,
    file::BackingFile, //
};

/// A counted reference to credentials that do not change any more.
///
/// # Invariants
///
/// The pointer is valid and this value owns one reference to it.
pub(crate) struct Credentials(NonNull<bindings::cred>);

impl Credentials {
    /// Those that a file was opened with.
    pub(crate) fn of_opener(file: &BackingFile) -> Self {
        // SAFETY: The credentials of an open file are valid and constant; `get_cred` by hand: they
        // are referred to, so the count is not 0.
        let cred = unsafe {
            let cred = (*file.as_ptr()).f_cred.cast_mut();
            bindings::lp_get_cred(cred);
            cred
        };
        // SAFETY: Every open file has credentials.
        // INVARIANT: The reference was just taken.
        Self(unsafe { NonNull::new_unchecked(cred) })
    }

    /// Those of the owner of a file, without groups and capabilities; `None` if the owner is the one
    /// who opened it.
    pub(crate) fn of_owner(file: &BackingFile) -> Result<Option<Self>> {
        // SAFETY: The file is open; its credentials are valid.
        let (owner, opener) = unsafe {
            let owner = bindings::lp_owner(file.as_ptr());
            (owner, (*(*file.as_ptr()).f_cred).fsuid)
        };
        if owner.val == opener.val {
            return Ok(None);
        }
        // SAFETY: Always safe.
        let cred = NonNull::new(unsafe { bindings::prepare_creds() }).ok_or(ENOMEM)?;
        // INVARIANT: `prepare_creds` returned a reference.
        let cred = Self(cred);
        cred.become_user(owner)?;
        Ok(Some(cred))
    }

    /// Makes new credentials those of a user without groups and capabilities.
    fn become_user(&self, user: bindings::kuid_t) -> Result {
        // SAFETY: Always safe.
        let groups = NonNull::new(unsafe { bindings::groups_alloc(0) }).ok_or(ENOMEM)?;
        let none = bindings::kernel_cap_t { val: 0 };
        // SAFETY: The credentials are new: nobody else has seen them. `set_groups` takes a
        // reference of its own to the groups.
        unsafe {
            bindings::set_groups(self.0.as_ptr(), groups.as_ptr());
            bindings::lp_put_group_info(groups.as_ptr());
            let group = bindings::lp_nobody_gid();
            let cred = &mut *self.0.as_ptr();
            (cred.uid, cred.euid, cred.suid, cred.fsuid) = (user, user, user, user);
            (cred.gid, cred.egid, cred.sgid, cred.fsgid) = (group, group, group, group);
            cred.cap_inheritable = none;
            cred.cap_permitted = none;
            cred.cap_effective = none;
            cred.cap_ambient = none;
        }
        Ok(())
    }

    pub(super) fn as_ptr(&self) -> *const bindings::cred {
        self.0.as_ptr()
    }

    /// The current task acts in their name while the result lives.
    pub(crate) fn act(&self) -> Acting<'_> {
        Acting {
            // SAFETY: The credentials are valid, and stay so as long as `self` is borrowed.
            old: unsafe { bindings::lp_override_creds(self.as_ptr()) },
            _credentials: self,
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        // SAFETY: By the invariant this reference is ours to drop.
        unsafe { bindings::lp_put_cred(self.as_ptr()) };
    }
}

/// See [`Credentials::act`].
pub(crate) struct Acting<'a> {
    old: *const bindings::cred,
    _credentials: &'a Credentials,
    _not_send: NotThreadSafe,
}

impl Drop for Acting<'_> {
    fn drop(&mut self) {
        // SAFETY: Same task as in `act`, as this type is not `Send`.
        unsafe { bindings::lp_revert_creds(self.old) };
    }
}
