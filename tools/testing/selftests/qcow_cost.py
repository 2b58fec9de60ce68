#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What an attached qcow2 image costs: memory, and what is read of it, whatever its size; and that who
reads does not pay for what others write.

How many tables a read looks at is tested on the host (tools/testing/host/qcow_format)."""

import ctypes
import os

from lib import blockio, images, loopdev, mapper, memory, modules, qcow, system
from lib.ktap import Suite, ensure, equal, same_bytes
from lib.tasks import Task

GIB = 1 << 30
CACHESTAT = 451
SIZES = {"1_GiB": GIB, "16_TiB": 16 << 40}
IMAGES = 24
MIB = 1 << 20
DATA = blockio.pattern(100 << 10)
# Of an attached device, with everything that a loop device takes anyway.
MOST = 256 << 10
# What a read-ahead may bring in at each of the few places that an attach looks at, and without one.
MOST_CACHED = 1 << 20
MOST_CACHED_ALONE = 128 << 10
suite = Suite()


def image(folder, size, name, is_backed):
    """An empty image, over another one if it is to be."""
    below = {}
    if is_backed:
        images.create(os.path.join(folder, f"below-{name}"), size, "qcow2")
        below = {"backing_file": f"below-{name}", "backing_fmt": "qcow2"}
    return images.create(os.path.join(folder, name), size, "qcow2", **below)


def use(loop, size):
    """Writes and reads, at the beginning and at the end."""
    with blockio.Direct(loop.path) as device:
        for pos in (0, 12345 * 512, size - MIB):
            device.write(pos, DATA)
            same_bytes(device.read(pos, len(DATA)), DATA, f"at {pos}")
        device.flush()


def write_all(folder):
    """Gives all of the RAM disk its memory, which is not the device's."""
    path = os.path.join(folder, "all")
    system.attempt("dd", "if=/dev/zero", f"of={path}", "bs=1M", "conv=fsync")
    os.unlink(path)


def cost(t, folder, size, is_backed=False, is_used=False):
    """Bytes that an attached device takes."""
    paths = [image(folder, size, f"{size}-{is_backed}-{is_used}-{number}.qcow2", is_backed)
             for number in range(IMAGES)]
    before = memory.snapshot()
    loops = [images.attach_with(t, path, "qcow2") for path in paths]
    for loop in loops if is_used else ():
        use(loop, size)
    after = memory.snapshot()
    for loop in loops:
        loop.detach()
    return sum(memory.taken(before, after, IMAGES).values())


def costs(t, folder, **how):
    """The same for each size."""
    # The first time, caches of the kernel grow.
    cost(t, folder, GIB // 2, **how)
    found = {name: cost(t, folder, size, **how) for name, size in SIZES.items()}
    print(f"# bytes per attached device: {found}")
    for name, taken in found.items():
        ensure(taken < MOST, f"{name}: {taken} bytes per device")
    return found


def store(t):
    """A folder on an ext4 whose blocks all have their memory."""
    folder = t.ext4(256)
    write_all(folder)
    return folder


@suite.test
def memory_does_not_depend_on_the_size(t):
    folder = store(t)

    def too_much():
        found = costs(t, folder)
        difference = abs(found["1_GiB"] - found["16_TiB"])
        return difference if difference >= 16 << 10 else 0

    memory.not_always(too_much, "the size makes a difference of so many bytes")


@suite.cases(alone=False, with_a_backing_file=True)
def memory_when_used(t, is_backed):
    """Pages that the RAM disk takes for what is written are in it, now more of them, now fewer."""
    costs(t, store(t), is_used=True, is_backed=is_backed)


@suite.cases(**SIZES)
def attach_reads_a_few_pages(t, size):
    path = images.create(os.path.join(t.ext4(256), "a.qcow2"), size, "qcow2")
    qcow.fill(path, "qcow2", GIB, 1)
    not_cached(path)
    loop = t.attach(path)
    found = cached(path)
    print(f"# bytes in the page cache after the attach: {found}")
    ensure(0 < found <= MOST_CACHED, f"{found} bytes are in the page cache")
    loop.detach()


@suite.test
def attach_reads_the_same_pages_of_any_size(t):
    """Without read-ahead."""
    folder = t.ext4(256)
    system.run("blockdev", "--setra", "0", system.RAM_DISK)
    found = {}
    for name, size in SIZES.items():
        path = images.create(os.path.join(folder, f"{name}.qcow2"), size, "qcow2")
        qcow.fill(path, "qcow2", GIB, 1)
        not_cached(path)
        loop = t.attach(path)
        found[name] = cached(path)
        loop.detach()
    print(f"# bytes in the page cache after the attach: {found}")
    ensure(0 < found["1_GiB"] <= MOST_CACHED_ALONE, "too much is in the page cache")
    equal(found["16_TiB"], found["1_GiB"], "bytes in the page cache, by size")


@suite.test
def cached_reads_wait_for_no_writer(t):
    """Nor for the lock that one holds over a sync which hangs: not if they are short."""
    t.ram_disk(96)
    disk = mapper.create(t, (96 * MIB // 512, "linear"))
    system.run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", disk)
    path = images.create(os.path.join(t.mount(disk, "-o", "noatime"), "a.qcow2"), GIB, "qcow2")
    system.run("qemu-io", "-f", "qcow2", "-c", f"write -q -P 7 0 {MIB}", path)
    loop = t.attach(path)
    expected = bytes([7]) * MIB
    same_bytes(blockio.direct_read(loop.path, 0, MIB), expected, "before")
    mapper.hang(t)
    # The first one takes space, also for others, whose counts have to be durable, with the lock held.
    places = (2 * MIB, GIB // 2)
    tasks = [mapper.hanging(t, lambda pos=pos: blockio.Direct(loop.path).write(pos, DATA))
             for pos in places]
    for length in (512, 4096, 65536):
        reader = Task(lambda length=length: blockio.direct_read(loop.path, 4096, length))
        equal(reader.outcome(), "done", f"a read of {length}")
        same_bytes(blockio.direct_read(loop.path, 4096, length), expected[:length], "meanwhile")
    for task in tasks:
        ensure(not task.ended(), "a write does not hang any more")
    mapper.go_on()
    equal([task.outcome() for task in tasks], ["done"] * 2, "writes")
    for pos in places:
        same_bytes(blockio.direct_read(loop.path, pos, len(DATA)), DATA, f"at {pos}")


def not_cached(path):
    """Empties the page cache of a file: what somebody is just looking at is not dropped at once."""
    def dropped():
        memory.give_back()
        return not cached(path)

    system.wait_until(dropped, lambda: f"{cached(path)} bytes are dropped from the page cache")


def cached(path):
    """How many bytes of a file are in the page cache, by cachestat(2)."""
    everything, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    with loopdev.opened(path) as fd:
        modules.call(CACHESTAT, fd, ctypes.byref(everything), ctypes.byref(found), 0)
    return found[0] * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    suite.main()
