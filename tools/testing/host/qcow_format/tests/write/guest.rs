// SPDX-License-Identifier: GPL-2.0

//! A driver, and a guest that knows what it has written.

use std::rc::Rc;

use loop_parser::contract::{
    Allocate, Discard, Discarded, Disk, Error, Extent, Map, Placement, Range, Reservation,
    Reserved, Result, TablesMut, Unlinked,
};
use qcow_format::format::v2::{self, Qcow2Allocator, Qcow2Map};
use testkit::{
    oracle::Event,
    rng::Rng,
    store::{Failure, Sector, Store},
};

use crate::image::{pattern, Image};

/// What space is full of that was given back.
const FREED: u8 = 0xe7;
/// Pieces of space that the driver keeps before it gives them back.
const MAX_UNLINKED: usize = 4;

/// Rules of the driver that can be broken, to see that it is found out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Careless {
    /// Data is not synced before it is published.
    pub data: bool,
    /// Space is given back although the removal of its pointer is not durable.
    pub reclaim: bool,
    /// What is not written of a granule is not completed.
    pub granule: bool,
}

/// A guest and its driver.
pub struct Guest {
    pub store: Store,
    pub disk: Disk,
    /// What the guest reads.
    pub shadow: Vec<u8>,
    pub careless: Careless,
    pub events: Vec<Event>,
    /// A store has failed while space was taken back.
    pub has_lost: bool,
    pub rng: Rng,
    map: Qcow2Map,
    alloc: Qcow2Allocator,
    base: Vec<u8>,
    has_begun: bool,
    unlinked: Vec<Unlinked>,
    version: u64,
    unit_sectors: u64,
    suits_failures: bool,
}

/// A part of a guest write that waits for its place to be published.
pub struct Pending {
    space: Reservation,
    pos: u64,
    data: Vec<u8>,
}

enum Begun {
    Written(usize),
    Pending(Pending, usize),
}

impl Guest {
    pub fn new(image: &Image, seed: u64) -> Self {
        Self::over(image, image.store.clone(), image.disk.clone(), seed)
    }

    /// A guest of another state of the image, whose content is known.
    pub fn over(image: &Image, store: Store, shadow: Vec<u8>, seed: u64) -> Self {
        let attached = v2::attach(&store, "", true).unwrap();
        assert_eq!(attached.disk.size, shadow.len() as u64);
        Self {
            store,
            disk: attached.disk,
            shadow,
            careless: Careless::default(),
            events: vec![Event::Flushed],
            has_lost: false,
            rng: Rng::new(seed),
            map: attached.map,
            alloc: attached.alloc.build(),
            base: image.base.clone(),
            has_begun: false,
            unlinked: Vec::new(),
            version: 1000,
            unit_sectors: image.spec.cluster / 512,
            suits_failures: true,
        }
    }

    pub fn without_failures(mut self) -> Self {
        self.suits_failures = false;
        self
    }

    fn sectors(&self) -> u64 {
        self.disk.size / 512
    }

    fn note(&mut self, event: Event) {
        self.store.mark(self.events.len());
        self.events.push(event);
    }

    // The driver.

    /// Tells the parser, once, that there will be writes.
    fn begin_writing(&mut self) -> Result {
        if !self.has_begun {
            self.alloc.begin(&mut self.store)?;
            self.has_begun = true;
        }
        Ok(())
    }

    /// Asks the parser once more if there should be writes, if the image was found to be malformed.
    fn heed<R>(&mut self, result: Result<R>) -> Result<R> {
        if matches!(result, Err(Error::Malformed(_))) {
            self.has_begun = false;
        }
        result
    }

    /// Writes guest bytes, one allocation after the other.
    pub fn write(&mut self, pos: u64, data: &[u8]) -> Result {
        let result = self.write_pieces(pos, data);
        self.heed(result)
    }

