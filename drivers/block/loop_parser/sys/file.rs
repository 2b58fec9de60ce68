// SPDX-License-Identifier: GPL-2.0

//! The backing file of a device.

use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};

use kernel::{
    error::to_result,
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    }, //
};

use super::{
    bdev::BlockDevice,
    bindings, //
};

/// A counted reference to an open file that has `read_iter`, and `write_iter` if it is open for
/// writing.
///
/// # Invariants
///
/// The pointer is valid and this value owns one reference to it. `f_op`, `f_mapping` and
/// `f_mapping->host` of an open file do not change and are not null.
pub(crate) struct BackingFile(NonNull<bindings::file>);

// SAFETY: `struct file` is reference-counted and made to be shared between threads; what this type
// does with it needs no `fdget_pos()`.
unsafe impl Send for BackingFile {}
// SAFETY: See above.
unsafe impl Sync for BackingFile {}

/// What a backing file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    Regular,
    /// A block device.
    Block,
    /// Anything else; a loop device cannot be on it.
    Other,
}

impl Kind {
    /// What the mode of an inode says.
    pub(super) fn of_mode(mode: u16) -> Self {
        match u32::from(mode) & bindings::S_IFMT {
            bindings::S_IFREG => Kind::Regular,
            bindings::S_IFBLK => Kind::Block,
            _ => Kind::Other,
        }
    }
}

/// The alignment that direct I/O to a file needs.
#[derive(Clone, Copy, Default)]
pub(crate) struct DioAlign {
    /// Of file offsets and lengths, in bytes; a power of two.
    pub(crate) offset: u32,
    /// Of memory, as a mask of address bits that must be 0.
    pub(crate) memory_mask: u32,
}

/// A file's method for writing.
pub(super) type WriteIter =
    Option<unsafe extern "C" fn(*mut bindings::kiocb, *mut bindings::iov_iter) -> isize>;

/// What `LOOP_GET_STATUS` says about a file.
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) rdevice: u64,
}

/// File systems on which a folio in the page cache that is uptodate is what a read would return,
/// without asking the file system first.
const COHERENT: [&CStr; 8] = [
    c"ext2", c"ext3", c"ext4", c"xfs", c"btrfs", c"f2fs", c"tmpfs", c"bdev",
];

/// A point in the history of a file's writeback: errors count from there on.
pub(crate) struct ErrorMark(Atomic<u32>);

impl ErrorMark {
    /// A mark at the beginning of it.
    pub(crate) fn new() -> Self {
        Self(Atomic::new(0))
    }
}

impl BackingFile {
    /// Takes a reference to the caller's file descriptor `fd`: `EBADF` if there is no such
    /// descriptor, `EINVAL` if the file cannot back a device.
    pub(crate) fn from_fd(fd: u32) -> Result<Self> {
        // SAFETY: Always safe; runs in the context of the calling task.
        let file = NonNull::new(unsafe { bindings::fget(fd) }).ok_or(EBADF)?;
        // SAFETY: `fget` returned a reference.
        unsafe { Self::from_opened(file) }
    }

    /// Takes over a reference to an open file; `EINVAL` if the file cannot back a device.
    ///
    /// # Safety
    ///
    /// The file is valid and the reference is the caller's to give away.
    pub(super) unsafe fn from_opened(file: NonNull<bindings::file>) -> Result<Self> {
        // INVARIANT: By the requirement.
        let file = Self(file);
        let ops = file.ops();
        if ops.read_iter.is_none() || (file.is_writable() && ops.write_iter.is_none()) {
            return Err(EINVAL);
        }
        Ok(file)
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::file {
        self.0.as_ptr()
    }

    /// The method for writing; only if the descriptor is open for that, which the method itself does
    /// not check.
    pub(super) fn write_iter(&self) -> WriteIter {
        self.ops().write_iter.filter(|_| self.is_writable())
    }

    pub(super) fn ops(&self) -> &bindings::file_operations {
        // SAFETY: By the invariant `f_op` is valid while the file is open.
        unsafe { &*(*self.as_ptr()).f_op }
    }

    pub(super) fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: By the invariant the file is valid and `f_mapping` does not change.
        unsafe { (*self.as_ptr()).f_mapping }
    }

    fn host(&self) -> *mut bindings::inode {
        // SAFETY: By the invariant the mapping and its host are valid.
        unsafe { (*self.mapping()).host }
    }

