#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""More devices than a byte can number. The stock driver passes this suite, too."""

import errno
import json
import os

from lib import blockio, loopdev, system
from lib.ktap import Suite, ensure, equal, fails_with
from lib.system import run

KIB = 1 << 10
COUNT = 300
suite = Suite()


def contents():
    """COUNT different contents, sectors of their own number."""
    return [number.to_bytes(4, "little") * 128 * (1 + number % 7) for number in range(COUNT)]


def files(t):
    """A file for each content."""
    names = []
    for number, content in enumerate(contents()):
        names.append(t.path(f"file{number}"))
        with open(names[-1], "wb") as file:
            file.write(content)
    return names


def remove_added(before):
    """Takes away the devices that were not there before."""
    for name in os.listdir("/sys/block"):
        if name.startswith("loop") and name not in before:
            system.wait_until(lambda name=name: removed(int(name[4:])), f"{name} is not in use")


def removed(number):
    """Removes a device; whether that worked."""
    try:
        loopdev.remove(number)
    except OSError:
        return False
    return True


def listed():
    """What losetup lists: device to file."""
    out = json.loads(run("losetup", "--list", "--json", "--output", "NAME,BACK-FILE"))
    return {entry["name"]: entry["back-file"] for entry in out["loopdevices"]}


def attach_all(t):
    """A device for each file; returns the devices by file."""
    t.defer(remove_added, set(os.listdir("/sys/block")))
    return {name: t.attach(name) for name in files(t)}


@suite.test
def attach_list_read_detach(t):
    loops = attach_all(t)
    equal(len({loop.number for loop in loops.values()}), COUNT, "different devices")
    ensure(max(loop.number for loop in loops.values()) > 255, "no device above loop255")
    equal(listed(), {loop.path: name for name, loop in loops.items()}, "losetup --list")
    for content, loop in zip(contents(), loops.values()):
        equal(loop.read(0, 64 * KIB), content, f"content of {loop.path}")
    for name, loop in list(loops.items())[::50]:
        numbers = os.stat(loop.path).st_rdev
        equal((os.major(numbers), os.minor(numbers)), (7, loop.number), "device number")
        equal(run("losetup", "-n", "-O", "NAME", "-j", name).strip(), loop.path, "losetup -j")
    run("losetup", "-D")
    system.wait_until(lambda: not loopdev.bound(), "all are detached")
    equal(listed(), {}, "losetup --list")


@suite.test
def written_at_once(t):
    """Every device gets a write before the first one is flushed."""
    loops = attach_all(t)
    fds = [os.open(loop.path, os.O_RDWR) for loop in loops.values()]
    for number, fd in enumerate(fds):
        os.pwrite(fd, b"%508d" % number + b"end.", 0)
    for fd in fds:
        os.fsync(fd)
        os.close(fd)
    for number, (name, content) in enumerate(zip(loops, contents())):
        equal(blockio.content(name), b"%508d" % number + b"end." + content[512:], name)


@suite.test
def numbers_far_apart(t):
    """Devices may be added under any number that fits."""
    t.defer(remove_added, set(os.listdir("/sys/block")))
    content = blockio.make_file(t.path("file"), 64 * KIB)
    for number in (255, 256, 4095, 65536, (1 << 20) - 1):
        loop = loopdev.add(number)
        t.attach(t.path("file"), loop=loop)
        equal(os.minor(os.stat(loop.path).st_rdev), number, "minor number")
        equal(loop.read(0, 64 * KIB), content, f"content of {loop.path}")
        equal(listed(), {loop.path: t.path("file")}, "losetup --list")
        loop.detach()


@suite.cases(too_big=1 << 20, negative=-1)
def number_that_does_not_fit(t, number):
    before = set(os.listdir("/sys/block"))
    t.defer(remove_added, before)
    try:
        t.record("loop", loopdev.add(number).number in range(1 << 20))
    except OSError as error:
        t.record("errno", error.errno)
        equal(set(os.listdir("/sys/block")), before, "devices")


@suite.test
def free_device_is_the_lowest(t):
    """LOOP_CTL_GET_FREE gives the lowest number that is free, among many."""
    loops = list(attach_all(t).values())[:20]
    for index in (13, 7, 11):
        loops[index].detach()
        equal(run("losetup", "-f").strip(), loops[index].path, "losetup -f")
        t.attach(t.path("file0"), loop=loops[index])
    fails_with(errno.EEXIST, loopdev.add, loops[5].number)


if __name__ == "__main__":
    suite.main()
