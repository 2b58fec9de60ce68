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

from lib import blockio, images, layers, loopdev, mapper, system, vhd, vhd_chain, vhd_child, vhd_reader
from lib.blockio import Direct
from lib.ktap import Failure, Suite, ensure, equal, same_bytes
from lib.system import run

MIB = vhd.MIB
SECTOR = vhd.SECTOR
SIZE = 24 * MIB
DISK = 160
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
        self.error = None

    def run(self):
        while not self.stop.is_set():
            try:
                self.flush() if self.rng.random() < 0.08 else self.write()
            except OSError as error:
                self.error = error
                return

    def end(self):
        """Stops and lets go of the device, if that was not done before."""
        self.stop.set()
        self.join()
        if self.device:
            self.device.close()
            self.device = None

    def goes_on(self, enough, what):
        """Waits until enough was done."""
        system.wait_until(lambda: enough() or not self.is_alive(), what)
        ensure(self.is_alive(), f"the writer has ended: {self.error}")

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


def store(t):
    """A file system whose power can fail; returns where it is mounted."""
    t.ram_disk(DISK)
    path = mapper.create(t, LINEAR)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", path)
    return t.mount(path, where="disk")


def cut(t, image, seed, flags=0):
    """One power failure."""
    folder = store(t)
    file = image.write(os.path.join(folder, "a.vhd"))
    run("sync", "-f", file)
    loop = t.attach(file, flags=flags)
    writer = started(t, Writer(loop.path, image.guest(), seed))
    time.sleep(0.3 + random.Random(seed).random() * 1.5)
    writer.goes_on(lambda: writer.flushes, "there is a flush")
    end(writer)
    take_down(loop, folder)
    return writer


def started(t, writer):
    """Starts a writer, which does not outlive the test."""
    writer.start()
    t.defer(writer.end)
    return writer


def end(writer):
    """The power fails, and the writer goes on for a while."""
    ensure(writer.is_alive(), f"the writer has ended: {writer.error}")
    writer.power_fails.set()
    mapper.switch(LOSSY)
    seen = writer.writes
    time.sleep(0.3)
    writer.goes_on(lambda: writer.writes > seen, "something is written that is lost")
    writer.end()
    print(f"# {writer.writes} writes, {writer.flushes} flushes")


def take_down(loop, folder):
    """Whatever is written meanwhile is lost."""
    loop.detach()
    run("umount", folder)
    mapper.remove()


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


# Live snapshots


def with_children(folder, kind, count):
    """A file, and empty children for it, each on top of the one before; all of it durable.

    Returns the chain so far, and the paths of the children.
    """
    chain = vhd_child.base(folder, kind, SIZE)
    grown, children = chain, []
    for _ in range(count):
        child = vhd_child.child_of(grown, SIZE, block_size=64 << 10)
        children.append(child.write(vhd_child.child_path(grown)))
        grown = vhd_child.Chain([children[-1], *grown.paths], chain.guest, chain.raw)
    run("sync", "-f", folder)
    return chain, children


def in_the_store(t, paths):
    """The same files, when the power is back."""
    t.mount("/dev/ram0", where="disk")
    loop = layers.attach_named(t, paths[0])
    found = images.whole(loop)
    loop.detach()
    return found


@suite.cases(raw="raw", dynamic="dynamic")
def snapshot_then_power_fails(t, kind):
    """What the file below got and nobody had flushed: a flush of the device covers that, too."""
    folder = store(t)
    chain, (child,) = with_children(folder, kind, 1)
    shadow = bytearray(chain.guest)
    loop = layers.attach_auto(t, chain.paths[0])
    with Direct(loop.path) as device:
        images.scribble(device, shadow)
        loop.change_file(child)
        device.flush()
    mapper.switch(LOSSY)
    take_down(loop, folder)
    paths = [child, *chain.paths]
    found = in_the_store(t, paths)
    vhd_child.Chain(paths, b"", chain.raw).judge(bytes(shadow))
    same_bytes(found, bytes(shadow), "device")


@suite.cases(raw="raw", dynamic="dynamic")
def snapshots_under_load_then_power_fails(t, kind):
    """Three of them, and writes and flushes all the time."""
    folder = store(t)
    chain, children = with_children(folder, kind, 3)
    loop = layers.attach_auto(t, chain.paths[0])
    writer = started(t, Writer(loop.path, chain.guest, 1))
    for child in children:
        seen = writer.writes
        writer.goes_on(lambda seen=seen: writer.writes > seen + 20, "there are more writes")
        loop.change_file(child)
    seen = writer.flushes
    writer.goes_on(lambda: writer.flushes > seen + 2, "there are more flushes")
    end(writer)
    take_down(loop, folder)
    paths = [*reversed(children), *chain.paths]
    found = in_the_store(t, paths)
    writer.judge(vhd_chain.guest_of(paths, chain.raw))
    writer.judge(found)


@suite.cases(**{f"{kind}_{seed}": (kind, seed) for kind in ("raw", "dynamic") for seed in range(4)})
def power_fails_during_a_snapshot(t, case):
    """Whether or not the child is in place by then: what was flushed is in the two of them."""
    kind, seed = case
    folder = store(t)
    chain, (child,) = with_children(folder, kind, 1)
    loop = layers.attach_auto(t, chain.paths[0])
    writer = started(t, Writer(loop.path, chain.guest, seed))
    writer.goes_on(lambda: writer.flushes and writer.writes > 20, "there are writes, and a flush")
    change = threading.Thread(target=loop.change_file, args=(child,))
    change.start()
    time.sleep(random.Random(seed).random() * 0.2)
    end(writer)
    change.join()
    take_down(loop, folder)
    found = in_the_store(t, [child, *chain.paths])
    writer.judge(vhd_chain.guest_of([child, *chain.paths], chain.raw))
    writer.judge(found)


if __name__ == "__main__":
    suite.main()
