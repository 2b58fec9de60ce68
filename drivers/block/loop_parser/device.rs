// SPDX-License-Identifier: GPL-2.0

//! A loop device.
//!
//! Locking, outermost first:
//!
//! ```text
//!   Device::changing (LOOP_CHANGE_FD only)
//!     -> VALIDATE (while binding to another loop device, or clearing)
//!       -> Device::config (the C driver's lo_mutex)
//!         -> queue limits lock -> queue freeze
//!           -> Device::shown (the C driver's lo_lock)
//! ```
//!
//! `fput` and everything that may wait for sysfs readers happens outside `config`. Requests look at
//! the [`Binding`] only, which is replaced while the queue is frozen.

use core::ops::{
    Deref,
    DerefMut, //
};

use kernel::{
    impl_has_work,
    new_spinlock,
    new_work,
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic,
            AtomicFlag, //
        },
        Arc,
        ArcBorrow,
        SetOnce,
        SpinLock, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

use crate::{
    image::Image,
    instance::Instance,
    ioctl,
    lanes::{
        Lane,
        Lanes, //
    },
    select::Choice,
    service,
    sys::{
        bdev::{
            BlockDevice,
            OpenMode, //
        },
        bindings::{
            LO_FLAGS_AUTOCLEAR,
            LO_FLAGS_DIRECT_IO,
            LO_FLAGS_READ_ONLY,
            LP_FALLOC_FL_PUNCH_HOLE,
            LP_FALLOC_FL_ZERO_RANGE, //
        },
        disk::{
            Closing,
            Disk,
            DiskOps,
            Frozen, //
        },
        file::{
            BackingFile,
            DioAlign, //
        },
        limits::LimitsUpdate,
        module::ModuleRef,
        mutex::{
            KillableMutex,
            MutexGuard, //
        },
        request::Request,
        work::{
            WorkQueue,
            WorkerContext, //
        }, //
    },
    unbind,
    user::ImageUser, //
};

/// Most sectors of one request, the C driver's number.
const MAX_SECTORS: u32 = 2560;

/// Where a device is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing is attached.
    Unbound,
    /// A file is attached.
    Bound,
    /// The last user is closing; the file is being detached.
    Rundown,
    /// The device is being removed.
    Deleting,
}

/// What the device's mutex protects.
pub(crate) struct Config {
    phase: Phase,
    pub(crate) offset: u64,
    pub(crate) size_limit: u64,
    pub(crate) flags: u32,
    pub(crate) file_name: [u8; FILE_NAME_SIZE],
    pub(crate) attached: Option<AttachedFile>,
    /// What the user chose for the next attach; `None`: the default. See [`Device::choice`].
    pub(crate) choice: Option<Choice>,
}

/// Bytes of `lo_file_name`.
pub(crate) const FILE_NAME_SIZE: usize = 64;

/// The file of a bound device. Dropping it may sleep and take the `open_mutex` of another disk: not
/// under [`Device::config`].
pub(crate) struct AttachedFile {
    pub(crate) user: ImageUser,
    pub(crate) file: Arc<BackingFile>,
    pub(crate) align: DioAlign,
    /// A bound device keeps the driver loaded.
    pub(crate) _module: ModuleRef,
}

impl AttachedFile {
    /// `ENODEV` if the driver is on its way out.
    pub(crate) fn new(device: &Device, user: ImageUser) -> Result<Self> {
        let file = user.file().clone();
        Ok(Self {
            _module: device.instance().pin_module().ok_or(ENODEV)?,
            align: file.dio_align(),
            file,
            user,
        })
    }
}

