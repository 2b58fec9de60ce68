// SPDX-License-Identifier: GPL-2.0

//! Buffers for bytes that cannot go straight between the file and a request: units that are stored
//! compressed, and what a write to a part of a unit has to copy.
//!
//! An image has a few of them, made when they are needed for the first time. If there is no memory
//! for another one, those who want one wait for one in use. So nobody fails who could wait; only
//! the first one that is large enough must be had.
//!
//! A buffer remembers which unit was decompressed into it last, and serves the next read of that
//! unit, too: a sequential read decompresses each unit once. That is no cache: nothing is kept for
//! its own sake, and the next one who needs the buffer takes it. A unit is told by where it lies,
//! how much of it the file has, and how often space of the image was given back (see `reclaim.rs`):
//! what lies there may have become something else then.
//!
//! Who has a buffer waits for nothing but I/O of the image's file, and perhaps for a buffer of a layer
//! below; and holds no lock over it but that file's write gate. A buffer of a layer below is held while
//! that layer's file is read, not while the image is written to. So those who wait get one, whatever they
//! hold: files lie on devices without cycles, and layers have none.

use core::cmp::min;

use kernel::{
    alloc::{
        flags::__GFP_NOWARN,
        Flags, //
    },
    cpu::nr_cpu_ids,
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        CondVar,
        Mutex, //
    }, //
};

use crate::{
    contract::{
        self,
        Compressed,
        Compression,
        Error, //
    },
    image::Layer,
    retry,
    sys::{
        decompress::Decompressor,
        file::BackingFile,
        io, //
    },
    tables::store_error, //
};

/// Most buffers of one image.
const MAX_BUFFERS: usize = 4;

/// Bytes that are copied at a time, if a buffer is that large.
const COPY: usize = 64 << 10;

/// The least that a buffer for copies has.
const COPY_MIN: usize = 4096;

/// Which bytes were decompressed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Unit {
    offset: u64,
    /// As many bytes as the file has of it.
    stored: usize,
    unit: usize,
    /// At least this much of it has to come out.
    least: usize,
    compression: Compression,
    /// How often space had been given back.
    reclaimed: u32,
}

impl Unit {
    /// More than any compressor makes of a unit is not read: the data of the next one follows.
    fn of(layer: Layer<'_>, unit: &Compressed) -> contract::Result<Self> {
        let broken = Error::malformed("compressed unit past the end of the file", unit.offset);
        let most = u64::from(unit.unit) + u64::from(unit.unit / 64) + 4096;
        let left = layer.file.size().saturating_sub(unit.offset);
        let stored = min(u64::from(unit.stored), left).min(most);
        if stored == 0 {
            return Err(broken);
        }
        Ok(Self {
            offset: unit.offset,
            stored: usize::try_from(stored).map_err(|_| broken)?,
            unit: usize::try_from(unit.unit).map_err(|_| broken)?,
            least: usize::try_from(unit.least).map_err(|_| broken)?,
            compression: unit.compression,
            reclaimed: layer.image.reclaimed(),
        })
    }
}

/// The memory.
struct Buffer {
    output: KVVec<u8>,
    input: KVVec<u8>,
    decompressor: Option<Decompressor>,
}

impl Buffer {
    const fn new() -> Self {
        Self {
            output: KVVec::new(),
            input: KVVec::new(),
            decompressor: None,
        }
    }

    /// Whether it will do; for copies if there is no unit: one who is modest makes these in small
    /// steps.
    fn is_fit(&self, unit: Option<&Unit>, is_modest: bool) -> bool {
        let Some(unit) = unit else {
            return self.output.len() >= if is_modest { COPY_MIN } else { COPY };
        };
        let kind = self.decompressor.as_ref().map(Decompressor::compression);
        self.output.len() >= unit.unit
            && self.input.len() >= unit.stored
            && kind == Some(unit.compression)
    }

    /// Makes it do.
    fn fit(&mut self, unit: Option<&Unit>, flags: Flags) -> Result {
        let Some(unit) = unit else {
            return grow(&mut self.output, COPY, flags);
        };
        grow(&mut self.output, unit.unit, flags)?;
        // What other units need is not much more, and never more than this.
        let input = min(unit.stored.saturating_mul(2), unit.unit).max(unit.stored);
        grow(&mut self.input, input, flags)?;
        let kind = self.decompressor.as_ref().map(Decompressor::compression);
        if kind != Some(unit.compression) {
            self.decompressor = None;
            self.decompressor = Some(Decompressor::new(unit.compression, flags)?);
        }
        Ok(())
    }

