#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Writing, reading, discarding and allocating the same blocks at once, and snapshots meanwhile, for
LP_STRESS_SECONDS (60), from LP_STRESS_SEED (1). Every sector is checked (lib/sectors.py)."""

import errno
import os
import random
import time

from lib import blockio, images, jobs, layers, loopdev, sectors, vhd, vhd_child
from lib.ktap import Suite, ensure
from lib.sectors import FIRST, Board, Worker, first_content

MIB = vhd.MIB
# Eight blocks, so that all meet in them; no block has sectors of one worker only.
SIZE = 512 << 10
TESTS = 11
suite = Suite(allow=[r"loop\d+: .*", r"operation not supported error, dev loop\d+, .*"])


def whole_chain(folder, kind, block_size):
    """A child on a base whose every sector says which it is."""
    data = first_content(SIZE)
    path = os.path.join(folder, "base")
    if kind == "raw":
        with open(path, "wb") as file:
            file.write(data)
    elif kind == "fixed":
        vhd.write_fixed(path, data)
    else:
        image = vhd.Dynamic(SIZE, 64 << 10)
        image.put(0, data)
        image.write(path)
    base = vhd_child.Chain([path], data, kind == "raw")
    child = vhd_child.child_of(base, SIZE, block_size=block_size)
    return vhd_child.Chain([child.write(vhd_child.child_path(base)), path], data, base.raw)


def finished(t, board, loops, chain, by_qemu=False):
    """Judges the devices, then the files, by readers that are not ours."""
    content = sectors.finish(board, loops)
    chain.judge(content)
    if by_qemu:
        images.judge(t, chain.paths[0], content)


CASES = {
    "blocks_of_64k": (64 << 10, {}), "blocks_of_4k": (4 << 10, {}),
    "direct": (64 << 10, {"flags": loopdev.DIRECT_IO}),
}


@suite.cases(**CASES)
def dynamic(t, case):
    block_size, options = case
    folder = t.ext4(160)
    path = vhd.Dynamic(SIZE, block_size).write(os.path.join(folder, "a.vhd"))
    board = Board(SIZE, block_size, 0)
    loop = t.attach(path, **options)
    print(f"# {jobs.finish(sectors.start(t, board, [loop], jobs.share(TESTS)))} actions")
    finished(t, board, [loop], vhd_child.Chain([path], b""), by_qemu=True)
    images.nothing_is_held(folder, "vhdloop")


@suite.test
def dynamic_on_two_devices(t):
    folder = t.ext4(160)
    path = vhd.Dynamic(SIZE, 64 << 10).write(os.path.join(folder, "a.vhd"))
    board = Board(SIZE, 64 << 10, 0)
    loops = [t.attach(path) for _ in range(2)]
    print(f"# {jobs.finish(sectors.start(t, board, loops, jobs.share(TESTS)))} actions")
    finished(t, board, loops, vhd_child.Chain([path], b""), by_qemu=True)
    images.nothing_is_held(folder, "vhdloop")


@suite.cases(on_raw=("raw", 64 << 10), on_fixed=("fixed", 4 << 10), on_dynamic=("dynamic", 2 * MIB))
def differencing(t, case):
    kind, block_size = case
    folder = t.ext4(160)
    chain = whole_chain(folder, kind, block_size)
    parent = images.Unchanged(chain.paths[1])
    # Discards are of 64 KiB, whatever the block size is.
    board = Board(SIZE, 64 << 10, FIRST)
    loop = layers.attach_named(t, chain.paths[0])
    print(f"# {jobs.finish(sectors.start(t, board, [loop], jobs.share(TESTS)))} actions")
    finished(t, board, [loop], chain)
    parent.check()
    images.nothing_is_held(folder, "vhdloop")


@suite.test
def differencing_on_two_devices(t):
    folder = t.ext4(160)
    chain = whole_chain(folder, "raw", 64 << 10)
    board = Board(SIZE, 64 << 10, FIRST)
    loops = [layers.attach_named(t, chain.paths[0]) for _ in range(2)]
    print(f"# {jobs.finish(sectors.start(t, board, loops, jobs.share(TESTS)))} actions")
    finished(t, board, loops, chain)
    images.nothing_is_held(folder, "vhdloop")


# Snapshots


def snapshot(chain, loop):
    """Puts an empty child on the device's file; returns the one that is below then."""
    path = vhd_child.child_of(chain, SIZE, block_size=64 << 10).write(vhd_child.child_path(chain))
    loop.change_file(path)
    below = images.Unchanged(chain.paths[0])
    chain.paths.insert(0, path)
    return below


