// SPDX-License-Identifier: GPL-2.0

//! Images: what all devices on one backing inode share.
//!
//! Locking. `IMAGES` (the list) is held for list operations only, never over I/O. An image's
//! `allocation` mutex serialises reservations and table writes; it is taken by workers and at
//! detach, under no other lock of the driver but a device's `open_mutex`, and nests
//!
//! ```text
//!   allocation mutex -> IMAGES
//!   allocation mutex -> write gate -> locks of the backing file system
//! ```
//!
//! Readers of tables take no lock: they compare `sequence` before and after, and fall back to the
//! mutex if it moved.

use core::cmp::min;

use kernel::{
    new_condvar,
    new_mutex,
    prelude::*,
    str::BStr,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Full,
                Relaxed,
                Release, //
            },
            Atomic,
            AtomicFlag, //
        },
        barrier,
        Arc,
        CondVar,
        Mutex, //
    }, //
};

use crate::{
    allocation::Pending,
    contract::{
        Allocate,
        Disk,
        Error,
        Extent,
        Fault,
        Map,
        Placement,
        Result,
        Tables,
        SECTOR_SIZE, //
    },
    parser::{
        AttachRequest,
        BoundParser, //
    },
    raw,
    select::Choice,
    sys::{
        bindings::gfp_t,
        file::BackingFile,
        globals::IMAGES,
        rwsem::{
            RwSemaphore,
            WriteGuard, //
        }, //
    },
    tables::{
        CachedTables,
        FileTables,
        LockedTables,
        Scratch, //
    }, //
};

/// What the image's mutex protects.
pub(crate) struct Allocation {
    /// The parser's allocator. Dropped with the image, before the parser's module reference.
    pub(crate) alloc: KBox<dyn Allocate>,
    /// Allocation units that somebody is writing the first data of.
    pub(crate) pending: Pending,
    /// Scratch memory for table writes.
    pub(crate) scratch: KBox<Scratch>,
}

/// An image in use.
#[pin_data]
pub(crate) struct Image {
    key: usize,
    /// The device that attached it first, for log lines.
    number: u32,
    choice: Choice,
    disk: Disk,
    warning: Option<Fault>,
    map: KBox<dyn Map>,
    #[pin]
    pub(crate) allocation: Mutex<Allocation>,
    #[pin]
    pub(crate) pending_changed: CondVar,
    /// Odd while tables are being written.
    sequence: Atomic<u32>,
    /// Direct writes in flight (read side) against table and buffered writes (write side).
    #[pin]
    gate: RwSemaphore,
    /// How many devices write to the file directly.
    direct_devices: Atomic<u32>,
    /// How many devices there are; changes under the lock of the list.
    devices: Atomic<u32>,
    /// A sync or a table write failed: nothing may be written any more.
    poisoned: AtomicFlag,
    /// A fault of the image was logged.
    reported: AtomicFlag,
    peekable: bool,
    is_raw: bool,
    // Last: everything above may be code and data of the parser's module.
    parser: BoundParser,
}

impl Image {
    /// Lets the parser attach the file.
    // Not inlined: the image is put together on the stack.
    #[inline(never)]
    fn attach(
        file: &BackingFile,
        parser: BoundParser,
        choice: &Choice,
        writable: bool,
        number: u32,
    ) -> Result<Arc<Self>> {
        let peekable = file.is_peekable();
        let request = AttachRequest {
            options: choice.options(),
            writable,
        };
        let attached = parser
            .parser
            .attach(&FileTables { file, peekable }, &request)?;
        let no_memory = |_| Error::Store(ENOMEM.to_errno());
        let scratch = KBox::init(pin_init::init_zeroed(), GFP_KERNEL).map_err(no_memory)?;
        let image = pin_init!(Self {
            key: file.inode_key(),
            number,
            choice: *choice,
            disk: attached.disk,
            warning: attached.warning,
            map: attached.map,
            allocation <- new_mutex!(Allocation {
                alloc: attached.alloc,
                pending: Pending::new(),
                scratch,
            }, "Image::allocation"),
            pending_changed <- new_condvar!("Image::pending_changed"),
            sequence: Atomic::new(0),
            gate <- RwSemaphore::new(),
            direct_devices: Atomic::new(0),
            devices: Atomic::new(0),
            poisoned: AtomicFlag::new(false),
            reported: AtomicFlag::new(false),
            peekable,
            is_raw: parser.name == raw::NAME,
            parser,
        });
        Arc::pin_init(image, GFP_KERNEL).map_err(|_| Error::Store(ENOMEM.to_errno()))
    }

