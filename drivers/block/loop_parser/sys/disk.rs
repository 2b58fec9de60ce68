// SPDX-License-Identifier: GPL-2.0

//! Disks: the gendisk, its queue and tag set, and the calls that come in through them.

use core::{
    marker::PhantomData,
    mem::size_of,
    ptr::NonNull, //
};

use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    ffi::{
        c_int,
        c_uint,
        c_ulong, //
    },
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            ordering::{
                Full,
                Relaxed,
                Release, //
            },
            Atomic, //
        },
        Arc,
        ArcBorrow, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};

use super::{
    bdev::{
        BlockDevice,
        OpenMode, //
    },
    bindings,
    frozen::FrozenCell,
    request::{
        Request,
        COMMAND_SIZE, //
    },
    sysfs::{
        Group,
        GroupList, //
    }, //
};

/// A driver of disks. `Self` is the device; the disk keeps a reference to it until it is freed.
pub(crate) trait DiskOps: Send + Sync + Sized + 'static {
    /// What requests look at without a lock; absent while nothing is attached.
    type Binding: Send + Sync;

    /// The device's own disk.
    fn disk(&self) -> &Disk<Self>;
    /// A block device file was opened.
    fn open(&self) -> Result;
    /// A block device file was closed; called with the disk's `open_mutex` held.
    fn release(this: ArcBorrow<'_, Self>, closing: &Closing<'_, Self>);
    /// An ioctl of a native program.
    fn ioctl(&self, bdev: &BlockDevice, mode: OpenMode, cmd: u32, arg: usize) -> Result;
    /// An ioctl of a 32-bit program.
    fn compat_ioctl(&self, bdev: &BlockDevice, mode: OpenMode, cmd: u32, arg: usize) -> Result;
    /// A request came in. Must not sleep.
    fn queue_rq(this: ArcBorrow<'_, Self>, request: Request<Self>);
    /// A direct I/O that was in flight has ended. May run in interrupt context.
    fn direct_done(request: Request<Self>, moved: Result<usize>);
    /// The disk is going away, no request is left: wait for everything of this device that runs.
    fn shutdown(&self);
}

/// A disk of driver `T`, owned by its device.
///
/// # Invariants
///
/// `raw` is a valid gendisk, and its queue and tag set are those made with it. Until `add`, `self`
/// owns all of it, and if that fails, until `self` is dropped. From then on the first reference to
/// the gendisk is that of `add`, and [`Disk::remove`] drops it, last of all: the caller's reference
/// to the device goes with it, and by then [`DiskOps::shutdown`] has waited for the device's work,
/// and `unlisted` has taken it out of all lists. Who else has the device came in through the disk,
/// which is open, or has a file in sysfs, meanwhile.
pub(crate) struct Disk<T: DiskOps> {
    raw: NonNull<bindings::gendisk>,
    tags: KBox<Opaque<bindings::blk_mq_tag_set>>,
    state: Atomic<u32>,
    binding: FrozenCell<T::Binding>,
    /// Lives as long as the gendisk, which points to it.
    fops: Arc<Fops<T>>,
}

/// How the block layer calls driver `T`; an open disk keeps the module in it loaded.
pub(crate) struct Fops<T> {
    raw: bindings::block_device_operations,
    _driver: PhantomData<T>,
}

// SAFETY: Pointers to functions and to a module, none of which belong to a thread.
unsafe impl<T> Send for Fops<T> {}
// SAFETY: Nobody writes to it once it was made; the block layer takes it as `const`.
unsafe impl<T> Sync for Fops<T> {}

impl<T: DiskOps> Fops<T> {
    /// The operations of disks that belong to `module`.
    pub(crate) fn new(module: &'static ThisModule) -> Result<Arc<Self>> {
        let raw = bindings::block_device_operations {
            owner: module.as_ptr(),
            open: Some(open::<T>),
            release: Some(release::<T>),
            ioctl: Some(ioctl::<T>),
            compat_ioctl: Some(compat_ioctl::<T>),
            free_disk: Some(free_disk::<T>),
            ..pin_init::zeroed()
        };
        let fops = Self {
            raw,
            _driver: PhantomData,
        };
        Ok(Arc::new(fops, GFP_KERNEL)?)
    }
}