impl Config {
    const fn new() -> Self {
        Self {
            phase: Phase::Unbound,
            offset: 0,
            size_limit: 0,
            flags: 0,
            file_name: [0; FILE_NAME_SIZE],
            attached: None,
            choice: None,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn has_flag(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The file, or `ENXIO`.
    pub(crate) fn bound(&self) -> Result<&AttachedFile> {
        match (self.phase, &self.attached) {
            (Phase::Bound, Some(attached)) => Ok(attached),
            _ => Err(ENXIO),
        }
    }

    /// Capacity of the device in sectors: the window of the guest disk.
    pub(crate) fn capacity(&self, attached: &AttachedFile) -> u64 {
        let disk = attached.user.image().size(&attached.file);
        let rest = disk.saturating_sub(self.offset);
        let window = match self.size_limit {
            0 => rest,
            limit => rest.min(limit),
        };
        window >> 9
    }

    /// What requests have to know of this configuration.
    pub(crate) fn binding(&self, attached: &AttachedFile) -> Binding {
        let direct = self.has_flag(LO_FLAGS_DIRECT_IO).then_some(attached.align);
        Binding {
            file: attached.file.clone(),
            image: attached.user.image().clone(),
            offset: self.offset,
            direct,
            read_only: self.has_flag(LO_FLAGS_READ_ONLY),
        }
    }

    /// What sysfs is to show of this configuration.
    fn to_show(&self) -> Shown {
        let attached = self.attached.as_ref();
        Shown {
            file: attached.map(|attached| attached.file.clone()),
            image: attached.map(|attached| attached.user.image().clone()),
            offset: self.offset,
            size_limit: self.size_limit,
            flags: self.flags,
            file_name: self.file_name,
            choice: self.choice,
        }
    }

    /// Puts a changed configuration of a bound device in force. The files and images whose last
    /// reference this could drop are still referred to by `attached`.
    pub(crate) fn enforce(&mut self, frozen: &Frozen<'_, Device>) {
        let direct = self.has_flag(LO_FLAGS_DIRECT_IO);
        if let Some(attached) = &mut self.attached {
            if !attached.user.set_direct(direct) {
                self.flags &= !LO_FLAGS_DIRECT_IO;
            }
        }
        if let Some(attached) = &self.attached {
            let binding = self.binding(attached);
            frozen.update(|old| *old = binding);
        }
    }
}

/// The part of the configuration that sysfs shows, for those who must not wait for the mutex: that
/// is held while files are synced and queues are frozen, which can hang with the backing store.
///
/// A copy: it follows when a [`ConfigGuard`] that was changed through is dropped.
pub(crate) struct Shown {
    /// Until it is being detached.
    pub(crate) file: Option<Arc<BackingFile>>,
    pub(crate) image: Option<Arc<Image>>,
    pub(crate) offset: u64,
    pub(crate) size_limit: u64,
    pub(crate) flags: u32,
    pub(crate) file_name: [u8; FILE_NAME_SIZE],
    pub(crate) choice: Option<Choice>,
}

/// The locked configuration.
pub(crate) struct ConfigGuard<'a> {
    device: &'a Device,
    config: MutexGuard<'a, Config>,
    changed: bool,
}

impl Deref for ConfigGuard<'_> {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

impl DerefMut for ConfigGuard<'_> {
    fn deref_mut(&mut self) -> &mut Config {
        self.changed = true;
        &mut self.config
    }
}

impl Drop for ConfigGuard<'_> {
    fn drop(&mut self) {
        if self.changed {
            self.device.publish(&self.config);
        }
    }
}

/// What requests in flight look at; constant while they do.
pub(crate) struct Binding {
    image: Arc<Image>,
    file: Arc<BackingFile>,
    /// Guest position of the device's first byte.
    offset: u64,
    direct: Option<DioAlign>,
    read_only: bool,
}

impl Binding {
    pub(crate) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    pub(crate) fn file(&self) -> &Arc<BackingFile> {
        &self.file
    }

