// SPDX-License-Identifier: GPL-2.0

//! A stream whose end is missing, and with it the directory: its grains are found by going from one
//! to the next.
//!
//! They lie in the order that they have on the disk. One scan, when the stream is attached, looks
//! at every header; but all that is kept of it is a fixed number of *places*, from the nearest of
//! which every look-up goes on. So that this is not too far, a stream must not have more than
//! [`MAX_GRAINS`], unless its directory is found behind them.
//!
//! What lies on the disk behind the last grain is not known: it can have been lost as well as never
//! written. It cannot be read.

use core::sync::atomic::{
    AtomicU32,
    Ordering, //
};

use loop_parser::contract::{
    num::{
        add,
        mul, //
    },
    Error,
    Result,
    Tables,
    SECTOR_SIZE, //
};

use super::{
    directory::{
        Directory,
        Piece, //
    },
    grain::{
        self,
        Grain,
        Item,
        Shape, //
    },
    ondisk::*, //
};

/// Number of places that are kept.
const PLACES: usize = 32;
/// Most grains between two of them.
const MAX_STRIDE: u32 = 1 << 14;
/// Most grains of a stream that is recovered: 32 GiB, if they are of the usual 64 KiB.
const MAX_GRAINS: u64 = PLACES as u64 * MAX_STRIDE as u64;
/// Most grains and markers that a scan looks at: a stream whose directory turns up behind them can have more
/// grains.
const MAX_ITEMS: u64 = 8 * MAX_GRAINS;
/// Most markers between two grains.
const MAX_MARKERS: u32 = 8;

/// Some of the grains of a stream.
///
/// # Invariants
///
/// - The first `used` of `places` are sectors at which grains began, in ascending order; the first
///   one is that of the first grain, and the others are `stride` grains apart. `used` is at most
///   [`PLACES`].
/// - `recent` is the sector of a grain, or 0.
#[derive(Debug)]
pub(super) struct Scanned {
    places: [u32; PLACES],
    used: usize,
    stride: u32,
    /// The grain that was looked up last: reads are sequential more often than not.
    recent: AtomicU32,
    /// Host offset in bytes of what follows the last grain.
    pub(super) end: u64,
}

/// What a scan has found.
pub(super) enum Found {
    /// The directory is there all the same, at this host offset in bytes.
    Directory(u64),
    /// It is not.
    Grains(Scanned),
}

/// Scans a stream whose first grain is at host offset `start`. `per_table` is the number of entries
/// of a grain table.
///
/// # Errors
///
/// - [`Error::Malformed`]: the grains are not in order, or are not grains.
/// - [`Error::Unsupported`]: there are too many of them, and no directory behind them.
pub(super) fn scan(
    tables: &dyn Tables,
    shape: &Shape,
    per_table: u64,
    start: u64,
) -> Result<Found> {
    let mut scanned = Scanned {
        places: [0; PLACES],
        used: 0,
        stride: 1,
        recent: AtomicU32::new(0),
        end: start,
    };
    let mut count = 0;
    let mut kept = Ok(());
    let mut walk = Walk::new(tables, shape, start);
    for _ in 0..MAX_ITEMS {
        match walk.next()? {
            Item::Grain(_) => {
                kept = kept.and_then(|()| scanned.keep(count, walk.item));
                scanned.end = walk.at;
                count = count.saturating_add(1);
            }
            Item::Marker {
                kind: GRAIN_TABLE | PROGRESS,
                ..
            } => {}
            Item::Marker {
                kind: GRAIN_DIRECTORY,
                ..
            } => match walk.directory(per_table)? {
                Some(directory) => return Ok(Found::Directory(directory)),
                None => return kept.map(|()| Found::Grains(scanned)),
            },
            // A file can have been filled up with zeros behind what there is of it. They look like
            // the end.
            Item::Marker {
                kind: END_OF_STREAM | FOOTER,
                ..
            }
            | Item::Cut => return kept.map(|()| Found::Grains(scanned)),
            Item::Marker { .. } => {
                return Err(Error::malformed(
                    "VMDK marker is of no known type",
                    walk.item,
                ));
            }
        }
    }
    too_long(walk.item)
}

fn too_long<V>(at: u64) -> Result<V> {
    Err(Error::unsupported(
        "VMDK stream without its end is too long to be recovered",
        at,
    ))
}

impl Scanned {
    /// Keeps the place of grain number `number`, at host offset `at`, if it is its turn. Every
    /// other place is forgotten when there is no room for one more.
    fn keep(&mut self, number: u32, at: u64) -> Result {
        if number % self.stride != 0 {
            return Ok(());
        }
        if self.used == PLACES {
            for (to, from) in (0..PLACES).step_by(2).enumerate() {
                let place = self.places.get(from).copied().unwrap_or(0);
                if let Some(slot) = self.places.get_mut(to) {
                    *slot = place;
                }
            }
            self.used = PLACES / 2;
            self.stride = self.stride.saturating_mul(2);
            if self.stride > MAX_STRIDE {
                return too_long(at);
            }
        }
        let sector = u32::try_from(at / SECTOR_SIZE);
        let sector = sector.or_else(|_| too_long(at))?;
        if let Some(slot) = self.places.get_mut(self.used) {
            // INVARIANT: There are `used` times `stride` grains before this one: PLACES is even.
            *slot = sector;
            self.used = self.used.saturating_add(1);
        }
        Ok(())
    }

