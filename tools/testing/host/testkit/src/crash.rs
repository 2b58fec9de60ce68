// SPDX-License-Identifier: GPL-2.0

//! What an image may look like after a power failure.
//!
//! A recorded run is replayed. At any point of it, each sector that was stored to since the last
//! sync may have the content it had at that sync, or any that it had since, independently of all
//! others; the same goes for the size of the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use crate::{
    rng::Rng,
    store::{apply_fill, apply_resize, apply_write, Op, Sector, Sectors, Store, SECTOR},
};

/// How many runs of each scenario are crashed.
pub fn seeds(default: u64) -> u64 {
    std::env::var("LP_CRASH_SEEDS").map_or(default, |it| it.parse().unwrap())
}

/// Which stores survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// Only what was synced.
    Synced,
    /// Everything.
    All,
    /// Any content at random, for each sector.
    Random,
    /// The latest content with one chance in `n`, else what was synced.
    Few(u64),
    /// What was synced with one chance in `n`, else the latest content.
    Most(u64),
}

/// A run that is being replayed.
#[derive(Debug)]
pub struct Replay {
    now: Sectors,
    size: u64,
    durable: Sectors,
    durable_size: u64,
    /// What each sector has contained since the last sync.
    versions: BTreeMap<u64, Vec<Version>>,
    /// What sizes the file has had since the last sync.
    sizes: Vec<u64>,
    has_grown: bool,
    can_grow: bool,
}

/// What a sector has contained.
#[derive(Debug)]
struct Version {
    /// `None` is a hole.
    content: Option<Sector>,
    /// The sector was dropped by a truncation: this many of `sizes` came true with it.
    sizes: usize,
}

/// A truncation zeroes the rest of a page in the page cache, which may be written before the new
/// size is; what lies behind that page disappears together with the old size.
const PAGE: u64 = 4096;

impl Replay {
    /// Begins with a durable image.
    pub fn new(sectors: Sectors, size: u64, can_grow: bool) -> Self {
        Self {
            now: sectors.clone(),
            size,
            durable: sectors,
            durable_size: size,
            versions: BTreeMap::new(),
            sizes: Vec::new(),
            has_grown: false,
            can_grow,
        }
    }

    /// Whether a crash could lose something now.
    pub fn is_dirty(&self) -> bool {
        !self.versions.is_empty() || !self.sizes.is_empty()
    }

    /// Whether the file has grown since the last sync, if only after it had been cut.
    pub fn has_grown(&self) -> bool {
        self.has_grown
    }

    /// Applies the next recorded operation.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Write { offset, bytes } => {
                apply_write(&mut self.now, *offset, bytes);
                self.stored(*offset, bytes.len() as u64);
            }
            Op::Fill { offset, len, byte } => {
                apply_fill(&mut self.now, *offset, *len, *byte);
                self.stored(*offset, *len);
            }
            Op::Resize(size) => self.resized(*size),
            Op::Sync => self.synced(),
            Op::Mark(_) => {}
        }
    }

    fn stored(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        for sector in offset / SECTOR..(offset + len).div_ceil(SECTOR) {
            self.note(sector, 0);
        }
        if offset + len > self.size {
            self.size = offset + len;
            self.sizes.push(self.size);
            self.has_grown = true;
        }
    }

    fn note(&mut self, sector: u64, sizes: usize) {
        let content = self.now.get(&sector).cloned();
        let version = Version { content, sizes };
        self.versions.entry(sector).or_default().push(version);
    }

    fn resized(&mut self, size: u64) {
        let first = size / SECTOR;
        let cut: BTreeSet<u64> = self.now.range(first..).map(|(sector, _)| *sector).collect();
        apply_resize(&mut self.now, size);
        self.has_grown |= size > self.size;
        self.size = size;
        self.sizes.push(size);
        let page_end = size.next_multiple_of(PAGE);
        for sector in cut {
            let is_in_page = sector * SECTOR < page_end;
            self.note(sector, if is_in_page { 0 } else { self.sizes.len() });
        }
    }

    fn synced(&mut self) {
        for sector in std::mem::take(&mut self.versions).into_keys() {
            match self.now.get(&sector) {
                Some(content) => self.durable.insert(sector, content.clone()),
                None => self.durable.remove(&sector),
            };
        }
        self.sizes.clear();
        self.has_grown = false;
        self.durable_size = self.size;
    }

    /// The image after a power failure at this moment, and whether its size is the one that was
    /// last synced.
    pub fn crash(&self, survivors: Survivors, rng: &mut Rng) -> (Store, bool) {
        // 0 is what was synced.
        let age = pick(survivors, self.sizes.len(), rng);
        let size = match age.checked_sub(1) {
            Some(version) => self.sizes[version],
            None => self.durable_size,
        };
        let mut sectors = self.durable.clone();
        for (sector, versions) in &self.versions {
            let choice = pick(survivors, versions.len(), rng);
            let Some(version) = choice.checked_sub(1).map(|choice| &versions[choice]) else {
                continue;
            };
            if version.sizes > age {
                continue;
            }
            match &version.content {
                Some(content) => sectors.insert(*sector, Rc::clone(content)),
                None => sectors.remove(sector),
            };
        }
        apply_resize(&mut sectors, size);
        let store = Store::from_parts(sectors, size, self.can_grow);
        (store, age == 0)
    }
}

/// One of `0..=versions`.
fn pick(survivors: Survivors, versions: usize, rng: &mut Rng) -> usize {
    match survivors {
        Survivors::Synced => 0,
        Survivors::All => versions,
        Survivors::Random => rng.below(versions as u64 + 1) as usize,
        Survivors::Few(n) => {
            if rng.one_in(n) {
                versions
            } else {
                0
            }
        }
        Survivors::Most(n) => {
            if rng.one_in(n) {
                0
            } else {
                versions
            }
        }
    }
}
