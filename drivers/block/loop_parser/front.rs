// SPDX-License-Identifier: GPL-2.0

//! What the modules on top of this crate say: under which names and numbers the driver runs.
//!
//! The driver is one library, `loop_parser.ko`. A *front* module, `loop.ko` or `loop_images.ko`, is
//! what users load: it has the parameters, is what open and bound devices refer to, and takes its
//! devices along when it is unloaded, whatever parsers are loaded. Two fronts can run side by side;
//! they share parsers and images, so no cycle and no second writer goes through unseen.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    control,
    instance::Instance,
    parser::check_stamp,
    sys::{
        globals::INSTANCES,
        misc::{
            self,
            BlockMajor, //
        }, //
    }, //
};

pub use crate::{
    parser::INTERFACE_STAMP,
    sys::{
        bindings::lp_params,
        misc::{
            ControlNode,
            Major, //
        },
        params::Params, //
    }, //
};

/// A front module, as it describes itself.
#[derive(Clone, Copy)]
pub struct Front {
    /// The module: open and bound devices keep it loaded.
    pub module: &'static ThisModule,
    /// The name in `/proc/devices`.
    pub name: &'static CStr,
    /// The major device number.
    pub major: Major,
    /// The control node.
    pub control: ControlNode,
    /// The module's parameters.
    pub params: Params,
}

/// A running driver; dropping it removes all its devices.
///
/// Fields are dropped in order: no new devices by opening nodes, none by the control node, then the
/// devices go.
pub struct Running {
    _probe: BlockMajor,
    _control: Pin<KBox<misc::Control<Instance>>>,
    devices: Devices,
}

impl Running {
    /// Starts the driver for `front`. `stamp` is to be the [`INTERFACE_STAMP`] that the caller was
    /// compiled with.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` if the module was built against another interface. `EINVAL` for parameters that
    /// fit no device number, `EIO` if the major is taken, as with the C driver. `ENOMEM`.
    #[inline(never)]
    pub fn start(stamp: u64, front: Front) -> Result<Self> {
        check_stamp(stamp)?;
        let instance = Instance::new(&front)?;
        // Made before anything can create a device, to remove it if what follows fails.
        let devices = Devices(instance.clone());
        let probe = BlockMajor::register::<Instance>(front.major, front.name)?;
        instance.set_major(probe.number());
        INSTANCES.lock().push(instance.clone(), GFP_KERNEL)?;
        // Last of what can fail: it can be used as soon as it is there, to add devices, and a
        // module whose init fails does not wait for those who have it open.
        let control = misc::Control::register(front.control, front.module, instance.clone())?;
        control::precreate(&instance);
        Ok(Self {
            _probe: probe,
            _control: control,
            devices,
        })
    }

    /// Number of the first device.
    pub fn first(&self) -> u32 {
        self.devices.0.first()
    }

    /// The major device number.
    pub fn major(&self) -> u32 {
        self.devices.0.major()
    }
}

/// Removes all devices when dropped, and the driver from the list of those that run.
struct Devices(Arc<Instance>);

impl Drop for Devices {
    fn drop(&mut self) {
        INSTANCES
            .lock()
            .retain(|instance| !Arc::ptr_eq(instance, &self.0));
        control::remove_all(&self.0);
    }
}

/// Drops what the list of running drivers keeps for more of them, at module exit.
pub(crate) fn forget_all() {
    *INSTANCES.lock() = KVec::new();
}
