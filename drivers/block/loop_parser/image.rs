// SPDX-License-Identifier: GPL-2.0

//! Images: what all devices on one backing inode share.
//!
//! Locking. `IMAGES` (the list) is held for list operations only, never over I/O. An image's
//! `allocation` mutex serialises reservations and table writes; it is taken by workers, and by
//! `LOOP_SET_CAPACITY`, and nests
//!
//! ```text
//!   allocation mutex of a list -> that of its parts
//!   allocation mutex -> IMAGES
//!   allocation mutex -> write gate -> locks of the backing file system
//! ```
//!
//! Readers of tables take no lock: they compare `sequence` before and after, and fall back to the
//! mutex if it moved.

use core::cmp::min;

use kernel::{
    fmt,
    new_condvar,
    new_spinlock,
    prelude::*,
    static_lock_class,
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
        Mutex,
        SpinLock, //
    }, //
};

use crate::{
    allocation::Pending,
    bounce::Pool,
    contract::{
        Allocate,
        Disk,
        Error,
        Extent,
        Fault,
        Map,
        Placement,
        Result,
        Tables, //
    },
    group_sync::GroupSync,
    holes::Holes,
    log_name::LogName,
    opening::Others,
    parser::{
        AttachRequest,
        Attached,
        BoundParser, //
    },
    parts::{
        Parts,
        Place, //
    },
    range::GuestRange,
    reclaim::UnlinkedList,
    select::Choice,
    sys::{
        epoch::Epochs,
        file::{
            BackingFile,
            ErrorMark, //
        },
        random::random_u32,
        rwsem::{
            RwSemaphore,
            WriteGuard, //
        },
        work::WorkerContext, //
    },
    tables::{
        CachedTables,
        FileTables,
        LockedTables,
        SCRATCH_SIZE, //
    },
    user::ImageUser, //
};

/// What the image's mutex protects.
pub(crate) struct Allocation {
    /// The parser's allocator. Dropped with the image, before the parser's module reference.
    pub(crate) alloc: KBox<dyn Allocate>,
    /// Allocation units that somebody is writing the first data of.
    pub(crate) pending: Pending,
    /// Space that lost its pointer and was not given back yet.
    pub(crate) unlinked: UnlinkedList,
    /// Scratch memory for table writes; a raw file has no tables, and gets none.
    pub(crate) scratch: KVec<u8>,
}

/// An image in use.
#[pin_data]
pub(crate) struct Image {
    key: usize,
    /// Errors of writing the file back count from here on.
    errors: ErrorMark,
    /// The device that attached it first, for log lines.
    number: u32,
    choice: Choice,
    disk: Disk,
    /// Size of the disk in bytes, which can grow.
    size: Atomic<u64>,
    warning: Option<Fault>,
    map: KBox<dyn Map>,
    /// The layers below, nearest first. All of them are here, not only the parent, so that letting
    /// go of a long chain does not recurse.
    parents: KVec<ImageUser>,
    /// The file that guest data lie in, if not in the image's own.
    data: Option<ImageUser>,
    /// The files that the disk is put together from, if it is not in the image itself.
    parts: Parts,
    /// The last component of the path, if another image has named the file; else empty.
    name: KVec<u8>,
    #[pin]
    pub(crate) allocation: Mutex<Allocation>,
    /// An allocation is done, or space was given back.
    #[pin]
    pub(crate) pending_changed: CondVar,
    /// Odd while tables are being written.
    sequence: Atomic<u32>,
    #[pin]
    group_sync: GroupSync,
    /// A raw file needs none.
    pool: Option<Pin<KBox<Pool>>>,
    /// Requests that may be on their way to space that was resolved; `None` if space is not reused.
    epochs: Option<Pin<KBox<Epochs>>>,
    /// How often space was given back.
    reclaimed: Atomic<u32>,
    /// How often the file was written to, and how much of that was synced as part of another image.
    writes: Atomic<u64>,
    synced: Atomic<u64>,
    /// The parser was told that there will be writes.
    has_begun: AtomicFlag,
    /// How often that was done.
    begins: Atomic<u32>,
    /// The layer below was written to until this image was put on it, and is not durable yet.
    is_below_unsettled: AtomicFlag,
    /// Direct writes in flight (read side) against table and buffered writes (write side).
    #[pin]
    gate: RwSemaphore,
    /// How many devices write to the file directly.
    pub(crate) direct_devices: Atomic<u32>,
    /// How many users there are; changes under the lock of the list.
    pub(crate) users: Atomic<u32>,
    /// A sync or a table write failed: nothing may be written any more.
    poisoned: AtomicFlag,
    /// A fault of the image was logged.
    reported: AtomicFlag,
    /// The last fault that an I/O met.
    #[pin]
    last_fault: SpinLock<Option<Fault>>,
    /// Where the file lies.
    pub(crate) holes: Holes,
    peekable: bool,
    is_raw: bool,
    // Last: everything above may be code and data of the parser's module.
    parser: BoundParser,
}

