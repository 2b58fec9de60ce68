// SPDX-License-Identifier: GPL-2.0

//! A grain table and its redundant copy, and entries in both.

use loop_parser::contract::{
    num::{
        add,
        align_up,
        Region,
        OUTSIDE,
        TOO_LARGE, //
    },
    space::Space,
    Error,
    Result,
    TablesMut,
    SECTOR_SIZE, //
};

use super::{
    super::layout::{
        Entry,
        Layout, //
    },
    copy,
    space::MAX_LOADS,
    GrainAllocator, //
};

/// Bytes of two tables that are compared at a time.
const WINDOW: usize = 128;

/// A grain table and its copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// Host offset in bytes of the table that counts.
    pub(super) primary: u64,
    /// The same of its copy, if there is one.
    pub(super) redundant: Option<u64>,
}

/// Where an entry is, of a table or a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Host offset in bytes of the entry that counts.
    pub(super) primary: u64,
    /// The same of its copy, if there is one.
    pub(super) redundant: Option<u64>,
}

impl Pair {
    /// Where the entry of guest position `pos` is.
    pub(super) fn slot(&self, layout: &Layout, pos: u64) -> Result<Slot> {
        Ok(Slot {
            primary: layout.entry_at(self.primary, pos)?,
            redundant: match self.redundant {
                Some(table) => Some(layout.entry_at(table, pos)?),
                None => None,
            },
        })
    }
}

impl Slot {
    /// Where entry `index` of the directories is.
    pub(super) fn of_directory(layout: &Layout, index: u64) -> Result<Self> {
        Ok(Self {
            primary: layout.directory_entry_at(layout.directory, index)?,
            redundant: match layout.redundant {
                Some(directory) => Some(layout.directory_entry_at(directory, index)?),
                None => None,
            },
        })
    }

    /// Stores `new`, in the copy, too. If that fails, `old` is there again. Answers whether the copy has
    /// it: once the entry that counts was stored, it is in use, and stays.
    // Not inlined, for the stack.
    #[inline(never)]
    pub(super) fn store(&self, tables: &mut dyn TablesMut, old: Entry, new: Entry) -> Result<bool> {
        self.point(tables, None, old, new)
    }

    /// The same. What `new` points to was taken from `space`: unless something else than `old` can have
    /// been there if it fails, that can be released.
    #[inline(never)]
    pub(super) fn point(
        &self,
        tables: &mut dyn TablesMut,
        space: Option<&mut Space>,
        old: Entry,
        new: Entry,
    ) -> Result<bool> {
        let stored = tables.store(self.primary, &new.0.to_le_bytes());
        if stored.is_ok() || tables.load_le32(self.primary) != Ok(old.0) {
            if let Some(space) = space {
                space.settle(new.offset());
            }
        }
        // Whatever part of one was stored: a second failure has nobody to be told.
        if stored.is_err() {
            let _ = tables.store(self.primary, &old.0.to_le_bytes());
        }
        stored?;
        let Some(at) = self.redundant else {
            return Ok(true);
        };
        let is_copied = tables.store(at, &new.0.to_le_bytes()).is_ok();
        if !is_copied {
            let _ = tables.store(at, &old.0.to_le_bytes());
        }
        Ok(is_copied)
    }
}

impl GrainAllocator {
    /// The tables with number `index`, to be stored to; `None` if there are none. They are made equal unless
    /// that is known.
    pub(super) fn pair(&mut self, tables: &mut dyn TablesMut, index: u64) -> Result<Option<Pair>> {
        self.catch_up(tables)?;
        let is_known = self.equal == Some(index);
        let mut left = MAX_LOADS;
        let pair = self.pair_within(tables, index, &mut left)?;
        if let Some(redundant) = pair.and_then(|it| it.redundant).filter(|_| !is_known) {
            let checked = self.check_empty(tables, index, redundant, &mut left);
            checked.inspect_err(|_| self.equal = None)?;
        }
        Ok(pair)
    }

