#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Writing, reading, discarding, allocating and copying the same clusters at once, for
LP_STRESS_SECONDS (60), from LP_STRESS_SEED (1). Every sector is checked (lib/sectors.py); qemu-img
finds nothing afterwards, and sees the same disk.

Clusters that are given back are used again at once: the disks are small, and full of discards.
"""

import collections
import os

from lib import blockio, images, jobs, layers, loopdev, qcow, sectors
from lib.ktap import Suite, ensure, same_bytes
from lib.qcow import KIB
from lib.sectors import FIRST, Board, first_content
from lib.system import run

SIZE = 512 * KIB
# What is discarded as a whole, whatever the size of clusters is.
BLOCK = 64 * KIB
# Clusters of 64 KiB, unless a case says otherwise.
CASES = {
    "v1": ("qcow", {}, ""),
    "v2": ("qcow2", {"compat": "0.10"}, ""),
    "v2_on_raw": ("qcow2", {"compat": "0.10", "cluster_size": 4 * KIB}, "base"),
    "v3": ("qcow2", {}, ""),
    "clusters_of_512": ("qcow2", {"cluster_size": 512}, ""),
    "counts_of_1_bit": ("qcow2", {"cluster_size": 4 * KIB, "refcount_bits": 1}, ""),
    "subclusters": ("qcow2", {"extended_l2": "on", "cluster_size": 16 * KIB}, ""),
    "subclusters_on_raw": ("qcow2", {"extended_l2": "on"}, "base"),
    "on_raw": ("qcow2", {"cluster_size": 4 * KIB}, "base"),
    "on_compressed": ("qcow2", {}, "compressed base"),
    "compressed": ("qcow2", {}, "compressed"),
    "compressed_small": ("qcow2", {"compression_type": "zstd", "cluster_size": 4 * KIB},
                         "compressed"),
    "shared_with_snapshot": ("qcow2", {"cluster_size": 16 * KIB}, "snapshot"),
}
TESTS = len(CASES) + 3
# More than fit into what the file grows by ahead of them.
MOVES = 100
# Of each reader; if reads are slow, enough to meet moves.
LOOKS = 20
suite = Suite(allow=[r"operation not supported error, dev loop\d+, .*"])


def make(folder, kind, options, content):
    """An image; returns its path, and what all of its sectors were before: zeros or first content."""
    path, raw = os.path.join(folder, "a.img"), os.path.join(folder, "base")
    if not content:
        return images.create(path, SIZE, kind, **options), 0
    with open(raw, "wb") as file:
        file.write(first_content(SIZE))
    if content.endswith("base"):
        fmt = "raw"
        if content.startswith("compressed"):
            fmt = "qcow2"
            run("qemu-img", "convert", "-c", "-O", fmt, raw, f"{raw}.qcow2")
            os.rename(f"{raw}.qcow2", raw)
        options = {"backing_file": "base", "backing_fmt": fmt, **options}
        return images.create(path, SIZE, kind, **options), FIRST
    how = ["-c"] if content == "compressed" else []
    settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    run("qemu-img", "convert", *how, "-O", kind, *settings, raw, path)
    if content == "snapshot":
        run("qemu-img", "snapshot", "-c", "before", path)
    return path, FIRST


def stress(t, case, devices=1, **how):
    """Workers on the devices of one image, until the time is up."""
    kind, options, content = case
    layers.allow_parents(t, "beneath")
    folder = t.ext4(160)
    path, version = make(folder, kind, options, content)
    board = Board(SIZE, BLOCK, version)
    loops = [t.attach(path, **how) for _ in range(devices)]
    running = sectors.start(t, board, loops, jobs.share(TESTS), with_discards=kind == "qcow2")
    print(f"# {jobs.finish(running)} actions")
    qcow.judge(t, path, sectors.finish(board, loops), kind)
    if content == "snapshot":
        run("qemu-img", "snapshot", "-a", "before", path)
        same_bytes(qcow.guest(t, path), first_content(SIZE), "snapshot, by qemu-img")
    images.nothing_is_held(folder, "qcowloop")


@suite.cases(**CASES)
def one_device(t, case):
    stress(t, case)


@suite.test
def direct(t):
    stress(t, ("qcow2", {"cluster_size": 4 * KIB}, "base"), flags=loopdev.DIRECT_IO)


@suite.test
def two_devices(t):
    stress(t, ("qcow2", {"cluster_size": 4 * KIB}, "snapshot"), devices=2)


class Mover(sectors.Worker):
    """Half of the blocks are there; each that comes takes the place of one that has gone."""

    def __init__(self, *args):
        super().__init__(*args)
        self.there, self.gone = collections.deque(), collections.deque(range(self.board.blocks))

    def move(self, _):
        """One comes, and one goes."""
        first = self.gone.popleft() * BLOCK
        self.ready().write(first, first_content(SIZE)[first:first + BLOCK])
        self.there.append(first // BLOCK)
        if len(self.there) > self.board.blocks // 2:
            block = self.there.popleft()
            self.ready().discard(block * BLOCK, BLOCK)
            self.gone.append(block)


@suite.test
def places_that_are_read_become_others(t):
    folder = t.ext4(160)
    path = images.create(os.path.join(folder, "a.img"), SIZE, "qcow2")
    board = Board(SIZE, BLOCK, FIRST)
    loop = t.attach(path)
    workers = [Mover(board, lambda: blockio.Direct(loop.path), number, sectors.WORKERS)
               for number in range(sectors.WORKERS)]
    mover, *readers = workers
    running = [jobs.Job(t, 0, [mover.move], jobs.share(TESTS), at_least=MOVES),
               *(jobs.Job(t, worker.number, [worker.look], jobs.share(TESTS), at_least=LOOKS)
                 for worker in readers)]
    moves, *_ = done = jobs.finish_each(running)
    print(f"# {sum(done)} actions, {moves} moves, a file of {os.path.getsize(path)} bytes")
    ensure(os.path.getsize(path) < moves * BLOCK, "no place was used again")
    loop.drop_cache()
    content = images.whole(loop)
    for first in range(0, SIZE, BLOCK):
        shown = content[first:first + BLOCK]
        ensure(shown in (bytes(BLOCK), first_content(SIZE)[first:first + BLOCK]),
               f"the block at byte {first} is neither there nor zeros")
    loop.detach()
    qcow.judge(t, path, content)
    images.nothing_is_held(folder, "qcowloop")


if __name__ == "__main__":
    suite.main()
