#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Several devices on one VHD, odd descriptors, and VHDs on block devices."""

import errno
import os
import random
import shutil
import subprocess
import tempfile

from lib import blockio, images, loopdev, system, vhd, vhd_reader
from lib.images import attach_with
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import run

MIB = vhd.MIB
suite = Suite()


def empty(t, size=32 * MIB, name="a.vhd", **options):
    """An empty dynamic VHD."""
    return vhd.Dynamic(size, **options).write(t.path(name))


WRITER = """
import os, random, sys
sys.path.insert(0, sys.argv[1])
from lib import blockio
path, seed, parts = sys.argv[2], int(sys.argv[3]), eval(sys.argv[4])
rng = random.Random(seed)
with blockio.Direct(path) as device:
    for pos, length in parts:
        device.write(pos, rng.randbytes(length))
        if rng.random() < 0.1:
            device.flush()
"""


def write_at_once(jobs):
    """Starts a writer per (device, seed, parts); waits for all."""
    here = os.path.dirname(os.path.abspath(__file__))
    running = [subprocess.Popen(["python3", "-c", WRITER, here, loop.path, str(seed), repr(parts)])
               for loop, seed, parts in jobs]
    equal([job.wait() for job in running], [0] * len(jobs), "exit status of the writers")


def replay(shadow, seed, parts, start=0):
    """What a writer has written, in a shadow copy."""
    rng = random.Random(seed)
    for pos, length in parts:
        shadow[start + pos:start + pos + length] = rng.randbytes(length)
        rng.random()


def pieces(size, seed, keep):
    """Ranges of random length that cover `size` bytes, in random order; only every other one."""
    rng = random.Random(seed)
    found, pos = [], 0
    while pos < size:
        length = min(rng.randrange(1, 200) * 512, size - pos)
        found.append((pos, length))
        pos += length
    chosen = found[keep::2]
    rng.shuffle(chosen)
    return chosen


@suite.test
def two_devices_written_at_once(t):
    """They share every block, but no sector."""
    path = empty(t)
    loops = [t.attach(path), t.attach(path)]
    jobs = [(loop, number, pieces(32 * MIB, 9, number)) for number, loop in enumerate(loops)]
    write_at_once(jobs)
    shadow = bytearray(32 * MIB)
    for _, seed, parts in jobs:
        replay(shadow, seed, parts)
    for loop in loops:
        same_bytes(images.whole(loop), bytes(shadow), loop.path)
    loops[0].detach()
    same_bytes(images.whole(loops[1]), bytes(shadow), "second device without the first")
    loops[1].detach()
    images.judge(t, path, bytes(shadow))


@suite.test
def two_windows_written_at_once(t):
    """They meet in the middle of a block."""
    path = empty(t)
    cut = 15 * MIB + 512
    loops = [t.attach(path, sizelimit=cut), t.attach(path, offset=cut)]
    sizes = (cut, 32 * MIB - cut)
    equal(tuple(loop.size() for loop in loops), sizes, "sizes")
    jobs = [(loop, number, pieces(size, number, 0)) for number, (loop, size)
            in enumerate(zip(loops, sizes))]
    write_at_once(jobs)
    shadow = bytearray(32 * MIB)
    for number, (_, seed, parts) in enumerate(jobs):
        replay(shadow, seed, parts, (0, cut)[number])
    for loop, start, size in zip(loops, (0, cut), sizes):
        same_bytes(images.whole(loop), bytes(shadow[start:start + size]), loop.path)
        loop.detach()
    images.judge(t, path, bytes(shadow))


@suite.test
def window_by_losetup(t):
    """losetup -o needs a sizelimit that leaves offset + sizelimit within the file."""
    path = empty(t)
    loop = t.attach(path)
    data = blockio.pattern(32 * MIB)
    blockio.direct_write(loop.path, 0, data)
    window = t.losetup("-o", str(3 * MIB), "--sizelimit", str(5 * MIB), path)
    same_bytes(images.whole(window), data[3 * MIB:8 * MIB], "window")


@suite.test
def reader_beside_a_writer(t):
    path = empty(t)
    writer = t.attach(path)
    reader = loopdev.attach_read_only(path)
    t.defer(reader.detach_if_bound)
    shadow = bytearray(32 * MIB)
    with blockio.Direct(writer.path) as device:
        for turn in range(5):
            images.scribble(device, shadow, seed=turn, count=5)
            same_bytes(images.whole(reader), bytes(shadow), f"reader, turn {turn}")
    writer.detach()
    same_bytes(images.whole(reader), bytes(shadow), "reader without the writer")