    /// That it is equal does not make an empty table a copy: there is much else that is all zeros.
    // Not inlined, for the stack.
    #[inline(never)]
    fn check_empty(
        &mut self,
        tables: &dyn TablesMut,
        index: u64,
        redundant: u64,
        left: &mut u64,
    ) -> Result {
        let table = Region::new(redundant, self.layout.table_len(), redundant)?;
        match copy::is_empty(tables, table, left)? {
            true => self.check_copy(tables, index, redundant, left),
            false => Ok(()),
        }
    }

    /// Makes the copy equal that an entry could not be stored in. No second one gets behind.
    pub(super) fn catch_up(&mut self, tables: &mut dyn TablesMut) -> Result {
        if let Some(index) = self.behind {
            match self.pair_within(tables, index, &mut { MAX_LOADS }) {
                Err(error @ Error::Store(_)) => return Err(error),
                _ => self.behind = None,
            }
        }
        Ok(())
    }

    /// As [`Self::pair`], with so many loads left for a look at what may be overwritten.
    // Not inlined, for the stack.
    #[inline(never)]
    pub(super) fn pair_within(
        &mut self,
        tables: &mut dyn TablesMut,
        index: u64,
        left: &mut u64,
    ) -> Result<Option<Pair>> {
        let layout = self.layout;
        let Some(primary) = layout.table(tables, layout.directory, index)? else {
            return Ok(None);
        };
        let redundant = match layout.redundant {
            Some(directory) => self.redundant(tables, directory, index, primary)?,
            None => None,
        };
        if let Some(redundant) = redundant.filter(|_| self.equal != Some(index)) {
            self.repair_copy(tables, index, primary, redundant, left)?;
            self.equal = Some(index);
        }
        Ok(Some(Pair { primary, redundant }))
    }

    /// Makes the copy of table `index` equal to it, if nothing else is where the copy is.
    #[inline(never)]
    fn repair_copy(
        &mut self,
        tables: &mut dyn TablesMut,
        index: u64,
        primary: u64,
        redundant: u64,
        left: &mut u64,
    ) -> Result {
        let len = self.layout.table_len();
        if is_equal(tables, primary, redundant, len)? {
            return Ok(());
        }
        self.check_copy(tables, index, redundant, left)?;
        make_equal(tables, primary, redundant, len)
    }

    /// Checks that nothing else is where the copy of table `index` is. What is wrong is remembered.
    fn check_copy(
        &mut self,
        tables: &dyn TablesMut,
        index: u64,
        redundant: u64,
        left: &mut u64,
    ) -> Result {
        if let Some((_, error)) = self.bad_copy.filter(|(bad, _)| *bad == index) {
            return Err(error);
        }
        let layout = self.layout;
        let directory = layout.redundant.ok_or(OUTSIDE)?;
        let at = layout.directory_entry_at(directory, index)?;
        let region = Region::new(redundant, layout.table_len(), at)?;
        copy::check(tables, &layout, region, at, left).inspect_err(|error| {
            if let Error::Malformed(_) | Error::Unsupported(_) = error {
                self.bad_copy = Some((index, *error));
            }
        })
    }

    /// The copy of table `index`, in a directory of copies. It is made if there is none. `None`: the
    /// directories share the table.
    fn redundant(
        &mut self,
        tables: &mut dyn TablesMut,
        directory: u64,
        index: u64,
        primary: u64,
    ) -> Result<Option<u64>> {
        let layout = self.layout;
        let Some(redundant) = layout.table(tables, directory, index)? else {
            return self.copy_table(tables, directory, index, primary).map(Some);
        };
        let at = layout.directory_entry_at(directory, index)?;
        let region = |start| Region::new(start, layout.table_len(), at);
        if redundant == primary {
            return Ok(None);
        }
        if region(redundant)?.overlaps(region(primary)?) {
            return Err(Error::malformed(
                "VMDK redundant grain table overlaps the primary one",
                at,
            ));
        }
        Ok(Some(redundant))
    }