    fn write_pieces(&mut self, pos: u64, data: &[u8]) -> Result {
        let mut done = 0;
        while done < data.len() {
            match self.begin(pos + done as u64, &data[done..])? {
                Begun::Written(len) => done += len,
                Begun::Pending(pending, len) => {
                    self.finish(pending)?;
                    done += len;
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, pos: u64, data: &[u8]) -> Result<Begun> {
        self.begin_writing()?;
        for _ in 0..4 {
            let left = data.len() as u64;
            match self.map.resolve_write(&self.store, pos, left)? {
                Placement::InPlace { offset, len } => {
                    assert!(len > 0 && len <= left && offset + len <= self.store.len());
                    self.store.write_data(offset, &data[..len as usize])?;
                    return Ok(Begun::Written(len as usize));
                }
                Placement::Allocate { pos: unit, len } => {
                    assert!(unit <= pos && pos < unit + len);
                    let reserved = self.alloc.reserve(&mut self.store, pos, left)?;
                    if let Reserved::Space(space) = reserved {
                        assert!(unit <= space.pos && space.pos + space.len <= unit + len);
                        return Ok(self.pending(space, pos, data));
                    }
                }
            }
        }
        panic!("reserve and resolve disagree");
    }

    fn pending(&self, space: Reservation, pos: u64, data: &[u8]) -> Begun {
        assert!(space.pos <= pos && pos < space.pos + space.len);
        assert!(space.offset + space.len <= self.store.len());
        if space.granule == 0 {
            let old = self.store.get(space.offset, space.len as usize);
            assert!(old.iter().all(|&byte| byte == 0), "space is not zero");
        } else {
            assert!(space.granule.is_power_of_two() && space.granule <= space.len);
        }
        assert!(space.sync_before_publish || space.granule == 0);
        let len = (space.pos + space.len - pos).min(data.len() as u64) as usize;
        let data = data[..len].to_vec();
        Begun::Pending(Pending { space, pos, data }, len)
    }

    /// Writes the bytes and publishes the place; gives it back if the bytes cannot be written.
    fn finish(&mut self, pending: Pending) -> Result {
        let result = self.fill_in(&pending);
        if result.is_err() {
            self.alloc.release(&pending.space);
        }
        self.unlinked.extend(result?);
        if self.unlinked.len() > MAX_UNLINKED {
            self.give_back()?;
        }
        Ok(())
    }

    fn fill_in(&mut self, pending: &Pending) -> Result<Option<Unlinked>> {
        let Pending { space, pos, data } = pending;
        let at = |pos: u64| space.offset + (pos - space.pos);
        self.store.write_data(at(*pos), data)?;
        let end = pos + data.len() as u64;
        let mut written = Range {
            pos: space.pos,
            len: space.len,
        };
        if space.granule != 0 {
            let first = pos / space.granule * space.granule;
            let last = end.next_multiple_of(space.granule);
            written = Range {
                pos: first,
                len: last - first,
            };
            if !self.careless.granule {
                self.copy_old(at(first), first, *pos)?;
                self.copy_old(at(end), end, last)?;
            }
        }
        if space.sync_before_publish && !self.careless.data {
            self.store.sync()?;
        }
        self.alloc.publish(&mut self.store, space, written)
    }

    /// Copies what a guest range reads as; what is past the end of the disk is left alone.
    fn copy_old(&mut self, to: u64, start: u64, end: u64) -> Result {
        let end = end.min(self.disk.size);
        if start >= end {
            return Ok(());
        }
        let bytes = self.read(start, end - start)?;
        self.store.write_data(to, &bytes)
    }

    /// Reads through the map. Compressed clusters are not decompressed: the shadow knows them.
    pub fn read(&self, pos: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let at = pos + bytes.len() as u64;
            let left = len - bytes.len() as u64;
            let extent = self.map.resolve_read(&self.store, at, left)?;
            bytes.extend(match extent {
                Extent::Data { offset, len } => self.store.get(offset, len as usize),
                Extent::Zero { len } => vec![0; len as usize],
                Extent::Parent { len } => {
                    let start = self.base.len().min(at as usize);
                    let end = self.base.len().min((at + len) as usize);
                    let mut bytes = self.base[start..end].to_vec();
                    bytes.resize(len as usize, 0);
                    bytes
                }
                Extent::Compressed(unit) => {
                    self.shadow[at as usize..(at + unit.len) as usize].to_vec()
                }
            });
        }
        Ok(bytes)
    }

    /// Gives back the space that lost its pointer.
    pub fn give_back(&mut self) -> Result {
        if !self.unlinked.is_empty() && !self.careless.reclaim {
            self.store.sync()?;
        }
        while let Some(&space) = self.unlinked.last() {
            let was_due = self.store.is_failure_due();
            let hole = self.alloc.reclaim(&mut self.store, space);
            self.has_lost |= was_due && !self.store.is_failure_due();
            let hole = self.heed(hole)?;
            self.unlinked.pop();
            if let Some(hole) = hole {
                // A hole, but nobody may rely on that.
                self.store.fill_data(hole.offset, hole.len, FREED)?;
            }
        }
        Ok(())
    }

    /// Discards a guest range, or makes it zero.
    pub fn discard(&mut self, pos: u64, len: u64, how: Discard) -> Result {
        let result = self.discard_pieces(pos, len, how);
        self.heed(result)
    }

    fn discard_pieces(&mut self, pos: u64, len: u64, how: Discard) -> Result {
        self.begin_writing()?;
        let mut done = 0;
        while done < len {
            let range = Range {
                pos: pos + done,
                len: len - done,
            };
            let size = self.disk.size;
            let step = self.alloc.discard(&mut self.store, range, size, how)?;
            let got = match step {
                Discarded::Done { len } => len,
                Discarded::Zero { offset, len } => {
                    assert!(offset + len <= self.store.len());
                    self.store.fill_data(offset, len, 0)?;
                    len
                }
                Discarded::Write { len } => {
                    assert_ne!(how, Discard::Forget);
                    self.write(range.pos, &vec![0; len as usize])?;
                    len
                }
                Discarded::Freed { len, space } => {
                    self.unlinked.push(space);
                    if self.unlinked.len() > MAX_UNLINKED {
                        self.give_back()?;
                    }
                    len
                }
            };
            assert!(got > 0 && got <= range.len && got % 512 == 0, "{step:?}");
            done += got;
        }
        Ok(())
    }

    /// What the guest reads after it has written `data` at `pos`.
    pub fn shadow_after(&self, pos: u64, data: &[u8]) -> Vec<u8> {
        let mut disk = self.shadow.clone();
        disk[pos as usize..pos as usize + data.len()].copy_from_slice(data);
        disk
    }

    pub fn flush(&mut self) {
        self.store.sync().unwrap();
        self.note(Event::Flushed);
    }

    /// The last use of the device; it can be used again.
    pub fn close(&mut self) -> Result {
        self.store.sync()?;
        self.give_back()?;
        self.has_begun = false;
        self.alloc.close(&mut self.store)
    }

    // The guest.

    fn new_contents(&mut self, first: u64, count: u64) -> Vec<Sector> {
        self.version += 1;
        let version = self.version;
        (first..first + count)
            .map(|sector| Rc::new(pattern(sector, version)))
            .collect()
    }

    /// Does something.
    pub fn step(&mut self) {
        let may_fail = self.suits_failures && self.rng.one_in(8);
        if may_fail {
            let failure = Failure::ALL[self.rng.below(3) as usize];
            let after = self.rng.below(8);
            self.store.fail_after(after, failure);
        }
        match self.rng.below(20) {
            0..=6 => self.write_one(),
            7..=12 => self.write_many(),
            13..=14 => self.flush(),
            15..=18 => self.discard_one(),
            _ => {
                if let Err(error) = self.close() {
                    assert!(may_fail && is_no_room(error), "close: {error:?}");
                }
            }
        }
        self.store.never_fail();
    }

    /// The guest's disk is what the guest wrote.
    #[track_caller]
    pub fn verify(&self) {
        let disk = self.read(0, self.disk.size).unwrap();
        for (sector, (is, should)) in disk.chunks(512).zip(self.shadow.chunks(512)).enumerate() {
            assert!(is == should, "sector {sector}: {:02x?}", &is[..8]);
        }
    }

    /// Takes over what was written, or what became of it if that failed half-way.
    fn settle(&mut self, first: u64, contents: Vec<Sector>, result: &Result) {
        let (start, end) = (
            first as usize * 512,
            (first as usize + contents.len()) * 512,
        );
        match result {
            Ok(()) => {
                let bytes: Vec<u8> = contents.iter().flat_map(|it| **it).collect();
                self.shadow[start..end].copy_from_slice(&bytes);
                self.note(Event::Done(first, contents));
            }
            Err(error) => {
                assert!(is_no_room(*error), "{error:?}");
                let now = self.read(start as u64, (end - start) as u64).unwrap();
                for (number, is) in now.chunks(512).enumerate() {
                    let at = start + number * 512;
                    let is_old = is == &self.shadow[at..at + 512];
                    assert!(
                        is_old || is == &contents[number][..],
                        "sector of a failed write"
                    );
                }
                self.shadow[start..end].copy_from_slice(&now);
            }
        }
    }

    fn write_one(&mut self) {
        let first = self.rng.below(self.sectors());
        let most = (self.sectors() - first).min(self.unit_sectors * 2 + 1);
        let count = match self.rng.below(3) {
            0 => 1 + self.rng.below(most.min(4)),
            _ => 1 + self.rng.below(most),
        };
        let contents = self.new_contents(first, count);
        self.note(Event::Begin(first, contents.clone()));
        let bytes: Vec<u8> = contents.iter().flat_map(|it| **it).collect();
        let result = self.write(first * 512, &bytes);
        self.settle(first, contents, &result);
    }

    /// Several writes at once, to different units, that end in another order than they began.
    fn write_many(&mut self) {
        let units = self.sectors().div_ceil(self.unit_sectors);
        let mut chosen: Vec<u64> = (0..units).collect();
        self.rng.shuffle(&mut chosen);
        let count = 1 + self.rng.below(6) as usize;
        let mut begun = Vec::new();
        for &unit in chosen.iter().take(count) {
            begun.extend(self.begin_in(unit));
        }
        // Others are discarded meanwhile.
        for &unit in chosen.iter().skip(count).take(2) {
            if self.rng.one_in(3) {
                let first = unit * self.unit_sectors;
                self.discard_range(first, (self.sectors() - first).min(self.unit_sectors));
            }
        }
        self.rng.shuffle(&mut begun);
        for (pending, first, contents) in begun {
            let result = self.finish_all(pending);
            self.settle(first, contents, &result);
            if self.rng.one_in(12) {
                self.flush();
            }
        }
    }

    fn begin_in(&mut self, unit: u64) -> Option<(Vec<Pending>, u64, Vec<Sector>)> {
        let start = unit * self.unit_sectors;
        let end = (start + self.unit_sectors).min(self.sectors());
        let first = start + self.rng.below(end - start);
        let count = 1 + self.rng.below(end - first);
        let contents = self.new_contents(first, count);
        self.note(Event::Begin(first, contents.clone()));
        let bytes: Vec<u8> = contents.iter().flat_map(|it| **it).collect();
        let mut pending = Vec::new();
        let mut done = 0;
        while done < bytes.len() {
            match self.begin(first * 512 + done as u64, &bytes[done..]) {
                Ok(Begun::Written(len)) => done += len,
                Ok(Begun::Pending(it, len)) => {
                    pending.push(it);
                    done += len;
                }
                Err(error) => {
                    for it in pending {
                        self.alloc.release(&it.space);
                    }
                    self.settle(first, contents, &Err(error));
                    return None;
                }
            }
        }
        Some((pending, first, contents))
    }

    /// Finishes the parts of a write, or gives some of them up.
    fn finish_all(&mut self, mut pending: Vec<Pending>) -> Result {
        self.rng.shuffle(&mut pending);
        let mut result = Ok(());
        for it in pending {
            if self.suits_failures && self.rng.one_in(8) {
                self.alloc.release(&it.space);
                result = Err(Error::Store(-28));
            } else {
                result = result.and(self.finish(it));
            }
        }
        result
    }

    /// Discards something: sectors, or whole units.
    fn discard_one(&mut self) {
        let mut first = self.rng.below(self.sectors());
        if self.rng.one_in(2) {
            first -= first % self.unit_sectors;
        }
        let most = (self.sectors() - first).min(self.unit_sectors * 4);
        let count = match self.rng.below(3) {
            0 => most,
            _ => 1 + self.rng.below(most),
        };
        self.discard_range(first, count);
    }

    fn discard_range(&mut self, first: u64, count: u64) {
        let how = match self.rng.below(3) {
            0 => Discard::Zero,
            1 => Discard::ZeroInPlace,
            _ => Discard::Forget,
        };
        let (start, end) = (first as usize * 512, (first + count) as usize * 512);
        let zeros: Vec<Sector> = (0..count).map(|_| Rc::new([0; 512])).collect();
        self.note(Event::Begin(first, zeros));
        let result = self.discard(start as u64, (end - start) as u64, how);
        let after = self.read(start as u64, (end - start) as u64).unwrap();
        for (number, now) in after.chunks(512).enumerate() {
            let old = &self.shadow[start + number * 512..][..512];
            let may_stay = how == Discard::Forget || result.is_err();
            let is_zero = now == [0; 512];
            assert!(
                is_zero || (may_stay && now == old),
                "{how:?} {first} {count}"
            );
        }
        self.shadow[start..end].copy_from_slice(&after);
        match result {
            Ok(()) => {
                let sector = |bytes: &[u8]| Rc::new(bytes.try_into().unwrap());
                let contents = after.chunks(512).map(sector).collect();
                self.note(Event::Done(first, contents));
            }
            Err(error) => assert!(is_no_room(error), "{how:?}: {error:?}"),
        }
    }
}

fn is_no_room(error: Error) -> bool {
    error == Error::Store(-28)
}
