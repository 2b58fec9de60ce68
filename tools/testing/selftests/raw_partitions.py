#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Partitions of raw devices, and the module parameters. The stock driver passes this suite, too."""

import contextlib
import os

from lib import blockio, loopdev, system
from lib.kmsg import NO_ZERO_RANGE
from lib.ktap import Suite, ensure, equal, same_bytes
from lib.system import run

MIB = 1 << 20
suite = Suite(allow=[NO_ZERO_RANGE])

MBR = "label: dos\nsize=4MiB,type=83\nsize=8MiB,type=7\n"
GPT = "label: gpt\nsize=4MiB,name=first\nsize=8MiB,name=second\n"
LOGICAL = "label: dos\n1: size=4MiB\n2: size=20MiB,type=5\n5: size=4MiB\n6: size=4MiB\n"


def disk(t, table=MBR):
    """A file with a partition table."""
    path = blockio.make_sparse(t.path("disk"), 32 * MIB)
    run("sfdisk", "-q", path, text=table)
    return path


def partitions(loop):
    """The partitions of a device that the kernel knows: name to (start, length) in bytes."""
    found = {}
    for name in sorted(os.listdir(loop.sysfs)):
        if name.startswith(f"{loop.name}p"):
            found[name[len(loop.name):]] = tuple(
                int(loop.attr(f"{name}/{attr}")) * 512 for attr in ("start", "size"))
    return found


@contextlib.contextmanager
def loaded_with(*params):
    """The loop driver in use, loaded anew with parameters, and then without."""
    driver = system.driver_in_use()
    system.unload_loop()
    system.load_loop(driver, *params)
    try:
        yield
    finally:
        for loop in loopdev.bound():
            loop.detach()
        system.unload_loop()
        system.load_loop(driver)


TWO = {"p1": (MIB, 4 * MIB), "p2": (5 * MIB, 8 * MIB)}


@suite.cases(mbr=(MBR, TWO), gpt=(GPT, TWO), none=("label: dos\n", {}),
             logical=(LOGICAL, {"p1": (MIB, 4 * MIB), "p2": (5 * MIB, 1024),
                                "p5": (6 * MIB, 4 * MIB), "p6": (11 * MIB, 4 * MIB)}))
def partscan_option(t, case):
    table, expected = case
    loop = t.losetup("-P", disk(t, table))
    equal(partitions(loop), expected, "partitions")
    equal(loop.attr("loop/partscan"), "1", "partscan")


@suite.test
def no_partitions_without_the_option(t):
    loop = t.losetup(disk(t))
    equal(partitions(loop), {}, "partitions")


@suite.test
def partition_io(t):
    path = disk(t)
    loop = t.losetup("-P", path)
    data = blockio.pattern(8 * MIB, 3)
    blockio.direct_write(loop.part(2), 0, data)
    with open(path, "rb") as file:
        file.seek(5 * MIB)
        same_bytes(file.read(8 * MIB), data, "file")
    same_bytes(blockio.direct_read(loop.path, 5 * MIB, 8 * MIB), data, "whole device")


@suite.test
def partitions_vanish_with_detach(t):
    loop = t.losetup("-P", disk(t))
    equal(len(partitions(loop)), 2, "partitions")
    run("losetup", "-d", loop.path)
    equal(partitions(loop), {}, "partitions after detaching")
    ensure(not os.path.exists(loop.part(1)), "device node is left")


@suite.test
def mounted_partition_keeps_the_device(t):
    loop = t.losetup("-P", disk(t))
    run("mkfs.ext4", "-q", loop.part(2))
    point = t.mount(loop.part(2))
    run("losetup", "-d", loop.path)
    with open(os.path.join(point, "file"), "wb") as file:
        file.write(b"x" * 100000)
    run("sync")
    run("umount", point)
    system.wait_until(lambda: not loop.is_bound(), "umount detached it")
    loop = t.losetup("-P", t.path("disk"))
    run("e2fsck", "-fn", loop.part(2))


@suite.test
def partx_adds_and_deletes(t):
    loop = t.losetup("-P", blockio.make_sparse(t.path("disk"), 32 * MIB))
    run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", loop.path, text=MBR)
    run("partx", "-u", loop.path)
    equal(partitions(loop), TWO, "partitions after partx -u")
    run("partx", "-d", "--nr", "1", loop.path)
    equal(list(partitions(loop)), ["p2"], "partitions after partx -d")
    run("partx", "-a", "--nr", "1", loop.path)
    equal(partitions(loop), TWO, "partitions after partx -a")


@suite.test
def partx_without_partscan(t):
    loop = t.losetup(disk(t))
    run("partx", "-a", loop.path)
    equal(partitions(loop), TWO, "partitions")


@suite.test
def partitions_added_by_hand_vanish_with_detach(t):
    loop = t.losetup(disk(t))
    run("partx", "-a", loop.path)
    run("losetup", "-d", loop.path)
    equal(partitions(loop), {}, "partitions after detaching")


