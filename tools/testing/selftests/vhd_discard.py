#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Discards and zeroes on VHDs: space is given back, and nobody ever sees other bytes than zeros.

Readers that ignore the bitmap of a dynamic image (qemu-img) have to see the zeros, too. In a
differencing image what the child had must not be replaced by what its parent has.
"""

import errno
import os
import random
import subprocess

from lib import backings, blockio, images, layers, loopdev, system, vhd, vhd_child, vhd_trim
from lib.blockio import Direct
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import attempt, run

KIB = vhd.KIB
MIB = vhd.MIB
SIZE = 16 * MIB
BLOCK = 2 * MIB
suite = Suite()


def full(t, block_size=BLOCK, size=SIZE, folder=None, **options):
    """A dynamic image all of whose blocks are allocated; the path and the guest disk."""
    image = vhd.Dynamic(size, block_size, **options)
    data = blockio.pattern(size)
    image.put(0, data)
    return image.write(os.path.join(folder or t.dir, "a.vhd")), bytearray(data)


def shrinks(path, limit):
    """Waits until a file takes no more than `limit` bytes."""
    system.wait_until(lambda: blockio.allocated(path) <= limit,
                      f"the file takes {limit} bytes; it takes {blockio.allocated(path)}")


def settled(folder):
    """Lets the file system do what it has put off."""
    run("sync", "-f", folder)


# Space that is given back


@suite.cases(discard=(), zero=("-z",))
def blkdiscard_of_everything(t, options):
    """`-z` may keep the space: it is for later writes."""
    path, shadow = full(t)
    loop = t.attach(path)
    run("blkdiscard", "-f", *options, loop.path)
    same_bytes(images.whole(loop), bytes(SIZE), "device")
    loop.detach()
    images.judge(t, path, bytes(SIZE))
    if not options:
        equal(vhd_trim.places(path), {}, "blocks that are allocated")
        shrinks(path, MIB)
    ensure(shadow.count(0) != SIZE, "there was nothing to discard")


@suite.cases(tmpfs="tmpfs", ext4_4k="ext4_4k", ext4_1k="ext4_1k", xfs="xfs", btrfs="btrfs")
def whole_blocks_are_given_back(t, kind):
    folder = t.dir
    if kind != "tmpfs":
        t.allow_log(r".*(XFS|BTRFS|btrfs).*")
        folder = os.path.dirname(backings.on_file_system(t, kind))
    path, shadow = full(t, folder=folder)
    settled(folder)
    before = blockio.allocated(path)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        device.discard(BLOCK, 3 * BLOCK)
        shadow[BLOCK:4 * BLOCK] = bytes(3 * BLOCK)
        same_bytes(device.read(0, SIZE), bytes(shadow), "device")
        device.flush()
    settled(folder)
    shrinks(path, before - 3 * BLOCK + 256 * KIB)
    loop.detach()
    equal(sorted(vhd_trim.places(path)), [0, 4, 5, 6, 7], "blocks that are allocated")
    images.judge(t, path, bytes(shadow))


@suite.cases(one_block=(BLOCK, BLOCK, {1}), first=(0, BLOCK, {0}), last=(SIZE - BLOCK, BLOCK, {7}),
             not_aligned=(BLOCK - 512, 2 * BLOCK, {1}), a_sector_more=(BLOCK, BLOCK + 512, {1}),
             a_sector_less=(BLOCK, BLOCK - 512, set()), in_a_block=(BLOCK + 4096, MIB, set()))
def blocks_that_are_freed(t, case):
    """Those that are discarded as a whole, and no others."""
    pos, length, gone = case
    path, shadow = full(t)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        vhd_trim.discard(device, shadow, pos, length)
    loop.detach()
    equal(set(range(8)) - set(vhd_trim.places(path)), gone, "blocks that were freed")
    for block in gone:
        equal(shadow[block * BLOCK:(block + 1) * BLOCK].count(0), BLOCK, f"zeros of block {block}")
    images.judge(t, path, bytes(shadow))


@suite.test
def last_block_that_is_cut(t):
    """The disk ends inside it: what there is of it is all of it."""
    size = 5 * MIB + 512
    path, _ = full(t, size=size)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        device.discard(4 * MIB, MIB + 512)
    loop.detach()
    equal(sorted(vhd_trim.places(path)), [0, 1], "blocks that are allocated")


@suite.test
def nothing_to_discard(t):
    """Neither an empty block nor a read changes the file."""
    path = vhd.Dynamic(SIZE).write(t.path("a.vhd"))
    before = images.Unchanged(path)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        device.discard(0, SIZE)
        device.zero(0, SIZE)
        same_bytes(device.read(0, SIZE), bytes(SIZE), "device")
    loop.detach()
    equal(vhd_trim.places(path), {}, "blocks that are allocated")
    equal(os.path.getsize(path), before.before[1], "size of the file")


@suite.test
def freed_blocks_are_written_again(t):
    """In another place: the old one is a hole. The rest of a new block reads as zero."""
    path, shadow = full(t)
    old = vhd_trim.places(path)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        vhd_trim.discard(device, shadow, 0, SIZE)
        for number in range(0, 8, 2):
            vhd_trim.write(device, shadow, number * BLOCK + 5 * 512, blockio.pattern(1024, number))
        same_bytes(device.read(0, SIZE), bytes(shadow), "device")
    loop.detach()
    new = vhd_trim.places(path)
    equal(sorted(new), [0, 2, 4, 6], "blocks that are allocated")
    ensure(not set(new.values()) & set(old.values()), "a place was used again")
    images.judge(t, path, bytes(shadow))


@suite.test
def the_file_does_not_grow_without_end(t):
    """Blocks that are discarded and written in turn: what is punched takes no space."""
    path = vhd.Dynamic(SIZE).write(os.path.join(t.ext4(48), "a.vhd"))
    shadow = bytearray(SIZE)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        for turn in range(24):
            data = blockio.pattern(4 * BLOCK, turn)
            vhd_trim.write(device, shadow, 0, data)
            device.flush()
            vhd_trim.discard(device, shadow, 0, 4 * BLOCK)
            device.flush()
    loop.detach()
    images.judge(t, path, bytes(shadow))
    shrinks(path, 4 * BLOCK)


@suite.test
def still_there_after_another_attach(t):
    path, shadow = full(t)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        vhd_trim.discard(device, shadow, BLOCK, 2 * BLOCK)
    loop.detach()
    loop = t.attach(path)
    same_bytes(images.whole(loop), bytes(shadow), "device, attached again")
    with Direct(loop.path) as device:
        images.scribble(device, shadow)
    loop.detach()
    images.judge(t, path, bytes(shadow))


# Random


# qemu-img does not read blocks of less than 4 KiB.
SHAPES = {
    "blocks_of_2m": ({}, True), "blocks_of_512": ({"block_size": 512, "size": MIB}, False),
    "blocks_of_4k": ({"block_size": 4 * KIB, "size": 4 * MIB}, True),
    "blocks_of_64k": ({"block_size": 64 * KIB}, True),
    "blocks_of_16m": ({"block_size": 16 * MIB, "size": 20 * MIB}, True),
    "cut_last_block": ({"size": 5 * MIB + 512}, True),
    "tapdisk": ({"align": 8, "batmap": True, "footer": vhd.tapdisk()}, True),
    "windows": ({"align": 8, "footer_gap": 7 * 512}, True),
}


@suite.cases(**SHAPES)
def random_steps(t, case):
    options, by_qemu = case
    path, shadow = full(t, **options)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        vhd_trim.random_steps(device, shadow, random.Random(7), 150, 4 * MIB)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    images.judge(t, path, bytes(shadow), by_qemu)


@suite.test
def stale_data_stays_hidden(t):
    """Sectors whose bits are clear hold bytes: not even a reader without a bitmap may see them in
    blocks that we have written to."""
    image = vhd.Dynamic(SIZE)
    image.put(0, blockio.pattern(4096))
    image.put(3 * BLOCK, blockio.pattern(4096))
    vhd_child.put_stale(image)
    path = image.write(t.path("a.vhd"))
    shadow = bytearray(image.guest())
    loop = t.attach(path)
    with Direct(loop.path) as device:
        vhd_trim.discard(device, shadow, 2048, MIB)
        vhd_trim.zero(device, shadow, 3 * BLOCK + 2048, MIB)
        vhd_trim.write(device, shadow, 3 * BLOCK + 512, blockio.pattern(1024))
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    images.judge(t, path, bytes(shadow), qemu=False)


@suite.test
def seen_by_another_device(t):
    path, shadow = full(t)
    writer, reader = t.attach(path), loopdev.attach_read_only(path)
    t.defer(reader.detach_if_bound)
    same_bytes(images.whole(reader), bytes(shadow), "reader before")
    with Direct(writer.path) as device:
        vhd_trim.discard(device, shadow, 0, 4 * BLOCK)
        vhd_trim.write(device, shadow, BLOCK, blockio.pattern(4096, 8))
    same_bytes(images.whole(reader), bytes(shadow), "reader after")


@suite.cases(direct=("--direct-io=on",), sectors_of_4096=("-b", "4096"))
def on_ext4(t, options):
    path, shadow = full(t, folder=t.ext4(96))
    loop = t.losetup(*options, path)
    with Direct(loop.path) as device:
        for pos, length in ((0, BLOCK), (BLOCK + 4096, BLOCK), (5 * BLOCK - 4096, 8192)):
            vhd_trim.discard(device, shadow, pos, length)
            vhd_trim.write(device, shadow, pos, blockio.pattern(4096, length))
        vhd_trim.zero(device, shadow, 6 * BLOCK - 8192, 16384)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    images.judge(t, path, bytes(shadow))


@suite.test
def window(t):
    """A discard of a window does not reach out of it: blocks that it has in part are kept."""
    path, shadow = full(t)
    start, length = BLOCK + MIB, 3 * BLOCK
    loop = t.attach(path, offset=start, sizelimit=length)
    with Direct(loop.path) as device:
        device.discard(0, length)
        part = device.read(0, length)
    ensure(part.count(0) >= 2 * BLOCK, "whole blocks do not read as zero")
    shadow[start:start + length] = part
    loop.detach()
    equal(set(range(8)) - set(vhd_trim.places(path)), {2, 3}, "blocks that were freed")
    images.judge(t, path, bytes(shadow))


# What is refused


@suite.test
def read_only_device(t):
    path, shadow = full(t)
    before = images.Unchanged(path)
    loop = loopdev.attach_read_only(path)
    t.defer(loop.detach_if_bound)
    done = attempt("blkdiscard", "-f", loop.path)
    ensure(done.returncode, "blkdiscard succeeded")
    with Direct(loop.path, os.O_RDONLY) as device:
        fails_with(errno.EBADF, device.discard, 0, BLOCK)
        fails_with(errno.EBADF, device.zero, 0, BLOCK)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    before.check()


@suite.test
def what_the_queue_says(t):
    path, _ = full(t)
    loop = t.attach(path)
    ensure(int(loop.attr("queue/discard_max_bytes")) >= BLOCK, "no discards")
    ensure(int(loop.attr("queue/write_zeroes_max_bytes")) > 0, "no write-zeroes")
    granularity = int(loop.attr("queue/discard_granularity"))
    ensure(512 <= granularity <= BLOCK, f"granularity {granularity}")


@suite.test
def entry_that_cannot_be_right(t):
    """A block that the table puts past the end: the discard fails or does nothing."""
    image = vhd.Dynamic(SIZE)
    image.put(0, blockio.pattern(BLOCK))
    path = image.write(t.path("a.vhd"))
    entry = image.header.table_offset + 4
    vhd.patch(path, entry, (0x7FFFFFFF).to_bytes(4, "big"))
    t.allow_log(r"loop\d+: vhd: .*|.*error, dev loop\d+.*")
    loop = t.attach(path)
    with Direct(loop.path) as device:
        for action in (device.discard, device.zero):
            try:
                action(BLOCK, BLOCK)
            except OSError as error:
                ensure(error.errno in (errno.EIO, errno.EREMOTEIO), str(error))
        same_bytes(device.read(0, BLOCK), blockio.pattern(BLOCK), "the block in front")


# File systems


def trimmed(t, folder, image, attach, options=()):
    """A file system on an image: written, emptied, trimmed."""
    path = image.write(os.path.join(folder, "a.vhd"))
    loop = attach(t, path)
    run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0", loop.path)
    point = t.mount(loop.path, *options)
    kept = blockio.make_file(os.path.join(point, "kept"), 3 * MIB)
    blockio.make_file(os.path.join(point, "large"), 24 * MIB, 2)
    os.sync()
    before = blockio.allocated(path)
    os.unlink(os.path.join(point, "large"))
    os.sync()
    if not options:
        run("fstrim", point)
    os.sync()
    shrinks(path, before - 16 * MIB)
    same_bytes(blockio.content(os.path.join(point, "kept")), kept, "a file that was kept")
    run("umount", point)
    run("e2fsck", "-fn", loop.path)
    content = images.whole(loop)
    loop.detach()
    return path, content


@suite.cases(fstrim=(), mounted_with_discard=("-o", "discard"))
def ext4_on_a_dynamic_image(t, options):
    path, content = trimmed(t, t.ext4(96), vhd.Dynamic(48 * MIB), layers.attach_auto, options)
    images.judge(t, path, content)
    raw = images.convert(path, t.path("raw"))
    run("e2fsck", "-fn", raw)


@suite.test
def ext4_on_small_blocks(t):
    path, content = trimmed(t, t.dir, vhd.Dynamic(48 * MIB, 64 * KIB), layers.attach_auto)
    images.judge(t, path, content)


@suite.test
def file_system_without_holes(t):
    """What is discarded keeps its place: the file could not give it back, and would only grow."""
    t.allow_log(r"operation not supported error, dev loop\d+, .*")
    folder = os.path.dirname(backings.on_file_system(t, "vfat"))
    path, shadow = full(t, 64 * KIB, 4 * MIB, folder)
    size = os.path.getsize(path)
    loop = t.attach(path)
    ensure(loop.attr("queue/discard_max_bytes") != "0", "discards are not even tried")
    with Direct(loop.path) as device:
        for turn in range(5):
            # The kernel does not say of the first one that it was refused.
            attempt("blkdiscard", "-f", "-o", "0", "-l", str(2 * MIB), loop.path)
            vhd_trim.zero(device, shadow, MIB + 512, 2 * MIB)
            same_bytes(device.read(MIB, 3 * MIB), bytes(shadow[MIB:]), "what was not discarded")
            vhd_trim.write(device, shadow, 0, blockio.pattern(3 * MIB, turn))
    equal(loop.attr("queue/discard_max_bytes"), "0", "discard_max_bytes")
    loop.detach()
    equal(os.path.getsize(path), size, "size of the file")
    images.judge(t, path, bytes(shadow))


@suite.test
def ext4_with_fio_and_trim(t):
    """fio trims what it has written, and verifies the rest."""
    path = vhd.Dynamic(32 * MIB, 64 * KIB).write(os.path.join(t.ext4(96), "a.vhd"))
    loop = t.attach(path)
    job = subprocess.run(
        ["fio", "--name=x", f"--filename={loop.path}", "--ioengine=libaio", "--direct=1",
         "--rw=randtrimwrite", "--bs=4k", "--iodepth=16", "--size=32m", "--io_size=8m",
         "--randseed=5", "--output=/dev/null"], check=False)
    equal(job.returncode, 0, "exit status of fio")
    content = images.whole(loop)
    loop.detach()
    images.judge(t, path, content)


# Differencing images


def chained(t, kind="raw", block_size=64 * KIB, **options):
    """A child that has half of the disk, on a parent that has all of it."""
    base = vhd_child.base(t.dir, kind, 4 * MIB)
    image = vhd_child.child_of(base, 4 * MIB, block_size=block_size, **options)
    image.put(MIB, blockio.pattern(2 * MIB, 5))
    image.put(512, blockio.pattern(1024, 6))
    path = image.write(t.path("child.vhd"))
    return vhd_child.Chain([path, *base.paths], image.guest(base.guest), base.raw)


def judged(t, chain, actions):
    """Does things to a chain, each of them compared; the parent is not touched."""
    parent = images.Unchanged(chain.paths[1])
    shadow = bytearray(chain.guest)
    loop = layers.attach_named(t, chain.paths[0])
    with Direct(loop.path) as device:
        actions(device, shadow)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    parent.check()
    chain.judge(bytes(shadow))


RANGES = {
    "child_has_it": (MIB, MIB), "child_has_it_in_part": (MIB - 64 * KIB, 128 * KIB),
    "only_the_parent_has_it": (3 * MIB + 64 * KIB, 256 * KIB), "sector": (MIB + 512, 512),
    "sectors_of_both": (0, 4096), "everything": (0, 4 * MIB), "odd": (MIB - 512, MIB + 1024),
}


@suite.cases(**RANGES)
def child_never_shows_its_parents_bytes(t, place):
    """Where it had data of its own, a discard leaves those or zeros."""
    judged(t, chained(t), lambda device, shadow: vhd_trim.discard(device, shadow, *place))


@suite.cases(**RANGES)
def zeros_in_a_child(t, place):
    judged(t, chained(t), lambda device, shadow: vhd_trim.zero(device, shadow, *place))


@suite.cases(dynamic=("dynamic", 64 * KIB), fixed=("fixed", 2 * MIB), raw=("raw", 4 * KIB),
             tiny=("raw", 512))
def random_steps_in_a_child(t, case):
    judged(t, chained(t, *case), lambda device, shadow: vhd_trim.random_steps(
        device, shadow, random.Random(8), 120, MIB))


@suite.test
def batmap_and_blocks_that_are_discarded(t):
    """A block that the batmap calls full must not become one that is not: tapdisk would take all
    of it for the child's."""
    chain = chained(t, batmap=True, align=8, footer=vhd.tapdisk())

    def actions(device, shadow):
        for block in range(16, 48, 3):
            vhd_trim.discard(device, shadow, block * 64 * KIB, 64 * KIB)
            vhd_trim.write(device, shadow, block * 64 * KIB + 512, blockio.pattern(512, block))
        vhd_trim.zero(device, shadow, 20 * 64 * KIB, 64 * KIB)
    judged(t, chain, actions)


