# SPDX-License-Identifier: GPL-2.0
"""The words that the rows of the ioctl table are made of.

A row is a name and steps, functions of a Bench. What a step returns is part of the row's result;
steps that prepare something return None.
"""

import contextlib
import ctypes
import functools
import os
import tempfile

from lib import blockio, ioctl_abi, loopdev, system
from lib.ioctl_bench import MIB, buffer_of
from lib.ktap import equal

RO, RW, WO, EXCL = os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_EXCL
READ_ONLY, AUTOCLEAR, PARTSCAN, DIRECT_IO = (loopdev.READ_ONLY, loopdev.AUTOCLEAR,
                                             loopdev.PARTSCAN, loopdev.DIRECT_IO)

# Numbers of the devices that rows make for themselves.
OTHERS = 100


def opened(flags=RW):
    """The caller opens the device."""
    return lambda bench: bench.open_device(flags)


def attached(file="a", *, file_flags=RW, mode=RW, **config):
    """A file is attached; the caller opens the device in `mode` and keeps it open."""
    def step(bench):
        bench.open_device(mode)
        attach(bench, bench.dev, given_config(file, file_flags, **config))
        bench.diskseq = bench.sequence()
    return step


def attach(bench, fd, config):
    """LOOP_CONFIGURE, which has to work."""
    equal(call(bench, fd, "CONFIGURE", config), "0", "LOOP_CONFIGURE that prepares a row")


def reopened(flags):
    """The caller opens the device again in another way, in place of the first time."""
    def step(bench):
        fresh = os.open(bench.loop.path, flags)
        bench.close_device()
        bench.dev = fresh
    return step


def reopened_part(number=1):
    """The caller has a partition open in place of the disk."""
    def step(bench):
        path = bench.loop.part(number)
        system.wait_until(lambda: os.path.exists(path), f"{path} is there")
        fresh = os.open(path, RW)
        bench.close_device()
        bench.dev = fresh
    return step


def held(flags=RO):
    """Somebody else has the device open, too."""
    def step(bench):
        bench.fds.append(os.open(bench.loop.path, flags))
    return step


def released():
    """Whoever had anything open last closes it."""
    return lambda bench: os.close(bench.fds.pop())


def idle_other(name="other", number=None):
    """Another device, on nothing."""
    def step(bench):
        bench.loops[name] = loopdev.add(number or OTHERS + len(bench.loops))
    return step


def other(name="other", file="b", number=None, **config):
    """Another device, on a file of its own or on one of the row's devices."""
    def step(bench):
        idle_other(name, number)(bench)
        with bench.loops[name].opened(RW) as fd:
            attach(bench, fd, given_config(file, RW, **config))
    return step


def resized(file, size):
    """A file changes its size."""
    return lambda bench: os.truncate(bench.path(file), size)


@functools.cache
def file_system():
    """An ext4 of one MiB."""
    with tempfile.NamedTemporaryFile() as file:
        system.run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", file.name, "1M")
        return file.read()


def with_file_system():
    """File `a` holds a file system."""
    def step(bench):
        with open(bench.path("a"), "wb") as file:
            file.write(file_system())
    return step


def mounted(*options):
    """The device is mounted."""
    def step(bench):
        point = os.path.join(bench.folder, "mnt")
        os.makedirs(point, exist_ok=True)
        system.run("mount", *options, bench.loop.path, point)
        bench.undo.append((system.unmount_if_mounted, (point,)))
    return step


def unmounted():
    """The device is unmounted."""
    return lambda bench: system.run("umount", os.path.join(bench.folder, "mnt")) and None


def partitioned():
    """File `a` has a partition table of one partition, from 64 to 192 KiB."""
    def step(bench):
        entry = bytes(4) + bytes((0x83, 0, 0, 0)) + (128).to_bytes(4, "little") + (256).to_bytes(
            4, "little")
        with open(bench.path("a"), "r+b") as file:
            file.seek(446)
            file.write(entry + bytes(48) + b"\x55\xaa")
    return step


def written(pos, length):
    """The caller writes into the page cache of the device, and does not sync."""
    return lambda bench: os.pwrite(bench.dev, blockio.pattern(length), pos) and None


def changed_attributes(flag, file="a"):
    """chattr for as long as the row takes."""
    def step(bench):
        system.run("chattr", f"+{flag}", bench.path(file))
        bench.undo.append((system.run, ("chattr", f"-{flag}", bench.path(file))))
    return step


def swapping(file="a"):
    """The kernel swaps to a file."""
    def step(bench):
        os.chmod(bench.path(file), 0o600)
        with open(bench.path(file), "wb") as whole:
            whole.write(bytes(MIB))
        system.run("mkswap", "-q", bench.path(file))
        system.run("swapon", bench.path(file))
        bench.undo.append((system.run, ("swapoff", bench.path(file))))
    return step


