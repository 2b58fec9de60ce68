// SPDX-License-Identifier: GPL-2.0

//! Files in sysfs below a disk.

use core::{
    fmt,
    marker::PhantomData, //
};

use kernel::{
    ffi::c_char,
    prelude::*,
    str::as_char_ptr_in_const_context, //
};

use super::{
    bindings,
    disk::{
        device_of_disk,
        DiskOps, //
    }, //
};

/// A file in sysfs that shows something of device `T`.
pub(crate) trait Attribute<T: DiskOps>: 'static {
    /// Name of the file.
    const NAME: &'static CStr;
    /// Writes the content.
    fn show(device: &T, page: &mut Page<'_>) -> Result;
}

/// A file that can be written, too.
pub(crate) trait WritableAttribute<T: DiskOps>: Attribute<T> {
    /// Takes what was written.
    fn store(device: &T, bytes: &[u8]) -> Result;
}

/// The page that becomes the content of a file.
pub(crate) struct Page<'a> {
    buf: &'a mut [u8],
    used: usize,
}

impl Page<'_> {
    /// The whole page, for callees that bring their own idea of where bytes go.
    pub(crate) fn buffer(&mut self) -> &mut [u8] {
        self.buf
    }

    /// How many bytes of content there are.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// How many more there can be.
    pub(crate) fn room(&self) -> usize {
        self.buf.len().saturating_sub(self.used)
    }

    /// Says that the first `len` bytes of the page are the content.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.used = len.min(self.buf.len());
    }
}

impl fmt::Write for Page<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.used.checked_add(text.len()).ok_or(fmt::Error)?;
        let room = self.buf.get_mut(self.used..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.used = end;
        Ok(())
    }
}

/// A `struct device_attribute`, static.
#[repr(transparent)]
pub(crate) struct File(bindings::device_attribute);

// SAFETY: sysfs only reads it; a lockdep key in it is used for its address.
unsafe impl Sync for File {}

impl File {
    /// A file that can only be read.
    pub(crate) const fn read_only<T: DiskOps, A: Attribute<T>>() -> Self {
        Self::new::<T, A>(0o444, None)
    }

    /// A file that root can write.
    pub(crate) const fn writable<T: DiskOps, A: WritableAttribute<T>>() -> Self {
        Self::new::<T, A>(0o644, Some(store::<T, A>))
    }

    const fn new<T: DiskOps, A: Attribute<T>>(mode: u16, store: Option<Store>) -> Self {
        // Kernels with lockdep have more fields.
        let mut attr: bindings::attribute = pin_init::zeroed();
        attr.name = as_char_ptr_in_const_context(A::NAME);
        attr.mode = mode;
        Self(bindings::device_attribute {
            attr,
            __bindgen_anon_1: bindings::device_attribute__bindgen_ty_1 {
                show: Some(show::<T, A>),
            },
            __bindgen_anon_2: bindings::device_attribute__bindgen_ty_2 { store },
        })
    }
}

/// A `struct attribute_group`, static.
#[repr(transparent)]
pub(crate) struct Group(bindings::attribute_group, PhantomData<&'static File>);

// SAFETY: sysfs only reads it.
unsafe impl Sync for Group {}

impl Group {
    /// A directory `name` of `files`, the last of which is `None`: checked when this is compiled,
    /// in a static.
    pub(crate) const fn new(name: &'static CStr, files: &'static [Option<&'static File>]) -> Self {
        assert!(matches!(files.last(), Some(None)));
        Self(
            bindings::attribute_group {
                name: as_char_ptr_in_const_context(name),
                __bindgen_anon_2: bindings::attribute_group__bindgen_ty_2 {
                    // `Option<&File>` has the layout of a pointer to the attribute, which is the
                    // first field of the file (see below); `None` is the null that ends the list.
                    attrs: files.as_ptr().cast_mut().cast(),
                },
                ..pin_init::zeroed()
            },
            PhantomData,
        )
    }

    pub(super) fn as_ptr(&'static self) -> *const bindings::attribute_group {
        &self.0
    }
}

const _: () = assert!(core::mem::offset_of!(bindings::device_attribute, attr) == 0);

/// The groups that a disk appears with.
pub(crate) struct GroupList(&'static [Option<&'static Group>]);

impl GroupList {
    /// A list of `groups`, the last of which is `None`: checked when this is compiled, in a static.
    pub(crate) const fn new(groups: &'static [Option<&'static Group>]) -> Self {
        assert!(matches!(groups.last(), Some(None)));
        Self(groups)
    }

    /// `Option<&Group>` has the layout of the pointer C expects, `None` that of null.
    pub(super) fn as_ptr(&self) -> *mut *const bindings::attribute_group {
        self.0.as_ptr().cast_mut().cast()
    }
}

type Store = unsafe extern "C" fn(
    *mut bindings::device,
    *mut bindings::device_attribute,
    *const c_char,
    usize,
) -> isize;

/// # Safety
///
/// Only to be called by sysfs for a file of a disk.
unsafe extern "C" fn show<T: DiskOps, A: Attribute<T>>(
    dev: *mut bindings::device,
    _attr: *mut bindings::device_attribute,
    buf: *mut c_char,
) -> isize {
    // SAFETY: Groups are made for disks only. sysfs keeps the device alive and gives a page for the
    // content, zeroed and, until we return, nobody else's.
    let (device, buf) = unsafe {
        (
            device_of_disk::<T>(bindings::lp_dev_to_disk(dev)),
            core::slice::from_raw_parts_mut(buf.cast::<u8>(), bindings::LP_PAGE_SIZE),
        )
    };
    let Some(device) = device else {
        return -(bindings::ENODEV as isize);
    };
    let mut page = Page { buf, used: 0 };
    match A::show(device, &mut page) {
        Ok(()) => page.used as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// # Safety
///
/// As for [`show`].
unsafe extern "C" fn store<T: DiskOps, A: WritableAttribute<T>>(
    dev: *mut bindings::device,
    _attr: *mut bindings::device_attribute,
    buf: *const c_char,
    len: usize,
) -> isize {
    // SAFETY: As in `show`; `buf` is sysfs's own copy of `len` bytes, which nobody else changes.
    let (device, bytes) = unsafe {
        (
            device_of_disk::<T>(bindings::lp_dev_to_disk(dev)),
            core::slice::from_raw_parts(buf.cast::<u8>(), len),
        )
    };
    let Some(device) = device else {
        return -(bindings::ENODEV as isize);
    };
    match A::store(device, bytes) {
        Ok(()) => len as isize,
        Err(error) => error.to_errno() as isize,
    }
}
