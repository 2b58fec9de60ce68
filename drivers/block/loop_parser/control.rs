// SPDX-License-Identifier: GPL-2.0

//! Devices coming and going: the control node, on-demand creation, start and end.

use kernel::{
    pr_warn_once,
    prelude::*,
    sync::Arc, //
};

use crate::{
    attributes,
    device::{
        Device,
        Phase, //
    },
    instance::Instance,
    sys::{
        bindings::{
            LOOP_CTL_ADD,
            LOOP_CTL_GET_FREE,
            LOOP_CTL_REMOVE, //
        },
        disk::{
            Address,
            Disk, //
        },
        globals::INSTANCES,
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
pub(crate) struct DeviceTable {
    slots: KVec<Slot>,
    /// The lowest number there is.
    first: u32,
}

impl DeviceTable {
    pub(crate) const fn new(first: u32) -> Self {
        Self {
            slots: KVec::new(),
            first,
        }
    }

    fn find(&mut self, number: u32) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.number == number)
    }

    /// Takes `number`, or the lowest that is free. `EEXIST` if it is in use.
    fn take(&mut self, number: Option<u32>) -> Result<u32> {
        let number = match number {
            Some(number) => number,
            None => self.lowest_free()?,
        };
        let at = self.slots.iter().position(|slot| slot.number >= number);
        let at = at.unwrap_or(self.slots.len());
        if self.slots.get(at).is_some_and(|slot| slot.number == number) {
            return Err(EEXIST);
        }
        let slot = Slot {
            number,
            device: None,
            visible: false,
        };
        self.slots.reserve(1, GFP_KERNEL)?;
        self.slots
            .insert_within_capacity(at, slot)
            .map_err(|_| ENOMEM)?;
        Ok(number)
    }

    fn lowest_free(&self) -> Result<u32> {
        let mut free = self.first;
        for slot in self.slots.iter() {
            if slot.number != free {
                break;
            }
            free = free.checked_add(1).ok_or(ENOSPC)?;
        }
        Ok(free)
    }

    fn give_back(&mut self, number: u32) {
        self.slots.retain(|slot| slot.number != number);
    }
}

/// Creates a device; `None` takes the lowest free number. Returns the number.
pub(crate) fn add(instance: &Arc<Instance>, number: Option<u32>) -> Result<u32> {
    let devices = instance.devices();
    let number = devices.lock().take(number)?;
    let device = create(instance, number).inspect_err(|_| devices.lock().give_back(number))?;
    if let Some(slot) = devices.lock().find(number) {
        slot.device = Some(device);
        slot.visible = true;
    }
    Ok(number)
}

fn create(instance: &Arc<Instance>, number: u32) -> Result<Arc<Device>> {
    let first_minor = instance.first_minor(number)?;
    let device = Device::new(instance, number)?;
    let address = Address {
        name: "loop",
        number,
        major: instance.major(),
        first_minor,
        minors: 1 << instance.part_shift(),
    };
    Disk::add(&device, &address, &attributes::GROUPS)?;
    Ok(device)
}

/// `LOOP_CTL_REMOVE`.
fn remove(instance: &Instance, number: u32) -> Result {
    let device = {
        let mut table = instance.devices().lock();
        let slot = table.find(number).filter(|slot| slot.visible);
        let slot = slot.ok_or(ENODEV)?;
        let device = slot.device.clone().ok_or(ENODEV)?;
        slot.visible = false;
        device
    };
    if let Err(error) = mark_deleting(&device) {
        if let Some(slot) = instance.devices().lock().find(number) {
            slot.visible = true;
        }
        return Err(error);
    }
    destroy(instance, device);
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

fn destroy(instance: &Instance, device: Arc<Device>) {
    let number = device.number();
    Disk::remove(device, || instance.devices().lock().give_back(number));
}

/// Creates the devices that are there from the start. As with the C driver, one that cannot be
/// created is no reason to fail.
pub(crate) fn precreate(instance: &Arc<Instance>) {
    for number in instance.precreated() {
        if let Err(error) = add(instance, Some(number)) {
            pr_warn!("cannot create loop{number} ({error:?})\n");
        }
    }
}

/// Removes all devices, at module exit: nobody has one open, or the module would be in use. They go
/// in the order of their numbers, as with the C driver.
pub(crate) fn remove_all(instance: &Instance) {
    loop {
        let first = instance.devices().lock().slots.remove(0);
        let Ok(slot) = first else {
            break;
        };
        if let Some(device) = slot.device {
            destroy(instance, device);
        }
    }
}

/// `LOOP_CTL_GET_FREE`: the lowest device that is not in use; creates one if all are.
fn get_free(instance: &Arc<Instance>) -> Result<u32> {
    let free = {
        let table = instance.devices().lock();
        // Somebody may take it before the caller does; callers try again.
        let mut slots = table.slots.iter();
        slots
            .find(|slot| {
                let unbound = slot.device.as_ref().is_some_and(|dev| dev.looks_unbound());
                slot.visible && unbound
            })
            .map(|slot| slot.number)
    };
    match free {
        Some(number) => Ok(number),
        None => add(instance, None),
    }
}

impl ControlOps for Instance {
    fn ioctl(this: &Arc<Self>, cmd: u32, arg: usize) -> Result<u32> {
        // The argument is an `int`.
        let number = i32::from_ne_bytes(((arg & 0xffff_ffff) as u32).to_ne_bytes());
        match cmd {
            LOOP_CTL_ADD => add(this, u32::try_from(number).ok()),
            LOOP_CTL_REMOVE => {
                let number = u32::try_from(number).map_err(|_| {
                    pr_warn_once!("deleting an unspecified loop device is not supported.\n");
                    EINVAL
                })?;
                remove(this, number).map(|()| 0)
            }
            LOOP_CTL_GET_FREE => get_free(this),
            _ => Err(ENOSYS),
        }
    }

    fn probe(major: u32, minor: u32) {
        let found = {
            let instances = INSTANCES.lock();
            let mut instances = instances.iter();
            instances
                .find(|instance| instance.major() == major)
                .cloned()
        };
        let Some(instance) = found else {
            return;
        };
        if let Some(number) = instance.probed_number(minor) {
            // There is nobody to tell: the open that caused this fails, or finds the device another
            // task has just created.
            let _ = add(&instance, Some(number));
        }
    }
}