/// Lets a parser attach a file.
pub(crate) fn attach(
    file: &BackingFile,
    parser: &BoundParser,
    choice: &Choice,
    writable: bool,
) -> Result<Attached> {
    let tables = FileTables {
        file,
        peekable: file.is_peekable(),
    };
    let request = AttachRequest {
        options: choice.options(),
        writable,
        part: choice.as_part(),
        random: random_u32(),
    };
    parser.parser.attach(&tables, &request)
}

impl Image {
    /// Puts together what a parser said of a file, and the others that it is made of. `number` is that
    /// of the device that attached it.
    // Not inlined: the image is put together on the stack.
    #[inline(never)]
    pub(crate) fn new(
        file: &BackingFile,
        parser: BoundParser,
        choice: &Choice,
        attached: Attached,
        others: Others,
        number: u32,
        name: KVec<u8>,
    ) -> kernel::error::Result<Arc<Self>> {
        let Others {
            parents,
            data,
            parts,
        } = others;
        let is_raw = parser.is_raw();
        let scratch = if is_raw { 0 } else { SCRATCH_SIZE };
        let scratch = KVec::from_elem(0, scratch, GFP_KERNEL)?;
        let disk = disk(attached.disk, &parts);
        let epochs = match disk.features.reuses_space {
            true => Some(KBox::pin_init(Epochs::new(), GFP_KERNEL)?),
            false => None,
        };
        let pool = match is_raw {
            true => None,
            false => Some(Pool::new(!parents.is_empty())?),
        };
        let is_peekable = |user: &ImageUser| user.file().is_peekable();
        let peekable = file.is_peekable() && data.as_ref().is_none_or(is_peekable);
        // To finish a list is to finish its parts.
        let lock_class = match parts.is_empty() {
            true => static_lock_class!(),
            false => static_lock_class!(),
        };
        let image = pin_init!(Self {
            key: file.inode_key(),
            errors: ErrorMark::new(),
            number,
            choice: *choice,
            disk,
            size: Atomic::new(disk.size),
            warning: attached.warning,
            map: attached.map,
            parents,
            data,
            parts,
            name,
            allocation <- Mutex::new(Allocation {
                alloc: attached.alloc,
                pending: Pending::new(),
                unlinked: UnlinkedList::new(),
                scratch,
            }, c"Image::allocation", lock_class),
            pending_changed <- new_condvar!("Image::pending_changed"),
            sequence: Atomic::new(0),
            group_sync <- GroupSync::new(),
            pool,
            epochs,
            reclaimed: Atomic::new(0),
            writes: Atomic::new(0),
            synced: Atomic::new(0),
            // A raw file is as it is.
            has_begun: AtomicFlag::new(is_raw),
            begins: Atomic::new(0),
            is_below_unsettled: AtomicFlag::new(false),
            gate <- RwSemaphore::new(),
            direct_devices: Atomic::new(0),
            users: Atomic::new(0),
            poisoned: AtomicFlag::new(false),
            reported: AtomicFlag::new(false),
            last_fault <- new_spinlock!(None),
            holes: Holes::new(),
            peekable,
            is_raw,
            parser,
        });
        Arc::pin_init(image, GFP_KERNEL)
    }

    /// Buffers for what cannot be moved in one go.
    pub(crate) fn pool(&self) -> Result<&Pool> {
        let outside = Error::Store(EIO.to_errno());
        self.pool.as_deref().ok_or(outside)
    }

    /// What requests enter before they are resolved, and those wait for who give space back.
    pub(crate) fn epochs(&self) -> Option<&Epochs> {
        self.epochs.as_deref()
    }

    /// How often space was given back. Does not change inside an epoch, as far as space goes that was
    /// resolved to in it.
    pub(crate) fn reclaimed(&self) -> u32 {
        self.reclaimed.load(Acquire)
    }

    /// Space is about to be given back. The caller holds the image's mutex.
    pub(crate) fn count_reclaim(&self) {
        self.reclaimed.fetch_add(1, Full);
    }

