# SPDX-License-Identifier: GPL-2.0
"""What a row of the ioctl table happens on: files, a device, who has it open; and what is said of
them afterwards."""

import ctypes
import errno
import fcntl
import os
import re
import select
import socket
import zlib

from lib import ioctl_abi, loopdev, system

MIB = 1 << 20
SIZES = {"a": MIB, "b": MIB, "c": 2 * MIB, "tiny": 100, "empty": 0}
QUEUE = ("logical_block_size", "physical_block_size", "minimum_io_size", "dma_alignment",
         "discard_granularity", "discard_max_bytes", "write_zeroes_max_bytes", "write_cache")
# Files that only our driver has in loop/; the row "sysfs" of the table shows them.
OUR_FILES = ("parser",)
NOBODY = 65534
KINDS = {
    "null": "/dev/null", "zero": "/dev/zero", "proc": "/proc/version",
    "sysfs": "/sys/kernel/mm/transparent_hugepage/enabled", "directory": "/",
    "ram": system.RAM_DISK, "control": "/dev/loop-control",
}


class Bench:
    """The surroundings of one row; closed when it is done."""

    def __init__(self, t, folder):
        self.t = t
        self.folder = folder
        self.loop = loopdev.free()
        self.loops = {}
        self.dev = None
        self.fds = []
        self.names = {}
        self.undo = []
        self.diskseq = None

    def path(self, name):
        """The path of one of the row's files, made when first asked for."""
        path = os.path.join(self.folder, name)
        if not os.path.exists(path):
            with open(path, "wb") as file:
                file.truncate(SIZES.get(name, MIB))
        return path

    def fd(self, kind, flags=os.O_RDWR):
        """A descriptor of a file of the row, or of one of KINDS."""
        special = getattr(self, f"open_{kind}", None)
        if special:
            fd = special(flags)
        elif kind in self.loops:
            fd = os.open(self.loops[kind].path, flags)
        else:
            fd = os.open(KINDS.get(kind) or self.path(kind), flags)
        self.fds.append(fd)
        self.names[identity(fd)] = kind
        return fd

    def open_self(self, flags):
        """The device itself."""
        return os.open(self.loop.path, flags)

    def open_part(self, flags):
        """A partition of the other device."""
        path = self.loops["other"].part(1)
        system.wait_until(lambda: os.path.exists(path), f"{path} is there")
        return os.open(path, flags)

    def open_pipe(self, _flags):
        """The reading end of a pipe."""
        first, second = os.pipe()
        self.fds.append(second)
        return first

    def open_socket(self, _flags):
        """A socket that is connected to nothing."""
        return socket.socket(socket.AF_UNIX).detach()

    def open_epoll(self, _flags):
        """A descriptor that is no file at all."""
        return os.dup(select.epoll().fileno())

    def open_memfd(self, _flags):
        """A file without a name."""
        fd = os.memfd_create("row", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, MIB)
        return fd

    def open_sealed(self, flags):
        """A file without a name that cannot be changed any more."""
        fd = self.open_memfd(flags)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS,
                    fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return fd

    def open_fifo(self, flags):
        """A named pipe."""
        path = os.path.join(self.folder, "fifo")
        os.mkfifo(path)
        return os.open(path, flags | os.O_NONBLOCK)

    def open_closed(self, _flags):
        """A number that was a descriptor."""
        fd = os.open("/dev/null", os.O_RDONLY)
        os.close(fd)
        return fd

    def open_device(self, flags=os.O_RDWR):
        """The caller's descriptor of the device."""
        self.dev = os.open(self.loop.path, flags)
        self.diskseq = self.sequence()

    def close_device(self):
        """Closes it."""
        if self.dev is not None:
            os.close(self.dev)
            self.dev = None

    def sequence(self):
        """The disk sequence number."""
        return int(self.attr("diskseq"))

    def name_of(self, device, inode):
        """Which of the row's files a status tells of."""
        return self.names.get((device, inode), "?")

    def state(self):
        """All that can be seen of the device, in one line."""
        said = [f"size={self.attr('size')} ro={self.attr('ro')} status={self.status()}",
                f"diskseq+{self.sequence() - self.diskseq if self.diskseq else '?'}",
                f"open={self.open_again()} parts={','.join(self.parts())}",
                f"loop={self.loop_files()}"]
        if self.diskseq:
            said.append("queue=" + "/".join(self.attr(f"queue/{name}") for name in QUEUE))
        return "; ".join(said)

    def attr(self, name):
        """A file in sysfs. With as few system calls as can be: there are many."""
        fd = os.open(f"{self.loop.sysfs}/{name}", os.O_RDONLY)
        try:
            return os.read(fd, 4096).decode().rstrip("\n")
        finally:
            os.close(fd)

    def status(self):
        """LOOP_GET_STATUS64 as text, the file by its name."""
        if self.dev is None:
            return "not open"
        buffer = ioctl_abi.room(ioctl_abi.INFO64.size)
        result = ioctl_abi.outcome(
            lambda: ioctl_abi.ioctl(self.dev, ioctl_abi.LOOP["GET_STATUS64"], buffer))
        if result != "0":
            return result
        return self.fields(ioctl_abi.unpack(ioctl_abi.INFO64, ioctl_abi.FIELDS64, buffer))

    def fields(self, status):
        """The fields of a status that are not 0, without what changes from run to run."""
        status["file"] = self.name_of(status.pop("device"), status.pop("inode"))
        status["number"] -= self.loop.number
        status["rdevice"] = bool(status["rdevice"])
        shown = ((name, value.rstrip(b"\0") if isinstance(value, bytes) else value)
                 for name, value in status.items())
        return ",".join(f"{name}={value!r}" for name, value in sorted(shown) if value)

    def open_again(self):
        """Whether another process could open the device now."""
        return ioctl_abi.outcome(lambda: os.close(os.open(self.loop.path, os.O_RDONLY)) or "yes")

    def parts(self):
        """The partitions there are."""
        return sorted(name.removeprefix(self.loop.name) for name in os.listdir(self.loop.sysfs)
                      if re.fullmatch(rf"{self.loop.name}p\d+", name))

    def loop_files(self):
        """The content of loop/, ours left out."""
        folder = f"{self.loop.sysfs}/loop"
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        return {name: self.shown(name) for name in names if name not in OUR_FILES}

    def shown(self, name):
        """A file of loop/ as text, paths without what differs from run to run."""
        text = ioctl_abi.outcome(lambda: self.attr(f"loop/{name}"))
        return re.sub(r"^.*/(?=[^/]+$)", "…/", text)

    def content(self, name="a"):
        """A checksum of a file."""
        with open(self.path(name), "rb") as file:
            return f"{zlib.crc32(file.read()):08x}"

    def as_nobody(self, function):
        """Calls `function` in a child without privileges; what it returns is text."""
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            drop_privileges()
            os.write(writing, function().encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as answer:
            text = answer.read()
        os.waitpid(child, 0)
        return text

    def finish(self):
        """Closes the device and says what becomes of it."""
        self.close_device()
        for fd in self.fds:
            close_quietly(fd)
        self.fds.clear()
        if not os.path.exists(self.loop.path):
            return "no device"
        return "bound" if self.loop.is_bound() else "unbound"

    def clean_up(self):
        """Undoes what the row did, last first."""
        self.finish()
        for loop in [self.loop, *reversed(self.loops.values())]:
            loop.detach_if_bound()
        for function, args in reversed(self.undo):
            function(*args)
        self.make_writable()
        for loop in self.loops.values():
            system.wait_until(lambda loop=loop: removed(loop), f"{loop.path} is not in use")

    def make_writable(self):
        """Read-only stays with a device when it is detached: makes a new one in its place."""
        if self.attr("ro") == "1":
            renew(self.loop)


def renew(loop):
    """A new device in the place of an unbound one, without what is left of its past."""
    system.wait_until(lambda: removed(loop), f"{loop.path} is not in use")
    loopdev.add(loop.number)


def removed(loop):
    """Removes a device unless it is in use."""
    try:
        loopdev.remove(loop.number)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENODEV):
            raise
        return error.errno == errno.ENODEV
    return True


def drop_privileges():
    """Becomes nobody."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def identity(fd):
    """Device and inode of an open file as a loop device tells them."""
    try:
        stat = os.fstat(fd)
    except OSError:
        return None
    return encode(stat.st_dev), stat.st_ino


def encode(device):
    """A device number as the kernel passes it in 64 bits."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xff | major << 8 | (minor & ~0xff) << 12


def close_quietly(fd):
    """Closes a descriptor that may be closed already."""
    try:
        os.close(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def buffer_of(raw):
    """Bytes for the kernel to read."""
    return ctypes.create_string_buffer(bytes(raw), len(raw))
