#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What people do with qcow2 images: file systems and trims, snapshots, bitmaps, lazy counts, sizes,
other programs in between, no room; and what attaching must not change."""

import errno
import json
import os
import shutil

from lib import blockio, images, layers, loopdev, qcow
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.qcow import KIB, MIB
from lib.system import attempt, run

SIZE = 16 * MIB
CLUSTER = 64 * KIB
suite = Suite()


def create(t, size=SIZE, **options):
    """A new image in the test's folder."""
    return images.create(t.path("a.qcow2"), size, "qcow2", **options)


@suite.cases(read_write=loopdev.attach, read_only=loopdev.attach_read_only)
def attaching_changes_nothing(t, attach):
    path = create(t)
    qcow.fill(path, "qcow2", SIZE, 1)
    before = images.Unchanged(path)
    loop = attach(path)
    t.defer(loop.detach_if_bound)
    images.whole(loop)
    loop.detach()
    before.check()


@suite.cases(v2={"compat": "0.10"}, v3={}, subclusters={"extended_l2": "on"},
             small={"cluster_size": 4096}, lazy={"lazy_refcounts": "on"})
def ext4(t, options):
    path = images.create(os.path.join(t.ext4(256), "a.qcow2"), 96 * MIB, "qcow2", **options)
    qcow.keeps_a_file_system(t, path, lambda: t.losetup(path))


V2, V3, SUBCLUSTERS = {"compat": "0.10"}, {}, {"extended_l2": "on"}
BELOW = {"backing_file": "base.raw", "backing_fmt": "raw"}


@suite.cases(v2=V2, v3=V3, subclusters=SUBCLUSTERS, v2_over_a_base=V2 | BELOW, v3_over_a_base=V3 | BELOW,
             subclusters_over_a_base=SUBCLUSTERS | BELOW)
def fstrim_shrinks_the_file(t, options):
    folder = t.ext4(256)
    if "backing_file" in options:
        blockio.make_file(os.path.join(folder, "base.raw"), 96 * MIB)
        layers.allow_parents(t, "beneath")
    path = images.create(os.path.join(folder, "a.qcow2"), 96 * MIB, "qcow2", **options)
    loop = t.losetup(path)
    run("mkfs.ext4", "-q", loop.path)
    point = t.mount(loop.path)
    blockio.make_file(os.path.join(point, "file"), 30 * MIB)
    os.sync()
    full = blockio.allocated(path)
    os.unlink(os.path.join(point, "file"))
    # Blocks are free once the journal says so.
    os.sync()
    run("fstrim", point)
    run("umount", point)
    loop.detach()
    left = blockio.allocated(path)
    ensure(left < full - 25 * MIB, f"{full} bytes, {left} after fstrim")
    qcow.check(path)
    content = qcow.guest(t, path)
    loop = t.losetup(path)
    run("e2fsck", "-fn", loop.path)
    same_bytes(images.whole(loop), content, "device")


@suite.cases(v2=V2, v3=V3, subclusters=SUBCLUSTERS)
def discard_does_not_uncover(t, options):
    """Where the guest has zeroed or discarded, the data of the file below must not show."""
    base = blockio.make_file(t.path("base.raw"), SIZE)
    path = create(t, **options, **BELOW)
    shadow = bytearray(base)
    loop = images.attach_with(t, path, "qcow2")
    with blockio.Direct(loop.path) as device:
        device.write(MIB, b"w" * MIB)
        shadow[MIB:2 * MIB] = b"w" * MIB
        for pos, length in ((0, 512), (MIB + 512, 64 * KIB), (3 * MIB, 2 * MIB), (SIZE - 512, 512)):
            device.zero(pos, length)
            shadow[pos:pos + length] = bytes(length)
        same_bytes(images.whole(loop), bytes(shadow), "device after BLKZEROOUT")
        # What is the image's own, and what is not.
        for pos in (MIB, 6 * MIB):
            device.discard(pos, MIB)
        shadow[MIB:2 * MIB] = bytes(MIB)
        same_bytes(images.whole(loop), bytes(shadow), "device after BLKDISCARD")
    loop.detach()
    for pos in range(MIB, 2 * MIB, 64 * KIB):
        is_hidden(path, pos)
    qcow.judge(t, path, bytes(shadow))