    /// Reads and decompresses a unit.
    fn load(&mut self, file: &BackingFile, unit: &Unit) -> contract::Result {
        let broken = Error::malformed("compressed unit that cannot be decompressed", unit.offset);
        let input = self.input.get_mut(..unit.stored).ok_or(broken)?;
        let got = retry::data(|| io::read(file, unit.offset, input)).map_err(store_error)?;
        let input = input.get(..got).ok_or(broken)?;
        let output = self.output.get_mut(..unit.unit).ok_or(broken)?;
        let decompressor = self.decompressor.as_mut().ok_or(broken)?;
        let got = decompressor.run(input, output).ok_or(broken)?;
        if got < unit.least {
            return Err(broken);
        }
        output.get_mut(got..).unwrap_or(&mut []).fill(0);
        Ok(())
    }
}

/// Gives a buffer `len` bytes, if it does not have them.
fn grow(bytes: &mut KVVec<u8>, len: usize, flags: Flags) -> Result {
    if bytes.len() < len {
        // If this fails, the old one is still there.
        *bytes = KVVec::from_elem(0, len, flags)?;
    }
    Ok(())
}

/// One of the buffers.
struct Slot {
    /// Not there: in use, or not made yet.
    buffer: Option<KBox<Buffer>>,
    in_use: bool,
    /// What is in it, or is being put there.
    unit: Option<Unit>,
    /// When it was used last.
    used: u64,
}

impl Slot {
    const fn new(buffer: Option<KBox<Buffer>>) -> Self {
        Self {
            buffer,
            in_use: false,
            unit: None,
            used: 0,
        }
    }
}

struct Slots {
    slots: [Slot; MAX_BUFFERS],
    /// How many of them may be used: there is no point in more than there are processors.
    limit: usize,
    clock: u64,
}

/// What was found.
enum Choice {
    /// This one is free and will do.
    Take(usize),
    /// This one is free; it has to be made larger, or made at all.
    Make(usize),
    /// Somebody has to come back first.
    Wait,
    /// There is nobody to wait for.
    None,
}

impl Slots {
    /// `may_make` says that it is worth trying to get memory.
    fn choose(&self, unit: Option<&Unit>, may_make: bool) -> Choice {
        let mut slots = self.slots.iter();
        if let Some(at) = slots.position(|slot| unit.is_some() && slot.unit.as_ref() == unit) {
            return match self.slots.get(at) {
                Some(slot) if slot.in_use => Choice::Wait,
                _ => Choice::Take(at),
            };
        }
        let slots = || self.slots.iter().enumerate().take(self.limit);
        let free = || slots().filter(|(_, slot)| !slot.in_use);
        let fit = free().filter(|(_, slot)| {
            let buffer = slot.buffer.as_ref();
            buffer.is_some_and(|buffer| buffer.is_fit(unit, !may_make))
        });
        if let Some((at, _)) = fit.min_by_key(|(_, slot)| slot.used) {
            return Choice::Take(at);
        }
        match free().next() {
            Some((at, _)) if may_make => Choice::Make(at),
            _ if self.slots.iter().any(|slot| slot.in_use) => Choice::Wait,
            _ => Choice::None,
        }
    }

    fn take(&mut self, at: usize, unit: Option<&Unit>) -> Option<(Option<KBox<Buffer>>, bool)> {
        self.clock = self.clock.wrapping_add(1);
        let slot = self.slots.get_mut(at)?;
        let is_loaded = unit.is_some() && slot.unit.as_ref() == unit;
        slot.in_use = true;
        slot.unit = unit.copied();
        slot.used = self.clock;
        Some((slot.buffer.take(), is_loaded))
    }
}

/// The buffers of an image.
#[pin_data]
pub(crate) struct Pool {
    #[pin]
    slots: Mutex<Slots>,
    #[pin]
    returned: CondVar,
}

impl Pool {
    /// Allocates the buffers of an image that has tables: the first one, with what a copy on the
    /// write path needs. An image with parents has a lot to copy.
    pub(crate) fn new(has_parents: bool) -> Result<Pin<KBox<Self>>> {
        let mut first = KBox::new(Buffer::new(), GFP_KERNEL)?;
        let len = if has_parents { COPY } else { COPY_MIN };
        grow(&mut first.output, len, GFP_KERNEL)?;
        let limit = usize::try_from(nr_cpu_ids()).unwrap_or(MAX_BUFFERS);
        let pool = pin_init!(Self {
            slots <- new_mutex!(Slots {
                slots: [
                    Slot::new(Some(first)),
                    Slot::new(None),
                    Slot::new(None),
                    Slot::new(None),
                ],
                limit,
                clock: 0,
            }, "Pool::slots"),
            returned <- new_condvar!("Pool::returned"),
        });
        KBox::pin_init(pool, GFP_KERNEL)
    }

