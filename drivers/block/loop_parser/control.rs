// SPDX-License-Identifier: GPL-2.0

//! Devices coming and going: `/dev/loop-control`, on-demand creation, start and end.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    attributes,
    device::{
        Device,
        Phase, //
    },
    driver_params,
    sys::{
        bindings::{
            LOOP_CTL_ADD,
            LOOP_CTL_GET_FREE,
            LOOP_CTL_REMOVE,
            LP_LOOP_MAJOR, //
        },
        disk::{
            Address,
            Disk, //
        },
        globals::DEVICES,
        misc::ControlOps, //
    }, //
};

/// A number in use. The device is there once its disk has appeared.
struct Slot {
    number: u32,
    device: Option<Arc<Device>>,
    /// False while the device is being removed.
    visible: bool,
}

/// All devices, ordered by number.
pub(crate) struct DeviceTable(KVec<Slot>);

impl DeviceTable {
    pub(crate) const fn new() -> Self {
        Self(KVec::new())
    }

    fn find(&mut self, number: u32) -> Option<&mut Slot> {
        self.0.iter_mut().find(|slot| slot.number == number)
    }

    /// Takes `number`, or the lowest that is free. `EEXIST` if it is in use.
    fn take(&mut self, number: Option<u32>) -> Result<u32> {
        let number = match number {
            Some(number) => number,
            None => self.lowest_free()?,
        };
        let at = self.0.iter().position(|slot| slot.number >= number);
        let at = at.unwrap_or(self.0.len());
        if self.0.get(at).is_some_and(|slot| slot.number == number) {
            return Err(EEXIST);
        }
        let slot = Slot {
            number,
            device: None,
            visible: false,
        };
        self.0.reserve(1, GFP_KERNEL)?;
        self.0
            .insert_within_capacity(at, slot)
            .map_err(|_| ENOMEM)?;
        Ok(number)
    }

    fn lowest_free(&self) -> Result<u32> {
        let mut free = 0u32;
        for slot in self.0.iter() {
            if slot.number != free {
                break;
            }
            free = free.checked_add(1).ok_or(ENOSPC)?;
        }
        Ok(free)
    }

    fn give_back(&mut self, number: u32) {
        self.0.retain(|slot| slot.number != number);
    }
}

/// Creates a device; `None` takes the lowest free number. Returns the number.
pub(crate) fn add(number: Option<u32>) -> Result<u32> {
    let number = DEVICES.lock().take(number)?;
    let device = create(number).inspect_err(|_| DEVICES.lock().give_back(number))?;
    if let Some(slot) = DEVICES.lock().find(number) {
        slot.device = Some(device);
        slot.visible = true;
    }
    Ok(number)
}

fn create(number: u32) -> Result<Arc<Device>> {
    let params = driver_params();
    let shift = params.part_shift;
    let device = Device::new(number, params.queue_depth, shift)?;
    let address = Address {
        name: "loop",
        number,
        major: LP_LOOP_MAJOR,
        first_minor: number.checked_mul(1 << shift).ok_or(EINVAL)?,
        minors: 1 << shift,
    };
    Disk::add(&device, &address, attributes::GROUPS)?;
    Ok(device)
}

/// `LOOP_CTL_REMOVE`.
fn remove(number: u32) -> Result {
    let device = {
        let mut table = DEVICES.lock();
        let slot = table.find(number).filter(|slot| slot.visible);
        let slot = slot.ok_or(ENODEV)?;
        let device = slot.device.clone().ok_or(ENODEV)?;
        slot.visible = false;
        device
    };
    if let Err(error) = mark_deleting(&device) {
        if let Some(slot) = DEVICES.lock().find(number) {
            slot.visible = true;
        }
        return Err(error);
    }
    destroy(&device);
    Ok(())
}

fn mark_deleting(device: &Device) -> Result {
    let mut config = device.config_killable()?;
    if config.phase() != Phase::Unbound || device.disk_ref().openers() > 0 {
        return Err(EBUSY);
    }
    device.set_phase(&mut config, Phase::Deleting);
    Ok(())
}

fn destroy(device: &Arc<Device>) {
    let number = device.number();
    Disk::remove(device, || DEVICES.lock().give_back(number));
}

/// Removes all devices, at module exit: nobody has one open, or the module would be in use.
pub(crate) fn remove_all() {
    loop {
        let last = {
            let mut table = DEVICES.lock();
            match table.0.pop() {
                Some(slot) => slot.device,
                None => break,
            }
        };
        if let Some(device) = last {
            destroy(&device);
        }
    }
    // Nothing of the table is left behind: statics are not dropped.
    DEVICES.lock().0 = KVec::new();
}

/// `LOOP_CTL_GET_FREE`: the lowest device that is not in use; creates one if all are.
fn get_free() -> Result<u32> {
    let free = {
        let table = DEVICES.lock();
        // Somebody may take it before the caller does; callers try again.
        let mut slots = table.0.iter();
        slots
            .find(|slot| {
                let unbound = slot.device.as_ref().is_some_and(|dev| dev.looks_unbound());
                slot.visible && unbound
            })
            .map(|slot| slot.number)
    };
    match free {
        Some(number) => Ok(number),
        None => add(None),
    }
}

/// The driver's control node.
pub(crate) struct Control;

impl ControlOps for Control {
    fn ioctl(cmd: u32, arg: usize) -> Result<u32> {
        // The argument is an `int`.
        let number = i32::from_ne_bytes(((arg & 0xffff_ffff) as u32).to_ne_bytes());
        match cmd {
            LOOP_CTL_ADD => add(u32::try_from(number).ok()),
            LOOP_CTL_REMOVE => {
                let number = u32::try_from(number).map_err(|_| {
                    pr_warn!("deleting an unspecified loop device is not supported.\n");
                    EINVAL
                })?;
                remove(number).map(|()| 0)
            }
            LOOP_CTL_GET_FREE => get_free(),
            _ => Err(ENOSYS),
        }
    }

    fn probe(minor: u32) {
        let params = driver_params();
        let number = minor.checked_shr(params.part_shift).unwrap_or(0);
        if params.probe_limit.is_some_and(|limit| number >= limit) {
            return;
        }
        // There is nobody to tell: the open that caused this fails, or finds the device another
        // task has just created.
        let _ = add(Some(number));
    }
}
