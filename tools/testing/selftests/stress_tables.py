#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Readers of BAT entries that are being stored: they see the old one or the new one, never bytes of
both.

An x86 processor stores an entry at once, or nearly so: what this test finds is shown by a driver
that stores entries byte by byte (tools/testing/crash/mutants/torn-entries.patch).
"""

import os
import time

from lib import blockio, images, jobs, vhd
from lib.ktap import Failure, Suite, same_bytes
from lib.sectors import ZERO, cell, described, numbers

BLOCK = 4 << 10
# A block takes 8 KiB of the device, with its bitmap. All fit: a fast machine gets to the last one.
BLOCKS = 6000
SIZE = BLOCKS * BLOCK
# Entries are less than 0xFFFF; that one, like most of what half an entry says, is on the device.
DEVICE = 48
OLD_BYTE = b"\xff"
READERS = 2
SECONDS = 10
suite = Suite()


class Reader:
    """Reads a sector of the block that is being allocated, again and again."""

    def __init__(self, path, block):
        self.path = path
        self.block = block
        self.device = None

    def read(self, _):
        """Once."""
        if self.device is None:
            self.device = blockio.Direct(self.path, os.O_RDONLY)
        sector = self.block[0] * BLOCK // 512
        data = self.device.read(sector * 512, 512)
        if data not in (ZERO, cell(sector, 1)):
            raise Failure(f"sector {sector}: {described(data)}")


def image_on(t):
    """An empty dynamic VHD on a device full of old bytes, which are good bitmaps, too."""
    disk = t.ram_disk(DEVICE)
    image = vhd.Dynamic(SIZE, BLOCK)
    headers = blockio.content(image.write(t.path("a.vhd")))[:-512]
    content = headers.ljust((DEVICE << 20) - 512, OLD_BYTE) + image.tail.pack()
    with open(disk, "r+b", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    return disk


@suite.test
def readers_see_whole_entries(t):
    disk = image_on(t)
    loop = t.attach(disk)
    # Readers without a lock find only what is in the page cache.
    blockio.content(disk)
    block = numbers(1)
    readers = [jobs.Job(t, number, [Reader(loop.path, block).read], SECONDS)
               for number in range(READERS)]
    with blockio.Direct(loop.path) as device:
        while block[0] < BLOCKS - 1 and time.monotonic() < readers[0].end:
            sector = block[0] * BLOCK // 512
            device.write(sector * 512, cell(sector, 1))
            block[0] += 1
    print(f"# {block[0]} entries were stored, {jobs.finish(readers)} reads")
    loop.drop_cache()
    written = range(0, block[0] * BLOCK, BLOCK)
    same_bytes(images.whole(loop)[:len(written) * BLOCK],
               b"".join(cell(pos // 512, 1).ljust(BLOCK, b"\0") for pos in written), "device")


if __name__ == "__main__":
    suite.main()
