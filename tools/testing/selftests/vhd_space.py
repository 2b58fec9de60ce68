#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""No space left on the backing file system: ENOSPC, nothing lost, and it goes on once there is."""

import errno
import os

from lib import blockio, images, system, vhd, vhd_reader
from lib.blockio import Direct
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import run

MIB = vhd.MIB
BLOCK = 2 * MIB
SIZE = 64 * MIB
PIECE = MIB // 2
suite = Suite(allow=[r"(critical space allocation|I/O) error, dev loop\d+.*"])


def small_tmpfs(t):
    """A tmpfs of 16 MiB."""
    return t.mount("tmpfs", "-t", "tmpfs", "-o", "size=16M", where="small")


def small_ext4(t):
    """An ext4 of 24 MiB."""
    return t.ext4(24)


def fill_up(folder):
    """Takes all space but about 5 MiB; returns the file that holds it."""
    path = os.path.join(folder, "filler")
    stat = os.statvfs(folder)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - 5 * MIB)
    return path


def write_until_full(device, shadow):
    """Writes a piece into each block until that fails; returns the block that had no room."""
    for number in range(SIZE // BLOCK):
        pos = number * BLOCK + 4096
        data = blockio.pattern(PIECE, number)
        try:
            device.write(pos, data)
        except OSError as error:
            equal(error.errno, errno.ENOSPC, "errno")
            return number
        shadow[pos:pos + len(data)] = data
    return None


@suite.cases(tmpfs=small_tmpfs, ext4=small_ext4)
def full_and_relieved(t, where):
    folder = where(t)
    path = vhd.Dynamic(SIZE).write(os.path.join(folder, "a.vhd"))
    filler = fill_up(folder)
    shadow = bytearray(SIZE)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        stuck = write_until_full(device, shadow)
        ensure(stuck is not None, "there was room for everything")
        fails_with(errno.ENOSPC, device.write, stuck * BLOCK + 4096, b"x" * PIECE)
        same_bytes(device.read(0, SIZE), bytes(shadow), "device while full")
        device.flush()
        copy_is_sound(t, path, shadow)
        os.unlink(filler)
        run("sync")
        data = blockio.pattern(PIECE, 99)
        device.write(stuck * BLOCK + 4096, data)
        shadow[stuck * BLOCK + 4096:stuck * BLOCK + 4096 + PIECE] = data
        device.flush()
        same_bytes(device.read(0, SIZE), bytes(shadow), "device with room again")
    loop.detach()
    images.judge(t, path, bytes(shadow))


def copy_is_sound(t, path, shadow):
    """The file as it is now is a VHD with the right content."""
    copy = t.path("copy.vhd")
    with open(copy, "wb") as file:
        file.write(blockio.content(path))
    images.judge(t, copy, bytes(shadow))


@suite.cases(tmpfs=small_tmpfs, ext4=small_ext4)
def detached_while_full(t, where):
    folder = where(t)
    path = vhd.Dynamic(SIZE).write(os.path.join(folder, "a.vhd"))
    fill_up(folder)
    shadow = bytearray(SIZE)
    loop = t.attach(path)
    with Direct(loop.path) as device:
        ensure(write_until_full(device, shadow) is not None, "there was room for everything")
    loop.detach()
    images.judge(t, path, bytes(shadow))
    loop = t.attach(path)
    same_bytes(images.whole(loop), bytes(shadow), "device after another attach")


@suite.test
def sparse_data_runs_out_of_room(t):
    """Blocks exist, but the file system has no room for their data."""
    folder = small_tmpfs(t)
    image = vhd.Dynamic(SIZE)
    for number in range(SIZE // BLOCK):
        image.put(number * BLOCK, b"x" * 512)
    path = os.path.join(folder, "a.vhd")
    image.write(t.path("whole.vhd"))
    run("cp", "--sparse=always", t.path("whole.vhd"), path)
    shadow = bytearray(image.guest())
    loop = t.attach(path)
    with Direct(loop.path) as device:
        written = 0
        try:
            for pos in range(4096, SIZE, MIB):
                data = blockio.pattern(MIB // 2, pos)
                device.write(pos, data)
                shadow[pos:pos + len(data)] = data
                written += 1
        except OSError as error:
            equal(error.errno, errno.ENOSPC, "errno")
        ensure(0 < written < SIZE // MIB, f"{written} pieces were written")
        same_bytes(device.read(0, pos), bytes(shadow[:pos]), "device in front of the failed write")
    loop.detach()
    with vhd_reader.Reader(path) as reader:
        reader.check()
        same_bytes(reader.read(0, pos), bytes(shadow[:pos]), "image in front of the failed write")


@suite.test
def file_system_on_a_full_store(t):
    """The guest's file system sees errors; when there is room again, it is whole."""
    folder = small_ext4(t)
    path = vhd.Dynamic(SIZE).write(os.path.join(folder, "a.vhd"))
    loop = t.losetup(path)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", loop.path)
    point = t.mount(loop.path, where="guest")
    kept = blockio.make_file(os.path.join(point, "kept"), MIB)
    run("sync", "-f", point)
    for pattern in (r"EXT4-fs.*", r"Aborting journal.*", r"Buffer I/O error.*", r"JBD2.*"):
        t.allow_log(pattern)
    filler = fill_up(folder)
    with open(os.path.join(point, "big"), "wb") as file:
        try:
            file.write(blockio.pattern(16 * MIB))
            file.flush()
            os.fsync(file.fileno())
            failed = False
        except OSError as error:
            failed = error.errno in (errno.ENOSPC, errno.EIO)
    ensure(failed, "16 MiB fit into 5 MiB")
    os.unlink(filler)
    run("sync", "-f", folder)
    system.attempt("umount", point)
    system.unmount_if_mounted(point)
    run("losetup", "-d", loop.path)
    loop = t.losetup(path)
    system.attempt("e2fsck", "-fy", loop.path)
    run("e2fsck", "-fn", loop.path)
    point = t.mount(loop.path, where="guest")
    same_bytes(blockio.content(os.path.join(point, "kept")), kept, "the file written before")
    run("umount", point)


if __name__ == "__main__":
    suite.main()