/// States of a disk; each is entered once, and none is left for an earlier one.
const NEW: u32 = 0;
const ADDING: u32 = 1;
/// Adding it failed; it is not tried again.
const FAILED: u32 = 2;
const ADDED: u32 = 3;
const REMOVED: u32 = 4;

// SAFETY: A gendisk may be used from any thread, and the rest of the fields are `Send`.
unsafe impl<T: DiskOps> Send for Disk<T> {}
// SAFETY: The functions called on a shared gendisk take the locks they need themselves, but for
// `bdev_disk_changed`, for which the callers here hold `open_mutex`. The tag set is touched by
// those who own the disk only: `alloc`, `remove`, `drop`.
unsafe impl<T: DiskOps> Sync for Disk<T> {}

/// Where a disk appears: `/dev/NAMEnumber`, device numbers.
pub(crate) struct Address<'a> {
    /// The name without its number.
    pub(crate) name: &'a str,
    /// The number in the name.
    pub(crate) number: u32,
    /// Major device number.
    pub(crate) major: u32,
    /// First minor device number.
    pub(crate) first_minor: u32,
    /// How many minors the disk and its partitions have.
    pub(crate) minors: u32,
}

impl<T: DiskOps> Disk<T> {
    const MQ_OPS: &'static bindings::blk_mq_ops = &bindings::blk_mq_ops {
        queue_rq: Some(queue_rq::<T>),
        ..pin_init::zeroed()
    };

    /// Allocates a disk with one hardware queue of `depth` requests of at most `max_sectors`.
    pub(crate) fn alloc(fops: Arc<Fops<T>>, depth: u32, max_sectors: u32) -> Result<Self> {
        let tags = KBox::new(
            Opaque::new(bindings::blk_mq_tag_set {
                ops: Self::MQ_OPS,
                nr_hw_queues: 1,
                queue_depth: depth,
                numa_node: bindings::LP_NUMA_NO_NODE,
                cmd_size: u32::try_from(COMMAND_SIZE).map_err(|_| EINVAL)?,
                flags: bindings::BLK_MQ_F_STACKING | bindings::BLK_MQ_F_NO_SCHED_BY_DEFAULT,
                ..pin_init::zeroed()
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The tag set is filled in, zeroed otherwise, and does not move: it is boxed.
        to_result(unsafe { bindings::blk_mq_alloc_tag_set(tags.get()) })?;
        let mut limits = bindings::queue_limits {
            max_hw_sectors: max_sectors,
            ..pin_init::zeroed()
        };
        // SAFETY: The tag set and the limits are valid. The driver's data and operations are set
        // before the disk is added, and so before any request or open.
        let raw = from_err_ptr(unsafe {
            bindings::lp_blk_mq_alloc_disk(tags.get(), &mut limits, core::ptr::null_mut())
        });
        let raw = match raw.map(NonNull::new) {
            Ok(Some(raw)) => raw,
            other => {
                // SAFETY: It was allocated above, and no queue uses it: making the disk failed.
                unsafe { bindings::blk_mq_free_tag_set(tags.get()) };
                return Err(other.err().unwrap_or(ENOMEM));
            }
        };
        // INVARIANT: The gendisk is new and ours.
        Ok(Self {
            raw,
            tags,
            fops,
            state: Atomic::new(NEW),
            binding: FrozenCell::new(),
        })
    }

    fn as_ptr(&self) -> *mut bindings::gendisk {
        self.raw.as_ptr()
    }

    pub(super) fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: By the invariant the gendisk is valid; its queue does not change.
        unsafe { (*self.as_ptr()).queue }
    }

    pub(super) fn binding(&self) -> &FrozenCell<T::Binding> {
        &self.binding
    }

    fn kobj(&self) -> *mut bindings::kobject {
        // SAFETY: By the invariant the gendisk is valid, and with it its device.
        unsafe { &raw mut (*bindings::lp_disk_to_dev(self.as_ptr())).kobj }
    }

    /// Makes the disk of `device` appear, with the sysfs groups `groups`. Can be tried once.
    pub(crate) fn add(
        device: &Arc<T>,
        address: &Address<'_>,
        groups: &'static GroupList,
    ) -> Result {
        let disk = device.disk();
        if !is_part_of(disk, &**device) {
            return Err(EINVAL);
        }
        let name = CString::try_from_fmt(fmt!("{}{}", address.name, address.number))?;
        let bytes = name.to_bytes_with_nul();
        if disk.state.cmpxchg(NEW, ADDING, Full) != Ok(NEW) {
            return Err(EBUSY);
        }
        let data = Arc::into_raw(device.clone());
        // SAFETY: By the invariant the gendisk is valid. The state says that it was not added yet
        // and that nobody else is doing so, so nobody else uses it. The reference in `data` is
        // dropped by `free_disk`, or below. The disk is part of what `data` refers to, so it, and
        // the operations it keeps, live until then, too. A name that is too long is seen below,
        // before anybody reads it.
        let ret = unsafe {
            let raw = disk.as_ptr();
            (*raw).major = address.major as c_int;
            (*raw).first_minor = address.first_minor as c_int;
            (*raw).minors = address.minors as c_int;
            (*raw).fops = &raw const disk.fops.raw;
            (*raw).private_data = data.cast_mut().cast();
            (*(*raw).queue).queuedata = core::ptr::from_ref(disk).cast_mut().cast();
            (*raw).events = bindings::LP_DISK_EVENT_MEDIA_CHANGE as u16;
            (*raw).event_flags = bindings::LP_DISK_EVENT_FLAG_UEVENT as u16;
            let disk_name: &mut [_] = &mut (*raw).disk_name;
            match disk_name.get_mut(..bytes.len()) {
                Some(disk_name) => {
                    disk_name.copy_from_slice(bytes);
                    bindings::device_add_disk(core::ptr::null_mut(), raw, groups.as_ptr())
                }
                None => ENAMETOOLONG.to_errno(),
            }
        };
        if let Err(error) = to_result(ret) {
            disk.state.store(FAILED, Relaxed);
            // SAFETY: The disk was not added, so nothing refers to the device through it, and
            // `free_disk` is not called.
            drop(unsafe { Arc::from_raw(data) });
            return Err(error);
        }
        disk.state.store(ADDED, Release);
        Ok(())
    }

    /// Makes the disk disappear. The gendisk, and with it what `add` gave it, goes when the last
    /// user has closed it; so `unlisted` has to forget the device.
    pub(crate) fn remove(device: Arc<T>, unlisted: impl FnOnce()) {
        let disk = device.disk();
        if disk.state.cmpxchg(ADDED, REMOVED, Full) != Ok(ADDED) {
            return;
        }
        // SAFETY: The state says that the disk was added, and that it is removed once.
        unsafe { bindings::del_gendisk(disk.as_ptr()) };
        // No request is left. Before the queue can go: this is for work that may use it.
        device.shutdown();
        // SAFETY: `del_gendisk` has ended the only queue that used the tag set.
        unsafe { bindings::blk_mq_free_tag_set(disk.tags.get()) };
        unlisted();
        // SAFETY: This is the reference that `alloc` got. `device` keeps `disk` alive through this
        // call, and is not used after it.
        unsafe { bindings::put_disk(disk.as_ptr()) };
    }

    /// How many have the disk or a partition of it open.
    pub(crate) fn openers(&self) -> u32 {
        // SAFETY: By the invariant.
        unsafe { bindings::lp_disk_openers(self.as_ptr()) }
    }

    /// Sets the capacity in sectors and tells user space.
    pub(crate) fn set_capacity(&self, sectors: u64) {
        // SAFETY: By the invariant.
        if !unsafe { bindings::set_capacity_and_notify(self.as_ptr(), sectors) } {
            self.uevent_change();
        }
    }

    /// Sends a change event.
    pub(crate) fn uevent_change(&self) {
        // SAFETY: By the invariant.
        unsafe { bindings::kobject_uevent(self.kobj(), bindings::kobject_action_KOBJ_CHANGE) };
    }

    /// Keeps events back while the device is in transition.
    pub(crate) fn suppress_uevents(&self, suppress: bool) {
        // SAFETY: By the invariant.
        unsafe { bindings::lp_dev_set_uevent_suppress(self.as_ptr(), c_int::from(suppress)) };
    }

    /// Tells the block layer that there are other bytes on the disk now.
    pub(crate) fn media_change(&self) {
        // SAFETY: By the invariant.
        unsafe { bindings::disk_force_media_change(self.as_ptr()) };
    }

    /// Drops the page cache of the disk and sets its size to 0.
    pub(crate) fn invalidate(&self) {
        // SAFETY: By the invariant.
        unsafe { bindings::invalidate_disk(self.as_ptr()) };
    }

    /// Writes back and then drops the page cache of the whole disk.
    pub(crate) fn sync_and_invalidate(&self) {
        // SAFETY: By the invariant; `part0` lives as long as the disk. May sleep. A failed
        // writeback is reported to those who wrote.
        unsafe {
            bindings::sync_blockdev((*self.as_ptr()).part0);
            bindings::invalidate_bdev((*self.as_ptr()).part0);
        }
    }

    /// Makes the disk read-only or writable.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        // SAFETY: By the invariant.
        unsafe { bindings::set_disk_ro(self.as_ptr(), read_only) };
    }

    /// Lets the kernel look for partitions, or not.
    pub(crate) fn set_partition_scan(&self, enable: bool) {
        // SAFETY: By the invariant.
        unsafe { bindings::lp_disk_set_part_scan(self.as_ptr(), enable) };
    }

    /// Reads the partition table again. The caller must not hold the disk's `open_mutex`.
    pub(crate) fn reread_partitions(&self) -> Result {
        // SAFETY: By the invariant; `open_mutex` is what `bdev_disk_changed` requires.
        unsafe {
            let open_mutex = &raw mut (*self.as_ptr()).open_mutex;
            bindings::mutex_lock(open_mutex);
            let ret = bindings::bdev_disk_changed(self.as_ptr(), false);
            bindings::mutex_unlock(open_mutex);
            to_result(ret)
        }
    }

    /// Whether the disk has a directory in sysfs, which whoever has it open can rely on.
    fn is_in_sysfs(&self) -> bool {
        // SAFETY: By the invariant; a pointer that is only compared.
        unsafe { !(&raw const (*self.kobj()).sd).read_volatile().is_null() }
    }

    /// Adds the files of `group` to its directory, which one of the groups given to `add` made.
    /// `ENODEV` for a disk that does not appear.
    pub(crate) fn merge_group(&self, group: &'static Group) -> Result {
        if !self.is_in_sysfs() {
            return Err(ENODEV);
        }
        // SAFETY: By the invariant; the disk is in sysfs; the group is static.
        to_result(unsafe { bindings::sysfs_merge_group(self.kobj(), group.as_ptr()) })
    }

    /// Removes what [`Disk::merge_group`] added. Waits for those who are reading the files.
    pub(crate) fn unmerge_group(&self, group: &'static Group) {
        if self.is_in_sysfs() {
            // SAFETY: As in `merge_group`.
            unsafe { bindings::sysfs_unmerge_group(self.kobj(), group.as_ptr()) };
        }
    }

    /// Gives requests something to look at; `value` comes back if there is something already.
    pub(crate) fn bind(&self, value: KBox<T::Binding>) -> Result {
        self.binding.install(value).map_err(|_| EBUSY)
    }

    /// Waits for all requests in flight and holds new ones back while the guard lives.
    pub(crate) fn freeze(&self) -> Frozen<'_, T> {
        // SAFETY: By the invariant. May sleep.
        let memflags = unsafe { bindings::lp_blk_mq_freeze_queue(self.queue()) };
        Frozen {
            disk: self,
            memflags,
            _not_send: NotThreadSafe,
        }
    }
}

