#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The power fails: from some moment on, nothing reaches the disk under the file system any more.

Afterwards the image attaches and is sound, and every sector holds what it held at the last
completed flush, or what was written to it since.
"""

import os
import random
import threading
import time

from lib import blockio, loopdev, mapper, vhd, vhd_reader
from lib.blockio import Direct
from lib.ktap import Failure, Suite, ensure, equal, same_bytes
from lib.system import run

MIB = vhd.MIB
SECTOR = vhd.SECTOR
SIZE = 24 * MIB
DISK = 64
LINEAR = (DISK * 2048, "linear")
LOSSY = (DISK * 2048, "lossy")
suite = Suite(allow=[r"EXT4-fs \(dm-\d+\): .*", r"EXT4-fs \(ram0\): .*", r"JBD2: .*", r".*dm-\d+.*"])


class Writer(threading.Thread):
    """Writes and flushes until told to stop; knows what must be durable."""

    def __init__(self, path, content, seed):
        super().__init__()
        self.device = Direct(path)
        self.rng = random.Random(seed)
        self.durable = bytearray(content)
        self.since = []
        self.power_fails = threading.Event()
        self.stop = threading.Event()
        self.flushes = self.writes = 0

    def run(self):
        while not self.stop.is_set():
            try:
                self.flush() if self.rng.random() < 0.08 else self.write()
            except OSError:
                return

    def write(self):
        """A random piece at a random place, recorded before it is written."""
        length = int(500 ** self.rng.random()) * SECTOR
        pos = self.rng.randrange((SIZE - length) // SECTOR + 1) * SECTOR
        data = self.rng.randbytes(length)
        self.since.append((pos, data))
        self.device.write(pos, data)
        self.writes += 1

    def flush(self):
        """A flush; it counts if it was over before the power failed."""
        self.device.flush()
        if not self.power_fails.is_set():
            for pos, data in self.since:
                self.durable[pos:pos + len(data)] = data
            self.since.clear()
            self.flushes += 1

    def judge(self, found):
        """Fails if a sector of `found` is neither old nor new."""
        allowed = {}
        for pos, data in self.since:
            for start in range(0, len(data), SECTOR):
                allowed.setdefault(pos + start, []).append(data[start:start + SECTOR])
        for pos in range(0, SIZE, SECTOR):
            sector = found[pos:pos + SECTOR]
            if sector == self.durable[pos:pos + SECTOR] or sector in allowed.get(pos, ()):
                continue
            raise Failure(f"sector {pos // SECTOR} is neither old nor new "
                          f"({len(allowed.get(pos, ()))} writes since the last flush)")


def cut(t, image, seed, flags=0):
    """One power failure."""
    t.ram_disk(DISK)
    path = mapper.create(t, LINEAR)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", path)
    folder = t.mount(path, where="disk")
    file = image.write(os.path.join(folder, "a.vhd"))
    run("sync", "-f", file)
    loop = t.attach(file, flags=flags)
    writer = Writer(loop.path, image.guest(), seed)
    writer.start()
    time.sleep(0.3 + random.Random(seed).random() * 1.5)
    writer.power_fails.set()
    mapper.switch(LOSSY)
    time.sleep(0.3)
    writer.stop.set()
    writer.join()
    writer.device.close()
    loop.detach()
    run("umount", folder)
    mapper.remove()
    print(f"# {writer.writes} writes, {writer.flushes} flushes")
    ensure(writer.flushes and writer.since, "too slow to test anything")
    return writer


def inspect(t, writer, qemu=True):
    """What is there after the power is back."""
    folder = t.mount("/dev/ram0", where="disk")
    file = os.path.join(folder, "a.vhd")
    with vhd_reader.Reader(file) as reader:
        check_front(reader)
        writer.judge(reader.read(0, SIZE))
    if qemu:
        run("qemu-img", "info", "-f", "vpc", file)
    loop = t.attach(file)
    equal(loop.size(), SIZE, "size")
    found = blockio.direct_read(loop.path, 0, SIZE)
    writer.judge(found)
    shadow = bytearray(found)
    with Direct(loop.path) as device:
        for pos in range(4096, SIZE, 3 * MIB):
            device.write(pos, b"z" * 8192)
            shadow[pos:pos + 8192] = b"z" * 8192
        device.flush()
    loop.detach()
    same_bytes(vhd_reader.guest_of(file), bytes(shadow), "image, written to again")


def check_front(reader):
    """The copy of the footer at 0 is good, and no two blocks overlap."""
    ensure(reader.bytes_at(0, 8) == b"conectix", "no footer copy at 0")
    places = sorted(place for _, place in reader.blocks())
    whole = vhd.bitmap_sectors(reader.block_size) * SECTOR + reader.block_size
    for first, second in zip(places, places[1:]):
        ensure(first + whole <= second, f"blocks at {first} and {second} overlap")
    ensure(not places or places[-1] + whole <= reader.file_size, "a block ends past the file")


def partly_clear():
    """Blocks with clear bits and stale data under them."""
    image = vhd.Dynamic(SIZE)
    for number in range(0, SIZE // image.block_size, 2):
        image.put_stale(number * image.block_size, b"\xee" * image.block_size)
        image.put(number * image.block_size + 65536, blockio.pattern(65536, number))
    return image


def tapdisk():
    """Data aligned to 4 KiB, and a batmap."""
    return vhd.Dynamic(SIZE, align=8, batmap=True, footer=vhd.tapdisk())


IMAGES = {"empty": lambda: vhd.Dynamic(SIZE), "block_64k": lambda: vhd.Dynamic(SIZE, 64 << 10),
          "partly_clear_bitmaps": partly_clear, "tapdisk": tapdisk}


def add_cases():
    """Each image, with a different moment each time."""
    for seed, (name, build) in enumerate([*IMAGES.items()] * 2):
        suite.add(f"{name}_{seed}", lambda t, seed=seed, build=build:
                  inspect(t, cut(t, build(), seed)))
    suite.add("direct_io", lambda t: inspect(
        t, cut(t, tapdisk(), 20, flags=loopdev.DIRECT_IO)))


add_cases()

if __name__ == "__main__":
    suite.main()