    /// Identity of the inode; see [`BackingFile::inode_key`].
    pub(crate) fn key(&self) -> usize {
        self.key
    }

    /// Whether it is what `parser` makes of the file, chosen as by `choice`.
    pub(crate) fn is_by(&self, parser: &CStr, choice: &Choice) -> bool {
        self.parser.name == parser && self.choice.means_the_same(choice)
    }

    /// What its parser was chosen with.
    pub(crate) fn choice(&self) -> &Choice {
        &self.choice
    }

    /// The layers below, nearest first.
    pub(crate) fn parents(&self) -> &[ImageUser] {
        &self.parents
    }

    /// Whether it is made of more than its own file.
    pub(crate) fn has_others(&self) -> bool {
        !self.parents.is_empty() || self.data.is_some() || self.has_parts()
    }

    /// Whether it names the same files as another image in the same file, and may do what that one may.
    pub(crate) fn can_stand_for(&self, other: &Self) -> bool {
        let key = |user: &ImageUser| user.image().key;
        let writes = |image: &Self| image.data_files().any(ImageUser::is_writer);
        self.parents.first().map(key) == other.parents.first().map(key)
            && self.disk.size == other.disk.size
            && self.data_files().map(key).eq(other.data_files().map(key))
            && (writes(self) || !writes(other))
    }

    /// The file that guest data lie in; `file` is the image's own.
    pub(crate) fn data<'a>(&'a self, file: &'a BackingFile) -> &'a BackingFile {
        self.data.as_ref().map_or(file, |data| data.file())
    }

    /// The user of the file that guest data lie in, if that is not the image's own.
    pub(crate) fn data_file(&self) -> Option<&ImageUser> {
        self.data.as_ref()
    }

    /// The other files that guest data of its own lie in.
    pub(crate) fn data_files(&self) -> impl Iterator<Item = &ImageUser> {
        Iterator::chain(self.data.iter(), self.parts.users())
    }

    /// Whether the disk is put together from other files.
    pub(crate) fn has_parts(&self) -> bool {
        !self.parts.is_empty()
    }

