#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The owner of the file, or the store under it, does its worst while a device is bound.

What is affected gives EIO, everything else goes on, nothing outside the blocks is overwritten, and
the kernel stays up.
"""

import errno
import os
import random
import struct
import time

from lib import blockio, images, layers, loopdev, mapper, vhd, vhd_reader
from lib.blockio import Direct
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes

MIB = vhd.MIB
BLOCK = 2 * MIB
SIZE = 16 * MIB
TABLE = 0x600
suite = Suite(allow=[r"(Buffer )?I/O error.*", r".*lost async page write", r"loop\d+: .*I/O error.*",
                     r"loop\d+: vhd: .*", r".*: \d+ callbacks suppressed"])


def full(t, folder=None):
    """An image with all blocks allocated, and its content."""
    image = vhd.Dynamic(SIZE)
    image.put(0, blockio.pattern(SIZE))
    image.write(os.path.join(folder or t.dir, "a.vhd"))
    return image


def half(t):
    """An image of which every other block is allocated."""
    image = vhd.Dynamic(SIZE)
    for number in range(0, SIZE // BLOCK, 2):
        image.put(number * BLOCK, blockio.pattern(BLOCK, number))
    image.write(t.path("a.vhd"))
    return image


def set_entry(path, block, sector):
    """Overwrites a BAT entry, as the owner of the file can."""
    vhd.patch(path, TABLE + block * 4, struct.pack(">I", sector))


# The file gets shorter


@suite.test
def cut_through_the_blocks(t):
    image = full(t)
    path, data = t.path("a.vhd"), image.guest()
    loop = t.attach(path)
    os.truncate(path, image.places[4])
    with Direct(loop.path) as device:
        same_bytes(device.read(0, 4 * BLOCK), data[:4 * BLOCK], "what is left")
        for number in (4, 5, 7):
            fails_with(errno.EIO, device.read, number * BLOCK, 4096)
            fails_with(errno.EIO, device.write, number * BLOCK, bytes(4096))
        device.write(BLOCK, b"x" * 4096)
        equal(device.read(BLOCK, 4096), b"x" * 4096, "written to what is left")


@suite.test
def cut_inside_a_block(t):
    image = full(t)
    path, data = t.path("a.vhd"), image.guest()
    loop = t.attach(path)
    os.truncate(path, image.places[4] + 512 + MIB)
    with Direct(loop.path) as device:
        same_bytes(device.read(0, 4 * BLOCK), data[:4 * BLOCK], "what is left")
        fails_with(errno.EIO, device.read, 4 * BLOCK + MIB, 4096)
        fails_with(errno.EIO, device.read, 4 * BLOCK + MIB - 4096, 8192)
        fails_with(errno.EIO, device.read, 5 * BLOCK, 512)


@suite.test
def cut_inside_the_bat(t):
    full(t)
    path = t.path("a.vhd")
    loop = t.attach(path)
    os.truncate(path, TABLE + 8)
    with Direct(loop.path) as device:
        for number in (2, 3, 7):
            fails_with(errno.EIO, device.read, number * BLOCK, 4096)
            fails_with(errno.EIO, device.write, number * BLOCK, bytes(4096))


@suite.test
def cut_to_nothing_and_restored(t):
    image = full(t)
    path, data = t.path("a.vhd"), image.guest()
    whole = blockio.content(path)
    loop = t.attach(path)
    os.truncate(path, 0)
    with Direct(loop.path) as device:
        fails_with(errno.EIO, device.read, 0, 4096)
        fails_with(errno.EIO, device.write, 0, bytes(4096))
        with open(path, "r+b") as file:
            file.write(whole)
        same_bytes(device.read(0, SIZE), data, "device with the file restored")


@suite.test
def fixed_image_cut(t):
    data = blockio.pattern(SIZE)
    path = vhd.write_fixed(t.path("a.vhd"), data)
    loop = t.attach(path)
    os.truncate(path, 8 * MIB)
    with Direct(loop.path) as device:
        same_bytes(device.read(0, 8 * MIB), data[:8 * MIB], "what is left")
        fails_with(errno.EIO, device.read, 8 * MIB, 4096)


@suite.test
def cut_and_extended_during_io(t):
    image = full(t)
    path = t.path("a.vhd")
    length = os.path.getsize(path)
    loop = t.attach(path)
    child = os.fork()
    if not child:
        stubborn_io(loop.path)
    rng = random.Random(3)
    while not os.waitpid(child, os.WNOHANG)[0]:
        os.truncate(path, rng.randrange(length))
        os.truncate(path, length)
    loop.detach()
    image.write(path)
    loop = t.attach(path)
    same_bytes(images.whole(loop), image.guest(), "device with the file restored")


def stubborn_io(path, seconds=3):
    """I/O that does not care for errors, in a process that ends by itself."""
    end = time.monotonic() + seconds
    rng = random.Random(1)
    with Direct(path) as device:
        while time.monotonic() < end:
            pos = rng.randrange(SIZE // 512 - 128) * 512
            length = rng.randrange(1, 128) * 512
            try:
                if rng.random() < 0.5:
                    device.read(pos, length)
                else:
                    device.write(pos, bytes(length))
            except OSError as error:
                if error.errno not in (errno.EIO, errno.ENOSPC):
                    os._exit(1)
    os._exit(0)


# The BAT is overwritten

BAD_ENTRIES = {
    "footer_copy": 0, "dynamic_header": 1, "end_of_the_header": 2, "bat": 3,
    "past_the_end": 0x00F00000, "last_but_one": 0xFFFFFFFE, "negative": 0x80000000,
    "reaches_past_the_end": SIZE // 512 + 10,
}


@suite.cases(**BAD_ENTRIES)
def bat_entry_into(t, sector):
    """EIO there, for reads and writes; and no byte of the file changes by the attempt."""
    image = full(t)
    path, data = t.path("a.vhd"), image.guest()
    loop = t.attach(path)
    set_entry(path, 2, sector)
    before = images.Unchanged(path)
    with Direct(loop.path) as device:
        for pos in (2 * BLOCK, 2 * BLOCK + MIB, 3 * BLOCK - 512):
            fails_with(errno.EIO, device.read, pos, 512)
            fails_with(errno.EIO, device.write, pos, b"x" * 512)
        before.check()
        same_bytes(device.read(0, 2 * BLOCK), data[:2 * BLOCK], "blocks in front")
        same_bytes(device.read(3 * BLOCK, SIZE - 3 * BLOCK), data[3 * BLOCK:], "blocks behind")
        set_entry(path, 2, image.places[2] // 512)
        same_bytes(device.read(0, SIZE), data, "device with the entry restored")


@suite.test
def bat_entry_bad_at_attach(t):
    """Entries are checked when they are used, not before."""
    image = full(t)
    set_entry(t.path("a.vhd"), 3, 1)
    loop = t.attach(t.path("a.vhd"))
    with Direct(loop.path) as device:
        fails_with(errno.EIO, device.read, 3 * BLOCK, 4096)
        same_bytes(device.read(0, BLOCK), image.guest()[:BLOCK], "block 0")


@suite.test
def error_in_the_middle_of_a_request(t):
    """Good block, bad block, good block: the error of the middle one is not lost."""
    full(t)
    path = t.path("a.vhd")
    loop = t.attach(path)
    set_entry(path, 0, 1)
    with Direct(loop.path) as device:
        fails_with(errno.EIO, device.read, BLOCK - 4096, 8192)
        fails_with(errno.EIO, device.write, BLOCK - 4096, bytes(8192))
    set_entry(path, 0, 0xFFFFFFFE)
    small = vhd.Dynamic(MIB, 4096)
    small.put(0, blockio.pattern(MIB))
    loop = t.attach(small.write(t.path("small.vhd")))
    for number in (0, 10, 127, 255):
        set_entry(t.path("small.vhd"), number, 1)
        with Direct(loop.path) as device:
            fails_with(errno.EIO, device.read, 0, MIB)
        set_entry(t.path("small.vhd"), number, small.places[number] // 512)


@suite.test
def two_entries_for_one_block(t):
    """One lookup cannot see it; it must do no harm to the kernel or to other blocks."""
    image = half(t)
    path = t.path("a.vhd")
    loop = t.attach(path)
    set_entry(path, 1, image.places[0] // 512)
    with Direct(loop.path) as device:
        device.write(BLOCK, b"x" * 4096)
        equal(device.read(0, 4096), b"x" * 4096, "the same block through the other entry")
        same_bytes(device.read(4 * BLOCK, BLOCK), image.guest()[4 * BLOCK:5 * BLOCK], "block 4")


@suite.test
def entry_appears_and_vanishes(t):
    """The owner takes a mapping away: zeros. The next write makes another."""
    image = full(t)
    path = t.path("a.vhd")
    loop = t.attach(path)
    set_entry(path, 2, vhd.UNUSED)
    with Direct(loop.path) as device:
        same_bytes(device.read(2 * BLOCK, BLOCK), bytes(BLOCK), "block without an entry")
        device.write(2 * BLOCK + 4096, b"x" * 4096)
    loop.detach()
    expected = bytearray(image.guest())
    expected[2 * BLOCK:3 * BLOCK] = (bytes(4096) + b"x" * 4096).ljust(BLOCK, b"\0")
    images.judge(t, path, bytes(expected))


@suite.test
def bat_scribbled_over_during_io(t):
    image = half(t)
    path = t.path("a.vhd")
    sound = blockio.content(path)
    loop = t.attach(path)
    children = []
    for _ in range(2):
        children.append(os.fork())
        if not children[-1]:
            stubborn_io(loop.path)
    rng = random.Random(5)
    end = time.monotonic() + 2.5
    with open(path, "r+b", buffering=0) as file:
        while time.monotonic() < end:
            file.seek(TABLE + 4 * rng.randrange(8))
            file.write(struct.pack(">I", rng.choice((0, 1, 3, vhd.UNUSED, 0xFFFFFFFE, 4, 9000,
                                                     image.places[0] // 512, 0x01000000))))
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    equal(statuses, [0, 0], "exit status of the I/O processes")
    loop.detach()
    with open(path, "wb") as file:
        file.write(sound)
    loop = t.attach(path)
    same_bytes(images.whole(loop), image.guest(), "device with the file restored")


@suite.test
def footers_and_header_overwritten(t):
    """Bound devices do not depend on them; what cannot be kept sound is not extended."""
    image = half(t)
    path, data = t.path("a.vhd"), image.guest()
    loop = t.attach(path)
    vhd.patch(path, 0, bytes(TABLE))
    vhd.patch(path, -512, bytes(512))
    with Direct(loop.path) as device:
        same_bytes(device.read(0, SIZE), data, "device")
        device.write(0, b"x" * 512)
        equal(device.read(0, 512), b"x" * 512, "written in place")
        fails_with(errno.EIO, device.write, BLOCK, b"x" * 512)


@suite.test
def file_removed_while_bound(t):
    image = half(t)
    path = t.path("a.vhd")
    shadow = bytearray(image.guest())
    loop = t.attach(path)
    os.unlink(path)
    with Direct(loop.path) as device:
        images.scribble(device, shadow, count=10)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device")


# The store below fails


def on_ram_disk(t, image, mebibytes=32):
    """Writes an image to a RAM disk, its footer in the last sector; returns the disk's sectors."""
    disk = t.ram_disk(mebibytes)
    data = blockio.content(image.write(t.path("a.vhd")))
    with open(disk, "r+b", buffering=0) as file:
        file.write(data[:-512])
        file.seek(-512, os.SEEK_END)
        file.write(data[-512:])
        os.fsync(file.fileno())
    return mebibytes * 2048


