#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Random I/O against a shadow copy, by four processes that share blocks but no sector.

Every read is compared at once; at the end the device and, after detaching, the image are compared
as a whole. More than 20 000 operations over all.
"""

import mmap
import os
import random
import time

from lib import blockio, images, loopdev, vhd
from lib.ktap import Suite, equal, same_bytes
from lib.system import run

MIB = 1 << 20
SECTOR = 512
PROCESSES = 4
suite = Suite()


def stripes(sectors, seed):
    """Cuts the disk at arbitrary sectors and deals the pieces out: a list per process."""
    rng = random.Random(seed)
    dealt = [[] for _ in range(PROCESSES)]
    start = turn = 0
    while start < sectors:
        length = rng.choice((1, 3, 7, 40, 250, 1000, 2500))
        end = min(start + rng.randrange(1, length + 1), sectors)
        dealt[turn % PROCESSES].append((start, end))
        start, turn = end, turn + 1
    return dealt


class Worker:
    """One process: the operations it does on its own stripes."""

    def __init__(self, path, shadow, mine, seed):
        self.device = blockio.Direct(path)
        self.shadow = shadow
        self.mine = mine
        self.weights = [end - start for start, end in mine]
        self.rng = random.Random(seed)
        self.noise = self.rng.randbytes(2 * MIB)

    def pick(self):
        """A range of bytes within one stripe, short ones being much more likely."""
        start, end = self.rng.choices(self.mine, self.weights)[0]
        longest = min(end - start, MIB // SECTOR)
        length = max(1, int(longest ** self.rng.random()))
        first = self.rng.randrange(start, end - length + 1)
        return first * SECTOR, length * SECTOR

    def step(self):
        """One operation."""
        kind = self.rng.random()
        if kind < 0.45:
            self.read()
        elif kind < 0.92:
            self.write()
        elif kind < 0.96:
            self.zero()
        else:
            self.device.flush()

    def read(self):
        """Reads and compares."""
        pos, length = self.pick()
        same_bytes(self.device.read(pos, length), self.shadow[pos:pos + length], f"read at {pos}")

    def write(self):
        """Writes noise."""
        pos, length = self.pick()
        start = self.rng.randrange(MIB)
        data = self.noise[start:start + length]
        self.device.write(pos, data)
        self.shadow[pos:pos + length] = data

    def zero(self):
        """Writes zeros with BLKZEROOUT."""
        pos, length = self.pick()
        self.device.zero(pos, length)
        self.shadow[pos:pos + length] = bytes(length)


def in_child(work):
    """Forks; returns the child's number. It exits with 0 if `work` raises nothing."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except Exception as error:  # pylint: disable=broad-except
        print(f"# {type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(status)


def hammer(loop, shadow, count, seed):
    """PROCESSES processes doing `count` operations in all."""
    def work(number, mine):
        worker = Worker(loop.path, shadow, mine, seed * 100 + number)
        for _ in range(count // PROCESSES):
            worker.step()
    dealt = stripes(len(shadow) // SECTOR, seed)
    children = [in_child(lambda number=number, mine=mine: work(number, mine))
                for number, mine in enumerate(dealt)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    equal(statuses, [0] * PROCESSES, "exit status of the processes")


def shared_memory(data):
    """A copy of `data` that processes made by fork share."""
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


def model(t, image, folder, count, seed=1, qemu=True, **options):
    """Runs the model test on one image."""
    path = image.write(os.path.join(folder, "a.vhd"))
    shadow = shared_memory(image.guest())
    loop = t.attach(path, **options)
    start = time.monotonic()
    hammer(loop, shadow, count, seed)
    print(f"# {count} operations in {time.monotonic() - start:.0f} seconds")
    same_bytes(images.whole(loop), shadow[:], "device at the end")
    loop.detach()
    images.judge(t, path, shadow[:], qemu)


@suite.test
def empty_image_on_tmpfs(t):
    model(t, vhd.Dynamic(48 * MIB), t.dir, 20000)


@suite.test
def block_512k_on_ext4(t):
    model(t, vhd.Dynamic(24 * MIB, 512 << 10), t.ext4(96), 2400, seed=2)


@suite.test
def direct_io_to_the_file(t):
    image = vhd.Dynamic(24 * MIB, align=8, batmap=True, footer=vhd.tapdisk())
    model(t, image, t.ext4(96), 2400, seed=3, flags=loopdev.DIRECT_IO)


@suite.test
def direct_io_with_blocks_at_odd_sectors(t):
    model(t, vhd.Dynamic(24 * MIB), t.ext4(96), 2400, seed=4, flags=loopdev.DIRECT_IO)


@suite.test
def partly_clear_bitmaps(t):
    image = vhd.Dynamic(16 * MIB)
    rng = random.Random(5)
    for _ in range(200):
        image.put(rng.randrange(16 * MIB // SECTOR) * SECTOR, rng.randbytes(SECTOR))
    for block in image.blocks.values():
        for sector in range(image.block_size // SECTOR):
            if not block.has(sector):
                block.data[sector * SECTOR:(sector + 1) * SECTOR] = b"\xee" * SECTOR
    model(t, image, t.dir, 2400, seed=5, qemu=False)


@suite.test
def small_blocks(t):
    model(t, vhd.Dynamic(8 * MIB, 4096), t.dir, 2400, seed=6)


@suite.test
def fixed_image(t):
    data = blockio.pattern(16 * MIB)
    path = vhd.write_fixed(t.path("a.vhd"), data)
    shadow = shared_memory(data)
    loop = t.attach(path)
    hammer(loop, shadow, 1600, 7)
    loop.detach()
    images.judge(t, path, shadow[:])


@suite.cases(buffered=0, direct_to_file=loopdev.DIRECT_IO)
def deep_queues(t, flags):
    """fio with many requests in flight that meet in the same unallocated blocks."""
    path = vhd.Dynamic(32 * MIB).write(os.path.join(t.ext4(96), "a.vhd"))
    loop = t.attach(path, flags=flags)
    run("fio", "--name=x", f"--filename={loop.path}", "--ioengine=libaio", "--direct=1",
        "--rw=randrw", "--bsrange=512-64k", "--iodepth=32", "--size=32m",
        "--io_size=32m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randseed=5", "--fsync=50")
    content = images.whole(loop)
    loop.detach()
    images.judge(t, path, content)


if __name__ == "__main__":
    suite.main()