    /// The files that the disk is put together from.
    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Where the start of a guest range is.
    ///
    /// # Errors
    ///
    /// `EIO`: it is not on the disk.
    pub(crate) fn place(&self, pos: u64, len: u64) -> Result<Place> {
        self.parts.place(pos, len)
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
            self.size.load(Relaxed)
        }
    }

    /// The same, without asking a file system, which can fail, and sleep: of a raw one, what the page
    /// cache knows.
    pub(crate) fn known_size(&self, file: &BackingFile) -> u64 {
        if self.is_raw {
            file.size()
        } else {
            self.size.load(Relaxed)
        }
    }

    /// Looks at the size of the disk again, after the file was changed by a tool. The disk may only
    /// have grown.
    pub(crate) fn reread_size(&self, file: &BackingFile) -> Result {
        if self.is_raw {
            return Ok(());
        }
        // Writes may have to wait for it: to get memory must not mean to wait for these.
        let _context = WorkerContext::enter();
        let size = self.blocking(file, |tables| self.map.reread_size(tables))?;
        if size < self.size.load(Relaxed) {
            return Err(Error::unsupported("the disk has become smaller", 0));
        }
        self.size.store(size, Relaxed);
        Ok(())
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
                "loop{}: {}: {}{why} failed ({error:?}); read-only until it is attached again\n",
                self.number,
                self.parser_name(),
                self.quoted_name()
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
        let data = self.data.as_ref().filter(|data| data.is_writer());
        data.map_or(Ok(()), |data| data.image().sync_as_layer(data.file()))
            .and_then(|()| self.sync_parts())
            .and_then(|()| self.sync_below())
            .and_then(|()| self.sync_file(file))
            .inspect_err(|error| self.poison("syncing", *error))
    }

    /// The same for another image that needs what is in this one. Of a raw file, too, a failure counts
    /// that somebody else was told.
    fn sync_as_layer(&self, file: &BackingFile) -> kernel::error::Result {
        match self.is_raw {
            true => self.sync_file(file),
            false => self.sync(file),
        }
    }

    /// Makes what was written to the file durable. An error that somebody else was told, who synced at
    /// the same time, is one here, too.
    fn sync_file(&self, file: &BackingFile) -> kernel::error::Result {
        file.fsync()?;
        file.check_errors(&self.errors)
    }

    /// The file gets its first writer: what went wrong before is not about what that one writes.
    pub(crate) fn forget_errors(&self, file: &BackingFile) {
        file.forget_errors();
        file.mark_errors(&self.errors);
    }

    fn sync_parts(&self) -> kernel::error::Result {
        let mut written = self.parts.users().filter(|part| part.is_writer());
        written.try_for_each(|part| part.image().sync_written(part.file()))
    }

    /// Of a layer below that was the device's own until a moment ago.
    fn sync_below(&self) -> kernel::error::Result {
        if !self.is_below_unsettled.load(Acquire) {
            return Ok(());
        }
        let below = self.parents.first().ok_or(EIO)?;
        below.image().sync_as_layer(below.file())
    }

    /// It is about to take the place of the image below it, which requests have written to since it was
    /// synced: until [`Image::settled`] what is made durable includes that one.
    pub(crate) fn unsettle(&self) {
        if let Some(below) = self.parents.first() {
            // Of a raw one the guest was told what went wrong before.
            below.file().mark_errors(&below.image().errors);
        }
        self.is_below_unsettled.store(true, Release);
    }

    /// The image below was made durable, or cannot be.
    pub(crate) fn settled(&self, result: kernel::error::Result) -> kernel::error::Result {
        match result {
            Ok(()) => self.is_below_unsettled.store(false, Release),
            Err(error) => self.poison("syncing the layer below", error),
        }
        result
    }

    /// Makes what was written durable, if anything was since the last time: a disk can have thousands of
    /// parts.
    fn sync_written(&self, file: &BackingFile) -> kernel::error::Result {
        // Whatever was counted had been written.
        let writes = self.writes.load(Acquire);
        if self.synced.load(Acquire) == writes {
            return Ok(());
        }
        self.sync_as_layer(file)?;
        // Of two who sync at once, the count of either will do.
        self.synced.store(writes, Release);
        Ok(())
    }

    /// Something was written to the file, or may have been.
    pub(crate) fn count_write(&self) {
        self.writes.fetch_add(1, Full);
    }

    /// The same, but one sync does for all who are waiting for one to begin.
    pub(crate) fn sync_together(&self, file: &BackingFile) -> kernel::error::Result {
        self.group_sync.run(|| self.sync(file))?;
        if self.is_poisoned() {
            return Err(EIO);
        }
        Ok(())
    }

    /// For the log: which file it is, if that is not the device's own.
    fn quoted_name(&self) -> Quoted<'_> {
        Quoted(&self.name)
    }

    /// The last fault that an I/O met.
    pub(crate) fn last_fault(&self) -> Option<Fault> {
        *self.last_fault.lock()
    }

    /// Remembers what is wrong with the image, and logs it, once.
    pub(crate) fn report(&self, error: &Error) {
        let Some(fault) = error.fault() else {
            return;
        };
        *self.last_fault.lock() = Some(*fault);
        if !self.reported.xchg(true, Full) {
            pr_err!(
                "loop{}: {}: {}{} at byte {}: I/O error\n",
                self.number,
                self.parser_name(),
                self.quoted_name(),
                fault.what,
                fault.at
            );
        }
    }

    /// The same, for an error that is passed on to those who would report it of their own image:
    /// returns what is left to say.
    pub(crate) fn reported(&self, error: Error) -> Error {
        self.report(&error);
        match error.fault() {
            Some(_) => Error::Store(error.to_io_errno()),
            None => error,
        }
    }

    /// The same for one who wanted to write. If the image contradicts itself, its parser is asked before
    /// the next write whether there should be any more.
    pub(crate) fn report_write(&self, error: &Error) {
        self.report(error);
        if matches!(error, Error::Malformed(_)) {
            self.begin_again();
        }
    }

    /// [`Image::report_write`], for an error that is passed on to those who would report it of their own
    /// image: returns what is left to say.
    pub(crate) fn reported_write(&self, error: Error) -> Error {
        self.report_write(&error);
        match error.fault() {
            Some(_) => Error::Store(error.to_io_errno()),
            None => error,
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

    /// The image itself at depth 0, its parent at 1, and so on; `file` is the image's own.
    pub(crate) fn layer<'a>(&'a self, file: &'a BackingFile, depth: usize) -> Option<Layer<'a>> {
        match depth.checked_sub(1) {
            None => Some(Layer::new(self, file)),
            Some(index) => self.parents.get(index).map(ImageUser::layer),
        }
    }

    /// The image that is meant; `file` is this one's own.
    pub(crate) fn whose<'a>(&'a self, file: &'a BackingFile, whose: Whose) -> Option<Layer<'a>> {
        let layer = self.layer(file, whose.depth)?;
        match whose.part {
            None => Some(layer),
            Some(index) => layer.image.parts.layer(index, layer),
        }
    }

    /// Tells the parser that there will be writes, unless that was done. May sleep.
    pub(crate) fn begin_writing(&self, file: &BackingFile) -> Result {
        if self.has_begun.load(Acquire) {
            return Ok(());
        }
        self.begin_locked(file)
    }

    /// How often the parser was told: what the image is known by may change then. Says nothing while a
    /// write is under way.
    pub(crate) fn begins(&self) -> u32 {
        self.begins.load(Acquire)
    }

    /// Tells the parser once more before the next write. The caller holds the image's mutex, or has
    /// held it since the parser has changed its mind.
    pub(crate) fn begin_again(&self) {
        self.has_begun.store(self.is_raw, Relaxed);
    }

    // Not inlined: it is called once.
    #[inline(never)]
    fn begin_locked(&self, file: &BackingFile) -> Result {
        let mut allocation = self.allocation.lock();
        if self.has_begun.load(Relaxed) {
            return Ok(());
        }
        let Allocation { alloc, scratch, .. } = &mut *allocation;
        let begun = alloc.begin(&mut LockedTables::new(self, file, scratch));
        self.begins.fetch_add(1, Full);
        begun?;
        self.has_begun.store(true, Release);
        Ok(())
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
        let size = self.size.load(Relaxed);
        let left = size.checked_sub(pos).ok_or(outside)?;
        GuestRange::in_sectors(pos, min(len, left)).ok_or(outside)
    }

    /// The last writer goes: gives back what was reserved, and makes everything durable. Nobody
    /// else writes the image meanwhile.
    pub(crate) fn finish(
        &self,
        allocation: &mut Allocation,
        file: &BackingFile,
    ) -> kernel::error::Result {
        let parts = self.finish_parts();
        if let Err(error) = parts {
            self.poison("syncing a part", error);
        }
        if !self.is_raw && !self.is_poisoned() {
            // Whoever comes next begins anew.
            self.begin_again();
            let mut tables = LockedTables::new(self, file, &mut allocation.scratch);
            if let Err(error) = allocation.alloc.close(&mut tables) {
                self.report(&error);
            }
        }
        parts.and(self.sync_as_layer(file))
    }

    /// The same for all parts, whether or not one fails. Raw ones are synced with the whole: they would report
    /// an error only once.
    fn finish_parts(&self) -> kernel::error::Result {
        let is_to_finish = |part: &&ImageUser| part.is_writer() && !part.image().is_raw();
        let written = self.parts.users().filter(is_to_finish);
        let mut result = Ok(());
        for part in written {
            let mut allocation = part.image().allocation.lock();
            let finished = part.image().finish(&mut allocation, part.file());
            result = result.and(finished);
        }
        result
    }
}

/// An image, and the file that it is in.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) image: &'a Image,
    pub(crate) file: &'a BackingFile,
    /// The image that has it as a part.
    pub(crate) whole: Option<Whole<'a>>,
}