def is_hidden(path, pos):
    """A discarded cluster over a file below: its entry says that it is zero, or in version 2 still names its
    place."""
    at, entry = qcow.l2_entry(path, pos)
    if qcow.field(path, "version") == 2:
        equal(entry & ~qcow.OFFSET, 1 << 63, "flags of the entry")
        ensure(entry & qcow.OFFSET, "no place")
    elif qcow.has_subclusters(path):
        equal((entry, qcow.be64(path, at + 8)), (0, 0xFFFFFFFF << 32), "entry")
    else:
        equal(entry, 1, "entry")


@suite.cases(v2={"compat": "0.10"}, v3={}, subclusters={"extended_l2": "on"})
def internal_snapshots(t, options):
    path = create(t, **options)
    qcow.fill(path, "qcow2", SIZE, 1)
    first = qcow.guest(t, path)
    run("qemu-img", "snapshot", "-c", "one", path)
    loop = t.attach(path)
    shadow = bytearray(first)
    same_bytes(images.whole(loop), first, "device")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
        device.zero(0, MIB)
        shadow[:MIB] = bytes(MIB)
    loop.detach()
    qcow.judge(t, path, bytes(shadow))
    out = run("qemu-img", "snapshot", "-l", path)
    ensure("one" in out, f"snapshots: {out}")
    run("qemu-img", "snapshot", "-a", "one", path)
    qcow.judge(t, path, first)
    loop = t.attach(path)
    same_bytes(images.whole(loop), first, "device after going back")
    blockio.direct_write(loop.path, 0, b"2" * MIB)
    loop.detach()
    run("qemu-img", "snapshot", "-d", "one", path)
    qcow.judge(t, path, b"2" * MIB + first[MIB:])


@suite.test
def persistent_bitmap(t):
    """A bitmap that was not kept up to date must not pass for one that was."""
    path = create(t)
    run("qemu-img", "bitmap", "--add", path, "dirty")
    run("qemu-io", "-f", "qcow2", "-c", f"write -q -P {ord('b')} 0 64k", path)
    equal(qcow.field(path, "autoclear") & 1, 1, "the bit before")
    before = images.Unchanged(path)
    loop = t.attach(path)
    images.whole(loop)
    before.check()
    blockio.direct_write(loop.path, 0, b"x" * 4096)
    equal(qcow.field(path, "autoclear") & 1, 0, "the bit after a write")
    loop.detach()
    # A cluster each of the directory, of the bitmap's table, and of the bitmap.
    equal(qcow.findings(path), {"check-errors": 0, "corruptions": 0, "leaks": 3}, "qemu-img check")
    run("qemu-img", "check", "-q", "-f", "qcow2", "-r", "leaks", path)
    qcow.judge(t, path, (b"x" * 4096 + b"b" * 60 * KIB).ljust(SIZE, b"\0"))
    ensure("bitmaps" not in run("qemu-img", "info", path), "there is still a bitmap")


@suite.test
def compatible_bits_are_kept(t):
    path = create(t, lazy_refcounts="on")
    qcow.patch(path, compatible=1 | 1 << 50, autoclear=1 << 33)
    loop = t.attach(path)
    blockio.direct_write(loop.path, 0, b"x" * 4096)
    loop.detach()
    equal(qcow.field(path, "compatible"), 1 | 1 << 50, "compatible bits")
    equal(qcow.field(path, "autoclear"), 0, "autoclear bits")
    equal(qcow.field(path, "incompatible"), 0, "incompatible bits")


