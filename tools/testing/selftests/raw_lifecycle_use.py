#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Who has a device open, and what that means: claims, detaching, partitions, unloading.

The stock driver passes this suite, too.
"""

import contextlib
import errno
import fcntl
import os

from lib import blockio, loopdev, modules, system
from lib.ktap import Suite, ensure, equal, fails_with, name_of
from lib.system import attempt, run

MIB = 1 << 20
BLKRRPART = 0x125F
EXCLUSIVE = os.O_RDWR | os.O_EXCL
TABLE = "label: dos\nlabel-id: 0x11111111\nsize=4MiB,type=83\nsize=8MiB,type=7\n"
suite = Suite()


def outcome(function, *args, **kwargs):
    """ "done", or the name of the errno."""
    try:
        function(*args, **kwargs)
        return "done"
    except OSError as error:
        return name_of(error.errno)


def partitions(loop):
    """Names of the partitions that the kernel knows."""
    return sorted(name for name in os.listdir(loop.sysfs) if name.startswith(f"{loop.name}p"))


def configure_by(fd, path):
    """LOOP_CONFIGURE by a descriptor that is open already."""
    with open(path, "r+b") as file:
        config = loopdev.CONFIG.pack(file.fileno(), 0, loopdev.info64(), *[0] * 8)
        fcntl.ioctl(fd, loopdev.CONFIGURE, config)


@suite.test
def exclusive_owner_keeps_others_from_attaching(t):
    path = blockio.make_sparse(t.path("a"), MIB)
    loop = loopdev.free()
    with loop.opened(EXCLUSIVE) as owner:
        fails_with(errno.EBUSY, t.attach, path, loop=loop)
        equal(loop.is_bound(), False, "bound by another")
        fails_with(errno.EBUSY, os.open, loop.path, EXCLUSIVE)
        configure_by(owner, path)
        equal(loop.is_bound(), True, "bound by the owner")
        for name, request, arg in (("sectors", loopdev.SET_BLOCK_SIZE, 4096),
                                   ("direct I/O", loopdev.SET_DIRECT_IO, 1),
                                   ("capacity", loopdev.SET_CAPACITY, 0)):
            t.record(f"{name} by another", outcome(loop.ioctl, request, arg, os.O_RDWR))
        t.record("status by another", outcome(loop.set_status, offset=512))
        t.record("sectors by the owner", outcome(fcntl.ioctl, owner, loopdev.SET_BLOCK_SIZE, 1024))
        t.record("detach by another", outcome(loop.detach))
        equal(loop.is_bound(), True, "bound while its owner has it open")
    equal(loop.is_bound(), False, "bound after the owner has closed it")


@suite.test
def claim_of_an_attach_is_temporary(t):
    path = blockio.make_sparse(t.path("a"), MIB)
    loop = t.attach(path)
    os.close(os.open(loop.path, EXCLUSIVE))
    fails_with(errno.EBUSY, t.attach, path, loop=loop)
    os.close(os.open(loop.path, EXCLUSIVE))
    loop.detach()
    for arguments in ({"flags": 2}, {"offset": 1 << 63}):
        fails_with(errno.EINVAL if "flags" in arguments else errno.EOVERFLOW,
                   t.attach, path, loop=loop, **arguments)
        os.close(os.open(loop.path, EXCLUSIVE))


@suite.test
def mount_is_an_exclusive_owner(t):
    path = blockio.make_sparse(t.path("fs"), 16 * MIB)
    run("mkfs.ext4", "-q", path)
    loop = t.attach(path)
    with loop.opened(EXCLUSIVE):
        ensure(attempt("mount", loop.path, t.dir).returncode != 0, "mounted what somebody owns")
    point = t.mount(loop.path)
    fails_with(errno.EBUSY, os.open, loop.path, EXCLUSIVE)
    t.record("sectors while mounted",
             outcome(loop.ioctl, loopdev.SET_BLOCK_SIZE, 4096, os.O_RDWR))
    loop.detach()
    equal(loop.is_bound(), True, "bound while mounted")
    equal(loop.attr("loop/autoclear"), "1", "autoclear")
    run("umount", point)
    equal(loop.is_bound(), False, "bound after umount")


@suite.test
def partition_owner_and_disk_owner(t):
    loop = t.attach(disk(t), flags=loopdev.PARTSCAN)
    with loopdev.opened(loop.part(1), EXCLUSIVE):
        fails_with(errno.EBUSY, os.open, loop.path, EXCLUSIVE)
        os.close(os.open(loop.part(2), EXCLUSIVE))
        t.record("sectors", outcome(loop.ioctl, loopdev.SET_BLOCK_SIZE, 4096, os.O_RDWR))
    with loop.opened(EXCLUSIVE):
        fails_with(errno.EBUSY, os.open, loop.part(1), EXCLUSIVE)
        t.record("attach by a partition", outcome(configure_partition, loop))


def configure_partition(loop):
    """LOOP_CONFIGURE on a partition of a bound device."""
    with loopdev.opened(loop.part(1), os.O_RDWR) as fd:
        configure_by(fd, "/proc/self/exe")


def disk(t, name="disk"):
    """A file with two partitions."""
    path = blockio.make_sparse(t.path(name), 32 * MIB)
    run("sfdisk", "-q", path, text=TABLE)
    return path


@suite.test
def detach_by_the_only_opener(t):
    path = t.path("a")
    blockio.make_file(path, MIB)
    loop = t.attach(path)
    t.allow_log(r"(Buffer )?I/O error.*")
    with loop.opened(os.O_RDWR) as fd:
        fcntl.ioctl(fd, loopdev.CLR_FD)
        fails_with(errno.ENXIO, os.open, loop.path, os.O_RDONLY)
        for name, request, arg in (("status", loopdev.GET_STATUS64, bytes(232)),
                                   ("detach again", loopdev.CLR_FD, 0),
                                   ("capacity", loopdev.SET_CAPACITY, 0),
                                   ("direct I/O", loopdev.SET_DIRECT_IO, 1),
                                   ("sectors", loopdev.SET_BLOCK_SIZE, 4096),
                                   ("change", loopdev.CHANGE_FD, fd)):
            t.record(name, outcome(fcntl.ioctl, fd, request, arg))
        t.record("attach", outcome(configure_by, fd, path))
        t.record("read", outcome(os.pread, fd, 4096, 0))
        equal(loop.attr("loop/backing_file"), path, "backing file")
        for name in ("offset", "sizelimit", "autoclear", "partscan", "dio"):
            t.record(name, loop.attr(f"loop/{name}"))
        fails_with(errno.EBUSY, loopdev.remove, loop.number)
    equal(loop.is_bound(), False, "bound after the last close")


@suite.test
def detach_by_one_of_two(t):
    data = blockio.make_file(t.path("a"), MIB)
    loop = t.attach(t.path("a"))
    with loop.opened(os.O_RDWR) as first, loop.opened() as second:
        fcntl.ioctl(first, loopdev.CLR_FD)
        t.record("detach again", outcome(fcntl.ioctl, second, loopdev.CLR_FD))
        equal(os.pread(second, 4096, 0), data[:4096], "content")
        with loop.opened() as third:
            equal(os.pread(third, 512, 4096), data[4096:4608], "content by a new opener")
        t.record("flags", loop.status().flags)
        t.record("autoclear taken back", outcome(loop.set_status))
        t.record("flags after that", loop.status().flags)
    t.record("bound after the last close", loop.is_bound())


@suite.test
def autoclear_waits_for_a_partition(t):
    loop = t.attach(disk(t), flags=loopdev.PARTSCAN)
    with loopdev.opened(loop.part(1)):
        loop.set_status(flags=loopdev.AUTOCLEAR)
        equal(loop.is_bound(), True, "bound while a partition is open")
        equal(len(partitions(loop)), 2, "partitions")
    equal(loop.is_bound(), False, "bound after the last close")


@suite.test
def detach_below_a_mapping(t):
    loop = t.attach(blockio.make_sparse(t.path("a"), 4 * MIB))
    run("dmsetup", "create", "life", "--noudevsync", text=f"0 2048 linear {loop.path} 0")
    loop.detach()
    equal(loop.is_bound(), True, "bound below a mapping")
    t.record("holders", os.listdir(f"{loop.sysfs}/holders"))
    t.record("unload", outcome(modules.delete, "loop"))
    run("dmsetup", "remove", "--noudevsync", "--retry", "life")
    equal(loop.is_bound(), False, "bound after that")


@suite.test
def table_is_not_read_again_while_a_partition_is_open(t):
    path = disk(t)
    loop = t.attach(path, flags=loopdev.PARTSCAN)
    equal(len(partitions(loop)), 2, "partitions")
    with loopdev.opened(loop.part(2)):
        loop.write(0, bytes(512))
        fails_with(errno.EBUSY, loop.ioctl, BLKRRPART)
        equal(len(partitions(loop)), 2, "partitions while one is open")
        t.record("partscan", outcome(loop.set_status, flags=loopdev.PARTSCAN))
    loop.ioctl(BLKRRPART)
    equal(partitions(loop), [], "partitions after closing")


@suite.test
def change_of_the_file_while_a_partition_is_open(t):
    t.allow_log(r"(loop: )?loop_reread_partitions: partition scan of loop\d+ \(.*\) failed "
                r"\(rc=-16\)")
    paths = [disk(t), blockio.make_sparse(t.path("b"), 32 * MIB)]
    loop = t.attach(paths[0], flags=loopdev.PARTSCAN | loopdev.READ_ONLY)
    with loopdev.opened(loop.part(2)):
        t.record("change", outcome(loop.change_file_read_only, paths[1]))
        t.record("partitions", partitions(loop))
        t.record("content", bytes(512) == loop.read(0, 512))
    loop.ioctl(BLKRRPART)
    equal(partitions(loop), [], "partitions after closing")


@suite.cases(read_only=os.O_RDONLY, write=os.O_WRONLY, nonblocking=os.O_RDONLY | os.O_NONBLOCK)
def mode_of_the_descriptor(t, mode):
    """What an attach through such a descriptor gives, and what may be set through one."""
    loop = loopdev.free()
    path = blockio.make_sparse(t.path("a"), MIB)
    with loop.opened(mode) as fd:
        t.record("attach", outcome(configure_by, fd, path))
        t.record("ro", loop.attr("ro"))
        t.record("flags", loop.status().flags)
    t.record("open for writing", outcome(lambda: os.close(os.open(loop.path, os.O_RDWR))))
    t.record("write", outcome(loop.write, 0, bytes(512)))
    loop.detach()
    t.record("ro after detaching", loop.attr("ro"))


def references():
    """What keeps the driver from being unloaded."""
    return system.references("loop")


@suite.test
def references_to_the_driver(t):
    loop = loopdev.free()
    count = [references()]
    fd = os.open(loop.path, os.O_RDONLY)
    second = os.open(loop.path, os.O_RDWR)
    count.append(references())
    t.attach(disk(t), loop=loop, flags=loopdev.PARTSCAN)
    count.append(references())
    part = os.open(loop.part(1), os.O_RDONLY)
    count.append(references())
    for descriptor in (fd, second, part):
        os.close(descriptor)
    count.append(references())
    control = os.open("/dev/loop-control", os.O_RDWR)
    count.append(references())
    os.close(control)
    fails_with(errno.EBUSY, t.attach, t.path("disk"), loop=loop)
    count.append(references())
    loop.detach()
    count.append(references())
    fails_with(errno.EINVAL, t.attach, "/", loop=loop, file_flags=os.O_RDONLY)
    count.append(references())
    t.record("references", count)
    equal((count[0], count[-1]), (0, 0), "references of an idle driver")


@contextlib.contextmanager
def in_state(t, state):
    """A device in use in some way."""
    loop = loopdev.free()
    if state == "control":
        with loopdev.opened("/dev/loop-control", os.O_RDWR):
            yield
        return
    if state == "open":
        with loop.opened():
            yield
        return
    path = blockio.make_sparse(t.path("fs"), 16 * MIB)
    run("mkfs.ext4", "-q", path)
    t.attach(path, loop=loop)
    if state == "bound":
        yield
    if state == "mounted":
        point = t.mount(loop.path)
        yield
        run("umount", point)
    if state == "below another":
        upper = t.attach(loop.path)
        yield
        upper.detach()
    loop.detach()


@suite.cases(control="control", open="open", bound="bound", mounted="mounted",
             below="below another")
def unloading_is_refused(t, state):
    with in_state(t, state):
        t.record("references", references())
        t.record("unload", outcome(modules.delete, "loop"))
        ensure(os.path.exists("/dev/loop-control"), "the driver has gone")
    equal(references(), 0, "references afterwards")


@suite.test
def loading_and_unloading_many_times(t):
    path = blockio.make_sparse(t.path("a"), MIB)
    data = blockio.pattern(4096)
    file = modules.loop_file(system.driver_in_use())
    for number in range(20):
        loop = loopdev.attach(path)
        loop.write(number * 4096, data)
        loop.detach()
        modules.delete("loop")
        ensure(not os.path.exists("/dev/loop0"), "a node is left")
        modules.insert(file)
        equal(loopdev.free().number, 0, "first free device")
    equal(blockio.content(path)[:20 * 4096], data * 20, "file")


if __name__ == "__main__":
    with modules.parsers_unloaded():
        suite.main()