@suite.cases(first_sector=lambda sectors: [(8, "error"), (sectors - 8, "linear")],
             last_sector=lambda sectors: [(sectors - 8, "linear"), (8, "error")])
def unreadable_at_attach(t, lines):
    """An I/O error is not "raw"."""
    sectors = on_ram_disk(t, vhd.Dynamic(SIZE))
    path = mapper.create(t, *lines(sectors))
    t.expect_log(r"loop\d+: refused: .*")
    loop = loopdev.free()
    fails_with(errno.EIO, t.attach, path, loop=loop)
    ensure(not loop.is_bound(), "bound")


@suite.test
def unreadable_sectors(t):
    image = vhd.Dynamic(SIZE)
    image.put(0, blockio.pattern(SIZE))
    sectors = on_ram_disk(t, image)
    # Far enough inside block 4 for the page cache not to read it together with other blocks.
    start = (image.places[4] + MIB) // 512 // 8 * 8
    loop = t.attach(mapper.create(t, (start, "linear"), (64, "error"), (sectors - start - 64, "linear")))
    data = image.guest()
    with Direct(loop.path) as device:
        same_bytes(device.read(0, 4 * BLOCK), data[:4 * BLOCK], "blocks in front")
        fails_with(errno.EIO, device.read, 4 * BLOCK + MIB - 4096, 64 << 10)
        same_bytes(device.read(5 * BLOCK, BLOCK), data[5 * BLOCK:6 * BLOCK], "block behind")