impl<T: DiskOps> Drop for Disk<T> {
    fn drop(&mut self) {
        if matches!(*self.state.get_mut(), NEW | FAILED) {
            // SAFETY: The disk was never added, so it is still ours, and so is the tag set. In
            // this order: the queue uses the tag set until the disk is gone.
            unsafe {
                bindings::put_disk(self.as_ptr());
                bindings::blk_mq_free_tag_set(self.tags.get());
            }
        }
    }
}

/// Whether `disk` is inside the memory of `device`, and so lives as long.
fn is_part_of<T: DiskOps>(disk: &Disk<T>, device: &T) -> bool {
    let at = core::ptr::from_ref(disk) as usize;
    let start = core::ptr::from_ref(device) as usize;
    let offset = at.checked_sub(start);
    offset.is_some_and(|offset| offset <= size_of::<T>().saturating_sub(size_of::<Disk<T>>()))
}

/// The closing of a disk's block device: its `open_mutex` is held.
///
/// # Invariants
///
/// The task holds the disk's `open_mutex`, and does not drop it while this lives.
pub(crate) struct Closing<'a, T: DiskOps> {
    disk: &'a Disk<T>,
    _not_send: NotThreadSafe,
}

impl<T: DiskOps> Closing<'_, T> {
    /// Drops all partitions of a disk without media.
    pub(crate) fn drop_partitions(&self) -> Result {
        // SAFETY: The gendisk is valid, and by the invariant `open_mutex` is held.
        to_result(unsafe { bindings::bdev_disk_changed(self.disk.as_ptr(), false) })
    }
}