    /// Whether the file is its own guest disk.
    pub(crate) fn is_raw(&self) -> bool {
        self.is_raw
    }

    /// The parser's name.
    pub(crate) fn parser_name(&self) -> &BStr {
        self.parser.display_name()
    }

    /// The virtual disk.
    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Size of the guest disk in bytes: of a raw one, what the file system says now.
    pub(crate) fn size(&self, file: &BackingFile) -> u64 {
        if self.is_raw {
            file.stat_size()
        } else {
            self.disk.size
        }
    }

    /// What is wrong with it, though it is served.
    pub(crate) fn warning(&self) -> Option<&Fault> {
        self.warning.as_ref()
    }

    pub(crate) fn is_peekable(&self) -> bool {
        self.peekable
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Relaxed)
    }

    fn poison(&self, why: &str, error: kernel::error::Error) {
        if !self.poisoned.xchg(true, Full) {
            pr_err!(
                "loop{}: {}: {why} failed ({error:?}); read-only until it is attached again\n",
                self.number,
                self.parser_name()
            );
        }
    }

    /// A table write failed. Unless it was for want of room, which leaves the old bytes in place and
    /// can be asked for again, nobody knows what is in the table now.
    pub(crate) fn table_write_failed(&self, error: kernel::error::Error) {
        if error != ENOSPC && error != EDQUOT && error != EFBIG {
            self.poison("writing a table", error);
        }
    }

    /// Makes everything written to the file durable. For an image with tables a failure is final:
    /// the pages are clean afterwards, so the same error would not be seen twice.
    pub(crate) fn sync(&self, file: &BackingFile) -> kernel::error::Result {
        if self.is_raw {
            return file.fsync();
        }
        if self.is_poisoned() {
            return Err(EIO);
        }
        file.fsync()
            .inspect_err(|error| self.poison("syncing", *error))
    }

    /// Logs what is wrong with the image, once.
    pub(crate) fn report(&self, error: &Error) {
        let Some(fault) = error.fault() else {
            return;
        };
        if !self.reported.xchg(true, Full) {
            pr_err!(
                "loop{}: {}: {} at byte {}: I/O error\n",
                self.number,
                self.parser_name(),
                fault.what,
                fault.at
            );
        }
    }

    /// Marks the beginning of a change of tables; its end is when the guard is dropped. The caller
    /// holds the image's mutex.
    pub(crate) fn begin_change(&self) -> Change<'_> {
        self.sequence
            .store(self.sequence.load(Relaxed).wrapping_add(1), Relaxed);
        barrier::smp_mb(barrier::Write);
        Change(self)
    }

    /// Keeps direct writes out while the guard lives, if a device does any.
    pub(crate) fn exclude_direct_writes(&self) -> Option<WriteGuard<'_>> {
        (self.direct_devices.load(Acquire) > 0).then(|| self.gate.write())
    }

    /// What a direct write has to hold; nothing for a raw file, which has no tables.
    pub(crate) fn direct_write_gate(&self) -> Option<&RwSemaphore> {
        (!self.is_raw).then_some(&self.gate)
    }

    /// Calls `resolve` without a lock and answers what it said, unless tables changed meanwhile.
    fn lockless<T>(&self, resolve: impl FnOnce() -> Result<T>) -> Option<Result<T>> {
        let before = self.sequence.load(Acquire);
        if before & 1 != 0 {
            return None;
        }
        let answer = resolve();
        barrier::smp_mb(barrier::Read);
        (self.sequence.load(Relaxed) == before).then_some(answer)
    }

    /// Resolves for reading without sleeping.
    pub(crate) fn resolve_cached(&self, file: &BackingFile, pos: u64, len: u64) -> Result<Extent> {
        let range = self.range(pos, len)?;
        self.lockless(|| {
            let tables = CachedTables { file };
            self.map.resolve_read(&tables, range.start, range.span)
        })
        .unwrap_or(Err(Error::WouldBlock))
        .and_then(|extent| range.cut_extent(extent))
    }

    /// Resolves for reading. May sleep.
    pub(crate) fn resolve_read(&self, file: &BackingFile, pos: u64, len: u64) -> Result<Extent> {
        let range = self.range(pos, len)?;
        self.blocking(file, |tables| {
            self.map.resolve_read(tables, range.start, range.span)
        })
        .and_then(|extent| range.cut_extent(extent))
    }

    /// Resolves for writing. May sleep.
    pub(crate) fn resolve_write(
        &self,
        file: &BackingFile,
        pos: u64,
        len: u64,
    ) -> Result<Placement> {
        if self.is_poisoned() {
            return Err(Error::Store(EIO.to_errno()));
        }
        let range = self.range(pos, len)?;
        self.blocking(file, |tables| {
            self.map.resolve_write(tables, range.start, range.span)
        })
        .and_then(|placement| range.cut_placement(placement))
    }

    fn blocking<T>(
        &self,
        file: &BackingFile,
        mut resolve: impl FnMut(&dyn Tables) -> Result<T>,
    ) -> Result<T> {
        let tables = FileTables {
            file,
            peekable: self.peekable,
        };
        if let Some(answer) = self.lockless(|| resolve(&tables)) {
            return answer;
        }
        let _allocation = self.allocation.lock();
        resolve(&tables)
    }

    /// The sectors of the disk that a guest range touches.
    pub(crate) fn range(&self, pos: u64, len: u64) -> Result<GuestRange> {
        let outside = Error::Store(EIO.to_errno());
        if self.is_raw {
            return Ok(GuestRange::whole(pos, len));
        }
        let left = self.disk.size.checked_sub(pos).ok_or(outside)?;
        GuestRange::in_sectors(pos, min(len, left)).ok_or(outside)
    }

    /// The last writer goes: gives back what was reserved, and makes everything durable.
    fn finish(&self, allocation: &mut Allocation, file: &BackingFile) {
        if self.is_raw || self.is_poisoned() {
            return;
        }
        let mut tables = LockedTables::new(self, file, &mut allocation.scratch);
        if let Err(error) = allocation.alloc.close(&mut tables) {
            self.report(&error);
        }
        // The outcome is in the log, and there is nobody to tell.
        let _ = self.sync(file);
    }
}

