// SPDX-License-Identifier: GPL-2.0

//! Control nodes and block majors.

use kernel::{
    error::to_result,
    ffi::{
        c_long,
        c_uint,
        c_ulong, //
    },
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

use super::bindings;

/// Which minor and name a control node has.
#[derive(Clone, Copy)]
pub enum ControlNode {
    /// Those of `/dev/loop-control`.
    Loop,
    /// This name, and any minor.
    Named(&'static CStr),
}

impl ControlNode {
    fn minor(self) -> u32 {
        match self {
            Self::Loop => bindings::LP_LOOP_CTRL_MINOR,
            Self::Named(_) => bindings::LP_MISC_DYNAMIC_MINOR,
        }
    }

    fn name(self) -> &'static CStr {
        match self {
            Self::Loop => c"loop-control",
            Self::Named(name) => name,
        }
    }
}

/// What makes devices come and go.
pub(crate) trait ControlOps: Send + Sync + 'static {
    /// An ioctl of the control node; its result is the return value.
    fn ioctl(this: &Arc<Self>, cmd: u32, arg: usize) -> Result<u32>;

    /// Somebody opened a node of one of the registered majors that has no device.
    fn probe(major: u32, minor: u32);
}

/// A registered control node. An open one keeps the module it was registered for loaded.
#[pin_data(PinnedDrop)]
pub(crate) struct Control<T: ControlOps> {
    #[pin]
    raw: Opaque<bindings::miscdevice>,
    fops: KBox<bindings::file_operations>,
    target: Arc<T>,
}

// SAFETY: A registration may be dropped by any thread, and the target is `Send` and `Sync`.
unsafe impl<T: ControlOps> Send for Control<T> {}
// SAFETY: Nothing can be done through a shared reference.
unsafe impl<T: ControlOps> Sync for Control<T> {}

impl<T: ControlOps> Control<T> {
    /// Registers the node. Its users come to `target`. Until the module has started nothing may drop
    /// the result: the module is not kept by those who have the node open before.
    pub(crate) fn register(
        node: ControlNode,
        module: &'static ThisModule,
        target: Arc<T>,
    ) -> Result<Pin<KBox<Self>>> {
        let fops = bindings::file_operations {
            owner: module.as_ptr(),
            open: Some(bindings::nonseekable_open),
            llseek: Some(bindings::noop_llseek),
            unlocked_ioctl: Some(control_ioctl::<T>),
            compat_ioctl: Some(control_ioctl::<T>),
            ..pin_init::zeroed()
        };
        let fops = KBox::new(fops, GFP_KERNEL)?;
        let fops_ptr: *const bindings::file_operations = &raw const *fops;
        KBox::pin_init(
            // `raw` last: the node can be opened as soon as it is registered.
            try_pin_init!(Self {
                fops,
                target,
                // SAFETY: `slot` is valid for writes and pinned, so the device does not move while
                // it is registered; the operations are boxed and live as long.
                raw <- Opaque::try_ffi_init(|slot: *mut bindings::miscdevice| unsafe {
                    slot.write(bindings::miscdevice {
                        minor: node.minor() as i32,
                        name: node.name().as_char_ptr(),
                        fops: fops_ptr,
                        ..pin_init::zeroed()
                    });
                    to_result(bindings::misc_register(slot))
                }),
            }? Error),
            GFP_KERNEL,
        )
    }
}

#[pinned_drop]
impl<T: ControlOps> PinnedDrop for Control<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: It was registered by `register`.
        unsafe { bindings::misc_deregister(self.raw.get()) };
    }
}

/// # Safety
///
/// Only to be called through the operations of a [`Control`].
unsafe extern "C" fn control_ioctl<T: ControlOps>(
    file: *mut bindings::file,
    cmd: c_uint,
    arg: c_ulong,
) -> c_long {
    // SAFETY: `misc_open` stored the miscdevice, which is the `raw` of a `Control<T>`, all of which
    // was initialised before it was registered. It lives as long as its module is loaded, which the
    // open file sees to (see `register`).
    let control = unsafe {
        let raw = (*file).private_data.cast::<Opaque<bindings::miscdevice>>();
        &*kernel::container_of!(raw, Control<T>, raw)
    };
    match T::ioctl(&control.target, cmd, arg) {
        Ok(value) => value as c_long,
        Err(error) => error.to_errno() as c_long,
    }
}

/// Which major device number a driver has.
#[derive(Clone, Copy)]
pub enum Major {
    /// The loop driver's.
    Loop,
    /// Any that is free.
    Dynamic,
}

/// A registered major device number.
pub(crate) struct BlockMajor {
    number: u32,
    name: &'static CStr,
}

impl BlockMajor {
    /// Registers the major; `EIO`, as with the C driver, if another driver has it. `T` is told of
    /// nodes without a device.
    pub(crate) fn register<T: ControlOps>(major: Major, name: &'static CStr) -> Result<Self> {
        let wanted = match major {
            Major::Loop => bindings::LP_LOOP_MAJOR,
            Major::Dynamic => 0,
        };
        // SAFETY: The name is static, and so is the function.
        let ret = unsafe {
            bindings::lp_register_blkdev(wanted, name.as_char_ptr(), Some(probe_callback::<T>))
        };
        let number = match (u32::try_from(ret), major) {
            (Ok(number), Major::Dynamic) => number,
            (Ok(_), Major::Loop) => wanted,
            (Err(_), _) => return Err(EIO),
        };
        Ok(Self { number, name })
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for BlockMajor {
    fn drop(&mut self) {
        // SAFETY: It was registered by `register`. Waits for a probe that is running.
        unsafe { bindings::lp_unregister_blkdev(self.number, self.name.as_char_ptr()) };
    }
}

/// # Safety
///
/// Only to be called by the block layer.
unsafe extern "C" fn probe_callback<T: ControlOps>(dev: bindings::dev_t) {
    let (major, minor) = split_dev(dev);
    T::probe(major, minor);
}

/// Major and minor of a device number.
pub(crate) const fn split_dev(dev: u32) -> (u32, u32) {
    (
        dev >> bindings::LP_MINORBITS,
        dev & ((1 << bindings::LP_MINORBITS) - 1),
    )
}