/// A frozen queue: no request is in flight.
///
/// # Invariants
///
/// The queue of `disk` was frozen for this value, which will unfreeze it.
pub(crate) struct Frozen<'a, T: DiskOps> {
    disk: &'a Disk<T>,
    memflags: c_uint,
    _not_send: NotThreadSafe,
}

impl<T: DiskOps> Frozen<'_, T> {
    /// Changes what requests look at, in place: this cannot fail.
    pub(crate) fn update(&self, change: impl FnOnce(&mut T::Binding)) {
        if let Some(mut value) = self.rebind(None) {
            change(&mut value);
            self.rebind(Some(value));
        }
    }

    /// Replaces what requests look at.
    pub(crate) fn rebind(&self, value: Option<KBox<T::Binding>>) -> Option<KBox<T::Binding>> {
        // SAFETY: By the invariant the queue is frozen, so no request is in flight, and none can
        // come before `self` is dropped.
        unsafe { self.disk.binding.replace(value) }
    }
}

impl<T: DiskOps> Drop for Frozen<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the invariant the queue was frozen for `self`, and by this task, as this type
        // is not `Send`.
        unsafe { bindings::lp_blk_mq_unfreeze_queue(self.disk.queue(), self.memflags) };
    }
}

/// The device behind a gendisk, if it is one of driver `T`.
///
/// # Safety
///
/// `disk` is a valid gendisk for the lifetime `'a`.
pub(super) unsafe fn device_of_disk<'a, T: DiskOps>(disk: *mut bindings::gendisk) -> Option<&'a T> {
    // Every module that runs this driver has operations of its own, but this function is the same
    // in all of them, and in no other driver's.
    let ours = free_disk::<T> as *const ();
    // SAFETY: By the requirement. Our operations are only ever set together with `private_data`.
    unsafe {
        let free = (*(*disk).fops).free_disk.map(|free| free as *const ());
        (free == Some(ours)).then(|| &*(*disk).private_data.cast::<T>())
    }
}

