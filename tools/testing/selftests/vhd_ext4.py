#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A file system on a VHD: made, filled, checked, mounted again; by others, too."""

import os
import shutil
import subprocess

from lib import blockio, images, vhd
from lib.ktap import Suite, equal
from lib.system import run

MIB = 1 << 20
suite = Suite()


def fill(point):
    """Files of many sizes, from four processes, some of them removed again; hashes by name."""
    jobs = [subprocess.Popen(["python3", "-c", FILLER, os.path.join(point, str(number)),
                              str(number)]) for number in range(4)]
    equal([job.wait() for job in jobs], [0] * 4, "exit status of the processes")
    return hashes(point)


FILLER = """
import os, random, sys
top, seed = sys.argv[1:]
rng = random.Random(int(seed))
os.mkdir(top)
for number in range(40):
    path = f"{top}/{number}"
    with open(path, "wb") as file:
        for _ in range(rng.randrange(4)):
            file.seek(rng.randrange(100000))
            file.write(rng.randbytes(int(200000 ** rng.random())))
        if number % 10 == 0:
            os.fsync(file.fileno())
    if number % 5 == 4:
        os.unlink(f"{top}/{number - 2}")
"""


def hashes(top):
    """The hash of every file."""
    return {os.path.relpath(os.path.join(folder, name), top):
            blockio.digest(os.path.join(folder, name))
            for folder, _, names in os.walk(top) for name in names}


def life(t, folder, image, options=(), mkfs=("mkfs.ext4", "-q")):
    """The whole story of one image."""
    path = image.write(os.path.join(folder, "a.vhd"))
    loop = t.losetup(*options, path)
    run(*mkfs, loop.path)
    point = t.mount(loop.path)
    before = fill(point)
    run("umount", point)
    run("e2fsck", "-fn", loop.path)
    loop.detach()
    loop = t.losetup(*options, path)
    run("e2fsck", "-fn", loop.path)
    point = t.mount(loop.path)
    equal(hashes(point), before, "files after another attach")
    shutil.rmtree(os.path.join(point, "0"))
    after = {**hashes(point), **fill_again(point)}
    run("umount", point)
    loop.detach()
    raw = images.convert(path, t.path("raw"))
    run("e2fsck", "-fn", raw)
    loop = t.losetup("-r", raw)
    point = t.mount(loop.path, "-o", "ro")
    equal(hashes(point), after, "files as qemu-img sees them")
    run("umount", point)


def fill_again(point):
    """Writes into the space that the removed files have left."""
    path = os.path.join(point, "more")
    blockio.make_file(path, 5 * MIB, 9)
    return {"more": blockio.digest(path)}


@suite.test
def dynamic_on_tmpfs(t):
    life(t, t.dir, vhd.Dynamic(64 * MIB))


@suite.test
def dynamic_on_ext4(t):
    life(t, t.ext4(160), vhd.Dynamic(64 * MIB))


@suite.test
def dynamic_on_ext4_with_direct_io(t):
    image = vhd.Dynamic(64 * MIB, align=8, footer=vhd.tapdisk(), batmap=True)
    life(t, t.ext4(160), image, ("--direct-io=on",))


@suite.test
def block_512k(t):
    life(t, t.dir, vhd.Dynamic(64 * MIB, 512 << 10), mkfs=("mkfs.ext4", "-q", "-b", "1024"))


@suite.test
def copied_while_frozen(t):
    """With the file system frozen, the file holds everything, before any flush or detach."""
    path = vhd.Dynamic(64 * MIB).write(t.path("a.vhd"))
    loop = t.losetup(path)
    run("mkfs.ext4", "-q", loop.path)
    point = t.mount(loop.path)
    before = fill(point)
    run("fsfreeze", "-f", point)
    copy = shutil.copyfile(path, t.path("copy.vhd"))
    run("fsfreeze", "-u", point)
    run("umount", point)
    loop.detach()
    raw = images.convert(copy, t.path("raw"))
    run("e2fsck", "-fn", raw)
    loop = t.losetup("-r", copy)
    point = t.mount(loop.path, "-o", "ro")
    equal(hashes(point), before, "files in the copy")
    run("umount", point)


if __name__ == "__main__":
    suite.main()