@suite.test
def writer_joins_a_reader(t):
    path = empty(t)
    reader = loopdev.attach_read_only(path)
    t.defer(reader.detach_if_bound)
    writer = t.attach(path)
    data = blockio.pattern(3 * MIB)
    blockio.direct_write(writer.path, MIB, data)
    same_bytes(blockio.direct_read(reader.path, MIB, 3 * MIB), data, "reader")
    reader.detach()
    blockio.direct_write(writer.path, 20 * MIB, data)
    writer.detach()
    expected = (bytes(MIB) + data).ljust(20 * MIB, b"\0") + data
    images.judge(t, path, expected.ljust(32 * MIB, b"\0"))


@suite.test
def second_writer_through_another_parser(t):
    path = empty(t)
    t.expect_log(r"loop\d+: refused: .*", 2)
    first = t.attach(path)
    fails_with(errno.EBUSY, attach_with, t, path, "raw")
    first.detach()
    attach_with(t, path, "raw")
    fails_with(errno.EBUSY, t.attach, path)


@suite.test
def second_device_with_another_option(t):
    """One image has one size."""
    path = empty(t)
    t.allow_log(r"loop\d+: refused: .*")
    t.attach(path)
    fails_with(errno.EBUSY, attach_with, t, path, "vhd,size=chs")


@suite.test
def readers_through_two_parsers(t):
    path = empty(t)
    before = images.Unchanged(path)
    reader = loopdev.attach_read_only(path)
    t.defer(reader.detach_if_bound)
    raw = attach_with(t, path, "raw", file_flags=os.O_RDONLY, flags=loopdev.READ_ONLY,
                      mode=os.O_RDONLY)
    equal((reader.size(), raw.size()), (32 * MIB, os.path.getsize(path)), "sizes")
    before.check()


@suite.test
def hard_links_are_one_image(t):
    path = empty(t)
    os.link(path, t.path("b.vhd"))
    first, second = t.attach(path), t.attach(t.path("b.vhd"))
    data = blockio.pattern(4 * MIB)
    blockio.direct_write(first.path, MIB, data)
    same_bytes(blockio.direct_read(second.path, MIB, 4 * MIB), data, "second device")


# Descriptors


def through(t, flags, folder=None):
    """Writes and reads a VHD through a descriptor with `flags`; it must be as through any other."""
    path = vhd.Dynamic(16 * MIB).write(os.path.join(folder or t.dir, "a.vhd"))
    shadow = bytearray(16 * MIB)
    loop = t.attach(path, file_flags=flags)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    images.judge(t, path, bytes(shadow))


@suite.cases(direct=os.O_DIRECT, append=os.O_APPEND, sync=os.O_SYNC, dsync=os.O_DSYNC,
             append_direct=os.O_APPEND | os.O_DIRECT, noatime=os.O_NOATIME)
def descriptor(t, flags):
    through(t, os.O_RDWR | flags, t.ext4(96))


@suite.cases(write_only=os.O_WRONLY, write_only_append=os.O_WRONLY | os.O_APPEND,
             write_only_direct=os.O_WRONLY | os.O_DIRECT)
def descriptor_that_cannot_read(t, flags):
    path = os.path.join(t.ext4(96), "a.vhd")
    vhd.Dynamic(16 * MIB).write(path)
    before = images.Unchanged(path)
    t.expect_log(r"loop\d+: refused: .*")
    loop = loopdev.free()
    fails_with(errno.EBADF, t.attach, path, loop=loop, file_flags=flags)
    ensure(not loop.is_bound(), "bound")
    before.check()


@suite.test
def read_only_descriptor(t):
    path = empty(t)
    loop = t.attach(path, file_flags=os.O_RDONLY)
    equal(loop.attr("ro"), "1", "ro")
    before = images.Unchanged(path)
    fails_with(errno.EPERM, loop.write, 0, bytes(512))
    loop.detach()
    before.check()


@suite.test
def read_only_descriptor_that_bypasses_the_cache(t):
    image = vhd.Dynamic(16 * MIB)
    image.put(5 * MIB + 512, blockio.pattern(3 * MIB))
    path = image.write(os.path.join(t.ext4(96), "a.vhd"))
    loop = t.attach(path, file_flags=os.O_RDONLY | os.O_DIRECT)
    same_bytes(images.whole(loop), image.guest(), "device")


# Where the file lies


@suite.cases(xfs="xfs", btrfs="btrfs")
def file_system(t, kind):
    disk = t.ram_disk(512)
    t.allow_log(r".*(XFS|BTRFS|btrfs).*")
    run(f"mkfs.{kind}", "-q", "-f", disk)
    through(t, os.O_RDWR, t.mount(disk))


@suite.test
def overlay_file_system(t):
    """No fast path here: everything goes through the file's own read and write."""
    for name in ("lower", "upper", "work"):
        os.mkdir(t.path(name))
    options = ",".join(f"{name}dir={t.path(name)}" for name in ("lower", "upper", "work"))
    through(t, os.O_RDWR, t.mount("overlay", "-t", "overlay", "-o", options))