    /// The alignment direct I/O needs, if the device is in that mode.
    pub(crate) fn direct(&self) -> Option<DioAlign> {
        self.direct
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether reads may be answered from the file's page cache without asking the file system.
    pub(crate) fn serves_cached_reads(&self) -> bool {
        // Of parts each is asked.
        let is_peekable = self.image.is_peekable() || self.image.has_parts();
        is_peekable && self.direct.is_none()
    }

    /// Guest position of the cursor of a request.
    pub(crate) fn guest_pos(&self, request: &Request<Device>) -> Option<u64> {
        self.offset
            .checked_add(request.pos())?
            .checked_add(u64::from(request.done()))
    }
}

/// A loop device.
#[pin_data]
pub(crate) struct Device {
    instance: Arc<Instance>,
    number: u32,
    disk: Disk<Device>,
    /// A copy of `Config::phase` for those who look without the lock.
    phase: Atomic<u32>,
    // Modes of fallocate that the file system turned out not to have.
    no_zero_range: AtomicFlag,
    no_punch_hole: AtomicFlag,
    /// Held by `LOOP_CHANGE_FD` from end to end.
    #[pin]
    changing: KillableMutex<()>,
    #[pin]
    config: KillableMutex<Config>,
    /// Innermost of the locks, never held over anything that sleeps.
    #[pin]
    shown: SpinLock<Shown>,
    #[pin]
    lanes: Lanes,
    queue: SetOnce<WorkQueue>,
    #[pin]
    withdraw: Work<Device, 0>,
    /// What [`Device::close_in_worker`] hands over.
    #[pin]
    closing: KillableMutex<Option<AttachedFile>>,
    #[pin]
    close: Work<Device, 1>,
}

impl_has_work! {
    impl HasWork<Device, 0> for Device { self.withdraw }
    impl HasWork<Device, 1> for Device { self.close }
}

impl Device {
    /// Allocates a device; its disk does not appear yet.
    pub(crate) fn new(instance: &Arc<Instance>, number: u32) -> Result<Arc<Self>> {
        let depth = instance.params().hw_queue_depth();
        let disk = Disk::alloc(instance.fops().clone(), depth, MAX_SECTORS)?;
        disk.set_partition_scan(instance.part_shift() != 0);
        let root = Lane::new(None, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                instance: instance.clone(),
                number,
                disk,
                phase: Atomic::new(Phase::Unbound as u32),
                no_zero_range: AtomicFlag::new(false),
                no_punch_hole: AtomicFlag::new(false),
                changing <- KillableMutex::new(
                    (),
                    c"loop_changing",
                    kernel::static_lock_class!(),
                ),
                config <- KillableMutex::new(
                    Config::new(),
                    c"loop_config",
                    kernel::static_lock_class!(),
                ),
                shown <- new_spinlock!(Config::new().to_show()),
                lanes <- Lanes::new(root),
                queue: SetOnce::new(),
                withdraw <- new_work!("loop_withdraw"),
                closing <- KillableMutex::new(
                    None,
                    c"loop_closing",
                    kernel::static_lock_class!(),
                ),
                close <- new_work!("loop_close"),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn disk_ref(&self) -> &Disk<Device> {
        &self.disk
    }

    /// Whether partitions are scanned for on every device (`max_part`).
    pub(crate) fn always_scans(&self) -> bool {
        self.instance.part_shift() != 0
    }

    /// The driver that the device belongs to.
    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// The parser that serves the next file: what the user chose, or the default.
    pub(crate) fn choice(&self, config: &Config) -> Choice {
        self.choice_or_default(config.choice)
    }

    /// What the user chose, or the default. May sleep.
    pub(crate) fn choice_or_default(&self, choice: Option<Choice>) -> Choice {
        choice.unwrap_or_else(|| Choice::default(self.instance.params()))
    }

    /// Keeps other changes of the file away.
    pub(crate) fn changing(&self) -> Result<MutexGuard<'_, ()>> {
        self.changing.lock_killable()
    }

    /// Locks the configuration; `EINTR` if the task was killed meanwhile.
    pub(crate) fn config_killable(&self) -> Result<ConfigGuard<'_>> {
        Ok(self.guard(self.config.lock_killable()?))
    }

    /// Locks the configuration.
    pub(crate) fn config(&self) -> ConfigGuard<'_> {
        self.guard(self.config.lock())
    }

    fn guard<'a>(&'a self, config: MutexGuard<'a, Config>) -> ConfigGuard<'a> {
        ConfigGuard {
            device: self,
            config,
            changed: false,
        }
    }