    /// Makes a copy of table `index`, at host offset `primary`, and enters it in a directory.
    #[inline(never)]
    fn copy_table(
        &mut self,
        tables: &mut dyn TablesMut,
        directory: u64,
        index: u64,
        primary: u64,
    ) -> Result<u64> {
        let layout = self.layout;
        let slot = Slot {
            primary: layout.directory_entry_at(directory, index)?,
            redundant: None,
        };
        let space = self.space(tables)?;
        let copy = space.take(tables, layout.table_len())?;
        let entry = Entry::for_offset(copy).ok_or(TOO_LARGE)?;
        let stored = make_equal(tables, primary, copy, layout.table_len())
            .and_then(|()| tables.sync())
            .and_then(|()| slot.point(tables, Some(&mut *space), Entry::NONE, entry));
        if let Err(error) = stored {
            space.release(copy, layout.table_len());
            return Err(error);
        }
        Ok(copy)
    }

    /// Makes table `index`, and its copy. Their space reads as zero, durably.
    #[inline(never)]
    pub(super) fn add_tables(&mut self, tables: &mut dyn TablesMut, index: u64) -> Result<Pair> {
        let layout = self.layout;
        let slot = Slot::of_directory(&layout, index)?;
        let each = align_up(layout.table_len(), SECTOR_SIZE, slot.primary)?;
        let len = match layout.redundant {
            Some(_) => each.saturating_mul(2),
            None => each,
        };
        let space = self.space(tables)?;
        let primary = space.take(tables, len)?;
        let pair = Pair {
            primary,
            redundant: match layout.redundant {
                Some(_) => Some(add(primary, each, primary)?),
                None => None,
            },
        };
        let stored = enter(tables, space, slot, pair);
        if stored.is_err() {
            space.release(primary, len);
        }
        stored?;
        self.equal = Some(index);
        Ok(pair)
    }
}

/// Enters new tables in the directories.
fn enter(tables: &mut dyn TablesMut, space: &mut Space, slot: Slot, pair: Pair) -> Result {
    let entry = |offset| Entry::for_offset(offset).ok_or(TOO_LARGE);
    let only = |primary| Slot {
        primary,
        redundant: None,
    };
    let new = entry(pair.primary)?;
    only(slot.primary).point(tables, Some(&mut *space), Entry::NONE, new)?;
    let (Some(at), Some(table)) = (slot.redundant, pair.redundant) else {
        return Ok(());
    };
    let stored = only(at).point(tables, Some(space), Entry::NONE, entry(table)?);
    if stored.is_err() {
        // A second failure has nobody to be told.
        let _ = tables.store(slot.primary, &Entry::NONE.0.to_le_bytes());
    }
    stored.map(|_| ())
}

/// Whether `len` bytes at two host offsets are equal.
#[inline(never)]
fn is_equal(tables: &dyn TablesMut, one: u64, other: u64, len: u64) -> Result<bool> {
    let mut left = [0; WINDOW];
    let mut right = [0; WINDOW];
    let mut done = 0;
    while done < len {
        let step = usize::try_from(len.saturating_sub(done)).unwrap_or(WINDOW);
        let left = left.get_mut(..step.min(WINDOW)).unwrap_or_default();
        let right = right.get_mut(..step.min(WINDOW)).unwrap_or_default();
        tables.load(add(one, done, one)?, left)?;
        tables.load(add(other, done, other)?, right)?;
        if left != right {
            return Ok(false);
        }
        done = done.saturating_add(step.min(WINDOW) as u64);
    }
    Ok(true)
}

/// Makes `len` bytes at host offset `to` equal to those at `from`. What is equal is not stored.
#[inline(never)]
fn make_equal(tables: &mut dyn TablesMut, from: u64, to: u64, len: u64) -> Result {
    let mut done = 0;
    while done < len {
        let left = usize::try_from(len.saturating_sub(done)).unwrap_or(WINDOW);
        let step = left.min(WINDOW);
        make_piece_equal(tables, add(from, done, from)?, add(to, done, to)?, step)?;
        done = done.saturating_add(step as u64);
    }
    Ok(())
}

#[inline(never)]
fn make_piece_equal(tables: &mut dyn TablesMut, from: u64, to: u64, len: usize) -> Result {
    let mut right = [0; WINDOW];
    let mut found = [0; WINDOW];
    let right = right.get_mut(..len).unwrap_or_default();
    let found = found.get_mut(..len).unwrap_or_default();
    tables.load(from, right)?;
    tables.load(to, found)?;
    match right == found {
        true => Ok(()),
        false => tables.store(to, right),
    }
}
