# SPDX-License-Identifier: GPL-2.0
"""Loop devices through their ioctls and sysfs files (loop(4), uapi/linux/loop.h)."""

import contextlib
import errno
import fcntl
import os
import re
import struct

SET_FD = 0x4C00
CLR_FD = 0x4C01
SET_STATUS64 = 0x4C04
GET_STATUS64 = 0x4C05
CHANGE_FD = 0x4C06
SET_CAPACITY = 0x4C07
SET_DIRECT_IO = 0x4C08
SET_BLOCK_SIZE = 0x4C09
CONFIGURE = 0x4C0A
CTL_ADD = 0x4C80
CTL_REMOVE = 0x4C81
CTL_GET_FREE = 0x4C82

READ_ONLY = 1
AUTOCLEAR = 4
PARTSCAN = 8
DIRECT_IO = 16

BLKDISCARD = 0x1277
BLKZEROOUT = 0x127F
BLKGETSIZE64 = 0x80081272
BLKROGET = 0x125E
BLKSSZGET = 0x1268
BLKPBSZGET = 0x127B

INFO64 = struct.Struct("=5Q4I64s64s32s2Q")
CONFIG = struct.Struct("=2I232s8Q")


def info64(offset=0, sizelimit=0, flags=0, name=b""):
    """A struct loop_info64."""
    return INFO64.pack(0, 0, 0, offset, sizelimit, 0, 0, 0, flags, name[:63], b"", b"", 0, 0)


@contextlib.contextmanager
def opened(path, flags=os.O_RDONLY):
    """A file or device as a descriptor."""
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


class Status:
    """What LOOP_GET_STATUS64 tells."""

    def __init__(self, raw):
        (self.device, self.inode, self.rdevice, self.offset, self.sizelimit, self.number, _, _,
         self.flags, name, _, _, _, _) = INFO64.unpack(raw)
        self.file_name = name.rstrip(b"\0")


