// SPDX-License-Identifier: GPL-2.0

//! For format code: free space behind everything else, of formats that do not say what is free.

use super::{
    num::{
        add,
        align_up,
        is_out_of_room,
        NO_ROOM,
        TOO_LARGE, //
    },
    Error,
    Result,
    TablesMut,
    SECTOR_SIZE, //
};

/// A file is extended by about this many bytes at a time.
const RESERVE_SIZE: u64 = 4 * 1024 * 1024;

/// What a format asks of space.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Bytes in a unit: it is handed out in whole ones, at multiples of that.
    pub unit: u64,
    /// Host offset in bytes at which, and behind which, nothing can lie.
    pub limit: u64,
    /// Host offset of a field that says in which sector free space begins: 32 bits, little-endian.
    pub free_at: Option<u64>,
}

/// Where the next unit goes.
///
/// # Invariants
///
/// No entry points to `next` or behind it. Between `next` and `end` a file was never written, except
/// below `dirty_end`.
#[derive(Debug)]
pub struct Space {
    rules: Rules,
    /// Host offset of what is free, at a multiple of the unit.
    next: u64,
    /// Where it ends: the end of the file.
    end: u64,
    /// Up to here it may hold anything.
    dirty_end: u64,
    /// Up to here nothing can be released any more.
    settled: u64,
}

impl Space {
    /// The space of a file of `file_size` bytes in which everything in front of `used` is in use.
    fn behind(used: u64, tables: &mut dyn TablesMut, file_size: u64, rules: Rules) -> Result<Self> {
        let mut space = Self {
            rules,
            next: align_up(used, rules.unit, used)?,
            end: file_size,
            dirty_end: file_size,
            settled: 0,
        };
        if tables.can_grow() {
            // In a file nothing is taken for free that somebody else has put there.
            space.next = align_up(used.max(file_size), rules.unit, used)?;
            if space.next > file_size {
                space.extend(tables, space.next)?;
            }
        }
        Ok(space)
    }

    /// Whether that is what was left, of a file that has `file_size` bytes now.
    fn is_of(&self, file_size: u64) -> bool {
        self.end == file_size
    }

    /// Takes `len` bytes in whole units: they read as zero, and that is durable.
    pub fn take(&mut self, tables: &mut dyn TablesMut, len: u64) -> Result<u64> {
        let start = self.next;
        let end = add(start, align_up(len, self.rules.unit, start)?, start)?;
        if end > self.rules.limit {
            return Err(TOO_LARGE);
        }
        if end > self.end {
            self.grow(tables, end)?;
        }
        if start < self.dirty_end {
            tables.fill(start, end.saturating_sub(start), 0)?;
            if !tables.can_grow() {
                self.store_free(tables, end)?;
            }
            tables.sync()?;
        }
        self.next = end;
        Ok(start)
    }

    /// Makes a file large enough for what ends at `needed`, and for the reserve if there is room.
    fn grow(&mut self, tables: &mut dyn TablesMut, needed: u64) -> Result {
        if !tables.can_grow() {
            return Err(NO_ROOM);
        }
        let wanted = add(needed, RESERVE_SIZE, needed)?;
        match self.extend(tables, wanted.min(self.rules.limit)) {
            // A nearly full file system, or a limit on the size of files.
            Err(error) if is_out_of_room(error) => self.extend(tables, needed),
            result => result,
        }
    }

    /// Makes a file `size` bytes long, durably. What is new reads as zero. If that fails, the file is
    /// as it was.
    fn extend(&mut self, tables: &mut dyn TablesMut, size: u64) -> Result {
        let last = size.checked_sub(1).ok_or(NO_ROOM)?;
        let stored = tables
            .fill(last, 1, 0)
            .and_then(|()| self.store_free(tables, size));
        if let Err(error) = stored {
            if tables.size()? > self.end {
                // If not even that works, the next call finds a file of another size.
                let _ = tables.truncate(self.end);
            }
            return Err(error);
        }
        tables.sync()?;
        self.end = size;
        Ok(())
    }

    /// What was taken at host offset `offset` is in use, or may be.
    pub fn settle(&mut self, offset: u64) {
        self.settled = self.settled.max(offset.saturating_add(1));
    }