/// See [`Image::begin_change`].
pub(crate) struct Change<'a>(&'a Image);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let sequence = &self.0.sequence;
        sequence.store(sequence.load(Relaxed).wrapping_add(1), Release);
    }
}

/// A guest range as parsers see it: whole sectors of the disk. A window may begin anywhere in a
/// sector, and so may what a request asks for.
pub(crate) struct GuestRange {
    /// Start of the first sector.
    pub(crate) start: u64,
    /// Length up to the end of the last sector.
    pub(crate) span: u64,
    /// Bytes of the first sector that were not asked for.
    skip: u64,
    /// What was asked for.
    len: u64,
}

impl GuestRange {
    /// Raw files have no sectors.
    const fn whole(pos: u64, len: u64) -> Self {
        Self {
            start: pos,
            span: len,
            skip: 0,
            len,
        }
    }

    fn in_sectors(pos: u64, len: u64) -> Option<Self> {
        let skip = pos % SECTOR_SIZE;
        let span = skip
            .checked_add(len)?
            .checked_next_multiple_of(SECTOR_SIZE)?;
        (len > 0).then_some(Self {
            start: pos.saturating_sub(skip),
            span,
            skip,
            len,
        })
    }

    /// How many of `len` bytes from `start` on were asked for. A parser is not trusted to make
    /// progress or to stay within what it was asked.
    fn cut(&self, len: u64) -> Result<u64> {
        match len.checked_sub(self.skip) {
            Some(left) if left > 0 && len <= self.span => Ok(min(left, self.len)),
            _ => Err(Error::malformed(
                "parser resolved to an impossible extent",
                0,
            )),
        }
    }

    fn skip(&self, offset: u64) -> Result<u64> {
        let past_end = Error::malformed("extent past the end of the address space", offset);
        offset.checked_add(self.skip).ok_or(past_end)
    }