@suite.test
def failed_flush_ends_writing(t):
    """After a failed fsync nobody knows what is durable: read-only until attached again."""
    image = vhd.Dynamic(SIZE)
    image.put(0, blockio.pattern(SIZE))
    sectors = on_ram_disk(t, image)
    path = mapper.create(t, (sectors, "linear"))
    t.allow_log(r".*dm-\d+.*")
    loop = t.attach(path)
    with Direct(loop.path) as device:
        same_bytes(device.read(0, 4 * BLOCK), image.guest()[:4 * BLOCK], "a read")
        equal(layers.of(loop)[0]["state"], "clean", "state before")
        mapper.switch((sectors, "error"))
        device.write(0, b"x" * 4096)
        fails_with(errno.EIO, device.flush)
        equal(layers.of(loop)[0]["state"], "failed", "state")
        mapper.switch((sectors, "linear"))
        fails_with(errno.EIO, device.write, BLOCK, b"y" * 4096)
        same_bytes(device.read(3 * BLOCK, BLOCK), image.guest()[3 * BLOCK:4 * BLOCK], "a read")
    loop.detach()
    loop = t.attach(path)
    equal(layers.of(loop)[0]["state"], "clean", "state, attached again")
    blockio.direct_write(loop.path, BLOCK, b"y" * 4096)
    same_bytes(blockio.direct_read(loop.path, BLOCK, 4096), b"y" * 4096, "after another attach")
    loop.detach()
    copy = t.path("copy")
    with open(copy, "wb") as file:
        file.write(blockio.content(path))
    with vhd_reader.Reader(copy) as reader:
        reader.check()