@suite.cases(cached=0, dsync=os.O_DSYNC, direct=os.O_DIRECT)
def file_system_that_takes_memory_as_it_is(t, flags):
    """9p without its cache gives the driver's own memory to the host: also what is filled in."""
    folder = tempfile.mkdtemp(dir="/run/loop-parser")
    t.defer(shutil.rmtree, folder)
    equal(run("findmnt", "-nT", folder, "-o", "FSTYPE").strip(), "9p", "the guest's share")
    image = vhd.Dynamic(8 * MIB)
    image.put(MIB, blockio.pattern(3 * 512))
    # Sectors that are not the guest's yet: they are zeroed, by the chunk, before they become so.
    image.put_stale(0, b"\xee" * MIB)
    image.put_stale(MIB + 3 * 512, b"\xee" * (3 * MIB - 3 * 512))
    path = image.write(os.path.join(folder, "a.vhd"))
    shadow = bytearray(image.guest())
    loop = t.attach(path, file_flags=os.O_RDWR | flags)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    images.judge(t, path, bytes(shadow), qemu=False)


def on_device(device, image):
    """Writes an image to a block device, its footer in the last sector."""
    path = os.path.join(system.scratch(), "to-device.vhd")
    image.write(path)
    size = os.path.getsize(path)
    data = blockio.content(path)
    os.unlink(path)
    with open(device, "r+b", buffering=0) as file:
        file.write(b"\xa5" * (64 * MIB))
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(data[:size - 512])
        file.seek(length - 512)
        file.write(data[-512:])
        os.fsync(file.fileno())


def device_content(t, device):
    """A copy of a block device, as a file."""
    path = t.path("device.copy")
    with open(path, "wb") as file:
        file.write(blockio.content(device))
    return path


@suite.test
def block_device_with_old_bytes(t):
    """Free space is full of rubbish; new blocks must read as zero where nothing was written."""
    disk = t.ram_disk(64)
    image = vhd.Dynamic(24 * MIB)
    image.put(3 * MIB, blockio.pattern(MIB))
    on_device(disk, image)
    shadow = bytearray(image.guest())
    loop = t.attach(disk)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, longest=64 << 10)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device after writing")
    loop.detach()
    same_bytes(vhd_reader.guest_of(device_content(t, disk)), bytes(shadow), "image")


@suite.test
def block_device_that_is_full(t):
    """A volume smaller than the disk: ENOSPC, and nothing is lost."""
    disk = t.ram_disk(8)
    image = vhd.Dynamic(24 * MIB)
    image.put(0, blockio.pattern(MIB))
    path = image.write(t.path("a.vhd"))
    data = blockio.content(path)
    with open(disk, "r+b", buffering=0) as file:
        file.write(data[:-512])
        file.seek(-512, os.SEEK_END)
        file.write(data[-512:])
    t.allow_log(r"(critical space allocation|I/O) error, dev loop\d+.*")
    shadow = bytearray(image.guest())
    loop = t.attach(disk)
    written = 0
    with blockio.Direct(loop.path) as device:
        try:
            for number in range(12):
                device.write(number * 2 * MIB, b"z" * 4096)
                shadow[number * 2 * MIB:number * 2 * MIB + 4096] = b"z" * 4096
                written += 1
        except OSError as error:
            equal(error.errno, errno.ENOSPC, "errno")
    ensure(1 < written < 12, f"{written} blocks were written")
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    same_bytes(vhd_reader.guest_of(device_content(t, disk)), bytes(shadow), "image")


@suite.test
def fixed_on_a_block_device(t):
    disk = t.ram_disk(16)
    data = blockio.pattern(16 * MIB - 512)
    with open(disk, "r+b", buffering=0) as file:
        file.write(data + vhd.fixed_footer(len(data)).pack())
    loop = t.attach(disk)
    equal((loop.size(), loop.attr("loop/variant")), (len(data), "fixed"), "size, variant")
    same_bytes(images.whole(loop), data, "device")


@suite.test
def loop_on_loop(t):
    """A VHD in a VHD."""
    outer = vhd.Dynamic(32 * MIB).write(t.path("outer.vhd"))
    below = t.attach(outer)
    inner = vhd.Dynamic(8 * MIB)
    inner.put(MIB, blockio.pattern(MIB))
    on_loop = blockio.content(inner.write(t.path("inner.vhd")))
    blockio.direct_write(below.path, 0, on_loop[:-512])
    blockio.direct_write(below.path, 32 * MIB - 512, on_loop[-512:])
    shadow = bytearray(inner.guest())
    loop = t.attach(below.path)
    equal(loop.size(), 8 * MIB, "size")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=20)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "inner device")
    loop.detach()
    inner_file = t.path("inner.copy")
    with open(inner_file, "wb") as file:
        file.write(images.whole(below))
    below.detach()
    same_bytes(vhd_reader.guest_of(inner_file), bytes(shadow), "inner image")
    with vhd_reader.Reader(outer) as reader:
        reader.check()


if __name__ == "__main__":
    suite.main()