class Loop:
    """One loop device."""

    def __init__(self, number):
        self.number = number
        self.name = f"loop{number}"
        self.path = f"/dev/{self.name}"
        self.sysfs = f"/sys/block/{self.name}"

    @classmethod
    def by_path(cls, path):
        """The device that a path like /dev/loop3 names."""
        return cls(int(re.fullmatch(r"/dev/loop(\d+)", path).group(1)))

    def part(self, number):
        """The path of a partition."""
        return f"{self.path}p{number}"

    def opened(self, flags=os.O_RDONLY):
        """The device as a file descriptor."""
        return opened(self.path, flags)

    def ioctl(self, request, arg=0, flags=os.O_RDONLY):
        """Opens the device, does one ioctl, and closes it."""
        with self.opened(flags) as fd:
            return fcntl.ioctl(fd, request, arg)

    def configure(self, fd, *, offset=0, sizelimit=0, flags=0, block_size=0, name=b"",
                  mode=os.O_RDWR):
        """LOOP_CONFIGURE."""
        info = info64(offset, sizelimit, flags, name)
        config = CONFIG.pack(fd, block_size, info, *[0] * 8)
        self.ioctl(CONFIGURE, config, mode)

    def set_fd(self, fd):
        """LOOP_SET_FD."""
        self.ioctl(SET_FD, fd, os.O_RDWR)

    def change_fd(self, fd, mode=os.O_RDWR):
        """LOOP_CHANGE_FD, through the device opened with `mode`."""
        self.ioctl(CHANGE_FD, fd, mode)

    def change_file(self, path, flags=os.O_RDWR, mode=os.O_RDWR):
        """The same, with a descriptor of `path`, opened with `flags`."""
        with opened(path, flags) as fd:
            self.change_fd(fd, mode)

    def change_file_read_only(self, path):
        """The same, with neither the file nor the device opened for writing."""
        self.change_file(path, os.O_RDONLY, os.O_RDONLY)

    def set_capacity(self):
        """LOOP_SET_CAPACITY: the size of the file or disk has changed."""
        self.ioctl(SET_CAPACITY)

    def set_status(self, **kwargs):
        """LOOP_SET_STATUS64."""
        self.ioctl(SET_STATUS64, info64(**kwargs), os.O_RDWR)

    def status(self):
        """LOOP_GET_STATUS64."""
        return Status(self.ioctl(GET_STATUS64, bytes(INFO64.size)))

    def is_bound(self):
        """Whether a file is attached."""
        try:
            self.status()
        except OSError as error:
            if error.errno == errno.ENXIO:
                return False
            raise
        return True

    def detach(self):
        """LOOP_CLR_FD."""
        self.ioctl(CLR_FD)

    def detach_if_bound(self):
        """LOOP_CLR_FD, if there is something to detach.

        It is not asked first: what udevd has open is detached when that is closed, at any time.
        """
        if not os.path.exists(self.path):
            return
        try:
            self.detach()
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise

    def size(self):
        """Size in bytes."""
        with self.opened() as fd:
            return os.lseek(fd, 0, os.SEEK_END)

    def attr(self, name):
        """The value of a sysfs attribute, its newline removed."""
        with open(f"{self.sysfs}/{name}", encoding="utf-8") as file:
            return file.read().rstrip("\n")

    def set_attr(self, name, value):
        """Writes a sysfs attribute."""
        with opened(f"{self.sysfs}/{name}", os.O_WRONLY) as fd:
            os.write(fd, value.encode() + b"\n")

    def read(self, pos, length):
        """Reads through the page cache of the device."""
        with self.opened() as fd:
            return pread_all(fd, length, pos)

    def write(self, pos, data):
        """Writes, and returns when the data has reached the driver and was flushed."""
        with self.opened(os.O_RDWR) as fd:
            pwrite_all(fd, data, pos)
            os.fsync(fd)

    def drop_cache(self):
        """Makes the next read reach the driver."""
        with self.opened() as fd:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def pread_all(fd, length, pos):
    """Reads `length` bytes, or fewer if the file ends."""
    parts = []
    while length:
        part = os.pread(fd, min(length, 1 << 24), pos)
        if not part:
            break
        parts.append(part)
        pos += len(part)
        length -= len(part)
    return b"".join(parts)


def pwrite_all(fd, data, pos):
    """Writes all of `data`."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view[:1 << 24], pos)
        view = view[done:]
        pos += done


def control(request, arg=0):
    """An ioctl of the control node."""
    with opened("/dev/loop-control", os.O_RDWR) as fd:
        return fcntl.ioctl(fd, request, arg)


# What an attach to a free device can fail with if another process was faster: the device is bound, or
# is just being detached again.
TAKEN = (errno.EBUSY, errno.ENXIO)


def free():
    """A free device (LOOP_CTL_GET_FREE)."""
    return Loop(control(CTL_GET_FREE))


def add(number):
    """A new device (LOOP_CTL_ADD)."""
    return Loop(control(CTL_ADD, number))


def remove(number):
    """Removes a device (LOOP_CTL_REMOVE)."""
    control(CTL_REMOVE, number)


def attach(path, *, file_flags=os.O_RDWR, loop=None, **kwargs):
    """Attaches the file at `path` to a free device; `kwargs` as for Loop.configure."""
    loop = loop or free()
    with opened(path, file_flags) as fd:
        loop.configure(fd, name=os.fsencode(path), **kwargs)
    return loop


def attach_read_only(path, **kwargs):
    """Attaches a file as `losetup -r` does."""
    return attach(path, file_flags=os.O_RDONLY, flags=READ_ONLY, mode=os.O_RDONLY, **kwargs)


def bound():
    """The loop devices that have a file attached."""
    names = (re.fullmatch(r"loop(\d+)", name) for name in os.listdir("/sys/block"))
    loops = [Loop(int(match.group(1))) for match in names if match]
    return [loop for loop in loops if os.path.exists(f"{loop.sysfs}/loop/backing_file")
            and loop.is_bound()]