/// The device behind a queue.
///
/// # Safety
///
/// `queue` is that of a disk of driver `T` that was added and is not freed yet.
pub(super) unsafe fn device_of_queue<T: DiskOps>(queue: *mut bindings::request_queue) -> *const T {
    // SAFETY: By the requirement; a queue knows its disk as long as that is not freed.
    unsafe { (*(*queue).disk).private_data.cast_const().cast() }
}

/// The disk that a queue belongs to.
///
/// # Safety
///
/// As for [`device_of_queue`], for the lifetime `'a`.
pub(super) unsafe fn disk_of_queue<'a, T: DiskOps>(
    queue: *mut bindings::request_queue,
) -> &'a Disk<T> {
    // SAFETY: By the requirement; this is what `Disk::add` stored, and it is part of the device.
    unsafe { &*(*queue).queuedata.cast::<Disk<T>>() }
}

/// # Safety
///
/// Only to be called by blk-mq through [`Disk::MQ_OPS`], for a disk that was added.
unsafe extern "C" fn queue_rq<T: DiskOps>(
    _hctx: *mut bindings::blk_mq_hw_ctx,
    data: *const bindings::blk_mq_queue_data,
) -> bindings::blk_status_t {
    // SAFETY: blk-mq passes a valid request of one of our queues; it is started before anything
    // else happens to it, and is ours from then on. The disk's `private_data` came from an `Arc`.
    // The request may end during the call, and no longer keeps the device then; but whoever
    // dispatches it does: a submitter has the disk open, and `del_gendisk`, after which the
    // device may go, waits for the block layer's own work.
    unsafe {
        let Some(raw) = NonNull::new((*data).rq) else {
            return bindings::LP_BLK_STS_IOERR;
        };
        bindings::blk_mq_start_request(raw.as_ptr());
        let device = ArcBorrow::from_raw(device_of_queue::<T>((*raw.as_ptr()).q));
        T::queue_rq(device, Request::start(raw));
    }
    bindings::LP_BLK_STS_OK
}