def read_only_mount():
    """The row's files, from here on, are seen through a read-only mount."""
    def step(bench):
        bench.path("a")
        bench.path("b")
        system.run("mount", "--bind", bench.folder, bench.folder)
        bench.undo.append((system.run, ("umount", bench.folder)))
        system.run("mount", "-o", "remount,bind,ro", bench.folder)
    return step


def do(name, arg=0, *, nobody=False, on=None):
    """The call. `arg` is a number, bytes to pass a pointer to, or a function of the bench that
    makes one of these. `on`: another device than the row's."""
    def step(bench):
        fd = bench.fd(on) if on else bench.dev

        def calling():
            return call(bench, fd, name, arg)
        return f"{name}={bench.as_nobody(calling) if nobody else calling()}"
    return step


def control(name, arg=0, *, flags=RW, nobody=False):
    """A call on the control node; numbers of devices are told relative to the row's."""
    def step(bench):
        with open_control(flags) as fd:
            def calling():
                return call(bench, fd, name, arg)
            return f"{name}={bench.as_nobody(calling) if nobody else calling()}"
    return step


@contextlib.contextmanager
def open_control(flags=RW):
    """The control node."""
    fd = os.open("/dev/loop-control", flags)
    try:
        yield fd
    finally:
        os.close(fd)


def call(bench, fd, name, arg):
    """One system call: what it returned, as text. That an argument cannot be had is told, too."""
    try:
        value = arg(bench) if callable(arg) else arg
    except OSError as error:
        return f"no argument: {os.strerror(error.errno)}"
    if isinstance(value, (bytes, bytearray)):
        value = buffer_of(value)
    return ioctl_abi.outcome(lambda: ioctl_abi.ioctl(fd, ioctl_abi.NUMBERS[name], value))


def filled(bench, name, buffer):
    """A call that fills a buffer."""
    number = ioctl_abi.NUMBERS[name]
    return ioctl_abi.outcome(lambda: ioctl_abi.ioctl(bench.dev, number, buffer))


def fetch(name, layout=ioctl_abi.INFO64, names=ioctl_abi.FIELDS64):
    """LOOP_GET_STATUS or LOOP_GET_STATUS64: every field, whether all and no more was written."""
    def step(bench):
        buffer = ioctl_abi.room(layout.size)
        done = filled(bench, name, buffer)
        if done != "0":
            return f"{name}={done}; untouched={buffer.raw[:layout.size] == b'Z' * layout.size}"
        return f"{name}={bench.fields(ioctl_abi.unpack(layout, names, buffer))}"
    return step


def fetch_old():
    """LOOP_GET_STATUS."""
    return fetch("GET_STATUS", ioctl_abi.OLD_INFO, ioctl_abi.OLD_FIELDS)


def value_of(name, size=8):
    """A call that fills in a number."""
    def step(bench):
        buffer = ioctl_abi.room(size)
        done = filled(bench, name, buffer)
        return f"{name}={done} {int.from_bytes(buffer.raw[:size], 'little'):#x}"
    return step


def partition_call(operation, number, start=0, length=0):
    """BLKPG: 1 adds, 2 deletes, 3 resizes."""
    def make(bench):
        inner = buffer_of(ioctl_abi.PARTITION.pack(start, length, number, b"", b""))
        bench.inner = inner
        return ioctl_abi.PARTITION_CALL.pack(operation, 0, len(inner), ctypes.addressof(inner))
    return make


def given_fd(file, flags=RW):
    """A descriptor as argument."""
    return lambda bench: bench.fd(file, flags)


def given_config(file="a", file_flags=RW, **values):
    """A struct loop_config as argument."""
    return lambda bench: ioctl_abi.config(bench.fd(file, file_flags), **values)


def content(name="a"):
    """Tells a checksum of a file."""
    return lambda bench: f"content of {name}={bench.content(name)}"


def after_close():
    """Closes the caller's descriptor of the device, and tells what becomes of it."""
    def step(bench):
        bench.close_device()
        return f"then {bench.state()}"
    return step


def attribute(name):
    """Tells a file in sysfs."""
    return lambda bench: f"{name}=" + ioctl_abi.outcome(lambda: bench.attr(name))


def reading(pos, length):
    """Reads through the caller's descriptor, tells how much there was."""
    return lambda bench: "read=" + ioctl_abi.outcome(
        lambda: len(os.pread(bench.dev, length, pos)))


def writing(pos, length):
    """Writes through the caller's descriptor and syncs, tells how it went."""
    return lambda bench: "write=" + ioctl_abi.outcome(
        lambda: (os.pwrite(bench.dev, blockio.pattern(length), pos), os.fsync(bench.dev))[0])


def state():
    """Tells the state in the middle of a row."""
    return lambda bench: f"[{bench.state()}]"