    fn mode(&self) -> bindings::fmode_t {
        // SAFETY: By the invariant the file is valid; `f_mode` is constant after open but for bits
        // nobody here looks at.
        unsafe { (*self.as_ptr()).f_mode }
    }

    /// Whether the descriptor is open for writing.
    pub(crate) fn is_writable(&self) -> bool {
        self.mode() & bindings::LP_FMODE_WRITE != 0
    }

    /// Whether the descriptor is open for reading.
    pub(crate) fn is_readable(&self) -> bool {
        self.mode() & bindings::LP_FMODE_READ != 0
    }

    /// Whether the file system has an fsync.
    pub(crate) fn has_fsync(&self) -> bool {
        self.ops().fsync.is_some()
    }

    /// Whether the file system has fallocate.
    pub(crate) fn has_fallocate(&self) -> bool {
        self.ops().fallocate.is_some()
    }

    /// Whether the descriptor was opened with `O_DIRECT`.
    pub(crate) fn is_o_direct(&self) -> bool {
        // SAFETY: By the invariant the file is valid; a torn read of flags is impossible.
        let flags = unsafe { (&raw const (*self.as_ptr()).f_flags).read_volatile() };
        flags & bindings::O_DIRECT != 0
    }

    /// Whether the file system can do direct I/O.
    pub(crate) fn can_direct(&self) -> bool {
        self.mode() & bindings::LP_FMODE_CAN_ODIRECT != 0
    }

    /// What the file is.
    pub(crate) fn kind(&self) -> Kind {
        // SAFETY: By the invariant the inode is valid. Its permissions may change meanwhile, its
        // type never does.
        let mode = unsafe { (&raw const (*self.host()).i_mode).read_volatile() };
        Kind::of_mode(mode)
    }

    /// The inode that was opened; of a block device its node, where [`BackingFile::inode_key`] is
    /// the device's own.
    pub(super) fn inode(&self) -> *mut bindings::inode {
        // SAFETY: By the invariant the file is valid.
        unsafe { bindings::lp_file_inode(self.as_ptr()) }
    }

    /// An identity of the inode behind the file: equal for two open files of one file or device.
    pub(crate) fn inode_key(&self) -> usize {
        self.host() as usize
    }

    /// The block device, if the file is one.
    pub(crate) fn block_device(&self) -> Option<&BlockDevice> {
        if self.kind() != Kind::Block {
            return None;
        }
        // SAFETY: The host of a block device's mapping is an inode of the bdev file system, which
        // lives as long as the file is open.
        Some(unsafe { BlockDevice::from_raw(bindings::I_BDEV(self.host())) })
    }

    /// The block device of the file system the file is on, or the file itself if it is one.
    pub(crate) fn backing_device(&self) -> Option<&BlockDevice> {
        self.block_device().or_else(|| self.fs_device())
    }

    /// The block device of the file system the file is on.
    pub(crate) fn fs_device(&self) -> Option<&BlockDevice> {
        // SAFETY: By the invariant the inode and with it its super block are valid.
        let bdev = unsafe { (*(*self.host()).i_sb).s_bdev };
        // SAFETY: `s_bdev` is open as long as the file system is mounted, which the open file sees
        // to. (btrfs can replace it while it is mounted, and close the old one. That is then there
        // as long as its disk; the C driver looks at it in the same way.)
        (!bdev.is_null()).then(|| unsafe { BlockDevice::from_raw(bdev) })
    }

    /// Moves `mark` to here. An error that no sync of the file was told yet is not behind it.
    pub(crate) fn mark_errors(&self, mark: &ErrorMark) {
        // SAFETY: By the invariant the file is valid, and so is its mapping.
        let now = unsafe { bindings::lp_sample_wb_err(self.as_ptr()) };
        mark.0.store(now, Relaxed);
    }

    /// No sync is told any more what went wrong until now.
    pub(crate) fn forget_errors(&self) {
        // SAFETY: By the invariant the file is valid.
        let _ = unsafe { bindings::file_check_and_advance_wb_err(self.as_ptr()) };
    }

    /// Whether writing back went well since `mark`, whoever was told if not: a sync tells each error
    /// once.
    pub(crate) fn check_errors(&self, mark: &ErrorMark) -> Result {
        // SAFETY: As in `mark_errors`.
        to_result(unsafe { bindings::lp_check_wb_err(self.as_ptr(), mark.0.load(Relaxed)) })
    }

