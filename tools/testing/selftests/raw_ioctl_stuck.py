#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""An ioctl hangs, because the store of a backing file does. Others must not hang with it, or at
least must be killable. The stock driver passes this suite, too."""

import fcntl
import os

from lib import blockio, loopdev, mapper, system
from lib.ktap import Suite, ensure, equal
from lib.tasks import Task

MIB = 1 << 20
DISK = 64
TABLE = (DISK * MIB // 512, "linear")
FILES = ("backing_file", "offset", "sizelimit", "autoclear", "partscan", "dio")
CALLS = {"LOOP_GET_STATUS64": loopdev.GET_STATUS64, "LOOP_SET_CAPACITY": loopdev.SET_CAPACITY,
         "LOOP_CLR_FD": loopdev.CLR_FD, "an unknown call": 0x4C55}
suite = Suite()


def store(t):
    """A file system that hang() stops; returns where it is mounted."""
    t.ram_disk(DISK)
    disk = mapper.create(t, TABLE)
    system.run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", disk)
    return t.mount(disk)


def dirty(path):
    """Leaves something to be written back in a file that is cached as a whole."""
    with open(path, "r+b") as file:
        file.write(blockio.pattern(MIB, 7))


def stuck(t):
    """A device that somebody has locked for as long as the store hangs; who that is; a descriptor
    of the device."""
    path = os.path.join(store(t), "a")
    blockio.make_file(path, MIB)
    loop = t.attach(path, offset=512, sizelimit=65536)
    fd = os.open(loop.path, os.O_RDWR)
    t.defer(os.close, fd)
    os.sync()
    dirty(path)
    mapper.hang(t)
    return loop, mapper.hanging(t, lambda: fcntl.ioctl(fd, loopdev.SET_DIRECT_IO, 1)), fd


@suite.test
def sysfs_can_be_read(t):
    loop, task, _ = stuck(t)
    for name in sorted(os.listdir(f"{loop.sysfs}/loop")):
        reader = Task(lambda name=name: loop.attr(f"loop/{name}"))
        equal(reader.outcome(), "done", f"reading {name}")
    for name in FILES:
        t.record(name, loop.attr(f"loop/{name}"))
    ensure(not task.ended(), "the ioctl does not hang any more")
    mapper.go_on()
    t.record("the ioctl", task.outcome())
    t.record("dio", loop.attr("loop/dio"))


@suite.test
def who_waits_can_be_killed(t):
    loop, task, fd = stuck(t)
    calls = {name: lambda request=request: fcntl.ioctl(fd, request, bytes(loopdev.INFO64.size))
             for name, request in CALLS.items()}
    calls["open"] = lambda: os.open(loop.path, os.O_RDONLY)
    for name, call in calls.items():
        waiter = mapper.hanging(t, call)
        waiter.kill()
        equal(waiter.outcome(), "killed", f"who waits in {name}")
    ensure(not task.ended(), "the ioctl does not hang any more")


@suite.test
def who_waits_to_detach_can_be_killed(t):
    path = os.path.join(store(t), "a")
    blockio.make_file(path, MIB)
    blockio.make_sparse(t.path("b"), MIB)
    below, third = t.attach(path), t.attach(t.path("b"))
    above = loopdev.free()
    t.defer(above.detach_if_bound)
    os.sync()
    with below.opened(os.O_RDWR) as fd, above.opened(os.O_RDWR) as target:
        os.pwrite(fd, blockio.pattern(MIB, 7), 0)
        mapper.hang(t)
        # Locks out all who detach: the device below must not go away.
        task = mapper.hanging(t, lambda: fcntl.ioctl(target, loopdev.SET_FD, fd))
        waiter = mapper.hanging(t, third.detach)
        waiter.kill()
        equal(waiter.outcome(), "killed", "who waits to detach")
        ensure(not task.ended(), "the ioctl does not hang any more")
        mapper.go_on()
        t.record("the attach", task.outcome())


@suite.test
def another_device_is_not_affected(t):
    _, task, _ = stuck(t)
    blockio.make_file(t.path("b"), MIB)
    other = loopdev.free()
    worker = Task(lambda: (loopdev.attach(t.path("b"), loop=other), other.set_status(offset=512),
                           other.detach()))
    equal(worker.outcome(), "done", "attach, change and detach of another device")
    ensure(not task.ended(), "the ioctl does not hang any more")


if __name__ == "__main__":
    suite.main()
