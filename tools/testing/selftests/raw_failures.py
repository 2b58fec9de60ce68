#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A raw device whose file is cut, grows, or fails: what readers, writers and the log get."""

import fcntl
import os
import re
import time

from lib import backings, blockio, loopdev, mapper, system
from lib.blockio import Direct
from lib.ktap import Suite, ensure, equal, same_bytes
from lib.system import run

MIB = 1 << 20
LENGTH = backings.LENGTH
LOOP_ERROR = r"(Buffer )?.* error, dev loop\d+, .*"
BELOW = (r"Buffer I/O error on dev .*|EXT4-fs.*|Aborting journal.*|JBD2: .*|XFS .*"
         r"|.* error, dev dm-\d+.*")
suite = Suite(allow=[LOOP_ERROR, r"Buffer I/O error on dev loop\d+, .*"])


def outcome(function, *args):
    """What came of an I/O: how many bytes, "done", or the error."""
    try:
        result = function(*args)
    except OSError as error:
        return error.strerror
    return len(result) if isinstance(result, bytes) else "done"


def wait_for_the_log():
    """The block layer logs ten errors in five seconds at most, those of earlier tests counted."""
    time.sleep(5.5)


def logged(t):
    """What the log says about errors of loop devices, in the order of the lines."""
    lines = t.log.matching(LOOP_ERROR)
    return [re.sub(r"dev loop\d+", "dev loopN", line) for line in lines]


@suite.cases(buffered="off", direct="on")
def reads_at_the_end_of_a_cut_file(t, direct):
    wait_for_the_log()
    path = backings.on_file_system(t, "ext4_4k")
    data = blockio.content(path)
    loop = t.losetup(f"--direct-io={direct}", path)
    cut = 2 * MIB + 1000
    os.truncate(path, cut)
    for pos, length in ((2 * MIB - 4096, 4096), (2 * MIB, 512), (2 * MIB, 4096),
                        (2 * MIB + 512, 512), (2 * MIB + 1024, 512), (2 * MIB - 4096, 16384),
                        (3 * MIB, 4096), (LENGTH - 512, 512)):
        with Direct(loop.path, os.O_RDONLY) as device:
            try:
                found = device.read(pos, length)
                same_bytes(found[:max(0, cut - pos)], data[pos:min(cut, pos + len(found))], "data")
                rest = found[max(0, cut - pos):]
                t.record(f"read {pos} {length}", (len(found), sorted(set(rest))))
            except OSError as error:
                t.record(f"read {pos} {length}", error.strerror)
    t.record("log", logged(t))


@suite.test
def cached_read_at_the_end_of_a_cut_file(t):
    path = backings.on_file_system(t, "ext4_4k")
    loop = t.attach(path)
    os.truncate(path, 2 * MIB)
    with loop.opened() as fd:
        for pos in (2 * MIB - 8192, 2 * MIB, 3 * MIB):
            t.record(f"read at {pos}", outcome(os.pread, fd, 8192, pos))


@suite.cases(buffered="off", direct="on")
def writes_beyond_the_end_of_a_cut_file(t, direct):
    path = backings.on_file_system(t, "ext4_4k")
    data = blockio.content(path)
    loop = t.losetup(f"--direct-io={direct}", path)
    os.truncate(path, MIB)
    with Direct(loop.path) as device:
        device.write(2 * MIB, data[:4096])
        device.flush()
        equal(os.stat(path).st_size, 2 * MIB + 4096, "size of the file")
        device.discard(3 * MIB, 65536)
        equal(os.stat(path).st_size, 2 * MIB + 4096, "size of the file after a discard beyond it")
        same_bytes(device.read(MIB, 65536), bytes(65536), "what was never written")
        same_bytes(device.read(2 * MIB, 4096), data[:4096], "what was written")


@suite.test
def size_follows_the_file_on_request(t):
    path = backings.on_file_system(t, "ext4_4k")
    data = blockio.content(path)
    loop = t.attach(path)
    for size in (8 * MIB, 8 * MIB + 511, 8 * MIB + 513, 3 * MIB, 511, 0, LENGTH):
        os.truncate(path, size)
        before = loop.size()
        loop.ioctl(loopdev.SET_CAPACITY, 0, os.O_RDWR)
        t.record(f"file of {size} bytes", (before, loop.size(), loop.attr("size")))
    same_bytes(blockio.direct_read(loop.path, 0, LENGTH), bytes(LENGTH), "device")
    with open(path, "wb") as file:
        file.write(data)
    same_bytes(blockio.direct_read(loop.path, 0, LENGTH), data, "device after writing the file")


