// SPDX-License-Identifier: GPL-2.0

//! Plain C structures to and from user space, and the caller's privileges.

use core::mem::{
    size_of,
    MaybeUninit, //
};

use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

use super::bindings;

/// C structures that may be copied from and to user space.
///
/// # Safety
///
/// Any bytes are a valid value, and the structure has no padding.
pub(crate) unsafe trait UserData: Sized {}

// SAFETY: Integers and byte arrays only; laid out without holes (checked by size below).
unsafe impl UserData for bindings::loop_info64 {}
// SAFETY: As above, see its definition.
unsafe impl UserData for OldLoopInfo {}
// SAFETY: As above.
unsafe impl UserData for bindings::loop_config {}
// SAFETY: As above, see its definition.
unsafe impl UserData for CompatLoopInfo {}

/// `struct loop_info`, with the holes of its C layout spelt out so that none can leak.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct OldLoopInfo {
    pub(crate) lo_number: i32,
    pub(crate) hole1: u32,
    pub(crate) lo_device: u64,
    pub(crate) lo_inode: u64,
    pub(crate) lo_rdevice: u64,
    pub(crate) lo_offset: i32,
    pub(crate) lo_encrypt_type: i32,
    pub(crate) lo_encrypt_key_size: i32,
    pub(crate) lo_flags: i32,
    pub(crate) lo_name: [u8; 64],
    pub(crate) lo_encrypt_key: [u8; 32],
    pub(crate) lo_init: [u64; 2],
    pub(crate) reserved: [u8; 4],
    pub(crate) hole2: [u8; 4],
}

/// `struct loop_info` of a 32-bit program on a 64-bit kernel.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct CompatLoopInfo {
    pub(crate) lo_number: i32,
    // `compat_dev_t`: 16 bits on x86.
    pub(crate) lo_device: u16,
    pub(crate) hole1: u16,
    pub(crate) lo_inode: u32,
    pub(crate) lo_rdevice: u16,
    pub(crate) hole2: u16,
    pub(crate) lo_offset: i32,
    pub(crate) lo_encrypt_type: i32,
    pub(crate) lo_encrypt_key_size: i32,
    pub(crate) lo_flags: i32,
    pub(crate) lo_name: [u8; 64],
    pub(crate) lo_encrypt_key: [u8; 32],
    pub(crate) lo_init: [u32; 2],
    pub(crate) reserved: [u8; 4],
}

const _: () = assert!(size_of::<bindings::loop_info64>() == 232);
const _: () = assert!(size_of::<bindings::loop_config>() == 304);
const _: () = assert!(size_of::<OldLoopInfo>() == size_of::<bindings::loop_info>());
const _: () = assert!(size_of::<CompatLoopInfo>() == 140);

/// Copies a structure in; `EFAULT` if the caller may not read it.
pub(crate) fn read<T: UserData>(arg: usize) -> Result<T> {
    let mut value = MaybeUninit::<T>::uninit();
    let slice = core::slice::from_mut(&mut value);
    // SAFETY: `MaybeUninit<u8>` may stand for any byte of a `MaybeUninit<T>`.
    let bytes = unsafe {
        core::slice::from_raw_parts_mut(
            slice.as_mut_ptr().cast::<MaybeUninit<u8>>(),
            size_of::<T>(),
        )
    };
    UserSlice::new(UserPtr::from_addr(arg), size_of::<T>())
        .reader()
        .read_raw(bytes)?;
    // SAFETY: Every byte was written, and any bytes are a valid `T`.
    Ok(unsafe { value.assume_init() })
}

/// Copies a structure out; `EFAULT` if the caller may not write there.
pub(crate) fn write<T: UserData>(arg: usize, value: &T) -> Result {
    // SAFETY: `T` has no padding, so all its bytes are initialised.
    let bytes = unsafe {
        core::slice::from_raw_parts(core::ptr::from_ref(value).cast::<u8>(), size_of::<T>())
    };
    UserSlice::new(UserPtr::from_addr(arg), size_of::<T>())
        .writer()
        .write_slice(bytes)
}

/// Whether the caller has `CAP_SYS_ADMIN`.
pub(crate) fn capable_sys_admin() -> bool {
    // SAFETY: Looks at the current task only.
    unsafe { bindings::capable(bindings::LP_CAP_SYS_ADMIN) }
}
