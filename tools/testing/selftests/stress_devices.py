#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Everything about raw devices at the same time, for LP_STRESS_SECONDS (60).

What counts is that nobody hangs, that no byte is wrong, that the kernel says nothing, and that
afterwards nothing is left: the file system under the files can be unmounted, the driver unloaded.
"""

import contextlib
import errno
import os
import random
import struct
import time

from lib import blockio, jobs, loopdev, system
from lib.ktap import Suite, Failure, ensure, equal, same_bytes
from lib.system import run

MIB = 1 << 20
PIECE = 4096
BLKRRPART = 0x125F
TESTS = 6
# What happens to I/O on a device that is being detached, shrunk or given another file.
NOISE = [r"(Buffer )?I/O error.*", r".*I/O error, dev loop\d+.*",
         r".*partition scan of loop\d+ .*failed \(rc=-?\d+\)",
         r"loop\d+: p\d+ (start|size) \d+ .*",
         r" loop\d+: unable to read partition table",
         r"Dev loop\d+: unable to read RDB block \d+", r"Invalid logical block size \(\d+\)",
         r"operation not supported error, dev loop\d+.*",
         r".*attempt to access beyond end of device.*"]
# Also of a device that is read-only, or shorter than a moment before.
FINE = (*jobs.TAKEN_AWAY, errno.EPERM, errno.EROFS, errno.EACCES, errno.ENOSPC)
suite = Suite(allow=NOISE)


def store(t, mebibytes=200):
    """A folder on an ext4 of its own, which must be unmountable at the end of the test."""
    folder = t.ext4(mebibytes)
    # If the test fails: before that is unmounted.
    t.defer(detach_all)
    return folder


def detach_all():
    """Detaches what is bound, now or at the last close."""
    for loop in loopdev.bound():
        loop.detach_if_bound()


def judge_leftovers(folder):
    """Detaches what is bound; then nothing may hold the file system or the driver."""
    for number in range(8):
        loop = loopdev.Loop(number)
        system.wait_until(lambda loop=loop: detached(loop), f"{loop.path} is detached")
    run("umount", folder)
    equal(system.references("loop"), 0, "references to loop")


def detached(loop):
    """Detaches a device; True if it is."""
    with contextlib.suppress(OSError):
        loop.detach_if_bound()
    return not os.path.exists(loop.path) or not loop.is_bound()


class Chaos:
    """Actions on a few devices and files, for many processes at once."""

    def __init__(self, folder):
        self.loops = [loopdev.Loop(number) for number in range(3)]
        self.files = [self.partitioned(os.path.join(folder, name)) for name in "abc"]

    @staticmethod
    def partitioned(path):
        """A file with a partition table."""
        blockio.make_file(path, 8 * MIB)
        run("sfdisk", "-q", path, text="label: dos\nsize=1MiB\nsize=2MiB\n")
        return path

    def attach(self, rng):
        """LOOP_CONFIGURE."""
        flags = rng.choice((0, 0, loopdev.PARTSCAN, loopdev.AUTOCLEAR, loopdev.READ_ONLY,
                            loopdev.READ_ONLY | loopdev.PARTSCAN, loopdev.DIRECT_IO))
        loopdev.attach(rng.choice(self.files), loop=rng.choice(self.loops), flags=flags,
                       offset=rng.choice((0, 0, 512, MIB)), sizelimit=rng.choice((0, 0, 4 * MIB)),
                       block_size=rng.choice((0, 512, 4096)))

    def set_fd(self, rng):
        """LOOP_SET_FD."""
        with open(rng.choice(self.files), "r+b") as file:
            rng.choice(self.loops).set_fd(file.fileno())

    def detach(self, rng):
        """LOOP_CLR_FD."""
        rng.choice(self.loops).detach()

    def change_fd(self, rng):
        """LOOP_CHANGE_FD."""
        path = rng.choice(self.files)
        rng.choice(self.loops).change_file_read_only(path)

    def set_status(self, rng):
        """LOOP_SET_STATUS64."""
        rng.choice(self.loops).set_status(
            offset=rng.choice((0, 512, 4096)), sizelimit=rng.choice((0, MIB)),
            flags=rng.choice((0, loopdev.AUTOCLEAR, loopdev.PARTSCAN)), name=b"stress")

    def settings(self, rng):
        """The simple ioctls."""
        request, arg = rng.choice(((loopdev.SET_CAPACITY, 0), (loopdev.SET_DIRECT_IO, 0),
                                   (loopdev.SET_DIRECT_IO, 1), (loopdev.SET_BLOCK_SIZE, 512),
                                   (loopdev.SET_BLOCK_SIZE, 4096), (loopdev.SET_BLOCK_SIZE, 7),
                                   (BLKRRPART, 0)))
        rng.choice(self.loops).ioctl(request, arg, os.O_RDWR)

    def look(self, rng):
        """What losetup -l and udev read."""
        loop = rng.choice(self.loops)
        for name in ("backing_file", "offset", "sizelimit", "autoclear", "partscan", "dio",
                     "parser"):
            with contextlib.suppress(OSError):
                loop.attr(f"loop/{name}")
        loop.status()

    def transfer(self, rng):
        """Reads and writes."""
        with rng.choice(self.loops).opened(os.O_RDWR) as fd:
            for _ in range(4):
                os.pread(fd, 65536, rng.randrange(4 * MIB))
                os.pwrite(fd, b"x" * 8192, MIB + rng.randrange(MIB))
            os.fsync(fd)

    def hold(self, rng):
        """Keeps a device or a partition open for a moment."""
        loop = rng.choice(self.loops)
        path = rng.choice((loop.path, loop.part(1), loop.part(2)))
        fd = os.open(path, rng.choice((os.O_RDONLY, os.O_RDONLY | os.O_EXCL)))
        time.sleep(rng.random() / 50)
        os.close(fd)

    def come_and_go(self, rng):
        """Devices made and removed."""
        number = rng.randrange(6)
        with contextlib.suppress(OSError):
            loopdev.remove(number)
        loopdev.free()
        with contextlib.suppress(OSError):
            loopdev.add(number)

    def actions(self):
        """All of them; attaching more often, as it takes luck."""
        return [self.attach, self.attach, self.set_fd, self.detach, self.change_fd,
                self.set_status, self.settings, self.look, self.transfer, self.hold,
                self.come_and_go]


@suite.test
def eight_jobs_race(t):
    folder = store(t)
    chaos = Chaos(folder)
    running = [jobs.Job(t, number, chaos.actions(), jobs.share(TESTS), FINE) for number in range(8)]
    done = jobs.finish(running)
    print(f"# {done} actions")
    judge_leftovers(folder)


def content_jobs(t, loop, size, seconds):
    """Four processes that write to parts of a device, and compare what they read."""
    def worker(number):
        start, length = number * size // 4, size // 4
        shadow = bytearray(loop.read(start, length))

        def step(rng):
            with blockio.Direct(loop.path) as device:
                for _ in range(8):
                    pos = rng.randrange(length // PIECE) * PIECE
                    size_now = min(rng.choice((1, 2, 8, 16)) * PIECE, length - pos)
                    if rng.random() < 0.5:
                        shadow[pos:pos + size_now] = rng.randbytes(size_now)
                        device.write(start + pos, shadow[pos:pos + size_now])
                    same_bytes(device.read(start + pos, size_now), shadow[pos:pos + size_now],
                               f"device at {start + pos}")
        return step
    # Opening fails for a moment while another size of sectors is set.
    return [jobs.Job(t, number, [worker(number)], seconds) for number in range(4)]


@suite.test
def content_while_settings_change(t):
    """No setting may lose or move a byte of those who use the device meanwhile."""
    folder, size = store(t), 8 * MIB
    path = os.path.join(folder, "a")
    blockio.make_file(path, size + MIB)
    loop = t.attach(path)
    seconds = jobs.share(TESTS)
    running = content_jobs(t, loop, size, seconds)
    rng, end, done = random.Random(jobs.SEED), time.monotonic() + seconds, 0
    while time.monotonic() < end or done < 4:
        done += change_something(loop, path, size, rng)
        time.sleep(rng.random() / 20)
    jobs.finish(running)
    whole = loop.read(0, size)
    loop.detach()
    same_bytes(blockio.content(path)[:size], whole, "file")
    judge_leftovers(folder)


def change_something(loop, path, size, rng):
    """One change of a setting that leaves the first `size` bytes where they are."""
    kind = rng.randrange(5)
    try:
        if kind == 0:
            os.truncate(path, size + rng.choice((0, PIECE, MIB)))
            loop.ioctl(loopdev.SET_CAPACITY)
        elif kind == 1:
            loop.ioctl(loopdev.SET_DIRECT_IO, rng.randrange(2))
        elif kind == 2:
            loop.ioctl(loopdev.SET_BLOCK_SIZE, rng.choice((512, 1024, 4096)), os.O_RDWR)
        elif kind == 3:
            loop.set_status(name=rng.randbytes(8).hex().encode())
        else:
            loop.set_status(sizelimit=rng.choice((0, size, size + PIECE)))
    except OSError as error:
        # Direct I/O asks for sectors that are large enough.
        if (kind, error.errno) != (1, errno.EINVAL):
            raise
        return 0
    return 1


@suite.test
def reads_while_the_file_changes(t):
    """Whatever is read is of one of the two files, and after the change of the new one."""
    folder, size = store(t), 4 * MIB
    paths = [os.path.join(folder, name) for name in "ab"]
    for letter, path in zip(b"AB", paths):
        with open(path, "wb") as file:
            file.write(b"".join(struct.pack("=BxxxI", letter, at) * 512
                                for at in range(size // PIECE)))
    loop = loopdev.attach_read_only(paths[0])
    t.defer(loop.detach_if_bound)

    def look(rng):
        at = rng.randrange(size // PIECE - 16)
        with blockio.Direct(loop.path, os.O_RDONLY) as device:
            data = device.read(at * PIECE, 16 * PIECE)
        for number in range(16):
            piece = data[number * PIECE:(number + 1) * PIECE]
            good = [struct.pack("=BxxxI", letter, at + number) * 512 for letter in b"AB"]
            ensure(piece in good, f"piece {at + number} is of neither file")

    seconds = jobs.share(TESTS)
    running = [jobs.Job(t, number, [look], seconds) for number in range(4)]
    end, turn = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        turn += 1
        loop.change_file_read_only(paths[turn % 2])
        expected = "AB"[turn % 2].encode()
        equal(blockio.direct_read(loop.path, 0, 512)[:1], expected, f"file after change {turn}")
    jobs.finish(running)
    judge_leftovers(folder)


@suite.test
def reads_while_the_window_moves(t):
    """A request is served from one window or another, never from a mixture."""
    folder, size = store(t), 4 * MIB
    path = os.path.join(folder, "a")
    with open(path, "wb") as file:
        file.write(b"".join(struct.pack("=Q", at) * 64 for at in range(size // 512)))
    loop = t.attach(path)

    def look(rng):
        first = rng.randrange(4096)
        with blockio.Direct(loop.path, os.O_RDONLY) as device:
            data = device.read(first * 512, 16384)
        tags = [struct.unpack_from("=Q", data, at)[0] for at in range(0, len(data), 512)]
        ensure(tags == list(range(tags[0], tags[0] + 32)), f"sectors {tags}")
        ensure(tags[0] - first in (0, 1, 8, 1000), f"offset of {tags[0] - first} sectors")

    seconds = jobs.share(TESTS)
    running = [jobs.Job(t, number, [look], seconds) for number in range(4)]
    rng, end = random.Random(jobs.SEED), time.monotonic() + seconds
    while time.monotonic() < end:
        loop.set_status(offset=512 * rng.choice((0, 1, 8, 1000)))
    jobs.finish(running)
    judge_leftovers(folder)


@suite.test
def users_are_killed(t):
    """SIGKILL at any moment of attaching, using and detaching leaves a device that works."""
    folder = store(t)
    chaos = Chaos(folder)
    actions = [chaos.attach, chaos.set_fd, chaos.detach, chaos.change_fd, chaos.set_status,
               chaos.settings, chaos.transfer, chaos.transfer]
    rng, end, kills = random.Random(jobs.SEED), time.monotonic() + jobs.share(TESTS), 0
    while time.monotonic() < end:
        running = [jobs.Job(t, kills * 4 + number, actions, 600, FINE) for number in range(4)]
        time.sleep(rng.random() / 2)
        for job in running:
            job.kill()
        statuses = [job.result()[0] for job in running]
        equal(statuses, [-9] * 4, "exit status of killed processes")
        kills += 1
    judge_leftovers(folder)
    path = blockio.make_sparse(t.path("a"), MIB)
    for loop in chaos.loops:
        if not os.path.exists(loop.path):
            loopdev.add(loop.number)
        t.attach(path, loop=loop)
        loop.write(0, b"alive" + bytes(507))
        loop.detach()


@suite.test
def stress_ng(t):
    """A program that others use to find faults in loop drivers."""
    t.allow_log(r"(loop: )?deleting an unspecified loop device is not supported\.")
    folder = store(t)
    done = system.attempt("stress-ng", "--loop", "4", "--timeout", f"{jobs.share(TESTS):.0f}s",
                          "--temp-path", folder, "--oom-avoid", "--verify", "--metrics-brief")
    if done.returncode:
        raise Failure(f"stress-ng: status {done.returncode}: {done.stderr[-2000:]}")
    judge_leftovers(folder)


if __name__ == "__main__":
    suite.main()
