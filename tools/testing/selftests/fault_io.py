#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""I/O while memory is short or the disk below fails. Needs the debug kernel.

Whatever fails: what was written and flushed is there, no sector is anything but its old or its new
content, an image stays sound, and all is well again once the cause is gone.
"""

import errno
import os
import random

from lib import blockio, faults, loopdev, vhd, vhd_reader
from lib.blockio import Direct
from lib.ktap import Suite, ensure, equal, fails_with, name_of, same_bytes

MIB = vhd.MIB
SIZE = 8 * MIB
PIECE = 4096
NOISE = r"(?!WARNING|BUG|INFO|refcount|list_).*"
suite = Suite(allow=[NOISE])


class Device:
    """A device under trouble: for each piece, the contents that it may have.

    `volatile`: what was not flushed may be lost.
    """

    def __init__(self, loop, data, volatile=False):
        self.loop = loop
        self.volatile = volatile
        self.latest = {}
        self.may_be = {pos: {data[pos:pos + PIECE]} for pos in range(0, len(data), PIECE)}
        self.rng = random.Random(1)
        self.errors = {}

    def attempt(self, function, *args):
        """Calls a function; counts what it fails with. Returns what it returned, None if it failed."""
        try:
            return function(*args)
        except OSError as error:
            name = name_of(error.errno)
            self.errors[name] = self.errors.get(name, 0) + 1
            return None

    def write(self, device):
        """Writes a piece. If that fails nobody knows whether it was written."""
        pos = self.rng.randrange(len(self.may_be)) * PIECE
        data = self.rng.randbytes(PIECE)

        def both():
            device.write(pos, data)
            return True

        worked = self.attempt(both)
        if worked and not self.volatile:
            self.may_be[pos] = {data}
            return
        self.may_be[pos].add(data)
        self.latest.pop(pos, None)
        if worked:
            self.latest[pos] = data

    def flush(self, device):
        """Flushes. If that works, the latest content of each piece is all it may have."""
        def both():
            device.flush()
            return True

        if self.attempt(both):
            self.may_be.update((pos, {data}) for pos, data in self.latest.items())
            self.latest = {}

    def read(self, device):
        """Reads a piece, and compares if that works."""
        pos = self.rng.randrange(len(self.may_be)) * PIECE
        data = self.attempt(device.read, pos, PIECE)
        if data is not None:
            self.check_piece(pos, data)

    def check_piece(self, pos, data):
        """Fails unless each sector is from one of the contents that the piece may have."""
        for at in range(0, PIECE, 512):
            allowed = [content[at:at + 512] for content in self.may_be[pos]]
            ensure(data[at:at + 512] in allowed, f"wrong content at {pos + at}")

    def check(self, data):
        """Fails unless `data` is what the whole device may hold."""
        equal(len(data), len(self.may_be) * PIECE, "size")
        for pos in self.may_be:
            self.check_piece(pos, data[pos:pos + PIECE])


def batter(device, count):
    """Random I/O."""
    with Direct(device.loop.path) as file:
        for _ in range(count):
            device.write(file)
            device.read(file)


def make(t, kind, where):
    """An image of SIZE and its content."""
    if kind == "raw":
        path = os.path.join(where, "a.raw")
        return path, blockio.make_file(path, SIZE)
    image = vhd.Dynamic(SIZE, 65536)
    image.put(0, blockio.pattern(MIB))
    return image.write(os.path.join(where, "a.vhd")), image.guest()


@suite.cases(raw_tmpfs=("raw", False, 0), raw_direct=("raw", True, loopdev.DIRECT_IO),
             raw_ext4=("raw", True, 0), vhd_tmpfs=("vhd", False, 0), vhd_ext4=("vhd", True, 0),
             vhd_direct=("vhd", True, loopdev.DIRECT_IO))
def short_of_memory(t, case):
    """The driver, and the file system below as it works for it, get no memory every other time."""
    kind, ext4, flags = case
    path, data = make(t, kind, t.ext4(64) if ext4 else t.dir)
    device = Device(loopdev.free(), data)
    t.defer(device.loop.detach_if_bound)
    with faults.memory(*faults.driver_text()):
        # Attached again and again, as a table that could not be written ends writing.
        for _ in range(10):
            loopdev.attach(path, loop=device.loop, flags=flags)
            with faults.some_memory_fails(50):
                batter(device, 15)
            device.loop.detach()
    print(f"# errors: {device.errors}")
    ensure(set(device.errors) <= {"ENOMEM", "EIO", "EAGAIN"}, f"errors: {device.errors}")
    heals(t, device, path, kind)


def heals(t, device, path, kind):
    """After another attach everything works, and the image is sound."""
    loopdev.attach(path, loop=device.loop)
    device.errors = {}
    batter(device, 20)
    equal(device.errors, {}, "errors after the trouble")
    device.check(blockio.direct_read(device.loop.path, 0, SIZE))
    device.loop.detach()
    if kind == "vhd":
        device.check(sound_guest(t, path))


def sound_guest(t, path):
    """The content of an image by our reader, which finds it sound."""
    copy = path
    if not os.path.isfile(path):
        copy = t.path("copy")
        with open(copy, "wb") as file:
            file.write(blockio.content(path))
    with vhd_reader.Reader(copy) as reader:
        reader.check()
    return vhd_reader.guest_of(copy)


def on_disk(t, kind):
    """A RAM disk that holds an image; returns it and the content."""
    path, data = make(t, kind, t.dir)
    content = blockio.content(path)
    disk = t.ram_disk(32)
    with open(disk, "r+b", buffering=0) as file:
        if kind == "vhd":
            file.write(content[:-512])
            file.seek(-512, os.SEEK_END)
            file.write(content[-512:])
        else:
            file.write(content)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return disk, data


@suite.cases(buffered=0, direct=loopdev.DIRECT_IO)
def disk_fails_raw(t, flags):
    """Reads fail, and what is not written back is told to who flushes."""
    disk, data = on_disk(t, "raw")
    loop = t.attach(disk, flags=flags)
    with Direct(loop.path) as device:
        with faults.disk_fails("ram0"):
            fails_with(errno.EIO, device.read, MIB, PIECE)
            if flags:
                fails_with(errno.EIO, device.write, 0, b"x" * PIECE)
            else:
                device.write(0, b"x" * PIECE)
                fails_with(errno.EIO, device.flush)
        same_bytes(device.read(MIB, PIECE), data[MIB:MIB + PIECE], "a read later")
        device.write(0, b"y" * PIECE)
        device.flush()
        same_bytes(device.read(0, PIECE), b"y" * PIECE, "a write later")


@suite.test
def disk_fails_under_table_writes(t):
    """A table that may not be durable ends writing, for as long as the image is attached."""
    disk, data = on_disk(t, "vhd")
    loop = t.attach(disk)
    with Direct(loop.path) as device:
        same_bytes(device.read(0, MIB), data[:MIB], "a read")
        with faults.disk_fails("ram0"):
            fails_with(errno.EIO, device.write, 4 * MIB, b"x" * PIECE)
        fails_with(errno.EIO, device.write, 0, b"y" * PIECE)
        fails_with(errno.EIO, device.write, 6 * MIB, b"y" * PIECE)
        same_bytes(device.read(0, MIB), data[:MIB], "a read after the failure")
    loop.detach()
    same_bytes(sound_guest(t, disk)[:MIB], data[:MIB], "the image")
    loopdev.attach(disk, loop=loop)
    blockio.direct_write(loop.path, 4 * MIB, b"z" * PIECE)
    same_bytes(blockio.direct_read(loop.path, 4 * MIB, PIECE), b"z" * PIECE, "a write later")


@suite.cases(buffered=0, direct=loopdev.DIRECT_IO)
def disk_fails_now_and_then(t, flags):
    """One bio of ten fails; attached again each time."""
    disk, data = on_disk(t, "vhd")
    loop = loopdev.free()
    t.defer(loop.detach_if_bound)
    device = Device(loop, data, volatile=True)
    for _ in range(8):
        loopdev.attach(disk, loop=loop, flags=flags)
        with faults.disk_fails("ram0", 10):
            batter(device, 15)
            with Direct(loop.path) as file:
                device.flush(file)
        loop.detach()
    print(f"# errors: {device.errors}")
    ensure(device.errors.get("EIO"), "nothing has failed")
    device.check(sound_guest(t, disk))


@suite.test
def attach_to_a_failing_disk(t):
    disk, _ = on_disk(t, "vhd")
    loop = loopdev.free()
    with faults.disk_fails("ram0"):
        fails_with(errno.EIO, t.attach, disk, loop=loop)
    ensure(not loop.is_bound(), "bound")
    t.attach(disk, loop=loop)


if __name__ == "__main__":
    suite.main()