@suite.cases(scanned=["-P"], added_by_hand=[])
def partitions_vanish_with_the_file(t, options):
    """LOOP_CHANGE_FD to a file without any."""
    loop = t.losetup("-r", *options, disk(t))
    if not options:
        run("partx", "-a", loop.path)
    equal(partitions(loop), TWO, "partitions")
    other = blockio.make_sparse(t.path("other"), 32 * MIB)
    loop.change_file_read_only(other)
    t.record("partitions of the other file", partitions(loop))


@suite.test
def mounted_partition_outlives_the_file(t):
    """LOOP_CHANGE_FD to a copy of the file. That the other partition stays, too, is logged."""
    t.allow_log(r"loop: loop_reread_partitions: partition scan of loop\d+ \(.*\) failed \(rc=-16\)")
    path = disk(t)
    loop = t.losetup("-P", path)
    run("mkfs.ext4", "-q", loop.part(2))
    run("losetup", "-d", loop.path)
    run("cp", path, t.path("copy"))
    loop = t.losetup("-r", path)
    run("partx", "-a", loop.path)
    point = t.mount(loop.part(2), "-o", "ro")
    loop.change_file_read_only(t.path("copy"))
    equal(partitions(loop), TWO, "partitions")
    equal(os.listdir(point), ["lost+found"], "files")
    run("umount", point)
    run("e2fsck", "-fn", loop.part(2))


@suite.test
def reread_partition_table(t):
    loop = t.losetup("-P", blockio.make_sparse(t.path("disk"), 32 * MIB))
    equal(partitions(loop), {}, "partitions before")
    run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", t.path("disk"), text=MBR)
    loop.drop_cache()
    run("blockdev", "--rereadpt", loop.path)
    equal(partitions(loop), TWO, "partitions")


@suite.test
def set_status_turns_partscan_on(t):
    loop = t.losetup(disk(t))
    loop.set_status(flags=loopdev.PARTSCAN)
    equal(partitions(loop), TWO, "partitions")


@suite.test
def kpartx_maps_partitions(t):
    """udevd has to tell kpartx that it has seen the maps."""
    t.with_udev()
    loop = t.losetup(disk(t))
    data = blockio.pattern(4 * MIB)
    blockio.direct_write(loop.path, MIB, data)
    run("kpartx", "-av", "-s", loop.path)
    t.defer(system.unmap_partitions, loop.path)
    same_bytes(blockio.direct_read(f"/dev/mapper/{loop.name}p1", 0, 4 * MIB), data, "partition")


@suite.test
def lsblk_shows_partitions(t):
    """It has the labels from udevd."""
    t.with_udev()
    loop = t.losetup("-P", disk(t, GPT))
    system.settle()
    out = run("lsblk", "-n", "-l", "-x", "NAME", "-o", "NAME,TYPE,SIZE,PARTLABEL", loop.path)
    expected = [[loop.name, "loop", "32M"], [f"{loop.name}p1", "part", "4M", "first"],
                [f"{loop.name}p2", "part", "8M", "second"]]
    equal([line.split() for line in out.splitlines()], expected, "lsblk")


@suite.test
def max_part_parameter(t):
    path = disk(t)
    with loaded_with("max_part=15"):
        loop = loopdev.attach(path)
        equal(partitions(loop), TWO, "partitions")
        for name in ("range", "ext_range", "loop/partscan"):
            t.record(name, loop.attr(name))
        number = os.stat(loop.part(2)).st_rdev
        equal((os.major(number), os.minor(number)), (7, loop.number * 16 + 2), "device number")
        t.record("parameter", blockio.content("/sys/module/loop/parameters/max_part"))


@suite.cases(default=(), max_loop_3=("max_loop=3",), max_part_200=("max_part=200",))
def devices_at_load(t, params):
    with loaded_with(*params):
        names = (name for name in os.listdir("/sys/block") if name.startswith("loop"))
        t.record("devices", sorted(names))
        for name in ("max_loop", "max_part"):
            t.record(name, blockio.content(f"/sys/module/loop/parameters/{name}"))


@suite.cases(depth_16="16", depth_1="1")
def hw_queue_depth_parameter(t, depth):
    path = blockio.make_sparse(t.path("a"), MIB)
    with loaded_with(f"hw_queue_depth={depth}"):
        loop = loopdev.attach(path)
        t.record("nr_requests", loop.attr("queue/nr_requests"))
        data = blockio.pattern(MIB)
        blockio.direct_write(loop.path, 0, data)
        same_bytes(blockio.content(path), data, "file")


@suite.cases(depth_0=("hw_queue_depth=0",), depth_word=("hw_queue_depth=x",),
             max_part_huge=("max_part=1000000",), max_loop_huge=("max_loop=1048577",))
def refused_parameters(t, params):
    driver = system.driver_in_use()
    t.allow_log(r"loop: `.*' invalid for parameter `.*'")
    system.unload_loop()
    try:
        system.load_loop(driver, *params)
        t.record("loading", "succeeded")
    except system.CommandError:
        t.record("loading", "failed")
    finally:
        system.unload_loop()
        system.load_loop(driver)


if __name__ == "__main__":
    suite.main()
