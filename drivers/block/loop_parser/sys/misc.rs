// SPDX-License-Identifier: GPL-2.0

//! The control node and the block major.

use kernel::{
    error::to_result,
    ffi::{
        c_long,
        c_uint,
        c_ulong, //
    },
    prelude::*,
    types::Opaque, //
};

use super::bindings;

/// What the control node and the device numbers do.
pub(crate) trait ControlOps: 'static {
    /// An ioctl on the control node; its result is the return value.
    fn ioctl(cmd: u32, arg: usize) -> Result<u32>;
    /// Somebody opened a device node that has no device.
    fn probe(minor: u32);
}

/// A registered `/dev/loop-control`.
#[pin_data(PinnedDrop)]
pub(crate) struct ControlNode {
    #[pin]
    raw: Opaque<bindings::miscdevice>,
}

// SAFETY: A registration may be dropped by any thread.
unsafe impl Send for ControlNode {}
// SAFETY: Nothing can be done through a shared reference.
unsafe impl Sync for ControlNode {}

struct Fops<T>(core::marker::PhantomData<T>);

impl<T: ControlOps> Fops<T> {
    const FOPS: bindings::file_operations = bindings::file_operations {
        owner: <crate::LocalModule as kernel::ModuleMetadata>::THIS_MODULE.as_ptr(),
        open: Some(bindings::nonseekable_open),
        llseek: Some(bindings::noop_llseek),
        unlocked_ioctl: Some(control_ioctl::<T>),
        compat_ioctl: Some(control_ioctl::<T>),
        ..pin_init::zeroed()
    };
}

impl ControlNode {
    /// Registers the node with the fixed minor of `/dev/loop-control`.
    pub(crate) fn register<T: ControlOps>() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // SAFETY: `slot` is valid for writes and pinned, so the device does not move while it
            // is registered.
            raw <- Opaque::try_ffi_init(|slot: *mut bindings::miscdevice| unsafe {
                slot.write(bindings::miscdevice {
                    minor: bindings::LP_LOOP_CTRL_MINOR as i32,
                    name: c"loop-control".as_char_ptr(),
                    fops: &Fops::<T>::FOPS,
                    ..pin_init::zeroed()
                });
                to_result(bindings::misc_register(slot))
            }),
        })
    }
}

#[pinned_drop]
impl PinnedDrop for ControlNode {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: It was registered by `register`.
        unsafe { bindings::misc_deregister(self.raw.get()) };
    }
}

/// # Safety
///
/// Only to be called through [`Fops::FOPS`].
unsafe extern "C" fn control_ioctl<T: ControlOps>(
    _file: *mut bindings::file,
    cmd: c_uint,
    arg: c_ulong,
) -> c_long {
    match T::ioctl(cmd, arg) {
        Ok(value) => value as c_long,
        Err(error) => error.to_errno() as c_long,
    }
}

/// The loop driver's registered major device number.
pub(crate) struct BlockMajor(());

const NAME: &CStr = c"loop";

impl BlockMajor {
    /// Registers the major; `EIO`, as with the C driver, if another driver has it.
    pub(crate) fn register<T: ControlOps>() -> Result<Self> {
        // SAFETY: The name is static, and so is the function.
        let ret = unsafe {
            bindings::lp_register_blkdev(
                bindings::LP_LOOP_MAJOR,
                NAME.as_char_ptr(),
                Some(probe::<T>),
            )
        };
        to_result(ret).map_err(|_| EIO)?;
        Ok(Self(()))
    }
}

impl Drop for BlockMajor {
    fn drop(&mut self) {
        // SAFETY: It was registered by `register`.
        unsafe { bindings::lp_unregister_blkdev(bindings::LP_LOOP_MAJOR, NAME.as_char_ptr()) };
    }
}

/// # Safety
///
/// Only to be called by the block layer.
unsafe extern "C" fn probe<T: ControlOps>(dev: bindings::dev_t) {
    T::probe(dev & ((1 << bindings::LP_MINORBITS) - 1));
}
