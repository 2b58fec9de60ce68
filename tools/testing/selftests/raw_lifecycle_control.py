#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Devices made and removed: by opening a node, and by /dev/loop-control.

The stock driver passes this suite, too.
"""

import contextlib
import ctypes
import errno
import os
import stat

from lib import blockio, loopdev, modules, system
from lib.ktap import Suite, ensure, equal, fails_with, name_of

MIB = 1 << 20
MAJOR = 7
IOCTL = 16
# A node that has no device was opened; see block/bdev.c.
suite = Suite()


def outcome(function, *args):
    """What a function returns, or the name of its errno."""
    try:
        return function(*args)
    except OSError as error:
        return name_of(error.errno)


def devices():
    """The numbers of all loop devices."""
    names = (name[4:] for name in os.listdir("/sys/block") if name.startswith("loop"))
    return sorted(int(name) for name in names)


def open_node(t, minor, flags=os.O_RDONLY):
    """Opens a node made by hand, which may have no device: "opened" or an errno."""
    path = t.path(f"node-{minor}")
    if not os.path.exists(path):
        os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(MAJOR, minor))
    try:
        os.close(os.open(path, flags))
        return "opened"
    except OSError as error:
        return name_of(error.errno)


def without(*numbers):
    """Removes devices that are there."""
    for number in numbers:
        if number in devices():
            loopdev.remove(number)


@suite.test
def opening_a_node_makes_the_device(t):
    for number in (50, 123456, (1 << 20) - 1):
        equal(open_node(t, number), "opened", f"node {number}")
        ensure(number in devices(), f"loop{number} is not there")
        ensure(os.path.exists(f"/dev/loop{number}"), f"/dev/loop{number} is not there")
        equal(open_node(t, number, os.O_RDWR), "opened", "second time")
        without(number)
        equal(open_node(t, number, os.O_RDWR | os.O_EXCL), "opened", "after removal")
        without(number)


@suite.test
def node_is_a_working_device(t):
    data = blockio.make_file(t.path("a"), MIB)
    equal(open_node(t, 60), "opened", "node")
    loop = loopdev.Loop(60)
    t.attach(t.path("a"), loop=loop)
    equal(blockio.content(t.path("node-60")) == data, True, "content by the node")
    loop.detach()
    without(60)


@suite.test
def looking_at_a_node_makes_nothing(t):
    path = t.path("node")
    os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(MAJOR, 70))
    before = devices()
    os.stat(path)
    os.close(os.open(path, os.O_PATH))
    equal(devices(), before, "devices")


@suite.cases(max_loop_4=("max_loop=4", (0, 3, 4, 5, 100)), max_loop_0=("max_loop=0", (0, 9, 100)),
             max_part_7=("max_part=7", (0, 8, 11, 80, 83, 8 * 100)),
             both=("max_loop=3 max_part=15", (0, 16, 33, 47, 48, 16 * 9)))
def nodes_with_parameters(t, case):
    """A limit that was given holds for nodes; minors of partitions lead to their disk."""
    params, minors = case
    with modules.loaded_with(params):
        t.record("devices after loading", devices())
        for minor in minors:
            before = devices()
            result = open_node(t, minor)
            t.record(f"opening minor {minor}", (result, sorted(set(devices()) - set(before))))


@suite.test
def limit_does_not_bind_the_control_node(t):
    with modules.loaded_with("max_loop=2"):
        equal(open_node(t, 7), "ENXIO", "node above the limit")
        loopdev.add(7)
        equal(open_node(t, 7), "opened", "node of a device above the limit")
        equal(loopdev.control(loopdev.CTL_ADD, -1), 2, "next device")


@suite.test
def numbers_are_used_again_lowest_first(t):
    last = devices()[-1]
    taken = [loopdev.control(loopdev.CTL_ADD, -1) for _ in range(5)]
    equal(taken, list(range(last + 1, last + 6)), "numbers")
    without(taken[1], taken[3])
    equal(loopdev.control(loopdev.CTL_ADD, -1), taken[1], "after removal")
    equal(loopdev.control(loopdev.CTL_ADD, -77), taken[3], "any negative number")
    equal(loopdev.control(loopdev.CTL_ADD, -1), last + 6, "with no gap")
    without(*taken, last + 6)


@suite.test
def get_free_makes_one_when_all_are_bound(t):
    path = blockio.make_sparse(t.path("a"), MIB)
    with modules.loaded_with("max_loop=3"):
        equal(loopdev.free().number, 0, "first")
        equal(loopdev.free().number, 0, "again")
        for number in (0, 2):
            t.attach(path, loop=loopdev.Loop(number))
        equal(loopdev.free().number, 1, "between bound ones")
        without(1)
        equal(loopdev.free().number, 1, "number of a new device")
        t.attach(path, loop=loopdev.Loop(1))
        equal(loopdev.free().number, 3, "past the last")
        with loopdev.Loop(3).opened(os.O_RDWR | os.O_EXCL):
            equal(loopdev.free().number, 3, "though it is open")
            fails_with(errno.EBUSY, loopdev.remove, 3)
        for number in (2, 1, 0):
            loopdev.Loop(number).detach()
            equal(loopdev.free().number, number, "after detaching")


def control_wide(request, arg):
    """An ioctl of the control node with an argument of 64 bits."""
    fd = os.open("/dev/loop-control", os.O_RDWR)
    try:
        return modules.call(IOCTL, fd, request, ctypes.c_ulong(arg))
    finally:
        os.close(fd)


@suite.test
def adding(t):
    top = (1 << 20) - 1
    for number in (top, top + 1, 1 << 24, (1 << 31) - 1, 99, 99, (1 << 32) + 98):
        t.record(f"add {number:#x}", outcome(control_wide, loopdev.CTL_ADD, number))
    t.record("devices", devices())
    without(top, 99, 98)


@suite.test
def adding_with_max_part(t):
    with modules.loaded_with("max_part=255 max_loop=1"):
        for number in ((1 << 12) - 1, 1 << 12, 1 << 23):
            t.record(f"add {number:#x}", outcome(loopdev.control, loopdev.CTL_ADD, number))
        t.record("devices", devices())


@suite.test
def removing(t):
    path = blockio.make_sparse(t.path("a"), MIB)
    loop = loopdev.add(90)
    with loop.opened():
        fails_with(errno.EBUSY, loopdev.remove, 90)
    t.attach(path, loop=loop)
    fails_with(errno.EBUSY, loopdev.remove, 90)
    equal(loop.is_bound(), True, "bound after a refused removal")
    loop.detach()
    loopdev.remove(90)
    fails_with(errno.ENODEV, loopdev.remove, 90)
    fails_with(errno.ENODEV, loopdev.remove, (1 << 31) - 1)
    ensure(not os.path.exists("/dev/loop90"), "the node is left")


@suite.test
def removing_no_number_in_particular(t):
    """It is said once that this is not supported. Our line names the module in front."""
    driver = system.driver_in_use()
    system.unload_loop()
    system.load_loop(driver)
    t.expect_log(r"(loop: )?deleting an unspecified loop device is not supported\.")
    for number in (-1, -2, 0xFFFFFFFF):
        fails_with(errno.EINVAL, control_wide, loopdev.CTL_REMOVE, number)


@suite.test
def control_node(t):
    path = "/dev/loop-control"
    status = os.stat(path)
    equal((os.major(status.st_rdev), os.minor(status.st_rdev)), (10, 237), "device number")
    t.record("mode", oct(status.st_mode))
    with contextlib.ExitStack() as stack:
        fd = os.open(path, os.O_RDWR)
        stack.callback(os.close, fd)
        t.record("read", outcome(os.read, fd, 1))
        t.record("write", outcome(os.write, fd, b"x"))
        t.record("seek", outcome(os.lseek, fd, 0, os.SEEK_SET))
    for request in (0, 0x4C7F, 0x4C83, loopdev.CLR_FD, loopdev.GET_STATUS64):
        t.record(f"ioctl {request:#x}", outcome(loopdev.control, request))


@suite.test
def device_numbers_are_registered(t):
    for name, line in (("devices", "  7 loop"), ("misc", "237 loop-control")):
        with open(f"/proc/{name}", encoding="ascii") as file:
            ensure(line in file.read().splitlines(), f"'{line}' is not in /proc/{name}")
    equal(blockio.content("/sys/class/misc/loop-control/dev"), b"10:237\n", "sysfs")


if __name__ == "__main__":
    with modules.parsers_unloaded():
        suite.main()
