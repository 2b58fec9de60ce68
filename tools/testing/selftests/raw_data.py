#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What I/O on a raw device does to the file or device behind it. The stock driver passes it, too."""

import os
import random
import subprocess

from lib import blockio, loopdev, system
from lib.blockio import Direct
from lib.kmsg import NO_ZERO_RANGE
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import attempt, run

MIB = 1 << 20
suite = Suite(allow=[NO_ZERO_RANGE])

QUEUE_ATTRIBUTES = (
    "add_random", "discard_granularity", "discard_max_bytes", "discard_max_hw_bytes", "dma_alignment",
    "fua", "hw_sector_size", "io_poll", "logical_block_size", "max_hw_sectors_kb",
    "max_integrity_segments", "max_sectors_kb", "max_segment_size", "max_segments",
    "minimum_io_size", "nr_requests", "optimal_io_size", "physical_block_size", "rotational",
    "scheduler", "stable_writes", "virt_boundary_mask", "write_cache", "write_same_max_bytes",
    "write_zeroes_max_bytes", "write_zeroes_unmap_max_bytes", "zoned",
)


def on_tmpfs(t, length=4 * MIB):
    """A file on tmpfs and its content."""
    return t.path("a"), blockio.make_file(t.path("a"), length)


def on_ext4(t, length=4 * MIB):
    """A file on ext4 and its content."""
    path = os.path.join(t.ext4(64), "a")
    return path, blockio.make_file(path, length)


def on_device(t, length=4 * MIB):
    """A block device and its content."""
    path = t.ram_disk(length // MIB)
    data = blockio.pattern(length)
    blockio.direct_write(path, 0, data)
    return path, data


def on_loop(t, length=4 * MIB):
    """Another loop device and its content."""
    path, data = on_tmpfs(t, length)
    return t.attach(path).path, data


BACKINGS = {"tmpfs": on_tmpfs, "ext4": on_ext4, "block_device": on_device, "loop_device": on_loop}


@suite.cases(**BACKINGS)
def random_io(t, backing):
    path, data = backing(t)
    loop = t.attach(path)
    shadow = bytearray(data)
    rng = random.Random(7)
    with Direct(loop.path) as device:
        for step in range(400):
            length = min(rng.choice((512, 1024, 4096, 7 * 512, 65536, MIB)), len(data))
            pos = rng.randrange(0, (len(data) - length) // 512 + 1) * 512
            if rng.random() < 0.5:
                same_bytes(device.read(pos, length), shadow[pos:pos + length], f"step {step}")
            else:
                piece = rng.randbytes(length)
                device.write(pos, piece)
                shadow[pos:pos + length] = piece
        device.flush()
    loop.detach()
    same_bytes(blockio.content(path), bytes(shadow), "backing afterwards")


@suite.cases(**BACKINGS)
def limits(t, backing):
    path, _ = backing(t)
    loop = t.attach(path)
    for name in QUEUE_ATTRIBUTES:
        if os.path.exists(f"{loop.sysfs}/queue/{name}"):
            t.record(f"queue/{name}", loop.attr(f"queue/{name}"))
    for name in ("alignment_offset", "discard_alignment", "events", "ext_range", "hidden", "range",
                 "removable", "ro"):
        t.record(name, loop.attr(name))
    with loop.opened() as fd:
        t.record("BLKPBSZGET", blockio.number_from(fd, loopdev.BLKPBSZGET))


@suite.test
def attributes_are_those_of_the_stock_driver(t):
    path, _ = on_tmpfs(t)
    loop = t.attach(path)
    ours_only = {"parser", "variant", "size_source"}
    t.record("loop/", sorted(set(os.listdir(f"{loop.sysfs}/loop")) - ours_only))
    t.record("queue/", sorted(os.listdir(f"{loop.sysfs}/queue")))
    t.record("block/loopN/", sorted(os.listdir(loop.sysfs)))


@suite.cases(ext4=on_ext4, tmpfs=on_tmpfs)
def limits_with_direct_io(t, backing):
    path, _ = backing(t)
    loop = t.attach(path, flags=loopdev.DIRECT_IO)
    for name in ("loop/dio", "queue/logical_block_size", "queue/physical_block_size",
                 "queue/minimum_io_size", "queue/discard_granularity", "queue/dma_alignment"):
        t.record(name, loop.attr(name))


@suite.cases(**BACKINGS)
def discard(t, backing):
    path, data = backing(t)
    loop = t.attach(path)
    done = attempt("blkdiscard", "-o", str(MIB), "-l", str(MIB), loop.path)
    t.record("exit status of blkdiscard", done.returncode)
    expected = data if done.returncode else data[:MIB] + bytes(MIB) + data[2 * MIB:]
    same_bytes(blockio.direct_read(loop.path, 0, len(data)), expected, "device")
    if not done.returncode and os.path.isfile(path):
        ensure(blockio.allocated(path) <= len(data) - MIB, "the file kept its blocks")


@suite.cases(**BACKINGS)
def write_zeroes(t, backing):
    path, data = backing(t)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        device.zero(MIB, MIB)
        device.zero(3 * MIB + 512, 1536)
        device.flush()
        expected = bytearray(data)
        expected[MIB:2 * MIB] = bytes(MIB)
        expected[3 * MIB + 512:3 * MIB + 2048] = bytes(1536)
        same_bytes(device.read(0, len(data)), bytes(expected), "device")
    loop.detach()
    same_bytes(blockio.content(path), bytes(expected), "backing afterwards")


@suite.test
def secure_erase_is_not_offered(t):
    path, _ = on_tmpfs(t)
    done = attempt("blkdiscard", "--secure", t.attach(path).path)
    ensure("not supported" in done.stderr, f"blkdiscard --secure: {done.stderr}")


@suite.test
def discard_in_a_window(t):
    path, data = on_tmpfs(t)
    loop = t.attach(path, offset=MIB, sizelimit=MIB)
    run("blkdiscard", loop.path)
    same_bytes(blockio.content(path), data[:MIB] + bytes(MIB) + data[2 * MIB:], "file")


@suite.test
def discard_on_a_read_only_device_fails(t):
    path, data = on_tmpfs(t)
    loop = loopdev.attach_read_only(path)
    t.defer(loop.detach_if_bound)
    ensure(attempt("blkdiscard", loop.path).returncode != 0, "blkdiscard succeeded")
    same_bytes(blockio.content(path), data, "file")


@suite.test
def holes_read_as_zeros_and_stay_holes(t):
    path = blockio.make_sparse(t.path("a"), 64 * MIB)
    loop = t.attach(path)
    same_bytes(blockio.direct_read(loop.path, 33 * MIB, MIB), bytes(MIB), "device")
    blockio.direct_write(loop.path, 40 * MIB, b"x" * 4096)
    ensure(blockio.allocated(path) <= 2 * MIB, f"{blockio.allocated(path)} bytes are allocated")


@suite.test
def last_sector_of_a_large_sparse_file(t):
    length = (5 << 40) + 512
    path = blockio.make_sparse(t.path("a"), length)
    loop = t.attach(path)
    equal(loop.size(), length, "size")
    data = blockio.pattern(512)
    blockio.direct_write(loop.path, length - 512, data)
    same_bytes(blockio.direct_read(loop.path, length - 1024, 1024), bytes(512) + data, "device")


@suite.test
def sync_makes_data_durable_in_the_file(t):
    path, _ = on_ext4(t)
    loop = t.attach(path)
    data = blockio.pattern(MIB, 9)
    with open(loop.path, "r+b", buffering=0) as device:
        device.write(data)
        os.fsync(device.fileno())
    with Direct(path, os.O_RDONLY) as file:
        same_bytes(file.read(0, MIB), data, "file on disk")


@suite.test
def writes_from_the_file_side_are_seen(t):
    path, _ = on_tmpfs(t)
    loop = t.attach(path)
    changed = blockio.pattern(4096, 5)
    with open(path, "r+b", buffering=0) as file:
        file.seek(8192)
        file.write(changed)
    same_bytes(blockio.direct_read(loop.path, 8192, 4096), changed, "device")


@suite.test
def file_cut_while_attached(t):
    path, data = on_tmpfs(t)
    t.allow_log(r"(Buffer )?I/O error.*|.*lost async page write")
    loop = t.attach(path)
    os.truncate(path, 2 * MIB)
    same_bytes(blockio.direct_read(loop.path, 0, 2 * MIB), data[:2 * MIB], "what is left")
    try:
        t.record("read past the end", set(blockio.direct_read(loop.path, 3 * MIB, 4096)))
    except OSError as error:
        t.record("read past the end", error.strerror)
    blockio.direct_write(loop.path, 3 * MIB, data[:4096])
    equal(os.stat(path).st_size, 3 * MIB + 4096, "size after a write past the end")


@suite.test
def no_space_left(t):
    point = t.path("small")
    os.mkdir(point)
    run("mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", point)
    t.defer(system.unmount_if_mounted, point)
    loop = t.attach(blockio.make_sparse(os.path.join(point, "a"), 8 * MIB))
    t.allow_log(r"(critical space allocation|I/O) error, dev loop\d+.*")
    with Direct(loop.path) as device:
        try:
            device.write(0, bytes(4 * MIB))
            t.record("write", "succeeded")
        except OSError as error:
            t.record("write", error.strerror)


@suite.cases(write_only=os.O_WRONLY, append=os.O_RDWR | os.O_APPEND, direct=os.O_RDWR | os.O_DIRECT,
             read_only=os.O_RDONLY, append_write_only=os.O_WRONLY | os.O_APPEND)
def descriptor(t, flags):
    path, data = on_ext4(t, MIB)
    t.allow_log(r"(Buffer )?I/O error.*|.*lost async page write")
    loop = t.attach(path, file_flags=flags)
    t.record("ro, dio", (loop.attr("ro"), loop.attr("loop/dio")))
    outcome = []
    piece = blockio.pattern(4096, 4)
    with Direct(loop.path, os.O_RDONLY if loop.attr("ro") == "1" else os.O_RDWR) as device:
        try:
            outcome.append(device.read(8192, 4096) == data[8192:12288])
        except OSError as error:
            outcome.append(error.strerror)
        try:
            device.write(8192, piece)
            outcome.append("written")
        except OSError as error:
            outcome.append(error.strerror)
    loop.detach()
    t.record("read, write", outcome)
    changed = data[:8192] + piece + data[12288:]
    now = blockio.content(path)
    t.record("file", "changed" if now == changed else "as before" if now == data else len(now))


@suite.test
def set_fd_and_set_status(t):
    path, data = on_tmpfs(t)
    loop = loopdev.free()
    t.defer(loop.detach_if_bound)
    with open(path, "r+b", buffering=0) as file:
        loop.set_fd(file.fileno())
    same_bytes(loop.read(0, len(data)), data, "device after LOOP_SET_FD")
    loop.set_status(offset=MIB, sizelimit=MIB, name=b"name")
    same_bytes(loop.read(0, len(data)), data[MIB:2 * MIB], "device after LOOP_SET_STATUS64")


@suite.cases(unknown_flag={"flags": 0x80}, block_size_odd={"block_size": 1000},
             block_size_small={"block_size": 256}, block_size_large={"block_size": 1 << 20},
             offset_negative={"offset": 1 << 63}, size_negative={"sizelimit": 1 << 63})
def refused_configuration(t, arguments):
    path, _ = on_tmpfs(t)
    t.allow_log(r"Invalid logical block size \(\d+\)")
    try:
        loop = t.attach(path, **arguments)
        t.record("attached", (loop.size(), loop.attr("queue/logical_block_size")))
    except OSError as error:
        t.record("refused", error.strerror)


@suite.test
def change_fd_on_a_read_only_device(t):
    path, _ = on_tmpfs(t)
    other = blockio.make_file(t.path("b"), 4 * MIB, 2)
    loop = loopdev.attach_read_only(path)
    t.defer(loop.detach_if_bound)
    loop.change_file_read_only(t.path("b"))
    same_bytes(blockio.direct_read(loop.path, 0, 4 * MIB), other, "device")


@suite.test
def change_fd_on_a_writable_device_is_refused(t):
    path, _ = on_tmpfs(t)
    blockio.make_file(t.path("b"), 4 * MIB, 2)
    loop = t.attach(path)
    fails_with(22, loop.change_file, t.path("b"))


@suite.cases(buffered=(), direct_to_file=("--direct-io=on",))
def fio_verifies(t, options):
    path = os.path.join(t.ext4(96), "a")
    blockio.make_sparse(path, 48 * MIB)
    loop = t.losetup(*options, path)
    run("fio", "--name=x", f"--filename={loop.path}", "--ioengine=libaio", "--direct=1",
        "--rw=randrw", "--bsrange=4k-128k", "--iodepth=16", "--size=48m", "--io_size=48m",
        "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randseed=3", "--fsync=64")


@suite.test
def parallel_jobs(t):
    path = blockio.make_sparse(t.path("a"), 16 * MIB)
    loop = t.attach(path)
    jobs = [subprocess.Popen(["dd", f"of={loop.path}", "bs=64k", "count=64", f"seek={64 * number}",
                              "oflag=direct", "conv=notrunc", "status=none"],
                             stdin=subprocess.PIPE) for number in range(4)]
    pieces = [blockio.pattern(4 * MIB, number) for number in range(4)]
    for job, piece in zip(jobs, pieces):
        job.stdin.write(piece)
        job.stdin.close()
    equal([job.wait() for job in jobs], [0] * 4, "exit status of dd")
    same_bytes(blockio.content(path), b"".join(pieces), "file")


if __name__ == "__main__":
    suite.main()
