// SPDX-License-Identifier: GPL-2.0

//! A guest that does what an input says, on an image that may be anything.
//!
//! Of a *sound* image, one that a checker finds nothing wrong with, everything is asked: what the
//! guest reads is what it wrote, whatever store fails; nothing is called malformed; the checker still
//! finds nothing wrong; the image is accepted again, and shows the same. In others two places of the
//! disk may be one in the file: of them only the contract is asked, and that they are accepted again,
//! if only to be read.

use loop_parser::contract::{Discard, Error, Result};
use testkit::{
    device::{Begun, Device, Pending},
    store::{Failure, Store},
};

use crate::{
    explore::{self, Forbidden},
    input::{Input, Step, ON_DEVICE},
};

/// Largest disk of which everything is compared, in bytes.
const MAX_SHADOW: u64 = 4 << 20;
/// An input is done when it has cost as many loads: that is half a second.
const ENOUGH_LOADS: u64 = 1 << 22;

/// What there is to know of a format.
pub(crate) struct Format {
    /// Attaches a copy of an image, writable or not.
    pub(crate) open: fn(&Store, bool) -> Result<Device>,
    /// A checker finds nothing wrong with an image that was attached. Total.
    pub(crate) is_sound: fn(&Store) -> bool,
    /// What a guest must not write in place.
    pub(crate) forbidden: fn(&Store) -> Forbidden,
    /// Panics if something was changed that never changes: the image before, and after.
    pub(crate) compare: fn(&Store, &Store),
    /// Most loads of an attach, of a look-up, and of any other call.
    pub(crate) max_loads: [u64; 3],
}

impl Format {
    /// Attaches an image in both ways, which have to agree. Answers the read-only device.
    pub(crate) fn attach(&self, store: &Store) -> Option<Device> {
        let writable = self.open(store, true);
        match (self.open(store, false), writable) {
            (Ok(device), Ok(other)) => {
                assert_eq!(device.disk, other.disk);
                Some(device)
            }
            (Ok(device), Err(Error::NeedsReadOnly(_))) => Some(device),
            (Ok(_), Err(error)) => panic!("refused because it is writable: {error:?}"),
            (Err(error), Ok(_)) => panic!("refused because it is not writable: {error:?}"),
            (Err(_), Err(_)) => None,
        }
    }

    /// Attaches a copy of an image. It has to be cheap, and the image to blame if it fails.
    fn open(&self, store: &Store, writable: bool) -> Result<Device> {
        let store = store.clone();
        let before = store.loads();
        let result = (self.open)(&store, writable);
        let [max_loads, ..] = self.max_loads;
        let after = match &result {
            Ok(device) => device.store.loads(),
            Err(_) => store.loads(),
        };
        assert!(after - before <= max_loads, "{} loads", after - before);
        if let Err(error) = result {
            assert!(
                matches!(
                    error,
                    Error::Malformed(_) | Error::Unsupported(_) | Error::NeedsReadOnly(_)
                ),
                "{error:?}"
            );
            assert!(writable || !matches!(error, Error::NeedsReadOnly(_)));
        }
        result
    }

    /// Looks at all of an image that is only read.
    pub(crate) fn look(&self, store: &Store) -> Option<Device> {
        let device = self.attach(store)?;
        let [_, max_loads, _] = self.max_loads;
        explore::read(&device, max_loads);
        explore::write(&device, max_loads, &(self.forbidden)(store));
        Some(device)
    }

    /// Lets the guest do its steps.
    pub(crate) fn run(&self, input: &Input) {
        let mut store = input.store.clone();
        if input.options & ON_DEVICE != 0 {
            let free = u64::from(input.options >> 4) * 4096;
            let size = store.len().next_multiple_of(512).saturating_add(free);
            store = store.into_device(size, 0xa5);
        }
        let Some(reader) = self.look(&store) else {
            return;
        };
        let Ok(device) = self.open(&store, true) else {
            return;
        };
        let mut guest = Guest::new(self, device, &reader);
        for step in &input.steps {
            if guest.device.store.loads() > ENOUGH_LOADS {
                break;
            }
            guest.step(step);
        }
        guest.end(&store);
    }
}

