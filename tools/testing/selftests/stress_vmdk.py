#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Writing, reading, discarding, allocating and copying the same grains at once, for LP_STRESS_SECONDS
(60), from LP_STRESS_SEED (1). Every sector is checked (lib/sectors.py); our reader finds nothing
afterwards, and sees the same disk, as does qemu-img.
"""

import os
import time

from lib import blockio, images, jobs, layers, loopdev, sectors, vmdk, vmdk_chain
from lib import vmdk_esx
from lib.ktap import Suite
from lib.sectors import FIRST, Board, first_content
from lib.vmdk import KIB, SECTOR, Descriptor, Set, Sparse

SIZE = 512 * KIB
# What is discarded as a whole, whatever the size of grains is.
BLOCK = 64 * KIB
SPARSE, FLAT, COWD = "sparse", "flat", "cowd"
BASE_CID = 0xBA5E
suite = Suite(allow=[r"operation not supported error, dev loop\d+, .*"])


def alone(**options):
    """A disk in one file."""
    def make(folder, fields):
        disk = Sparse(SIZE, descriptor=Descriptor(**fields), **options)
        return disk.write(os.path.join(folder, "a.vmdk"))
    return make


def in_parts(create_type, *kinds, **options):
    """A disk of extents of these kinds, which meet within grains and blocks."""
    def make(folder, fields):
        disk = Set(folder, "a.vmdk", create_type, **fields)
        for number, (kind, size) in enumerate(zip(kinds, vmdk.shares(SIZE, len(kinds)))):
            name = f"a-{number}.vmdk"
            if kind == FLAT:
                disk.flat(name, bytes(size))
            elif kind == COWD:
                disk.image(name, vmdk_esx.Cowd(size, 4 * KIB), kind="VMFSSPARSE")
            else:
                disk.image(name, Sparse(size, **options))
        return disk.write()
    return make


# How to make the disk, whether it is a child, whether qemu-img reads it.
CASES = {
    "sparse": (alone(), False, True),
    "zero_grains": (alone(zero_grains=True, grain=16 * KIB), False, True),
    "grains_of_512": (alone(grain=SECTOR), False, True),
    "few_tables": (alone(grain=4 * KIB, all_tables=False, entries=16, redundant=False), False, True),
    "child": (alone(grain=16 * KIB), True, True),
    "child_with_zero_grains": (alone(zero_grains=True), True, True),
    "cowd": (in_parts("vmfsSparse", COWD), False, True),
    "mixed": (in_parts("custom", SPARSE, FLAT, COWD), False, False),
    "split_child": (in_parts("twoGbMaxExtentSparse", SPARSE, SPARSE, SPARSE, zero_grains=True, grain=4 * KIB),
                    True, False),
}
TESTS = len(CASES) + 3
SNAPSHOTS = 10


def stress(t, case, devices=1, **how):
    """Workers on the devices of one disk, until the time is up."""
    make, is_child, qemu = case
    layers.allow_parents(t, "beneath")
    folder = t.ext4(160)
    fields, version, below = {}, 0, []
    if is_child:
        disk = Set(folder, "base.vmdk", "monolithicFlat", cid=BASE_CID)
        disk.flat("base-flat.vmdk", first_content(SIZE))
        below = [images.Unchanged(disk.write()), images.Unchanged(disk.where("base-flat.vmdk"))]
        fields, version = {"parent_cid": BASE_CID, "hint": "base.vmdk"}, FIRST
    path = make(folder, fields)
    board = Board(SIZE, BLOCK, version)
    loops = [t.attach(path, **how) for _ in range(devices)]
    discards = loops[0].attr("queue/discard_max_bytes") != "0"
    running = sectors.start(t, board, loops, jobs.share(TESTS), with_discards=discards)
    print(f"# {jobs.finish(running)} actions")
    vmdk_chain.judge(t, path, sectors.finish(board, loops), qemu)
    for file in below:
        file.check()
    images.nothing_is_held(folder, "vmdkloop")


@suite.cases(**CASES)
def one_device(t, case):
    stress(t, case)


@suite.test
def direct(t):
    stress(t, CASES["child_with_zero_grains"], flags=loopdev.DIRECT_IO)


@suite.test
def two_devices(t):
    stress(t, CASES["mixed"], devices=2)


def top_of(path, below, cid):
    """An empty child of a disk whose CID is `below`, with another grain size."""
    descriptor = Descriptor(parent_cid=below, hint=os.path.basename(path), cid=cid)
    image = Sparse(SIZE, 4 * KIB, descriptor=descriptor, zero_grains=True)
    return image.write(os.path.join(os.path.dirname(path), f"{cid}.vmdk"))


@suite.test
def snapshots_meanwhile(t):
    """Children are put on top of each other while all this goes on."""
    layers.allow_parents(t, "beneath")
    folder = t.ext4(160)
    path = alone(zero_grains=True)(folder, {})
    board = Board(SIZE, BLOCK, 0)
    loop = t.attach(path)
    with blockio.Direct(loop.path) as device:
        board.write(device, 0)
    running = sectors.start(t, board, [loop], jobs.share(TESTS))
    end = time.monotonic() + jobs.share(TESTS)
    cid, taken = vmdk.CID, 0
    while taken < SNAPSHOTS and (not taken or time.monotonic() < end):
        # The first write changes it; then it stays.
        if (now := vmdk_chain.cid_of(path)) == cid:
            time.sleep(0.02)
            continue
        cid = taken
        path = top_of(path, now, cid)
        loop.change_file(path)
        taken += 1
    print(f"# {taken} snapshots")
    print(f"# {jobs.finish(running)} actions")
    vmdk_chain.judge(t, path, sectors.finish(board, [loop]))
    images.nothing_is_held(folder, "vmdkloop")


if __name__ == "__main__":
    suite.main()