/// # Safety
///
/// Only to be called by the block layer through [`Fops`], like the functions below.
unsafe extern "C" fn open<T: DiskOps>(
    disk: *mut bindings::gendisk,
    _mode: bindings::blk_mode_t,
) -> c_int {
    // SAFETY: The block layer passes a live disk of this driver, and keeps it through the call;
    // the disk has a reference to the device.
    let device = unsafe { &*(*disk).private_data.cast::<T>() };
    errno(device.open())
}

/// # Safety
///
/// See [`open`].
unsafe extern "C" fn release<T: DiskOps>(disk: *mut bindings::gendisk) {
    // SAFETY: See `open`; the pointers are what `Disk::add` stored, and the first came from an
    // `Arc` that lives until `free_disk`.
    let (device, disk) = unsafe {
        (
            ArcBorrow::from_raw((*disk).private_data.cast_const().cast::<T>()),
            disk_of_queue::<T>((*disk).queue),
        )
    };
    // INVARIANT: The block layer calls this with `open_mutex` held (`bdev_release`).
    let closing = Closing {
        disk,
        _not_send: NotThreadSafe,
    };
    T::release(device, &closing);
}

/// # Safety
///
/// See [`open`].
unsafe extern "C" fn ioctl<T: DiskOps>(
    bdev: *mut bindings::block_device,
    mode: bindings::blk_mode_t,
    cmd: c_uint,
    arg: c_ulong,
) -> c_int {
    // SAFETY: See `open`; the block device is open for the time of the call.
    let (device, bdev) = unsafe {
        (
            &*(*(*bdev).bd_disk).private_data.cast::<T>(),
            BlockDevice::from_raw(bdev),
        )
    };
    errno(device.ioctl(bdev, OpenMode(mode), cmd, arg))
}

/// # Safety
///
/// See [`open`].
unsafe extern "C" fn compat_ioctl<T: DiskOps>(
    bdev: *mut bindings::block_device,
    mode: bindings::blk_mode_t,
    cmd: c_uint,
    arg: c_ulong,
) -> c_int {
    // SAFETY: As in `ioctl`.
    let (device, bdev) = unsafe {
        (
            &*(*(*bdev).bd_disk).private_data.cast::<T>(),
            BlockDevice::from_raw(bdev),
        )
    };
    errno(device.compat_ioctl(bdev, OpenMode(mode), cmd, arg))
}

/// # Safety
///
/// See [`open`]; called once, when the last reference to the disk is gone, and not for a disk that
/// was not added.
unsafe extern "C" fn free_disk<T: DiskOps>(disk: *mut bindings::gendisk) {
    // SAFETY: `add` left a reference here for us, and the block layer uses neither the operations,
    // which go with the device, nor the tag set any more.
    drop(unsafe { Arc::from_raw((*disk).private_data.cast_const().cast::<T>()) });
}

fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}