impl<'a> Layer<'a> {
    /// One that is no part of another.
    pub(crate) fn new(image: &'a Image, file: &'a BackingFile) -> Self {
        Self {
            image,
            file,
            whole: None,
        }
    }
}

/// An image whose disk is put together from others.
#[derive(Clone, Copy)]
pub(crate) struct Whole<'a> {
    pub(crate) image: &'a Image,
    pub(crate) file: &'a BackingFile,
    /// Where in its disk the part begins, in bytes.
    pub(crate) start: u64,
}

/// Which of the images that a device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whose {
    /// Which layer: 0 is the device's own file.
    pub(crate) depth: usize,
    /// Which of that one's parts; `None`: it has none.
    pub(crate) part: Option<usize>,
}

impl Whose {
    /// The device's own file.
    pub(crate) const OWN: Self = Self {
        depth: 0,
        part: None,
    };
}

/// What the driver is told of a disk: what its parts are like, if it has any.
fn disk(disk: Disk, parts: &Parts) -> Disk {
    if parts.is_empty() {
        return disk;
    }
    Disk {
        features: parts.features(),
        unit: parts.unit(),
        ..disk
    }
}

/// A name in a log line, with what separates it from the rest; nothing if it is empty.
struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => Ok(()),
            name => f.write_fmt(fmt!("\"{}\": ", LogName(name))),
        }
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