    /// What sysfs shows. Not to be kept over anything that sleeps.
    pub(crate) fn shown(&self) -> impl Deref<Target = Shown> + '_ {
        self.shown.lock()
    }

    /// Makes sysfs show a changed configuration before its lock is dropped: before user space is
    /// told to look.
    pub(crate) fn publish(&self, config: &Config) {
        let new = config.to_show();
        let old = core::mem::replace(&mut *self.shown.lock(), new);
        // Not under the spinlock: what it refers to may sleep when it goes.
        drop(old);
    }

    /// The file of a bound device, without waiting for the configuration.
    pub(crate) fn bound_file(&self) -> Option<Arc<BackingFile>> {
        let bound = self.phase.load(Acquire) == Phase::Bound as u32;
        bound.then(|| self.shown().file.clone()).flatten()
    }

    /// Moves the device on in its life.
    pub(crate) fn set_phase(&self, config: &mut Config, phase: Phase) {
        config.phase = phase;
        self.phase.store(phase as u32, Release);
    }

    /// Whether the device looked unbound just now.
    pub(crate) fn looks_unbound(&self) -> bool {
        self.phase.load(Acquire) == Phase::Unbound as u32
    }

    /// Allocates the work queue, which stays until the device is removed.
    pub(crate) fn prepare_workers(&self) -> Result {
        if self.queue.as_ref().is_none() {
            self.queue.populate(WorkQueue::new(self.number)?);
        }
        Ok(())
    }

    /// Hands a request to a worker. From any context.
    fn defer(this: ArcBorrow<'_, Self>, request: Request<Device>) {
        let Some(queue) = this.queue.as_ref() else {
            return request.end(Err(EIO));
        };
        this.lanes.push(queue.queue(), request);
    }

    /// Drops an attached file in a worker and waits for that. The last writes to an image must not
    /// depend on who happens to be the last to close the device: on that task's permissions, or on
    /// whether it is being killed.
    pub(crate) fn close_in_worker(this: ArcBorrow<'_, Self>, attached: AttachedFile) {
        *this.closing.lock() = Some(attached);
        if let Some(queue) = this.queue.as_ref() {
            let device: Arc<Device> = this.into();
            // Queued already: then it has not run yet and will find what was just stored.
            let _ = queue.queue().enqueue::<_, 1>(device).is_ok();
            queue.flush();
        }
    }

    /// The file system has no fallocate of this mode after all: stop advertising it, at once if
    /// possible. The limits lock must not be waited for here: its holder may be waiting for this
    /// very request.
    pub(crate) fn withdraw_fallocate(this: ArcBorrow<'_, Self>, mode: i32) {
        if mode & LP_FALLOC_FL_ZERO_RANGE != 0 {
            this.no_zero_range.store(true, Relaxed);
        }
        if mode & LP_FALLOC_FL_PUNCH_HOLE != 0 {
            this.no_punch_hole.store(true, Relaxed);
        }
        if let Some(limits) = LimitsUpdate::try_start(&this.disk) {
            // Without a freeze, which would wait for this very request, as in the C driver.
            return this.apply_withdrawn(limits);
        }
        if let Some(queue) = this.queue.as_ref() {
            let device: Arc<Device> = this.into();
            // Queued already: it will look at what was just stored.
            let _ = queue.queue().enqueue::<_, 0>(device).is_ok();
        }
    }

    /// Forgets what earlier files could not do.
    pub(crate) fn reset_withdrawn(&self) {
        self.no_zero_range.store(false, Relaxed);
        self.no_punch_hole.store(false, Relaxed);
    }

    // Limits are large: not on the stack of those who serve requests.
    #[inline(never)]
    fn apply_withdrawn(&self, mut limits: LimitsUpdate<'_, Self>) {
        if self.no_zero_range.load(Relaxed) {
            limits.max_write_zeroes_sectors = 0;
        }
        if self.no_punch_hole.load(Relaxed) {
            limits.max_hw_discard_sectors = 0;
            limits.discard_granularity = 0;
        }
        if limits.commit().is_err() {
            pr_warn!("loop{}: cannot withdraw discard limits\n", self.number);
        }
    }
}

impl WorkItem<1> for Device {
    type Pointer = Arc<Device>;

    fn run(this: Arc<Device>) {
        let context = WorkerContext::enter();
        let attached = this.closing.lock().take();
        drop(attached);
        drop(context);
    }
}

impl WorkItem<0> for Device {
    type Pointer = Arc<Device>;

    fn run(this: Arc<Device>) {
        let limits = LimitsUpdate::start(&this.disk);
        let frozen = this.disk.freeze();
        this.apply_withdrawn(limits);
        drop(frozen);
    }
}

impl DiskOps for Device {
    type Binding = Binding;

    fn disk(&self) -> &Disk<Self> {
        &self.disk
    }

    fn open(&self) -> Result {
        match self.config_killable()?.phase() {
            Phase::Unbound | Phase::Bound => Ok(()),
            Phase::Rundown | Phase::Deleting => Err(ENXIO),
        }
    }

    fn release(this: ArcBorrow<'_, Self>, closing: &Closing<'_, Self>) {
        if this.disk.openers() > 0 {
            return;
        }
        let mut config = this.config();
        if config.phase() == Phase::Bound && config.has_flag(LO_FLAGS_AUTOCLEAR) {
            this.set_phase(&mut config, Phase::Rundown);
        }
        let detach = config.phase() == Phase::Rundown;
        drop(config);
        if detach {
            unbind::detach(this, closing);
        }
    }

    fn ioctl(&self, bdev: &BlockDevice, mode: OpenMode, cmd: u32, arg: usize) -> Result {
        ioctl::native(self, bdev, mode, cmd, arg)
    }

    fn compat_ioctl(&self, bdev: &BlockDevice, mode: OpenMode, cmd: u32, arg: usize) -> Result {
        ioctl::compat(self, bdev, mode, cmd, arg)
    }

    fn queue_rq(this: ArcBorrow<'_, Self>, request: Request<Self>) {
        if this.phase.load(Acquire) != Phase::Bound as u32 {
            return request.end(Err(EIO));
        }
        if let Some(request) = service::serve_cached(request) {
            Device::defer(this, request);
        }
    }

    fn direct_done(request: Request<Self>, moved: Result<usize>) {
        if let Some(request) = service::direct_done(request, moved) {
            let device: Arc<Device> = request.device().into();
            Device::defer(device.as_arc_borrow(), request);
        }
    }

    fn shutdown(&self) {
        if let Some(queue) = self.queue.as_ref() {
            queue.flush();
        }
    }
}