struct Guest<'a> {
    format: &'a Format,
    device: Device,
    /// What the guest reads, if the image is sound, and the disk small.
    shadow: Option<Vec<u8>>,
    is_sound: bool,
    version: u64,
}

impl<'a> Guest<'a> {
    fn new(format: &'a Format, device: Device, reader: &Device) -> Self {
        let is_sound = (format.is_sound)(&device.store);
        let size = device.disk.size;
        let mut shadow = None;
        if is_sound && size <= MAX_SHADOW {
            // What is compressed may be damaged all the same.
            shadow = reader.read(0, size).ok();
        }
        Self {
            format,
            device,
            is_sound: is_sound && shadow.is_some(),
            shadow,
            version: 0,
        }
    }

    /// Does something with the device. No call takes many loads.
    fn call<T>(&mut self, work: impl FnOnce(&mut Device) -> T) -> T {
        let before = self.device.store.loads();
        let result = work(&mut self.device);
        let loads = self.device.store.loads() - before;
        let [.., max_loads] = self.format.max_loads;
        assert!(loads <= max_loads, "{loads} loads");
        result
    }

    fn step(&mut self, step: &Step) {
        if step.op & 0x80 != 0 {
            let failure = Failure::ALL[usize::from(step.arg >> 6) % 3];
            self.device
                .store
                .fail_after(u64::from(step.arg & 15), failure);
        }
        match step.op % 16 {
            0..=6 => self.write(step),
            7..=9 => self.write_two(step),
            10..=12 => self.discard(step),
            13 => self.device.flush().expect("no store fails a sync"),
            14 => self.close(),
            _ => self.reopen(),
        }
        self.device.store.never_fail();
    }

    /// A range of the disk: position and length.
    fn range(&self, step: &Step) -> (u64, u64) {
        let sectors = self.device.disk.size / 512;
        if sectors == 0 {
            return (0, 0);
        }
        let place = match sectors > 1 << 24 {
            true => u64::from(step.place) << (step.arg & 31),
            false => u64::from(step.place),
        };
        let first = place % sectors;
        let scale = u64::from(step.arg & 32) / 32 * 16;
        let count = (1 + u64::from(step.count) % 64 + scale).min(sectors - first);
        (first * 512, count * 512)
    }

