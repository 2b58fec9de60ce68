// SPDX-License-Identifier: GPL-2.0

//! The driver as one front module runs it: its numbers, its parameters, its devices.

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex,
        SetOnce, //
    }, //
};

use crate::{
    control::DeviceTable,
    device::Device,
    front::Front,
    sys::{
        bindings::{
            LP_DISK_MAX_PARTS,
            LP_MINORBITS, //
        },
        disk::Fops,
        module::ModuleRef,
        params::Params, //
    }, //
};

/// What a front module runs.
#[pin_data]
pub(crate) struct Instance {
    module: &'static ThisModule,
    params: Params,
    fops: Arc<Fops<Device>>,
    /// Known once it is registered.
    major: SetOnce<u32>,
    /// Number of the first device.
    first: u32,
    /// Minors per device, as a power of two.
    part_shift: u32,
    /// Devices to create at start.
    precreate: u32,
    /// How many device numbers, from the first on, opening a node creates a device for.
    probe_limit: Option<u32>,
    /// All devices.
    #[pin]
    devices: Mutex<DeviceTable>,
}

impl Instance {
    /// `EINVAL`, like the C driver's, for parameters that fit no device number.
    pub(crate) fn new(front: &Front) -> Result<Arc<Self>> {
        let params = front.params;
        let part_shift = part_shift(&params)?;
        let max_loop = u32::try_from(params.max_loop()).map_err(|_| EINVAL)?;
        if max_loop > 1 << LP_MINORBITS.saturating_sub(part_shift) {
            return Err(EINVAL);
        }
        let first = u32::try_from(params.first()).map_err(|_| EINVAL)?;
        let limited = params.max_loop_specified() && max_loop > 0;
        let table = DeviceTable::new(first);
        Arc::pin_init(
            try_pin_init!(Self {
                module: front.module,
                params,
                fops: Fops::new(front.module)?,
                major: SetOnce::new(),
                first,
                part_shift,
                precreate: max_loop,
                probe_limit: limited.then_some(max_loop),
                devices <- new_mutex!(table),
            }),
            GFP_KERNEL,
        )
    }

    /// A reference that keeps the front module, and so this, alive; `None` if it is on its way out.
    pub(crate) fn pin_module(&self) -> Option<ModuleRef> {
        ModuleRef::try_get(self.module)
    }

    pub(crate) fn params(&self) -> &Params {
        &self.params
    }

    /// How the block layer calls the driver.
    pub(crate) fn fops(&self) -> &Arc<Fops<Device>> {
        &self.fops
    }

    /// The major device number; 0 until it is registered.
    pub(crate) fn major(&self) -> u32 {
        self.major.copy().unwrap_or(0)
    }

    pub(crate) fn set_major(&self, major: u32) {
        self.major.populate(major);
    }

    /// Number of the first device.
    pub(crate) fn first(&self) -> u32 {
        self.first
    }

    /// Minors per device, as a power of two.
    pub(crate) fn part_shift(&self) -> u32 {
        self.part_shift
    }

    /// Numbers of the devices that are there from the start.
    pub(crate) fn precreated(&self) -> core::ops::Range<u32> {
        self.first..self.first.saturating_add(self.precreate)
    }

    pub(crate) fn devices(&self) -> &Mutex<DeviceTable> {
        &self.devices
    }

    /// First minor of device `number`; `EINVAL` if it has none.
    pub(crate) fn first_minor(&self, number: u32) -> Result<u32> {
        let index = number.checked_sub(self.first).ok_or(EINVAL)?;
        index.checked_mul(1 << self.part_shift).ok_or(EINVAL)
    }

    /// The number of the device that opening a node with this minor creates, if it does.
    pub(crate) fn probed_number(&self, minor: u32) -> Option<u32> {
        let index = minor.checked_shr(self.part_shift).unwrap_or(0);
        if self.probe_limit.is_some_and(|limit| index >= limit) {
            return None;
        }
        self.first.checked_add(index)
    }
}

/// Puts `max_part` in force and returns it as a power of two.
fn part_shift(params: &Params) -> Result<u32> {
    let max_part = u32::try_from(params.max_part()).unwrap_or(0);
    let shift = u32::BITS.saturating_sub(max_part.leading_zeros());
    if shift >= 32 || 1u32 << shift > LP_DISK_MAX_PARTS {
        return Err(EINVAL);
    }
    if max_part > 0 {
        let in_force = (1u32 << shift).saturating_sub(1);
        params.set_max_part(i32::try_from(in_force).map_err(|_| EINVAL)?);
    }
    Ok(shift)
}