    /// Size in bytes as the page cache knows it.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: By the invariant the inode is valid.
        let size = unsafe { bindings::lp_i_size_read(self.host()) };
        u64::try_from(size).unwrap_or(0)
    }

    /// Size in bytes as the file system knows it: asks it, which matters on network file systems.
    /// 0 if it cannot tell.
    // Not inlined, for the stack.
    #[inline(never)]
    pub(crate) fn stat_size(&self) -> u64 {
        if self.kind() == Kind::Block {
            return self.size();
        }
        let mut stat = MaybeUninit::<bindings::kstat>::zeroed();
        // SAFETY: The path of an open file is valid, `stat` is valid for writes.
        let ret = unsafe {
            bindings::vfs_getattr_nosec(self.path(), stat.as_mut_ptr(), bindings::STATX_SIZE, 0)
        };
        if ret != 0 {
            return 0;
        }
        // SAFETY: All bytes zero is a valid `kstat`, and the call only stored valid fields.
        let size = unsafe { (*stat.as_ptr()).size };
        u64::try_from(size).unwrap_or(0)
    }

    pub(super) fn path(&self) -> *const bindings::path {
        // SAFETY: By the invariant the file is valid; `f_path` is constant while it is open.
        unsafe { &raw const (*self.as_ptr()).__bindgen_anon_1.f_path }
    }

    /// Bytes of storage that the file takes up; 0 if its file system cannot tell.
    pub(crate) fn allocated(&self) -> u64 {
        let mut stat = MaybeUninit::<bindings::kstat>::zeroed();
        // SAFETY: As in `stat_size`.
        let ret = unsafe {
            bindings::vfs_getattr_nosec(self.path(), stat.as_mut_ptr(), bindings::STATX_BLOCKS, 0)
        };
        if ret != 0 {
            return 0;
        }
        // SAFETY: All bytes zero is a valid `kstat`, and the call only stored valid fields.
        unsafe { (*stat.as_ptr()).blocks }.saturating_mul(512)
    }

    /// Device and inode numbers as `stat(2)` shows them.
    pub(crate) fn identity(&self) -> Result<Identity> {
        let mut stat = MaybeUninit::<bindings::kstat>::zeroed();
        // SAFETY: As in `stat_size`.
        to_result(unsafe {
            bindings::vfs_getattr(
                self.path(),
                stat.as_mut_ptr(),
                bindings::STATX_INO,
                bindings::LP_AT_STATX_SYNC_AS_STAT,
            )
        })?;
        // SAFETY: All bytes zero is a valid `kstat`, and the call only stored valid fields.
        let stat = unsafe { &*stat.as_ptr() };
        // SAFETY: Pure functions.
        let (device, rdevice) = unsafe {
            (
                bindings::lp_huge_encode_dev(stat.dev),
                bindings::lp_huge_encode_dev(stat.rdev),
            )
        };
        Ok(Identity {
            device,
            inode: stat.ino,
            rdevice,
        })
    }

    /// The alignment direct I/O needs: what the file system says, else what its device says.
    pub(crate) fn dio_align(&self) -> DioAlign {
        let mut stat = MaybeUninit::<bindings::kstat>::zeroed();
        // SAFETY: As in `stat_size`.
        let ret = unsafe {
            bindings::vfs_getattr(self.path(), stat.as_mut_ptr(), bindings::STATX_DIOALIGN, 0)
        };
        // SAFETY: All bytes zero is a valid `kstat`, and the call only stored valid fields.
        let stat = unsafe { &*stat.as_ptr() };
        if ret == 0 && stat.result_mask & bindings::STATX_DIOALIGN != 0 && stat.dio_mem_align != 0 {
            let page_mask = u32::try_from(bindings::LP_PAGE_SIZE - 1).unwrap_or(u32::MAX);
            return DioAlign {
                offset: stat.dio_offset_align,
                memory_mask: (stat.dio_mem_align - 1).min(page_mask),
            };
        }
        if let Some(bdev) = self.fs_device() {
            return DioAlign {
                offset: bdev.logical_block_size(),
                memory_mask: bdev.dma_alignment(),
            };
        }
        DioAlign {
            offset: 512,
            memory_mask: 511,
        }
    }

    /// Block size of the file system in bytes; `None` if it does not say.
    pub(crate) fn fs_block_size(&self) -> Option<u32> {
        // SAFETY: The path of an open file is valid. May sleep.
        let size = unsafe { bindings::lp_statfs_bsize(self.path()) };
        u32::try_from(size).ok()
    }

    /// Writes the path of the file to the end of `page` and returns it.
    pub(crate) fn show_path<'a>(&self, page: &'a mut [u8]) -> Result<&'a [u8]> {
        let len = i32::try_from(page.len()).map_err(|_| EINVAL)?;
        // SAFETY: `page` is valid for writes of `len` bytes.
        let path = unsafe { bindings::file_path(self.as_ptr(), page.as_mut_ptr().cast(), len) };
        let path = kernel::error::from_err_ptr(path)?;
        // SAFETY: `file_path` returns a NUL-terminated string within `page`.
        Ok(unsafe { CStr::from_char_ptr(path) }.to_bytes())
    }

    /// Makes everything written to the file durable, as far as its file system knows how.
    pub(crate) fn fsync(&self) -> Result {
        if !self.has_fsync() {
            return Ok(());
        }
        // SAFETY: By the invariant the file is valid. May sleep.
        to_result(unsafe { bindings::vfs_fsync(self.as_ptr(), 0) })
    }

    /// Frees or zeroes a range without changing the size of the file.
    pub(crate) fn fallocate(&self, mode: i32, offset: u64, len: u64) -> Result {
        let fallocate = self.ops().fallocate.ok_or(EOPNOTSUPP)?;
        let offset = i64::try_from(offset).map_err(|_| EINVAL)?;
        let len = i64::try_from(len).map_err(|_| EINVAL)?;
        // What `vfs_fallocate` checks and the method relies on.
        if !self.is_writable() {
            return Err(EBADF);
        }
        offset.checked_add(len).ok_or(EFBIG)?;
        // SAFETY: The file is valid and open for writing, the range does not wrap around; the
        // method may sleep.
        let ret = unsafe { fallocate(self.as_ptr(), mode, offset, len) };
        to_result(i32::try_from(ret).map_err(|_| EIO)?)
    }

    /// Gives a range back to the file system: it reads as zero then.
    pub(crate) fn punch_hole(&self, offset: u64, len: u64) -> Result {
        let mode = bindings::LP_FALLOC_FL_PUNCH_HOLE | bindings::LP_FALLOC_FL_KEEP_SIZE;
        self.fallocate(mode, offset, len)
    }

    /// Cuts the file to `size` bytes.
    pub(crate) fn truncate(&self, size: u64) -> Result {
        let size = i64::try_from(size).map_err(|_| EFBIG)?;
        // SAFETY: The path of an open file is valid. May sleep.
        to_result(unsafe { bindings::vfs_truncate(self.path(), size) })
    }

    /// Whether folios of this file may be read without asking the file system: see "Two
    /// ways to the tables" in Documentation/block/loop-parser.rst.
    pub(crate) fn is_peekable(&self) -> bool {
        // SAFETY: By the invariant the inode is valid, and so are its super block and the type of
        // that.
        let (name, dax) = unsafe {
            let host = self.host();
            let name = (*(*(*host).i_sb).s_type).name;
            (CStr::from_char_ptr(name), bindings::lp_is_dax(host))
        };
        !dax && COHERENT.iter().any(|known| *known == name)
    }

    /// The allocation flags of the file's page cache.
    pub(crate) fn gfp_mask(&self) -> bindings::gfp_t {
        // SAFETY: By the invariant the mapping is valid.
        unsafe { bindings::lp_mapping_gfp_mask(self.mapping()) }
    }

    /// Sets the allocation flags of the file's page cache.
    pub(crate) fn set_gfp_mask(&self, mask: bindings::gfp_t) {
        // SAFETY: By the invariant the mapping is valid. The flags are one word, which the list of
        // images changes under its lock, and nobody else after the inode was set up.
        unsafe { bindings::lp_mapping_set_gfp_mask(self.mapping(), mask) };
    }

    /// Keeps page cache allocations of this file from starting I/O, which could come back to the
    /// device that waits for them. Returns what to restore.
    pub(crate) fn forbid_io_recursion(&self) -> bindings::gfp_t {
        let mask = self.gfp_mask();
        self.set_gfp_mask(mask & !bindings::LP_GFP_IO_FS);
        mask
    }
}

impl Drop for BackingFile {
    fn drop(&mut self) {
        // SAFETY: By the invariant this reference is ours to drop.
        unsafe { bindings::fput(self.as_ptr()) };
    }
}