@suite.test
def size_with_a_window(t):
    path = backings.on_tmpfs(t)
    loop = t.attach(path, offset=MIB, sizelimit=2 * MIB)
    for size in (8 * MIB, 2 * MIB + 512, MIB + 511, MIB, 512, 0, LENGTH):
        os.truncate(path, size)
        loop.ioctl(loopdev.SET_CAPACITY, 0, os.O_RDWR)
        t.record(f"file of {size} bytes", loop.attr("size"))


def small_file_system(t, kind):
    """A sparse file that does not fit on its file system."""
    folder = os.path.dirname(backings.on_file_system(t, kind))
    os.unlink(os.path.join(folder, "a"))
    path = os.path.join(folder, "large")
    return blockio.make_sparse(path, 512 * MIB if kind == "xfs" else 64 * MIB)


@suite.cases(ext4_buffered=("ext4_4k", "off"), ext4_direct=("ext4_4k", "on"),
             ext4_1k=("ext4_1k", "off"), tmpfs=("tmpfs", "off"))
def no_room(t, case):
    wait_for_the_log()
    kind, direct = case
    if kind == "tmpfs":
        point = t.path("small")
        os.mkdir(point)
        run("mount", "-t", "tmpfs", "-o", "size=24M", "tmpfs", point)
        t.defer(system.unmount_if_mounted, point)
        path = blockio.make_sparse(os.path.join(point, "large"), 64 * MIB)
    else:
        path = small_file_system(t, kind)
    loop = t.losetup(f"--direct-io={direct}", path)
    said, good = [], {}
    piece = 65536
    with Direct(loop.path) as device:
        for pos in range(0, 64 * MIB, piece):
            data = blockio.pattern(piece, pos)
            said.append(outcome(device.write, pos, data))
            if said[-1] == "done":
                good[pos] = data
            elif len(said) - len(good) == 4:
                break
        t.record("failures", sorted(set(said)))
        equal(outcome(device.flush), "done", "a flush on a full file system")
        for pos, data in good.items():
            same_bytes(device.read(pos, piece), data, f"what was written at {pos}")
        device.discard(0, 8 * MIB)
        device.write(20 * MIB, blockio.pattern(piece))
        same_bytes(device.read(20 * MIB, piece), blockio.pattern(piece), "what was written then")
    ensure(16 <= len(good) * piece // MIB <= 32, f"{len(good) * piece} bytes were written")
    t.record("kinds of log lines", sorted({line.split(" error")[0] for line in logged(t)}))


def on_failing_disk(t, bad):
    """A file on ext4 on a mapped disk of which the sectors from `bad` on can be made to fail."""
    t.ram_disk(64)
    sectors = 64 * MIB // 512
    disk = mapper.create(t, (sectors, "linear"))
    path = backings.on_file_system(t, "ext4_4k", disk)
    os.sync()
    return path, lambda: mapper.switch((bad, "linear"), (sectors - bad, "error")), \
        lambda: mapper.switch((sectors, "linear"))


@suite.cases(buffered="off", direct="on")
def the_disk_below_fails(t, direct):
    wait_for_the_log()
    t.ram_disk(16)
    sectors = 16 * MIB // 512
    t.allow_log(BELOW)
    disk = mapper.create(t, (sectors, "linear"))
    blockio.direct_write(disk, 0, blockio.pattern(LENGTH))
    loop = t.losetup(f"--direct-io={direct}", disk)
    bad = 2 * MIB // 512
    mapper.switch((bad, "linear"), (8, "error"), (sectors - bad - 8, "linear"))
    with Direct(loop.path) as device:
        drop_cache(disk)
        for name, function, *args in (
                ("good read", device.read, MIB, 4096),
                ("bad read", device.read, 2 * MIB, 4096),
                ("read over the bad place", device.read, 2 * MIB - 8192, 65536),
                ("good write", device.write, MIB, bytes(4096)),
                ("bad write", device.write, 2 * MIB, bytes(4096)),
                ("write over the bad place", device.write, 2 * MIB - 8192, bytes(65536)),
                ("flush", device.flush), ("another flush", device.flush),
                ("good write", device.write, 3 * MIB, bytes(4096)),
                ("flush", device.flush)):
            t.record(name, outcome(function, *args))
        mapper.switch((sectors, "linear"))
        drop_cache(disk)
        same_bytes(device.read(3 * MIB, 4096), bytes(4096), "what was written well")
        device.write(2 * MIB, blockio.pattern(4096))
        device.flush()
    drop_cache(disk)
    same_bytes(blockio.direct_read(disk, 2 * MIB, 4096), blockio.pattern(4096), "after the repair")
    t.record("log", [line for line in logged(t) if "Buffer" not in line])


def drop_cache(disk):
    """Drops the page cache of a block device, if that can be written back."""
    with open(disk, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@suite.test
def reads_of_a_sick_disk_under_a_file_system(t):
    wait_for_the_log()
    t.allow_log(BELOW)
    path, break_it, repair = on_failing_disk(t, 8)
    loop = t.attach(path)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    data = blockio.pattern(LENGTH)
    with Direct(loop.path, os.O_RDONLY) as device:
        same_bytes(device.read(0, 4096), data[:4096], "before")
        break_it()
        t.record("read while it fails", outcome(device.read, 3 * MIB, 4096))
        repair()
        same_bytes(device.read(3 * MIB, 4096), data[3 * MIB:3 * MIB + 4096], "after the repair")
    t.record("log", [line for line in logged(t) if "Buffer" not in line])


@suite.test
def a_file_opened_for_reading_only(t):
    wait_for_the_log()
    path = backings.on_file_system(t, "ext4_4k")
    loop = loopdev.attach_read_only(path)
    t.defer(loop.detach_if_bound)
    data = blockio.content(path)
    with loop.opened() as fd:
        for name, request in (("discard", loopdev.BLKDISCARD), ("zero", loopdev.BLKZEROOUT)):
            t.record(name, outcome(loop.ioctl, request, bytes(16)))
        t.record("write", outcome(os.pwrite, fd, bytes(512), 0))
    with loop.opened(os.O_RDWR) as fd:
        t.record("write through a writable descriptor", outcome(os.pwrite, fd, bytes(512), 0))
    # The block layer lets a writer pass if the device is made writable behind the driver's back.
    run("blockdev", "--setrw", loop.path)
    t.record("blockdev --setrw", loop.attr("ro"))
    with Direct(loop.path) as device:
        t.record("write then", outcome(device.write, 0, bytes(512)))
        t.record("discard then", outcome(device.discard, 0, 4096))
        t.record("zero then", outcome(device.zero, 0, 4096))
        t.record("flush then", outcome(device.flush))
    loop.detach()
    same_bytes(blockio.content(path), data, "file")
    t.record("log", logged(t))


@suite.test
def an_error_is_that_of_the_file_system(t):
    # A file of ext4 with blocks of 1 KiB ends at 16 GiB and a bit: writes behind that are too far.
    path = backings.on_file_system(t, "ext2")
    blockio.make_sparse(path, 16 << 30)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        for pos in (0, 1 << 30, (16 << 30) - 4096):
            t.record(f"write at {pos}", outcome(device.write, pos, bytes(4096)))


@suite.test
def discards_that_do_not_fit_the_disk_below(t):
    """The sectors of the device are smaller than those of the disk below: fallocate says EINVAL.

    The C driver passes that on from one of its functions, and makes it EIO in another.
    """
    below = backings.loop_device_4k(t)
    data = blockio.direct_read(below, 0, LENGTH)
    loop = t.attach(below, block_size=512)
    with Direct(loop.path) as device:
        for pos, length in ((512, 512), (0, 512), (4096 - 512, 1024), (MIB, 4096 + 512)):
            for function in (device.discard, device.zero):
                equal(outcome(function, pos, length), "Input/output error", f"{pos} {length}")
        same_bytes(device.read(0, LENGTH), data, "device after errors")
        device.discard(MIB, 8192)
        device.zero(2 * MIB, 8192)
        expected = bytearray(data)
        for pos in (MIB, 2 * MIB):
            expected[pos:pos + 8192] = bytes(8192)
        same_bytes(device.read(0, LENGTH), bytes(expected), "device")
    same_bytes(blockio.direct_read(below, 0, LENGTH), bytes(expected), "disk below")


@suite.test
def a_sealed_file(t):
    """fallocate, and write, say EPERM: a device has no such error."""
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    t.defer(os.close, fd)
    data = blockio.pattern(LENGTH)
    loopdev.pwrite_all(fd, data, 0)
    loop = t.attach(f"/proc/self/fd/{fd}")
    with Direct(loop.path) as device:
        device.discard(0, 4096)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        for function, *args in ((device.discard, 0, 8192), (device.zero, 0, 8192),
                                (device.write, 0, bytes(4096))):
            equal(outcome(function, *args), "Input/output error", function.__name__)
        same_bytes(device.read(0, LENGTH), bytes(4096) + data[4096:], "device")
    t.record("discards that are allowed", loop.attr("queue/discard_max_bytes"))


if __name__ == "__main__":
    suite.main()
