// SPDX-License-Identifier: GPL-2.0

//! The loop driver, with parsers.
//!
//! Takes the place of the C driver (same module name, device numbers, control node, ioctls, sysfs)
//! and adds one thing: a backing file that is a virtual-disk image is served as the disk in it. What
//! an image looks like, parser modules know; see [`contract`] and [`parser`].
//!
//! | file | job |
//! |---|---|
//! | `contract`, `parser` | the contract with parsers, the registry |
//! | `signatures`, `select`, `raw` | which parser serves a file |
//! | `image`, `tables`, `allocation` | what devices on one file share; tables; making room |
//! | `service` | serving requests |
//! | `device`, `configure`, `change`, `unbind`, `status`, `geometry` | a device and its life |
//! | `ioctl`, `control`, `attributes` | user space: ioctls, `/dev/loop-control`, sysfs |
//! | `sys` | the kernel's C interfaces and all `unsafe` |

use kernel::{
    prelude::*,
    sync::SetOnce, //
};

mod allocation;
mod attributes;
mod change;
mod configure;
pub mod contract;
mod control;
mod device;
mod geometry;
mod image;
mod ioctl;
pub mod parser;
mod raw;
mod select;
mod service;
mod signatures;
mod status;
mod sys;
mod tables;
mod unbind;

use control::Control;
use sys::{
    bindings::{
        LP_DISK_MAX_PARTS,
        LP_MINORBITS, //
    },
    globals,
    misc::{
        BlockMajor,
        ControlNode, //
    },
    params, //
};

module! {
    type: LoopModule,
    name: "loop",
    authors: ["loop-parser developers"],
    description: "Loopback device support with parsers for virtual-disk images",
    license: "GPL v2",
}

/// Parameters in the form the driver uses them.
#[derive(Clone, Copy)]
pub(crate) struct DriverParams {
    /// Minors per device, as a power of two.
    pub(crate) part_shift: u32,
    /// Requests in flight per device.
    pub(crate) queue_depth: u32,
    /// Devices to create at start.
    precreate: u32,
    /// Device numbers from here on are not created by opening a node.
    pub(crate) probe_limit: Option<u32>,
}

impl DriverParams {
    /// `EINVAL`, like the C driver's, for numbers that fit no device number.
    fn from_module() -> Result<Self> {
        let raw = params::load_time();
        let max_part = u32::try_from(raw.max_part).unwrap_or(0);
        let part_shift = u32::BITS.saturating_sub(max_part.leading_zeros());
        if part_shift >= 32 || 1u32 << part_shift > LP_DISK_MAX_PARTS {
            return Err(EINVAL);
        }
        let max_loop = u32::try_from(raw.max_loop).map_err(|_| EINVAL)?;
        if max_loop > 1 << LP_MINORBITS.saturating_sub(part_shift) {
            return Err(EINVAL);
        }
        if max_part > 0 {
            let in_force = (1u32 << part_shift).saturating_sub(1);
            params::set_max_part(i32::try_from(in_force).map_err(|_| EINVAL)?);
        }
        let limited = raw.max_loop_specified && max_loop > 0;
        Ok(Self {
            part_shift,
            queue_depth: raw.hw_queue_depth,
            precreate: max_loop,
            probe_limit: limited.then_some(max_loop),
        })
    }
}

static PARAMS: SetOnce<DriverParams> = SetOnce::new();

/// The parameters the module was loaded with.
pub(crate) fn driver_params() -> DriverParams {
    PARAMS.copy().unwrap_or(DriverParams {
        part_shift: 0,
        queue_depth: 128,
        precreate: 0,
        probe_limit: None,
    })
}

/// This module, for references to it.
pub(crate) fn this_module() -> &'static ThisModule {
    static MODULE: ThisModule = <LocalModule as kernel::ModuleMetadata>::THIS_MODULE;
    &MODULE
}

/// Fields are dropped in order: no new devices by opening nodes, none by the control node, then the
/// devices go.
#[pin_data]
struct LoopModule {
    _major: BlockMajor,
    #[pin]
    _control: ControlNode,
    _devices: AllDevices,
    _started: (),
}

/// Removes all devices when dropped.
struct AllDevices;

impl AllDevices {
    /// Creates the devices that are there from the start. As with the C driver, one that cannot be
    /// created is no reason to fail.
    fn precreate(count: u32) {
        for number in 0..count {
            if let Err(error) = control::add(Some(number)) {
                pr_warn!("cannot create loop{number} ({error:?})\n");
            }
        }
        pr_info!("module loaded\n");
    }
}

impl Drop for AllDevices {
    fn drop(&mut self) {
        control::remove_all();
        image::forget_all();
        parser::forget_all();
    }
}

impl kernel::InPlaceModule for LoopModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        globals::init();
        let params = DriverParams::from_module();
        if let Ok(params) = params {
            PARAMS.populate(params);
        }
        // The guard of all devices first: one can be created as soon as the control node is there,
        // even if what follows fails.
        try_pin_init!(Self {
            _devices: AllDevices,
            _control <- {
                params?;
                ControlNode::register::<Control>()
            },
            _major: BlockMajor::register::<Control>()?,
            _started: AllDevices::precreate(driver_params().precreate),
        }? Error)
    }
}
