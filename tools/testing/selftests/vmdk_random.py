#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Random I/O on VMDKs of all shapes against a shadow copy (lib/model.py), attached twice: the device at
the end, and the image after detaching, hold the same, by our reader and by qemu-img, where it is right.

LP_LONG=1 runs all shapes, and more I/O on each; otherwise it is a part of them, which changes with
the sources of the driver and the parser.
"""

import glob
import itertools
import os
import random
import zlib

from lib import blockio, images, loopdev, vmdk, vmdk_chain
from lib.ktap import Suite, equal, same_bytes
from lib.model import hammer, shared_memory
from lib.system import run
from lib.vmdk import KIB, MIB, SECTOR
from lib.vmdk_chain import READ_ONLY, Shape

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = [f"{HERE}/../../../drivers/block/{name}/**/*.rs" for name in ("loop_parser", "vmdkloop")]
LONG = os.environ.get("LP_LONG") == "1"
# How many parts the shapes are divided into; each has one of every family below.
PARTS = 6
SIZE = 4 * MIB
ODD = SIZE - 1536
suite = Suite()


def plain():
    """Sizes of grains, and what flags there are."""
    for grain, zeros in itertools.product((SECTOR, 4 * KIB, 16 * KIB, 64 * KIB, MIB), (False, True)):
        yield Shape(grain=grain, zero_grains=zeros, size=MIB if grain == SECTOR else SIZE)
    yield Shape(grain=16 * MIB, size=18 * MIB)
    yield Shape(grain=32 * MIB, size=33 * MIB, empty=True)


def tables():
    """Where tables lie, how many there are, and how long."""
    for zeros in (False, True):
        yield Shape(redundant=False, zero_grains=zeros)
        yield Shape(all_tables=False, zero_grains=zeros, grain=4 * KIB, entries=64)
        yield Shape(primary_first=True, zero_grains=zeros)
    yield Shape(all_tables=False, redundant=False, grain=SECTOR, size=MIB, entries=128)
    yield Shape(all_tables=False, empty=True, grain=4 * KIB, entries=32)
    yield from (Shape(entries=entries, grain=4 * KIB) for entries in (1, 16, 1024, 4096))


def sizes():
    """Disks that end within a grain."""
    for grain, zeros in itertools.product((4 * KIB, 64 * KIB, MIB), (False, True)):
        yield Shape(grain=grain, zero_grains=zeros, size=ODD)
    yield Shape(size=SECTOR)
    yield Shape(size=100 * KIB, zero_grains=True)
    yield Shape("flat", size=ODD)
    yield Shape("vmfs_sparse", grain=4 * KIB, size=ODD)


def children():
    """Children, on parents of all kinds and sizes."""
    for base, zeros in itertools.product(("sparse", "flat", "split", "stream", "vmfs_sparse", "se_sparse"),
                                         (False, True)):
        yield Shape(base=base, zero_grains=zeros)
    for share, zeros in itertools.product((0.6, 1.4), (False, True)):
        yield Shape(base="sparse", base_size=share, zero_grains=zeros, size=ODD)
    yield from (Shape(base="flat", grain=grain, size=SIZE // 4) for grain in (SECTOR, 4 * KIB, MIB))
    yield Shape(base="flat", all_tables=False, grain=4 * KIB, entries=64)
    yield Shape(base="split_flat", redundant=False, empty=True)


def sets():
    """Disks put together from several files."""
    for kind, zeros in itertools.product(("descriptor", "split", "split_evenly"), (False, True)):
        yield Shape(kind, zero_grains=zeros)
    yield from (Shape(kind) for kind in ("flat", "split_flat", "vmfs", "mixed"))
    yield Shape("split", grain=4 * KIB, all_tables=False, entries=32, redundant=False)
    yield Shape("mixed", grain=SECTOR, size=MIB)
    yield Shape("split_evenly", grain=4 * KIB, zero_grains=True, size=ODD)


def sets_of_children():
    """The same, on a parent."""
    for kind, zeros in itertools.product(("descriptor", "split", "split_evenly"), (False, True)):
        yield Shape(kind, base="split_flat", zero_grains=zeros)
    yield Shape("split", base="split", grain=4 * KIB, size=MIB)
    yield Shape("split_evenly", base="sparse", base_size=0.6)
    yield Shape("vmfs_sparse", base="vmfs", grain=SECTOR, size=MIB)
    yield Shape("split_vmfs_sparse", base="vmfs", grain=64 * KIB, base_size=0.6)


def cowd():
    """COWD files."""
    yield from (Shape("cowd", grain=grain, size=3 * MIB if grain == SECTOR else SIZE)
                for grain in (SECTOR, 4 * KIB, 64 * KIB, MIB))
    yield Shape("cowd", grain=SECTOR, size=5 * MIB, empty=True)
    yield Shape("vmfs_sparse", grain=SECTOR, size=3 * MIB)
    yield Shape("split_vmfs_sparse", grain=4 * KIB)


def read_only():
    """Kinds that are only read."""
    yield from (Shape("stream", grain=grain, size=ODD) for grain in (4 * KIB, 64 * KIB, MIB))
    yield Shape("stream", base="sparse")
    yield Shape("se_sparse", size=SIZE - 3 * KIB)
    yield Shape("se_sparse", base="vmfs")


FAMILIES = [list(family()) for family in
            (plain, tables, sizes, children, sets, sets_of_children, cowd, read_only)]


def part():
    """Which part of the shapes it is today."""
    found = 0
    for path in sorted(path for where in SOURCES for path in glob.glob(where, recursive=True)):
        with open(path, "rb") as file:
            found = zlib.crc32(file.read(), found)
    return found % PARTS


def chosen():
    """The shapes to run."""
    for family in FAMILIES:
        yield from family if LONG else family[part() % len(family)::PARTS]


def model(t, shape):
    """Runs the model test on one shape."""
    disk = vmdk_chain.build(t.dir, shape)
    below = [images.Unchanged(path) for path in disk.below()]
    shadow = shared_memory(disk.guest)
    for turn in range(2):
        loop = vmdk_chain.attach(t, disk.path)
        equal((loop.size(), loop.attr("loop/parser")), (shape.size, "vmdk"), "size and parser")
        same_bytes(images.whole(loop), shadow[:], f"device at the beginning, {turn}")
        discards = loop.attr("queue/discard_max_bytes") != "0"
        hammer(loop, shadow, 1200 if LONG else 160, seed=len(shape.name) + turn, discards=discards)
        same_bytes(images.whole(loop), shadow[:], f"device at the end, {turn}")
        loop.detach()
        vmdk_chain.judge(t, disk.path, shadow[:], shape.qemu_reads())
    for file in below:
        file.check()


def reads(t, shape):
    """Random reads of a disk that is only read."""
    disk = vmdk_chain.build(t.dir, shape)
    before = [images.Unchanged(path) for path in disk.files]
    loop = vmdk_chain.attach_read_only(t, disk.path)
    equal((loop.size(), loop.attr("ro")), (shape.size, "1"), "size, read-only")
    same_bytes(images.whole(loop), disk.guest, "device")
    rng = random.Random(1)
    with blockio.Direct(loop.path, os.O_RDONLY) as device:
        for _ in range(400 if LONG else 60):
            length = int(1000 ** rng.random()) * SECTOR
            pos = rng.randrange((shape.size - length) // SECTOR + 1) * SECTOR
            same_bytes(device.read(pos, length), disk.guest[pos:pos + length], f"read at {pos}")
    loop.detach()
    for file in before:
        file.check()


for one in chosen():
    suite.add(one.name, lambda t, one=one: (reads if one.kind in READ_ONLY else model)(t, one))


@suite.cases(buffered=0, direct_to_file=loopdev.DIRECT_IO)
def deep_queues(t, flags):
    """fio with many requests in flight that meet in the same grains."""
    image = vmdk.monolithic(32 * MIB, zero_grains=True)
    path = image.write(os.path.join(t.ext4(96), "a.vmdk"))
    loop = t.attach(path, flags=flags)
    run("fio", "--name=x", f"--filename={loop.path}", "--ioengine=libaio", "--direct=1",
        "--rw=randrw", "--bsrange=512-64k", "--iodepth=32", "--size=32m", "--io_size=32m",
        "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randseed=5", "--fsync=50")
    content = images.whole(loop)
    loop.detach()
    vmdk_chain.judge(t, path, content)


if __name__ == "__main__":
    suite.main()