    fn cut_extent(&self, extent: Extent) -> Result<Extent> {
        Ok(match extent {
            Extent::Data { offset, len } => Extent::Data {
                offset: self.skip(offset)?,
                len: self.cut(len)?,
            },
            Extent::Zero { len } => Extent::Zero {
                len: self.cut(len)?,
            },
        })
    }

    fn cut_placement(&self, placement: Placement) -> Result<Placement> {
        match placement {
            Placement::InPlace { offset, len } => Ok(Placement::InPlace {
                offset: self.skip(offset)?,
                len: self.cut(len)?,
            }),
            Placement::Allocate { pos, len } => {
                let end = pos.checked_add(len);
                if pos > self.start || end.is_none_or(|end| end <= self.start) {
                    return Err(Error::malformed("parser resolved to an impossible unit", 0));
                }
                Ok(placement)
            }
        }
    }
}

struct ListedImage {
    image: Arc<Image>,
    writers: u32,
}

struct ListedInode {
    key: usize,
    images: u32,
    gfp_mask: gfp_t,
}

/// Images in use, and the inodes they are on.
pub(crate) struct ImageList {
    images: KVec<ListedImage>,
    inodes: KVec<ListedInode>,
}

impl ImageList {
    pub(crate) const fn new() -> Self {
        Self {
            images: KVec::new(),
            inodes: KVec::new(),
        }
    }

    /// Adds one user to an image that is listed; `None` if it is not.
    fn join(
        &mut self,
        key: usize,
        parser: &CStr,
        choice: &Choice,
        writable: bool,
    ) -> Option<kernel::error::Result<Arc<Image>>> {
        let same = |listed: &ListedImage| {
            listed.image.parser.name == parser && listed.image.choice.options() == choice.options()
        };
        let others = self.images.iter().filter(|listed| listed.image.key == key);
        let conflict = others
            .filter(|listed| !same(listed))
            .any(|listed| writable && listed.writers > 0);
        if conflict {
            return Some(Err(EBUSY));
        }
        let listed = self
            .images
            .iter_mut()
            .find(|listed| listed.image.key == key && same(listed))?;
        if writable && listed.image.is_poisoned() {
            return Some(Err(EROFS));
        }
        listed.image.devices.fetch_add(1, Full);
        listed.writers = listed.writers.saturating_add(u32::from(writable));
        Some(Ok(listed.image.clone()))
    }

    /// Lists a new image with its first user.
    fn add(
        &mut self,
        image: &Arc<Image>,
        file: &BackingFile,
        writable: bool,
    ) -> kernel::error::Result {
        self.images.reserve(1, GFP_KERNEL)?;
        self.inodes.reserve(1, GFP_KERNEL)?;
        match self.inodes.iter_mut().find(|inode| inode.key == image.key) {
            Some(inode) => inode.images = inode.images.saturating_add(1),
            None => self.inodes.push(
                ListedInode {
                    key: image.key,
                    images: 1,
                    gfp_mask: file.forbid_io_recursion(),
                },
                GFP_KERNEL,
            )?,
        }
        image.devices.fetch_add(1, Full);
        self.images.push(
            ListedImage {
                image: image.clone(),
                writers: u32::from(writable),
            },
            GFP_KERNEL,
        )?;
        Ok(())
    }

    /// How many devices write to an image.
    fn writers(&mut self, image: &Arc<Image>) -> Option<&mut u32> {
        let mut images = self.images.iter_mut();
        images
            .find(|listed| Arc::ptr_eq(&listed.image, image))
            .map(|listed| &mut listed.writers)
    }

    /// One user less. The last one of an inode restores its allocation flags.
    fn leave(&mut self, image: &Arc<Image>, file: &BackingFile) {
        let mut images = self.images.iter_mut();
        let Some(listed) = images.find(|listed| Arc::ptr_eq(&listed.image, image)) else {
            return;
        };
        if listed.image.devices.fetch_sub(1, Full) > 1 {
            return;
        }
        self.images
            .retain(|listed| !Arc::ptr_eq(&listed.image, image));
        for inode in self.inodes.iter_mut() {
            if inode.key == image.key {
                inode.images = inode.images.saturating_sub(1);
                if inode.images == 0 {
                    file.set_gfp_mask(inode.gfp_mask);
                }
            }
        }
        self.inodes.retain(|inode| inode.images > 0);
    }
}