@suite.test
def error_that_another_sync_was_told(t):
    """Each error is reported once for an open file: here to who has opened it, and in life to another
    flush at the same time. What was written is lost for all of them."""
    image = vhd.Dynamic(SIZE)
    image.put(0, blockio.pattern(SIZE))
    sectors = on_ram_disk(t, image)
    t.allow_log(r".*dm-\d+.*")
    fd = os.open(mapper.create(t, (sectors, "linear")), os.O_RDWR)
    t.defer(os.close, fd)
    loop = loopdev.free()
    loop.configure(fd)
    t.defer(loop.detach_if_bound)
    with Direct(loop.path) as device:
        device.write(0, b"x" * 4096)
        mapper.switch((sectors, "error"))
        fails_with(errno.EIO, os.fsync, fd)
        mapper.switch((sectors, "linear"))
        fails_with(errno.EIO, device.flush)
    equal(layers.of(loop)[0]["state"], "failed", "state")


@suite.test
def error_from_before_the_attach(t):
    """Of what somebody else has written, and nobody was told of: what the device writes is not lost."""
    image = vhd.Dynamic(SIZE)
    image.put(0, blockio.pattern(SIZE))
    sectors = on_ram_disk(t, image)
    t.allow_log(r".*dm-\d+.*")
    path = mapper.create(t, (sectors, "linear"))
    fd = os.open(path, os.O_RDWR)
    t.defer(os.close, fd)
    os.pwrite(fd, os.pread(fd, 4096, 0), 0)
    mapper.switch((sectors, "error"))
    os.sync()
    mapper.switch((sectors, "linear"))
    loop = t.attach(path)
    with Direct(loop.path) as device:
        device.write(0, b"x" * 4096)
        device.flush()
    equal(layers.of(loop)[0]["state"], "clean", "state")
    loop.detach()
    # The error was there, and is for who had the device open.
    fails_with(errno.EIO, os.fsync, fd)


if __name__ == "__main__":
    suite.main()