    /// What was taken there is not needed, and may hold anything. Only what was taken last can be
    /// taken again; what is below it is lost.
    pub fn release(&mut self, offset: u64, len: u64) {
        let end = offset
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(self.rules.unit));
        if offset >= self.settled && end == Some(self.next) {
            self.dirty_end = self.dirty_end.max(self.next);
            self.next = offset;
        }
    }

    /// Cuts what was reserved and not used off a file.
    fn trim(self, tables: &mut dyn TablesMut) -> Result {
        if !tables.can_grow() || tables.size()? != self.end || self.next >= self.end {
            return Ok(());
        }
        tables.truncate(self.next)?;
        self.store_free(tables, self.next)
    }

    /// Stores where free space begins, in a file that says so.
    fn store_free(&self, tables: &mut dyn TablesMut, end: u64) -> Result {
        let Some(at) = self.rules.free_at else {
            return Ok(());
        };
        // There is no sector number behind the last sector.
        let sector = u32::try_from(end / SECTOR_SIZE).unwrap_or(u32::MAX);
        tables.store(at, &sector.to_le_bytes())
    }
}

/// What is known of the free space of an image.
#[derive(Debug, Default)]
pub struct Known {
    /// Learned at the first allocation.
    space: Option<Space>,
    /// Host offset: nothing in front of it is free, whatever the entries say.
    floor: u64,
    /// Why it could not be learned, and of a file of which size: the look at all entries takes long, and
    /// has the same outcome.
    refused: Option<(u64, Error)>,
}

impl Known {
    /// Where the next unit goes, as far as the file is still as it was left; otherwise `scan` looks at
    /// all entries of a file of this size, and answers where what is in use ends.
    ///
    /// # Errors
    ///
    /// As for `scan`, without another look at a file of the same size if it was refused for its content;
    /// those of the store.
    pub fn learn(
        &mut self,
        tables: &mut dyn TablesMut,
        rules: Rules,
        scan: impl FnOnce(&dyn TablesMut, u64) -> Result<u64>,
    ) -> Result<&mut Space> {
        let file_size = tables.size()?;
        let space = match self.space.take() {
            Some(space) if space.is_of(file_size) => space,
            old => {
                // What was handed out does not show in the entries yet.
                self.keep_out(old.map_or(0, |old| old.next));
                self.check(file_size)?;
                let used = scan(tables, file_size);
                let used = used.inspect_err(|error| self.refuse(file_size, error))?;
                Space::behind(used.max(self.floor), tables, file_size, rules)?
            }
        };
        Ok(self.space.insert(space))
    }

    /// Where the next unit goes, if that was learned.
    pub fn space(&mut self) -> Option<&mut Space> {
        self.space.as_mut()
    }

    /// Whether anything was learned, and not given back.
    pub fn is_learned(&self) -> bool {
        self.space.is_some()
    }

    /// Nothing in front of host offset `end` is handed out when it is learned anew.
    pub fn keep_out(&mut self, end: u64) {
        self.floor = self.floor.max(end);
    }

    /// [`Space::release`].
    pub fn release(&mut self, offset: u64, len: u64) {
        if let Some(space) = &mut self.space {
            space.release(offset, len);
        }
    }

    /// Forgets all but what must not be handed out.
    pub fn forget(&mut self) {
        self.space = None;
        self.refused = None;
    }

    /// Cuts what was reserved and not used off a file, when nobody writes any more.
    pub fn give_back(&mut self, tables: &mut dyn TablesMut) -> Result {
        let space = self.space.take();
        self.forget();
        match space {
            Some(space) => space.trim(tables),
            None => Ok(()),
        }
    }

    fn check(&self, file_size: u64) -> Result {
        match self.refused {
            Some((size, error)) if size == file_size => Err(error),
            _ => Ok(()),
        }
    }

    /// Remembers an error, if it is one of the file's content.
    fn refuse(&mut self, file_size: u64, error: &Error) {
        if let Error::Malformed(_) | Error::Unsupported(_) = error {
            self.refused = Some((file_size, *error));
        }
    }
}