    /// Looks up guest position `pos`, up to `len` bytes.
    pub(super) fn find(
        &self,
        tables: &dyn Tables,
        shape: &Shape,
        pos: u64,
        len: u64,
    ) -> Result<Piece> {
        let start = shape.start(pos);
        let mut walk = Walk::new(tables, shape, self.nearest(tables, shape, start)?);
        let items = self.stride.saturating_mul(MAX_MARKERS.saturating_add(1));
        for _ in 0..=items {
            if walk.at >= self.end {
                return Err(Error::malformed(
                    "VMDK stream ends before this grain",
                    self.end,
                ));
            }
            match walk.next()? {
                Item::Grain(grain) if grain.start >= start => {
                    self.remember(walk.item);
                    return Ok(match grain.start == start {
                        true => Piece::Grain(grain),
                        false => Piece::Missing(grain.start.saturating_sub(pos).min(len)),
                    });
                }
                Item::Grain(_) | Item::Marker { .. } => {}
                Item::Cut => break,
            }
        }
        changed(walk.item)
    }

    /// The host offset of a grain from which it is not far to the one at guest position `start`; of
    /// the first one if that lies behind it.
    fn nearest(&self, tables: &dyn Tables, shape: &Shape, start: u64) -> Result<u64> {
        let (mut low, mut high) = (0, self.used);
        let mut found = self.place(0).unwrap_or(self.end);
        // INVARIANT: The place at `low`, if it is not the first, begins at or before `start`; the
        // one at `high` behind it.
        while low < high {
            let middle = low.midpoint(high);
            let Some(at) = self.place(middle) else {
                break;
            };
            let Item::Grain(grain) = grain::load(tables, shape, at)? else {
                return changed(at);
            };
            if grain.start <= start {
                found = at;
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        let recent = u64::from(self.recent.load(Ordering::Relaxed)).saturating_mul(SECTOR_SIZE);
        if recent > found {
            match grain::load(tables, shape, recent)? {
                Item::Grain(grain) if grain.start <= start => return Ok(recent),
                _ => {}
            }
        }
        Ok(found)
    }

    fn place(&self, index: usize) -> Option<u64> {
        let places = self.places.get(..self.used)?;
        let sector = places.get(index)?;
        Some(u64::from(*sector).saturating_mul(SECTOR_SIZE))
    }

    /// A hint, nothing else: it does not matter who sees it when.
    fn remember(&self, at: u64) {
        if let Ok(sector) = u32::try_from(at / SECTOR_SIZE) {
            self.recent.store(sector, Ordering::Relaxed);
        }
    }
}

fn changed<V>(at: u64) -> Result<V> {
    Err(Error::malformed(
        "VMDK stream is not what it was when it was attached",
        at,
    ))
}

/// Goes from one grain or marker to the next.
struct Walk<'a> {
    tables: &'a dyn Tables,
    shape: &'a Shape,
    /// Host offset of what was looked at last.
    item: u64,
    /// Host offset of what follows it.
    at: u64,
    /// Guest position of the last grain.
    last: Option<u64>,
    /// How many markers there have been since.
    markers: u32,
}

impl<'a> Walk<'a> {
    fn new(tables: &'a dyn Tables, shape: &'a Shape, at: u64) -> Self {
        Self {
            tables,
            shape,
            item: at,
            at,
            last: None,
            markers: 0,
        }
    }

    fn next(&mut self) -> Result<Item> {
        self.item = self.at;
        let item = grain::load(self.tables, self.shape, self.at)?;
        match item {
            Item::Grain(grain) => {
                self.check(&grain)?;
                self.last = Some(grain.start);
                self.markers = 0;
                self.at = grain.end()?;
            }
            Item::Marker { sectors, .. } => {
                self.markers = self.markers.saturating_add(1);
                let len = mul(sectors, SECTOR_SIZE, self.at)?;
                self.at = add(add(self.at, SECTOR_SIZE, self.at)?, len, self.at)?;
            }
            Item::Cut => {}
        }
        Ok(item)
    }

    /// Whether this is where the grain may be.
    fn check(&self, grain: &Grain) -> Result {
        if self.last.is_some_and(|last| grain.start <= last) {
            return Err(Error::malformed(
                "VMDK stream without its end has grains out of order",
                self.item,
            ));
        }
        if self.markers > MAX_MARKERS {
            return Err(Error::unsupported(
                "VMDK stream without its end has too many markers",
                self.item,
            ));
        }
        Ok(())
    }

    /// The host offset of the directory that the marker just seen announces, if all of it is there.
    fn directory(&self, per_table: u64) -> Result<Option<u64>> {
        let start = add(self.item, SECTOR_SIZE, self.item)?;
        let end = self.at.min(self.tables.size()?);
        let is_whole = end.saturating_sub(start) >= Directory::len(self.shape, per_table)?;
        Ok(is_whole.then_some(start))
    }
}