@suite.test
def taken_up_by_qemu_and_back(t):
    path = create(t)
    shadow = bytearray(SIZE)
    for turn in range(4):
        loop = t.attach(path)
        same_bytes(images.whole(loop), bytes(shadow), f"device, turn {turn}")
        with blockio.Direct(loop.path) as device:
            images.scribble(device, shadow, seed=turn, count=15)
        loop.detach()
        qcow.judge(t, path, bytes(shadow))
        qcow.fill(path, "qcow2", SIZE, turn, count=4)
        shadow = bytearray(qcow.guest(t, path))


@suite.test
def dirty_when_qemu_died(t):
    """Lazy counts: what QEMU left can only be read, until qemu-img has counted."""
    path = create(t, lazy_refcounts="on")
    shadow = die_in_qemu(path)
    equal(qcow.field(path, "incompatible"), 1, "dirty bit")
    before = images.Unchanged(path)
    t.expect_log(r"loop\d+: refused: qcow2: .*qemu-img check.*")
    fails_with(errno.EROFS, t.attach, path)
    t.allow_log(r"loop\d+: qcow2: .*")
    loop = loopdev.attach_read_only(path)
    t.defer(loop.detach_if_bound)
    same_bytes(images.whole(loop)[:MIB], bytes(shadow[:MIB]), "device")
    loop.detach()
    before.check()
    run("qemu-img", "check", "-q", "-f", "qcow2", "-r", "all", path)
    is_taken_up(t, path, shadow)


@suite.cases(v2=V2, v3=V3, subclusters=SUBCLUSTERS)
def clean_when_qemu_died(t, options):
    path = create(t, **options)
    shadow = die_in_qemu(path)
    equal(qcow.findings(path)["corruptions"], 0, "corruptions")
    loop = t.attach(path)
    same_bytes(images.whole(loop)[:MIB], bytes(shadow[:MIB]), "device")
    loop.detach()
    run("qemu-img", "check", "-q", "-f", "qcow2", "-r", "leaks", path)
    is_taken_up(t, path, shadow)


def die_in_qemu(path):
    """QEMU writes the first MiB, flushes, writes more, and dies. What the guest can count on."""
    done = attempt("qemu-io", "-f", "qcow2", "-c", "write -q -P 17 0 1M", "-c", "flush",
                   "-c", "write -q -P 34 2M 64k", "-c", "abort", path)
    ensure(done.returncode != 0, "qemu-io has not died")
    return bytearray(b"\x11" * MIB)


def is_taken_up(t, path, shadow):
    """A sound image whose first MiB is known is written here, and judged."""
    shadow = shadow + bytearray(qcow.guest(t, path)[len(shadow):])
    loop = t.attach(path)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=10)
    loop.detach()
    qcow.judge(t, path, bytes(shadow))


