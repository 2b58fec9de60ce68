#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Several devices on one VHD that come, write to new blocks, and go, for LP_STRESS_SECONDS (60).

Afterwards the image is sound, every byte is right, and nothing holds the file or the modules.
"""

import errno
import os
import random
import time

from lib import blockio, images, jobs, loopdev, vhd, vhd_reader
from lib.ktap import Suite, ensure, equal, same_bytes
from lib.model import shared_memory

MIB = 1 << 20
SECTOR = 512
TESTS = 3
WORKERS = 4
SIZE = 32 * MIB
BLOCK = 64 << 10
NOISE = [r"(Buffer )?I/O error.*", r".*I/O error, dev loop\d+.*"]
suite = Suite(allow=NOISE)


def image(folder, **options):
    """An empty dynamic VHD of small blocks, so that allocating goes on for long."""
    return vhd.Dynamic(SIZE, BLOCK, **options).write(os.path.join(folder, "a.vhd"))


class Sharer:
    """A process that writes to its own sectors of an image by devices of its own.

    Sectors are dealt out one by one in turn, so every block belongs to all.
    """

    def __init__(self, path, shadow, number):
        self.path = path
        self.shadow = shadow
        self.number = number

    def cycle(self, rng):
        """Attaches, writes, compares, detaches."""
        loop = attach_any(self.path)
        try:
            with blockio.Direct(loop.path) as device:
                for _ in range(rng.randrange(1, 12)):
                    self.write(device, rng)
        finally:
            loop.detach()

    def write(self, device, rng):
        """One sector or a few, not side by side: each write may need another block."""
        for _ in range(rng.choice((1, 1, 4))):
            pos = (rng.randrange(SIZE // SECTOR // WORKERS) * WORKERS + self.number) * SECTOR
            data = rng.randbytes(SECTOR)
            device.write(pos, data)
            self.shadow[pos:pos + SECTOR] = data
            same_bytes(device.read(pos, SECTOR), data, f"device at {pos}")
        if rng.random() < 0.1:
            device.flush()


def attach_any(path):
    """Attaches to a free device; another process may take it first."""
    while True:
        loop = loopdev.free()
        try:
            return loopdev.attach(path, loop=loop)
        except OSError as error:
            if error.errno not in loopdev.TAKEN:
                raise


@suite.test
def image_shared_by_devices_that_come_and_go(t):
    folder = t.ext4(200)
    path = image(folder)
    shadow = shared_memory(bytes(SIZE))
    running = [jobs.Job(t, number, [Sharer(path, shadow, number).cycle], jobs.share(TESTS))
               for number in range(WORKERS)]
    print(f"# {jobs.finish(running)} cycles")
    images.judge(t, path, bytes(shadow))
    images.nothing_is_held(folder, "vhdloop")


@suite.test
def settings_change_while_blocks_are_allocated(t):
    folder = t.ext4(200)
    path = image(folder)
    shadow = shared_memory(bytes(SIZE))
    loop = t.attach(path)
    seconds = jobs.share(TESTS)

    def writer(number):
        sharer = Sharer(path, shadow, number)

        def step(rng):
            with blockio.Direct(loop.path) as device:
                sharer.write(device, rng)
        return step

    running = [jobs.Job(t, number, [writer(number)], seconds) for number in range(WORKERS)]
    rng, end, done = random.Random(jobs.SEED), time.monotonic() + seconds, 0
    while time.monotonic() < end or done < 4:
        request, arg = rng.choice(((loopdev.SET_CAPACITY, 0), (loopdev.SET_DIRECT_IO, 0),
                                   (loopdev.SET_DIRECT_IO, 1)))
        try:
            loop.ioctl(request, arg)
            loop.set_status(sizelimit=rng.choice((0, SIZE)), name=b"changed")
            done += 1
        except OSError as error:
            # Direct I/O asks for sectors that are large enough.
            ensure((request, error.errno) == (loopdev.SET_DIRECT_IO, errno.EINVAL), str(error))
        time.sleep(rng.random() / 20)
    jobs.finish(running)
    loop.detach()
    images.judge(t, path, bytes(shadow))
    images.nothing_is_held(folder, "vhdloop")


@suite.test
def writers_are_killed(t):
    """SIGKILL at any moment: what was written and flushed before by others is there."""
    folder = t.ext4(200)
    path = image(folder)
    rng, end, kills = random.Random(jobs.SEED), time.monotonic() + jobs.share(TESTS), 0
    shadow = shared_memory(bytes(SIZE))
    keeper = Sharer(path, shadow, 0)
    while time.monotonic() < end:
        others = [Sharer(path, bytearray(SIZE), number) for number in (1, 2, 3)]
        victims = [jobs.Job(t, kills * 4 + other.number, [other.cycle], 600) for other in others]
        for _ in range(rng.randrange(1, 4)):
            keeper.cycle(rng)
        for job in victims:
            job.kill()
        equal([job.result()[0] for job in victims], [-9] * 3, "exit status of killed processes")
        for loop in loopdev.bound():
            loop.detach()
        kills += 1
    with vhd_reader.Reader(path) as reader:
        reader.check()
        whole = reader.read(0, SIZE)
    mine = b"".join(whole[at:at + SECTOR] for at in range(0, SIZE, WORKERS * SECTOR))
    expected = b"".join(shadow[at:at + SECTOR] for at in range(0, SIZE, WORKERS * SECTOR))
    same_bytes(mine, expected, "sectors of the process that lived")
    images.nothing_is_held(folder, "vhdloop")


if __name__ == "__main__":
    suite.main()