@suite.test
def batmap_and_blocks_that_are_freed(t):
    """The same in a dynamic image: its blocks are all ones whenever they are new."""
    path, shadow = full(t, 64 * KIB, 4 * MIB, align=8, batmap=True, footer=vhd.tapdisk())
    loop = t.attach(path)
    with Direct(loop.path) as device:
        vhd_trim.discard(device, shadow, MIB, MIB)
        for block in range(16, 32, 3):
            vhd_trim.write(device, shadow, block * 64 * KIB + 512, blockio.pattern(512, block))
    loop.detach()
    images.judge(t, path, bytes(shadow))


@suite.test
def trimmed_file_system_in_a_child(t):
    """What the child trims, its parent keeps; no deleted file of the parent comes back. The child's
    file gets smaller."""
    base = vhd.Dynamic(48 * MIB).write(t.path("base.vhd"))
    loop = t.attach(base)
    run("mkfs.ext4", "-q", loop.path)
    point = t.mount(loop.path)
    blockio.make_file(os.path.join(point, "large"), 16 * MIB)
    run("umount", point)
    loop.detach()
    before = images.Unchanged(base)
    child = vhd_child.Differencing(48 * MIB, "base.vhd").write(t.path("child.vhd"))
    loop = layers.attach_named(t, child)
    point = t.mount(loop.path)
    os.unlink(os.path.join(point, "large"))
    kept = blockio.make_file(os.path.join(point, "kept"), 2 * MIB, 3)
    blockio.make_file(os.path.join(point, "gone"), 8 * MIB, 4)
    os.sync()
    size = blockio.allocated(child)
    os.unlink(os.path.join(point, "gone"))
    os.sync()
    run("fstrim", point)
    same_bytes(blockio.content(os.path.join(point, "kept")), kept, "a file")
    run("umount", point)
    run("e2fsck", "-fn", loop.path)
    content = images.whole(loop)
    loop.detach()
    before.check()
    shrinks(child, size - 6 * MIB)
    vhd_child.Chain([child, base], b"").judge(content)


# Fixed images


@suite.test
def fixed_image(t):
    """It has no blocks, but its file can have holes."""
    data = bytearray(blockio.pattern(4 * MIB))
    path = vhd.write_fixed(t.path("a.vhd"), bytes(data))
    loop = t.attach(path)
    offered = int(loop.attr("queue/discard_max_bytes")) > 0
    with Direct(loop.path) as device:
        vhd_trim.zero(device, data, MIB + 512, MIB)
        if offered:
            vhd_trim.discard(device, data, 2 * MIB, MIB)
    same_bytes(images.whole(loop), bytes(data), "device")
    loop.detach()
    images.judge(t, path, bytes(data))


if __name__ == "__main__":
    suite.main()
