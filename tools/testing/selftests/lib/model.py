# SPDX-License-Identifier: GPL-2.0
"""Random I/O on a device by several processes that share blocks but no sector, against a shadow
copy: every read is compared at once."""

import mmap
import os
import random

from lib import blockio
from lib.ktap import ensure, equal, same_bytes

MIB = 1 << 20
SECTOR = 512
PROCESSES = 4


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

    def __init__(self, path, shadow, mine, seed, discards):
        self.device = blockio.Direct(path)
        self.shadow = shadow
        self.mine = mine
        self.discards = discards
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
        elif kind < 0.98 and self.discards:
            self.discard()
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

    def discard(self):
        """BLKDISCARD: each sector is zero or what it was, and will stay what it is."""
        pos, length = self.pick()
        self.device.discard(pos, length)
        found = self.device.read(pos, length)
        for at in range(0, length, SECTOR):
            allowed = (bytes(SECTOR), self.shadow[pos + at:pos + at + SECTOR])
            ensure(found[at:at + SECTOR] in allowed, f"discarded at {pos + at}")
        self.shadow[pos:pos + length] = found


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


def hammer(loop, shadow, count, seed, discards=False):
    """PROCESSES processes doing `count` operations in all, discards among them if there are to be."""
    def work(number, mine):
        worker = Worker(loop.path, shadow, mine, seed * 100 + number, discards)
        for _ in range(count // PROCESSES):
            worker.step()
    # A small disk has fewer pieces than there are processes.
    dealt = [mine for mine in stripes(len(shadow) // SECTOR, seed) if mine]
    children = [in_child(lambda number=number, mine=mine: work(number, mine))
                for number, mine in enumerate(dealt)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    equal(statuses, [0] * len(dealt), "exit status of the processes")


def shared_memory(data):
    """A copy of `data` that processes made by fork share."""
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory
