#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Discard, zeroing and flush: what they ask of the file system, and what becomes of the file."""

import ctypes
import errno
import os
import random

from lib import backings, blockio, system, trace
from lib.blockio import Direct
from lib.ktap import Suite, ensure, equal, same_bytes
from lib.system import attempt, run

MIB = 1 << 20
LENGTH = backings.LENGTH
# Far more than a block of any file system.
EDGE = 64 << 10
NOT_SUPPORTED = r"operation not supported error, dev loop\d+, .*"
suite = Suite(allow=[NOT_SUPPORTED])

KEEP_SIZE, PUNCH_HOLE, NO_HIDE_STALE, COLLAPSE, ZERO_RANGE, INSERT = 1, 2, 4, 8, 16, 32
FALLOCATE = {
    "allocate": 0, "allocate_keep": KEEP_SIZE, "zero": ZERO_RANGE,
    "zero_keep": ZERO_RANGE | KEEP_SIZE, "punch": PUNCH_HOLE | KEEP_SIZE,
    "punch_stale": PUNCH_HOLE | KEEP_SIZE | NO_HIDE_STALE,
    "collapse": COLLAPSE, "insert": INSERT,
}
LIBC = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, pos, length):
    """fallocate(2) with any mode; returns the name of the errno, or "done"."""
    if LIBC.fallocate(fd, mode, ctypes.c_int64(pos), ctypes.c_int64(length)):
        return errno.errorcode[ctypes.get_errno()]
    return "done"


def holes(path):
    """The holes of a file as (start, end)."""
    found, pos = [], 0
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    while pos < size:
        start = os.lseek(fd, pos, os.SEEK_HOLE)
        if start >= size:
            break
        try:
            pos = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:
            pos = size
        found.append((start, pos))
    os.close(fd)
    return found


RANGES = ((0, 65536), (MIB, 512), (MIB + 4096, 4096), (MIB + 8192 + 512, 65536), (2 * MIB, MIB),
          (LENGTH - 512, 512), (LENGTH - 5 * 4096, 4 * 4096))


@suite.cases(**{name: backings.ALL[name] for name in ("ext4_1k", "xfs", "btrfs", "f2fs", "ext2",
                                                      "tmpfs", "vfat")})
def discarded_ranges_become_holes(t, backing):
    path = backing(t)
    loop = t.attach(path)
    expected = bytearray(blockio.content(path))
    with Direct(loop.path) as device:
        for pos, length in RANGES:
            try:
                device.discard(pos, length)
            except OSError as error:
                t.record(f"discard {pos} {length}", error.strerror)
                continue
            # The first one is done without an error where the file system turns out not to be able to.
            if device.read(pos, length) != expected[pos:pos + length]:
                expected[pos:pos + length] = bytes(length)
            t.record(f"discard {pos} {length}", holes(path))
        same_bytes(device.read(0, LENGTH), bytes(expected), "device")
    loop.detach()
    equal(os.stat(path).st_size, LENGTH, "size of the file")
    same_bytes(blockio.content(path), bytes(expected), "file")


@suite.cases(**{name: backings.ALL[name] for name in ("ext4_4k", "xfs", "btrfs", "tmpfs", "vfat",
                                                      "ram_disk", "scsi_512", "loop_device")})
def fallocate_on_the_device(t, backing):
    path = backing(t)
    size = min(LENGTH, os.stat(path).st_size or LENGTH)
    loop = t.attach(path, sizelimit=size)
    blockio.direct_write(loop.path, 0, blockio.pattern(LENGTH))
    expected = bytearray(blockio.direct_read(loop.path, 0, LENGTH))
    with loop.opened(os.O_RDWR) as fd:
        for number, (name, mode) in enumerate(FALLOCATE.items()):
            pos = number * 128 << 10
            outcome = fallocate(fd, mode, pos, 64 << 10)
            t.record(name, outcome)
            if outcome == "done" and "allocate" not in name:
                expected[pos:pos + (64 << 10)] = bytes(64 << 10)
        os.fsync(fd)
    same_bytes(blockio.direct_read(loop.path, 0, LENGTH), bytes(expected), "device")
    if os.path.isfile(path):
        t.record("holes", holes(path))


@suite.cases(direct="on", buffered="off")
def what_is_asked_of_the_file_system(t, direct):
    path = backings.on_file_system(t, "ext4_4k")
    loop = t.losetup("-o", "65536", f"--direct-io={direct}", path)
    events = ("ext4/ext4_fallocate_enter", "ext4/ext4_punch_hole", "ext4/ext4_zero_range",
              "ext4/ext4_sync_file_enter")
    with trace.tracing(*events) as traced, Direct(loop.path) as device:
        device.discard(MIB, 65536)
        device.discard(MIB + 512, 1024)
        device.zero(2 * MIB, 65536)
        device.zero(2 * MIB + 512, 1536)
        device.flush()
        with loop.opened(os.O_RDWR) as fd:
            for mode in (ZERO_RANGE | KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE):
                fallocate(fd, mode, 3 * MIB, 65536)
    for event in ("ext4_fallocate_enter", "ext4_punch_hole", "ext4_zero_range"):
        calls = traced.fields(event, r"offset (\d+) len (\d+) mode (.*)")
        t.record(event, calls)
    ensure(traced.named("ext4_punch_hole"), "no hole was punched")
    t.record("fsync", traced.fields("ext4_sync_file_enter", r"datasync (\d)"))


@suite.cases(fsync=os.fsync, fdatasync=os.fdatasync)
def a_sync_of_the_device_is_one_of_the_file(t, sync):
    path = backings.on_file_system(t, "ext4_4k")
    loop = t.attach(path)
    with trace.tracing("ext4/ext4_sync_file_enter") as traced, Direct(loop.path) as device:
        for number in range(5):
            device.write(number * 8192, bytes(4096))
            sync(device.fd)
        sync(device.fd)
    t.record("datasync of every sync", traced.fields("ext4_sync_file_enter", r"datasync (\d)"))
    ensure(len(traced.events) >= 5, f"only {len(traced.events)} syncs reached the file")


@suite.cases(o_sync=os.O_SYNC, o_dsync=os.O_DSYNC)
def synchronous_writes_sync_the_file(t, flag):
    path = backings.on_file_system(t, "ext4_4k")
    loop = t.attach(path)
    with trace.tracing("ext4/ext4_sync_file_enter") as traced:
        with Direct(loop.path, os.O_RDWR | flag) as device:
            for number in range(5):
                device.write(number * 8192, blockio.pattern(4096, number))
    ensure(len(traced.events) >= 5, f"only {len(traced.events)} syncs reached the file")
    t.record("syncs of the file", len(traced.events))
    with Direct(path, os.O_RDONLY) as file:
        same_bytes(file.read(32768, 4096), blockio.pattern(4096, 4), "last write, on disk")


@suite.test
def a_read_only_device_is_not_synced(t):
    path = backings.on_file_system(t, "ext4_4k")
    loop = t.losetup("-r", path)
    with trace.tracing("ext4/ext4_sync_file_enter") as traced, loop.opened() as fd:
        os.fsync(fd)
    t.record("syncs of the file", len(traced.events))


@suite.test
def write_through_means_no_flushes(t):
    path = backings.on_file_system(t, "ext4_4k")
    loop = t.attach(path)
    loop.set_attr("queue/write_cache", "write through")
    with trace.tracing("ext4/ext4_sync_file_enter") as traced:
        blockio.direct_write(loop.path, 0, bytes(4096))
    t.record("syncs of the file", len(traced.events))
    loop.set_attr("queue/write_cache", "write back")


@suite.cases(ext4="ext4_4k", xfs="xfs", btrfs="btrfs")
def fstrim_shrinks_the_file(t, kind):
    path = os.path.join(os.path.dirname(backings.on_file_system(t, kind)), "image")
    blockio.make_sparse(path, 24 * MIB)
    run("mkfs.ext4", "-q", "-F", "-U", "01234567-89ab-cdef-0123-456789abcdef", "-E",
        "hash_seed=01234567-89ab-cdef-0123-456789abcdef,lazy_itable_init=0,nodiscard", path)
    point = t.mount(path, "-o", "loop", where="image")
    blockio.make_file(os.path.join(point, "large"), 12 * MIB)
    os.sync()
    full = blockio.allocated(path)
    os.unlink(os.path.join(point, "large"))
    os.sync()
    trimmed = run("fstrim", "-v", point).rpartition(": ")[2]
    os.sync()
    left = blockio.allocated(path)
    ensure(left <= full - 11 * MIB, f"{full} bytes before, {left} after")
    t.record("trimmed", trimmed.strip())
    t.record("allocated, MiB", (full // MIB, left // MIB))
    system.unmount_if_mounted(point)
    # Whether a block at the edge of what was trimmed is kept depends on what of it XFS had written back.
    rounded = [(-(-start // EDGE), end // EDGE) for start, end in holes(path)]
    t.record("holes of 64 KiB", [hole for hole in rounded if hole[1] - hole[0] >= MIB // EDGE])
    run("e2fsck", "-fn", path)


@suite.test
def mount_with_discard(t):
    path = os.path.join(t.ext4(64), "image")
    blockio.make_sparse(path, 24 * MIB)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", path)
    point = t.mount(path, "-o", "loop,discard", where="image")
    blockio.make_file(os.path.join(point, "large"), 12 * MIB)
    os.sync()
    full = blockio.allocated(path)
    os.unlink(os.path.join(point, "large"))
    os.sync()
    system.wait_until(lambda: blockio.allocated(path) <= full - 11 * MIB, "the file has shrunk")


@suite.cases(discard=(), zero=("-z",), secure=("-s",))
def blkdiscard_of_odd_ranges(t, options):
    path = backings.on_file_system(t, "ext4_4k")
    loop = t.attach(path)
    for pos, length in ((0, 512), (100, 512), (512, 100), (LENGTH - 512, 512), (LENGTH - 512, 4096),
                        (LENGTH, 512), (0, 0), (1 << 62, 512)):
        done = attempt("blkdiscard", "-f", *options, "-o", str(pos), "-l", str(length), loop.path)
        t.record(f"{pos} {length}", (done.returncode, done.stderr.rpartition("blkdiscard: ")[2]
                                     .replace(loop.path, "loop").strip()))
    t.record("content", blockio.digest(path))
    t.record("holes", holes(path))


@suite.test
def random_discards_and_writes(t):
    path = backings.on_file_system(t, "ext4_4k")
    loop = t.attach(path)
    shadow = bytearray(blockio.content(path))
    rng = random.Random(11)
    with Direct(loop.path) as device:
        for step in range(200):
            length = rng.choice((512, 4096, 5 * 512, 65536))
            pos = rng.randrange(0, (LENGTH - length) // 512) * 512
            what = rng.choice(("write", "discard", "zero"))
            piece = rng.randbytes(length) if what == "write" else bytes(length)
            if what == "write":
                device.write(pos, piece)
            else:
                getattr(device, what)(pos, length)
            shadow[pos:pos + length] = piece
            same_bytes(device.read(pos, length), piece, f"step {step}, {what}")
        device.flush()
    same_bytes(blockio.content(path), bytes(shadow), "file")
    t.record("holes", holes(path))


if __name__ == "__main__":
    suite.main()