    /// Takes a buffer for a unit, or for copies. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: there is no memory for one, and nobody has one who could give it back.
    fn take(&self, unit: Option<&Unit>) -> Result<Taken<'_>> {
        let mut may_make = true;
        let mut slots = self.slots.lock();
        loop {
            let (at, is_fit) = match slots.choose(unit, may_make) {
                Choice::Take(at) => (at, true),
                Choice::Make(at) => (at, false),
                Choice::Wait => {
                    self.returned.wait(&mut slots);
                    may_make = true;
                    continue;
                }
                Choice::None => return Err(ENOMEM),
            };
            let is_only = !slots.slots.iter().any(|slot| slot.in_use);
            let (buffer, is_loaded) = slots.take(at, unit).ok_or(ENOMEM)?;
            drop(slots);
            let mut taken = Taken {
                pool: self,
                at,
                buffer,
                is_loaded,
            };
            // Who can wait for another one need not be heard of.
            let quiet = GFP_KERNEL | __GFP_NOWARN;
            let flags = if is_only { GFP_KERNEL } else { quiet };
            if is_fit || taken.make(unit, flags).is_ok() {
                return Ok(taken);
            }
            drop(taken);
            may_make = false;
            slots = self.slots.lock();
        }
    }
}

/// A buffer in use. Goes back when dropped.
struct Taken<'a> {
    pool: &'a Pool,
    at: usize,
    buffer: Option<KBox<Buffer>>,
    /// The unit is in it.
    is_loaded: bool,
}

impl Taken<'_> {
    fn make(&mut self, unit: Option<&Unit>, flags: Flags) -> Result {
        let mut buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => KBox::new(Buffer::new(), flags)?,
        };
        let result = buffer.fit(unit, flags);
        self.buffer = Some(buffer);
        result
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut slots = self.pool.slots.lock();
        if let Some(slot) = slots.slots.get_mut(self.at) {
            slot.in_use = false;
            slot.buffer = self.buffer.take();
            if !self.is_loaded {
                slot.unit = None;
            }
        }
        drop(slots);
        self.pool.returned.notify_all();
    }
}

fn output<'a>(taken: &'a mut Taken<'_>) -> contract::Result<&'a mut [u8]> {
    let buffer = taken.buffer.as_mut();
    let buffer = buffer.ok_or(Error::Store(ENOMEM.to_errno()))?;
    Ok(&mut buffer.output)
}

/// Decompresses the unit that a range was resolved to, if that is not there already, and passes the
/// bytes of the range to `with`: the first `most` of them, at most. Returns how many that were.
/// May sleep; a fault is reported here.
// Not inlined, for the stack: and so below.
#[inline(never)]
pub(crate) fn decompressed(
    layer: Layer<'_>,
    unit: &Compressed,
    most: u64,
    with: impl FnOnce(&[u8]) -> contract::Result,
) -> contract::Result<u64> {
    let mut taken = load(layer, unit).map_err(|error| layer.image.reported(error))?;
    let broken = Error::malformed("parser resolved to an impossible unit", unit.offset);
    let len = min(unit.len, most);
    let start = usize::try_from(unit.skip).map_err(|_| broken)?;
    let count = usize::try_from(len).map_err(|_| broken)?;
    let end = start.checked_add(count).ok_or(broken)?;
    let bytes = output(&mut taken)?.get(start..end).ok_or(broken)?;
    with(bytes)?;
    Ok(len)
}

#[inline(never)]
fn load<'a>(layer: Layer<'a>, unit: &Compressed) -> contract::Result<Taken<'a>> {
    let unit = Unit::of(layer, unit)?;
    let pool = layer.image.pool()?;
    let mut taken = pool.take(Some(&unit)).map_err(store_error)?;
    if !taken.is_loaded {
        let buffer = taken.buffer.as_mut();
        let buffer = buffer.ok_or(Error::Store(ENOMEM.to_errno()))?;
        buffer.load(layer.file, &unit)?;
        taken.is_loaded = true;
    }
    Ok(taken)
}

/// Passes memory for `most` bytes, or less, to `with`. Returns how many that were. May sleep.
#[inline(never)]
pub(crate) fn buffered(
    pool: &Pool,
    most: u64,
    with: impl FnOnce(&mut [u8]) -> contract::Result,
) -> contract::Result<u64> {
    let mut taken = pool.take(None).map_err(store_error)?;
    let bytes = output(&mut taken)?;
    let len = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
    with(bytes.get_mut(..len).unwrap_or(&mut []))?;
    Ok(len as u64)
}