/// Drops what the list keeps for more images, at module exit: statics are not dropped.
pub(crate) fn forget_all() {
    *IMAGES.lock() = ImageList::new();
}

/// One device's use of an image. Dropping it is the detach: the last writer's makes everything
/// durable. May sleep.
pub(crate) struct ImageUser {
    image: Arc<Image>,
    file: Arc<BackingFile>,
    writable: bool,
    direct: bool,
}

impl ImageUser {
    /// Attaches `file` through `parser`, or joins those who have it attached already.
    ///
    /// # Errors
    ///
    /// What the parser said; `Store(-EBUSY)` if the file is being written through another parser;
    /// `Store(-EBADF)` if the descriptor is not open for what a parser has to do.
    pub(crate) fn open(
        file: &Arc<BackingFile>,
        parser: BoundParser,
        choice: &Choice,
        writable: bool,
        number: u32,
    ) -> Result<Self> {
        let store = |error: kernel::error::Error| Error::Store(error.to_errno());
        if parser.name != raw::NAME && !file.is_readable() {
            return Err(store(EBADF));
        }
        let key = file.inode_key();
        let name = parser.name;
        let joined = IMAGES.lock().join(key, name, choice, writable);
        let image = match joined {
            Some(image) => {
                let image = image.map_err(store)?;
                let user = Self::new(image, file, writable);
                // Others have it attached, but perhaps only for reading, and then the parser has
                // not been asked yet whether this image can be written.
                if writable {
                    Image::attach(file, parser, choice, writable, number)?;
                }
                return Ok(user);
            }
            None => Image::attach(file, parser, choice, writable, number)?,
        };
        let mut list = IMAGES.lock();
        // Somebody may have been faster.
        let image = match list.join(key, name, choice, writable) {
            Some(joined) => joined.map_err(store)?,
            None => {
                list.add(&image, file, writable).map_err(store)?;
                image
            }
        };
        drop(list);
        Ok(Self::new(image, file, writable))
    }

    fn new(image: Arc<Image>, file: &Arc<BackingFile>, writable: bool) -> Self {
        Self {
            image,
            file: file.clone(),
            writable,
            direct: false,
        }
    }

    /// The image.
    pub(crate) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Whether direct I/O can be used: on an image with tables only by a device that has it to
    /// itself, as the buffered writes of others in flight could share pages with direct ones.
    pub(crate) fn may_go_direct(&self) -> bool {
        self.image.is_raw || self.image.devices.load(Acquire) == 1
    }

    /// Counts the device among those that write directly, or not. `false`: it may not, as another
    /// device has come in the meantime.
    pub(crate) fn set_direct(&mut self, direct: bool) -> bool {
        if direct == self.direct {
            return true;
        }
        if !direct {
            self.image.direct_devices.fetch_sub(1, Full);
            self.direct = false;
            return true;
        }
        // Counted first: whoever comes after the look at `devices` sees the count.
        self.image.direct_devices.fetch_add(1, Full);
        self.direct = self.may_go_direct();
        if !self.direct {
            self.image.direct_devices.fetch_sub(1, Full);
        }
        self.direct
    }

    /// The end of a writer. The last one finishes the image, still counted as a writer, so that
    /// nobody else writes the file through another parser meanwhile, and with the image locked, so
    /// that one who joins now waits.
    fn leave_writers(&self) {
        let mut allocation = self.image.allocation.lock();
        let last = IMAGES
            .lock()
            .writers(&self.image)
            .is_some_and(|writers| *writers == 1);
        if last {
            self.image.finish(&mut allocation, &self.file);
        }
        if let Some(writers) = IMAGES.lock().writers(&self.image) {
            *writers = writers.saturating_sub(1);
        }
    }
}

impl Drop for ImageUser {
    fn drop(&mut self) {
        self.set_direct(false);
        if self.writable {
            self.leave_writers();
        }
        IMAGES.lock().leave(&self.image, &self.file);
    }
}