@suite.cases(v2=V2, v3=V3, subclusters=SUBCLUSTERS, lazy={"lazy_refcounts": "on"})
def copied_while_attached(t, options):
    """After a flush a copy of the file is what a crash would leave: QEMU reads, writes and repairs it, and
    it can be written here again."""
    path, copy = create(t, **options), t.path("copy.qcow2")
    shadow = bytearray(SIZE)
    loop = t.attach(path)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, seed=2, count=15)
        device.discard(0, MIB)
        shadow[:MIB] = bytes(MIB)
        device.flush()
        shutil.copyfile(path, copy)
    if qcow.field(copy, "version") > 2:
        equal(qcow.field(copy, "incompatible") & 3, 0, "dirty and corrupt bits")
    found = qcow.findings(copy)
    equal((found["corruptions"], found["check-errors"]), (0, 0), "corruptions, and errors")
    # What is counted ahead of its use: the next clusters, and what was just freed.
    ensure(0 < found["leaks"] <= 2 * MIB // CLUSTER + MIB // CLUSTER, f"leaks: {found}")
    same_bytes(qcow.guest(t, copy), bytes(shadow), "copy, by qemu-img")
    run("qemu-io", "-f", "qcow2", "-c", "write -q -P 34 5M 1M", copy)
    run("qemu-img", "check", "-q", "-f", "qcow2", "-r", "leaks", copy)
    expected = shadow[:5 * MIB] + b"\x22" * MIB + shadow[6 * MIB:]
    qcow.judge(t, copy, bytes(expected))
    is_taken_up(t, copy, expected)
    loop.detach()
    qcow.judge(t, path, bytes(shadow))


@suite.test
def resized_by_qemu(t):
    path = create(t, size=5 * MIB)
    qcow.fill(path, "qcow2", 5 * MIB, 1)
    for size in (300 * MIB, 2 * MIB, 7 * MIB + 512):
        run("qemu-img", "resize", "-f", "qcow2", "--shrink", path, str(size))
        shadow = bytearray(qcow.guest(t, path))
        loop = t.attach(path)
        equal(loop.size(), size, "size")
        same_bytes(images.whole(loop), bytes(shadow), "device")
        with blockio.Direct(loop.path) as device:
            for pos in (0, MIB + 512, size - 64 * KIB):
                device.write(pos, b"r" * 64 * KIB)
                shadow[pos:pos + 64 * KIB] = b"r" * 64 * KIB
        loop.detach()
        qcow.judge(t, path, bytes(shadow))


@suite.test
def no_room_in_the_file_system(t):
    folder = t.ext4(32)
    path = images.create(os.path.join(folder, "a.qcow2"), 64 * MIB, "qcow2")
    t.allow_log(r".*(critical space allocation|I/O) error.*|.*callbacks suppressed|loop\d+: .*")
    loop = t.attach(path)
    shadow, failed = bytearray(64 * MIB), set()
    with blockio.Direct(loop.path) as device:
        for pos in range(0, 64 * MIB, MIB):
            try:
                device.write(pos, b"f" * MIB)
                device.flush()
            except OSError:
                failed.add(pos)
                continue
            shadow[pos:pos + MIB] = b"f" * MIB
    ensure(failed and len(failed) < 60, f"{len(failed)} writes failed")
    now = images.whole(loop)
    for pos in range(0, 64 * MIB, MIB):
        if pos not in failed:
            same_bytes(now[pos:pos + MIB], bytes(shadow[pos:pos + MIB]), f"MiB at {pos}")
    loop.detach()
    raw = run("qemu-img", "check", "-f", "qcow2", "--output=json", path)
    equal(json.loads(raw).get("corruptions", 0), 0, "corruptions")


@suite.cases(buffered=0, direct=loopdev.DIRECT_IO)
def two_devices_on_one_image(t, flags):
    path = images.create(os.path.join(t.ext4(64), "a.qcow2"), SIZE, "qcow2")
    first, second = t.attach(path, flags=flags), loopdev.attach_read_only(path)
    t.defer(second.detach_if_bound)
    data = blockio.pattern(MIB)
    blockio.direct_write(first.path, 3 * MIB, data)
    same_bytes(blockio.direct_read(second.path, 3 * MIB, MIB), data, "the other device")
    first.detach()
    second.detach()
    qcow.check(path)


@suite.test
def space_is_used_again(t):
    """Writing and discarding in turn does not make the file grow for ever."""
    path = images.create(os.path.join(t.ext4(128), "a.qcow2"), SIZE, "qcow2")
    loop = t.attach(path)
    sizes = []
    with blockio.Direct(loop.path) as device:
        for _ in range(8):
            device.write(0, blockio.pattern(SIZE))
            device.flush()
            sizes.append(blockio.allocated(path))
            device.discard(0, SIZE)
    loop.detach()
    ensure(max(sizes) < 2 * SIZE + 4 * MIB, f"allocated: {sizes}")
    qcow.judge(t, path, bytes(SIZE))


if __name__ == "__main__":
    suite.main()
