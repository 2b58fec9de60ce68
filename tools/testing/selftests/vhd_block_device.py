#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""VHDs on block devices, as on an LVM volume: wherever the footer is, and whatever lay there before.

The device below is a loop device on a window of a file, so that it shows when something is written
past its end. Free space is full of old bytes.
"""

import errno
import os
import random

from lib import (backings, blockio, images, layers, loopdev, vhd, vhd_chain, vhd_child,
                 vhd_reader, vhd_trim)
from lib.blockio import Direct
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import run

MIB = vhd.MIB
SIZE = 16 * MIB
DISK = 24 * MIB
BEHIND = MIB
OLD = b"\xa5"
# Not every device can write zeros.
suite = Suite(allow=[r"operation not supported error, dev loop\d+, .*"])


class Disk:
    """A block device full of old bytes, in the middle of a file that must not change elsewhere."""

    def __init__(self, t, length=DISK):
        self.t = t
        self.length = length
        self.file = t.path("disk")
        with open(self.file, "wb") as file:
            file.write(OLD * (length + 2 * BEHIND))
        self.loop = images.attach_with(t, self.file, "raw", offset=BEHIND, sizelimit=length)
        self.path = self.loop.path

    def put(self, pos, data):
        """Writes to the device."""
        with open(self.path, "r+b", buffering=0) as file:
            loopdev.pwrite_all(file.fileno(), data, pos)
            os.fsync(file.fileno())

    def judge(self, parents, expected, at_end):
        """The device is detached: the image on it is sound, and nothing was written outside."""
        with vhd_reader.Reader(self.path) as reader:
            reader.check(footer_at_end=at_end)
        content = blockio.content(self.file)
        for pos in (0, BEHIND + self.length):
            same_bytes(content[pos:pos + BEHIND], OLD * BEHIND, f"what lies at {pos} of the disk")
        with vhd_chain.Chain([self.path, *parents]) as chain:
            same_bytes(chain.read(0, chain.size), expected, "image, by the specification")


def at_the_end(disk, data):
    """The footer is in the last sector of the device."""
    disk.put(0, data[:-512])
    disk.put(disk.length - 512, data[-512:])


def in_the_middle(disk, data):
    """After a plain dd: the footer is where the file ended."""
    disk.put(0, data)


def only_at_0(disk, data):
    """There is a copy, and no footer."""
    disk.put(0, data[:-512])


PLACES = {"at_the_end": at_the_end, "in_the_middle": in_the_middle, "only_at_0": only_at_0}


def some_image(size=SIZE, **options):
    """A dynamic image with some blocks."""
    image = vhd.Dynamic(size, **options)
    vhd_child.put_runs(image, random.Random(4), count=3)
    return image


def on_disk(t, place, image, length=DISK):
    """A disk with an image on it; the kernel may say that a footer is missing."""
    disk = Disk(t, length)
    place(disk, blockio.content(image.write(t.path("image"))))
    t.allow_log(r"loop\d+: .*footer.*")
    return disk


@suite.cases(**PLACES)
def is_read(t, place):
    image = some_image()
    disk = on_disk(t, place, image)
    before = images.Unchanged(disk.file)
    for attach in (loopdev.attach_read_only, t.attach):
        loop = attach(disk.path)
        t.defer(loop.detach_if_bound)
        equal((loop.size(), loop.attr("loop/parser")), (SIZE, "vhd"), "size, parser")
        same_bytes(images.whole(loop), image.guest(), f"device, {attach.__name__}")
        loop.detach()
        before.check()


@suite.cases(**PLACES)
def is_written(t, place):
    """New blocks go into free space, which has to be made zero first."""
    image = some_image()
    disk = on_disk(t, place, image)
    shadow = bytearray(image.guest())
    for turn in range(3):
        loop = t.attach(disk.path)
        same_bytes(images.whole(loop), bytes(shadow), f"device, turn {turn}")
        with Direct(loop.path) as device:
            images.scribble(device, shadow, turn, count=10, longest=64 << 10)
            device.flush()
        same_bytes(images.whole(loop), bytes(shadow), f"device after writing, turn {turn}")
        loop.detach()
    disk.judge([], bytes(shadow), place is at_the_end)
    by_qemu(t, disk, bytes(shadow))


def by_qemu(t, disk, expected):
    """What qemu-img sees in a copy of the device; it takes the copy at 0."""
    copy = t.path("copy.vhd")
    with open(copy, "wb") as file:
        file.write(blockio.content(disk.path))
    raw = images.convert(copy, t.path("converted.raw"))
    same_bytes(blockio.content(raw), expected, "image, by qemu-img")


@suite.cases(**PLACES)
def is_filled_to_the_last_block(t, place):
    """Exactly as many blocks as there is room for, and not one that reaches past the end."""
    image = vhd.Dynamic(SIZE, align=8, footer=vhd.tapdisk())
    length = vhd.round_up(image.map_end(), 4096) + 8 * (2 * MIB + 4096) + 4096
    disk = on_disk(t, place, image, length)
    data = blockio.pattern(SIZE)
    loop = t.attach(disk.path)
    blockio.direct_write(loop.path, 0, data)
    same_bytes(images.whole(loop), data, "device")
    loop.detach()
    disk.judge([], data, place is at_the_end)


@suite.cases(**PLACES)
def has_no_room(t, place):
    """ENOSPC for what does not fit; everything else stays as it is."""
    image = some_image()
    disk = on_disk(t, place, image, 12 * MIB)
    t.allow_log(r"(critical space allocation|I/O) error, dev loop\d+.*")
    shadow = bytearray(image.guest())
    loop = t.attach(disk.path)
    written = 0
    with Direct(loop.path) as device:
        for pos in range(0, SIZE, 2 * MIB):
            try:
                device.write(pos, b"z" * 4096)
            except OSError as error:
                equal(error.errno, errno.ENOSPC, "errno")
                continue
            shadow[pos:pos + 4096] = b"z" * 4096
            written += 1
        ensure(0 < written < 8, f"{written} of 8 blocks were written")
        fails_with(errno.ENOSPC, fill, device)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    disk.judge([], bytes(shadow), place is at_the_end)


def fill(device):
    """Writes to all blocks, again what is there, until one has no room."""
    for pos in range(0, SIZE, 2 * MIB):
        device.write(pos, device.read(pos, 4096))


@suite.test
def has_no_room_for_a_single_block(t):
    image = some_image()
    path = image.write(t.path("image"))
    length = vhd.round_up(os.path.getsize(path), 4096)
    disk = on_disk(t, at_the_end, image, length)
    t.allow_log(r"(critical space allocation|I/O) error, dev loop\d+.*")
    missing = next(n for n in range(8) if n not in image.blocks)
    loop = t.attach(disk.path)
    with Direct(loop.path) as device:
        fails_with(errno.ENOSPC, device.write, missing * 2 * MIB, b"n" * 512)
        device.write(next(iter(image.blocks)) * 2 * MIB, b"y" * 512)
    loop.detach()
    with vhd_reader.Reader(disk.path) as reader:
        reader.check()


@suite.cases(**PLACES)
def old_bytes_are_never_shown(t, place):
    """A sector of each block is written; all others read as zero, now and for other readers."""
    image = vhd.Dynamic(SIZE)
    disk = on_disk(t, place, image)
    shadow = bytearray(SIZE)
    loop = t.attach(disk.path)
    with Direct(loop.path) as device:
        for number in range(8):
            vhd_trim.write(device, shadow, number * 2 * MIB + number * 512, b"n" * 512)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    disk.judge([], bytes(shadow), place is at_the_end)
    by_qemu(t, disk, bytes(shadow))


@suite.cases(**PLACES)
def discards(t, place):
    """If they are offered: what is discarded is zero or as before, and is not uncovered later."""
    image = vhd.Dynamic(SIZE)
    data = blockio.pattern(8 * MIB)
    image.put(0, data)
    disk = on_disk(t, place, image)
    shadow = bytearray(image.guest())
    loop = t.attach(disk.path)
    with Direct(loop.path) as device:
        vhd_trim.zero(device, shadow, MIB, 3 * MIB)
        if int(loop.attr("queue/discard_max_bytes")):
            vhd_trim.random_steps(device, shadow, random.Random(3), 40, MIB)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    disk.judge([], bytes(shadow), place is at_the_end)


@suite.test
def discarded_blocks_are_unmapped(t):
    """On a disk that can: they read as zero there, too. They keep their places, of which a device
    has only so many: no write may fail because of a discard."""
    disk = backings.scsi_512(t)
    image = vhd.Dynamic(4 * MIB, 512 << 10)
    image.put(0, blockio.pattern(4 * MIB))
    data = blockio.content(image.write(t.path("image")))
    blockio.direct_write(disk, 0, data[:-512])
    places = dict(image.places)
    t.allow_log(r"loop\d+: .*footer.*")
    loop = t.attach(disk)
    with Direct(loop.path) as device:
        device.discard(0, 2 * MIB)
        same_bytes(device.read(0, 2 * MIB), bytes(2 * MIB), "what was discarded")
        device.flush()
    loop.detach()
    equal(vhd_trim.places(disk), places, "blocks that are allocated")
    for block in range(4):
        found = blockio.direct_read(disk, places[block] + 512, 512 << 10)
        equal(found.count(0), len(found), f"zeros where block {block} was")


@suite.test
def on_sectors_of_4096(t):
    """Data that begin at odd sectors of 512 bytes: a hole there is refused by the device below."""
    image = vhd.Dynamic(SIZE)
    image.put(0, blockio.pattern(8 * MIB))
    path = image.write(t.path("image"))
    os.truncate(path, os.path.getsize(path) // 4096 * 4096 + 16 * MIB)
    below = images.attach_with(t, path, "raw", block_size=4096)
    shadow = bytearray(image.guest())
    t.allow_log(r"loop\d+: .*footer.*")
    loop = t.attach(below.path)
    ensure(int(loop.attr("queue/discard_max_bytes")), "discards are not offered")
    with Direct(loop.path) as device:
        vhd_trim.zero(device, shadow, MIB + 512, MIB)
        vhd_trim.random_steps(device, shadow, random.Random(4), 40, MIB)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    below.detach()
    with vhd_chain.Chain([path]) as chain:
        same_bytes(chain.read(0, chain.size), bytes(shadow), "image, by the specification")


@suite.test
def tapdisk_image(t):
    """As on a volume of XenServer: aligned data, a batmap, the footer at the end."""
    image = some_image(align=8, batmap=True, footer=vhd.tapdisk())
    disk = on_disk(t, at_the_end, image)
    shadow = bytearray(image.guest())
    loop = t.attach(disk.path)
    with Direct(loop.path) as device:
        images.scribble(device, shadow, count=20, longest=64 << 10)
    loop.detach()
    disk.judge([], bytes(shadow), True)


@suite.test
def file_system(t):
    disk = on_disk(t, in_the_middle, vhd.Dynamic(SIZE))
    loop = t.attach(disk.path)
    run("mkfs.ext4", "-q", loop.path)
    point = t.mount(loop.path)
    data = blockio.make_file(os.path.join(point, "a"), 6 * MIB)
    run("umount", point)
    content = images.whole(loop)
    loop.detach()
    disk.judge([], content, False)
    loop = t.attach(disk.path)
    run("e2fsck", "-fn", loop.path)
    point = t.mount(loop.path)
    same_bytes(blockio.content(os.path.join(point, "a")), data, "file")
    run("umount", point)


# Differencing images


def child_on_disk(t, place, kind):
    """A child on a disk, whose parent is a file; allowed by the parameter, as it must be."""
    layers.allow_parents(t, "any")
    base = vhd_child.base(t.dir, kind, SIZE)
    image = vhd_child.child_of(base, SIZE, block_size=512 << 10, header_name="",
                               locators=[vhd_child.mac(f"file://{base.paths[0]}")])
    vhd_child.put_runs(image, random.Random(5))
    return on_disk(t, place, image), base, image.guest(base.guest)


@suite.cases(**PLACES)
def child_is_written(t, place):
    disk, base, guest = child_on_disk(t, place, "fixed")
    parent = images.Unchanged(base.paths[0])
    shadow = bytearray(guest)
    loop = t.attach(disk.path)
    same_bytes(images.whole(loop), guest, "device")
    with Direct(loop.path) as device:
        images.scribble(device, shadow, count=20, longest=64 << 10)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device after writing")
    loop.detach()
    parent.check()
    disk.judge(base.paths, bytes(shadow), place is at_the_end)


@suite.test
def child_with_a_raw_parent_on_a_disk(t):
    """Both on block devices."""
    layers.allow_parents(t, "any")
    below = Disk(t, SIZE)
    data = blockio.pattern(SIZE, 3)
    below.put(0, data)
    below.loop.detach()
    below.loop = images.attach_with(t, below.file, "raw", offset=BEHIND, sizelimit=SIZE,
                                    file_flags=os.O_RDONLY, flags=loopdev.READ_ONLY,
                                    mode=os.O_RDONLY)
    image = vhd_child.Differencing(SIZE, "", 512 << 10, parent_id=vhd_child.NULL_ID,
                                   header_name="", locators=[
                                       vhd_child.mac(f"file://{below.loop.path}")])
    path = image.write(t.path("child.vhd"))
    shadow = bytearray(data)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        images.scribble(device, shadow, count=20)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    same_bytes(images.whole(below.loop), data, "parent")
    vhd_child.Chain([path, below.loop.path], b"", raw=True).judge(bytes(shadow))
    below.loop.detach()


if __name__ == "__main__":
    suite.main()