    /// Bytes that were never written before.
    fn data(&mut self, pos: u64, len: u64) -> Vec<u8> {
        self.version += 1;
        let version = self.version as u8 | 0x80;
        let mut bytes = vec![version; len as usize];
        for (number, sector) in (pos / 512..).zip(bytes.chunks_exact_mut(512)) {
            sector[..8].copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    fn write(&mut self, step: &Step) {
        let (pos, len) = self.range(step);
        let data = self.data(pos, len);
        let mut result = Ok(());
        let mut done = 0;
        while done < data.len() && result.is_ok() {
            let begun = self.call(|it| it.begin(pos + done as u64, &data[done..]));
            result = match begun {
                Ok(Begun::Written(len)) => {
                    done += len;
                    Ok(())
                }
                Ok(Begun::Pending(pending, len)) => {
                    done += len;
                    self.call(|it| it.finish(pending))
                }
                Err(error) => Err(error),
            };
        }
        self.settle(pos, &data, result);
    }

    /// Two writes, to different units, of which the first to begin is the last to end, or given up.
    fn write_two(&mut self, step: &Step) {
        let unit = self.device.disk.unit;
        let (first, _) = self.range(step);
        let size = self.device.disk.size;
        let other = match unit {
            0 => return,
            _ => (first - first % unit).checked_add(unit * (1 + u64::from(step.arg & 3))),
        };
        let Some(second) = other.filter(|&it| it < size) else {
            return;
        };
        let one = self.begin_one(first, step);
        let two = self.begin_one(second, step);
        for (pos, data, pending) in [two, one].into_iter().flatten() {
            let result = if step.arg & 16 != 0 && pos == first {
                self.device.give_up(&pending);
                Err(Error::Store(-28))
            } else {
                self.call(|it| it.finish(pending))
            };
            self.settle(pos, &data, result);
        }
    }

    fn begin_one(&mut self, pos: u64, step: &Step) -> Option<(u64, Vec<u8>, Pending)> {
        let unit = self.device.disk.unit;
        let most = (unit - pos % unit).min(self.device.disk.size - pos) / 512;
        let count = 1 + u64::from(step.count) % most.min(64);
        let data = self.data(pos, count * 512);
        match self.call(|it| it.begin(pos, &data)) {
            Ok(Begun::Written(len)) => {
                self.settle(pos, &data[..len], Ok(()));
                None
            }
            Ok(Begun::Pending(pending, len)) => Some((pos, data[..len].to_vec(), pending)),
            Err(error) => {
                self.settle(pos, &data, Err(error));
                None
            }
        }
    }

    fn discard(&mut self, step: &Step) {
        let (mut pos, mut len) = self.range(step);
        let unit = self.device.disk.unit;
        if step.arg & 16 != 0 && unit != 0 {
            // Whole units.
            pos -= pos % unit;
            len = len.next_multiple_of(unit).min(self.device.disk.size - pos);
        }
        if len == 0 || !self.device.disk.features.discard || len > MAX_SHADOW {
            return;
        }
        let how = [Discard::Forget, Discard::Zero, Discard::ZeroInPlace][usize::from(step.op % 3)];
        let result = self.device.discard(pos, len, how);
        if let Err(error) = result {
            self.check_error(error);
        }
        let Some(mut shadow) = self.shadow.take() else {
            return;
        };
        let may_stay = how == Discard::Forget || result.is_err();
        let old = &mut shadow[pos as usize..(pos + len) as usize];
        let new = self.device.read(pos, len).expect("the image is sound");
        for (is, was) in new.chunks(512).zip(old.chunks(512)) {
            assert!(is == [0; 512] || (may_stay && is == was), "{how:?}");
        }
        old.copy_from_slice(&new);
        self.shadow = Some(shadow);
    }

    /// Compares what was written with what is read; if that failed, each sector is old or new.
    fn settle(&mut self, pos: u64, data: &[u8], result: Result) {
        if let Err(error) = result {
            self.check_error(error);
        }
        let Some(shadow) = &mut self.shadow else {
            return;
        };
        let old = &mut shadow[pos as usize..][..data.len()];
        let new = self.device.read(pos, data.len() as u64);
        let new = new.expect("the image is sound");
        let parts = new.chunks(512).zip(old.chunks(512)).zip(data.chunks(512));
        for ((is, was), should) in parts {
            assert!(is == should || (result.is_err() && is == was));
        }
        old.copy_from_slice(&new);
    }

    /// A sound image is never malformed; it can have no room.
    fn check_error(&self, error: Error) {
        match error {
            Error::Store(-28 | -27) => {}
            Error::Malformed(_) | Error::Unsupported(_) | Error::NeedsReadOnly(_) => {
                assert!(!self.is_sound, "{error:?}");
            }
            _ => panic!("{error:?}"),
        }
    }

    fn close(&mut self) {
        if let Err(error) = self.call(Device::trim) {
            self.check_error(error);
        }
    }

    /// Detaches the image, and attaches it again.
    fn reopen(&mut self) {
        self.close();
        self.device.store.never_fail();
        match self.format.open(&self.device.store, true) {
            Ok(device) => self.device = device,
            // It was marked as corrupt.
            Err(Error::NeedsReadOnly(_)) if !self.is_sound => {}
            Err(error) => panic!("not accepted again: {error:?}"),
        }
    }

    fn end(mut self, before: &Store) {
        self.close();
        let store = &self.device.store;
        (self.format.compare)(before, store);
        let reader = self.format.look(store).expect("not accepted again");
        if let Some(shadow) = &self.shadow {
            let disk = reader.read(0, reader.disk.size);
            assert!(disk.as_ref() == Ok(shadow), "the disk has changed");
        }
        if self.is_sound {
            assert!(
                (self.format.is_sound)(store),
                "the image is not sound any more"
            );
        }
    }
}

/// What the disks of the targets lie on that have a backing file.
pub(crate) fn below() -> Device {
    crate::vhd::fixed(&crate::vhd_image::Spec::fixed(40 * 512 + 1024).build().store)
}