@suite.cases(raw="raw", dynamic="dynamic")
def snapshots_under_load(t, kind):
    """Chains of up to 30 snapshots, one after the other, until the time is up."""
    end, rounds, taken = time.monotonic() + jobs.share(TESTS), 0, 0
    while time.monotonic() < end or not rounds:
        taken += snapshot_round(t, kind, rounds, end)
        rounds += 1
    print(f"# {taken} snapshots in {rounds} rounds")


def snapshot_round(t, kind, number, end):
    """One chain, from its base."""
    folder = t.path(f"round{number}")
    os.mkdir(folder)
    chain = whole_chain(folder, kind, 64 << 10)
    os.unlink(chain.paths.pop(0))
    board = Board(SIZE, 64 << 10, FIRST)
    loop = t.attach(chain.paths[0])
    running = sectors.start(t, board, [loop], max(3, min(20, end - time.monotonic())))
    rng, unchanged = random.Random(jobs.SEED + number), []
    # Three in any case: on a busy machine, one may take all of a short time.
    while len(unchanged) < 30 and (
            time.monotonic() < running[0].end - 0.5 or (not number and len(unchanged) < 3)):
        unchanged.append(snapshot(chain, loop))
        time.sleep(rng.random() / 5)
    jobs.finish(running)
    for file in unchanged:
        file.check()
    finished(t, board, [loop], chain)
    return len(unchanged)


# Attaching and detaching


class Family:
    """Children of one parent, each with a process that attaches it, and some that try the rest."""

    def __init__(self, folder):
        data = first_content(SIZE)
        self.parent = os.path.join(folder, "parent.vhd")
        image = vhd.Dynamic(SIZE, 64 << 10)
        image.put(0, data)
        image.write(self.parent)
        base = vhd_child.Chain([self.parent], data)
        self.children = [vhd_child.child_of(base, SIZE, block_size=64 << 10).write(
            os.path.join(folder, f"child{number}.vhd")) for number in range(sectors.WORKERS)]
        self.boards = [Board(SIZE, 64 << 10, FIRST) for _ in self.children]

    def use_child(self, number, rng):
        """Attaches a child, uses it a little, and detaches it."""
        loop = attached(self.children[number])
        if not loop:
            return
        try:
            with blockio.Direct(loop.path) as device:
                worker = Worker(self.boards[number], lambda: device, 0, 1)
                for _ in range(rng.randrange(1, 10)):
                    rng.choice(worker.actions())(rng)
        finally:
            loop.detach()

    def use_parent(self, rng):
        """Attaches the parent, read-only or, if no child is attached, read-write."""
        loop = attached(self.parent, rng.choice((True, False)))
        if not loop:
            return
        try:
            sector = rng.randrange(SIZE // 512)
            with blockio.Direct(loop.path, os.O_RDONLY) as device:
                found = device.read(sector * 512, 512)
            ensure(found == first_content(SIZE)[sector * 512:(sector + 1) * 512],
                   f"sector {sector} of the parent has changed")
        finally:
            loop.detach()


def attached(path, read_only=False):
    """The file on a free device; None if the file is in use as it must not be."""
    while True:
        loop = loopdev.free()
        try:
            if read_only:
                return loopdev.attach_read_only(path, loop=loop)
            return loopdev.attach(path, loop=loop)
        except OSError as error:
            if error.errno not in loopdev.TAKEN:
                raise
            if error.errno == errno.EBUSY and not loop.is_bound():
                return None


@suite.test
def children_and_parent_come_and_go(t):
    """A parent is written by nobody while it has a child, and changes for nobody."""
    layers.allow_parents(t, "beneath")
    folder = t.ext4(160)
    family = Family(folder)
    before = images.Unchanged(family.parent)
    actions = [[lambda rng, n=number: family.use_child(n, rng)] for number in range(sectors.WORKERS)]
    running = [jobs.Job(t, number, each, jobs.share(TESTS))
               for number, each in enumerate([*actions, [family.use_parent]])]
    print(f"# {jobs.finish(running)} cycles")
    before.check()
    for path, board in zip(family.children, family.boards):
        loop = t.attach(path)
        finished(t, board, [loop], vhd_child.Chain([path, family.parent], b""))
    images.nothing_is_held(folder, "vhdloop")


if __name__ == "__main__":
    suite.main()
