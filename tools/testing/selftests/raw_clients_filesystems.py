#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""File systems in raw files, by `mount -o loop`. The stock driver passes this suite, too."""

import errno
import os

from lib import blockio, loopdev, system, trees
from lib.kmsg import NO_ZERO_RANGE
from lib.ktap import Suite, ensure, equal, fails_with
from lib.system import run

MIB = 1 << 20
DEVICE = r"loop\d+(p\d+)?"
suite = Suite(udev=True, allow=[
    NO_ZERO_RANGE,
    rf"XFS \({DEVICE}\): (Mounting V5 Filesystem|Unmounting Filesystem|Ending clean mount).*",
    rf"EXT4-fs \({DEVICE}\): resiz(ing|ed) filesystem .*",
    rf"F2FS-fs \({DEVICE}\): Mounted with checkpoint version = .*",
    rf"F2FS-fs \({DEVICE}\): f2fs_recover_fsync_data: .*",
    rf"F2FS-fs \({DEVICE}\): write access unavailable, skipping recovery",
    rf"BTRFS: device (label \S+ )?(fsid|devid) .* /dev/{DEVICE} .*",
    rf"BTRFS info \(device {DEVICE}( state \w+)?\): .*",
])

# How to make a file system in a file, how big the file is, and who checks it afterwards.
WRITABLE = {
    "ext4": (("mkfs.ext4", "-q"), 64, ("e2fsck", "-fn")),
    "xfs": (("mkfs.xfs", "-q"), 320, ("xfs_repair", "-n", "-f")),
    "btrfs": (("mkfs.btrfs", "-q"), 160, ("btrfs", "check", "--readonly")),
    "f2fs": (("mkfs.f2fs", "-q"), 96, ("fsck.f2fs", "--dry-run")),
    "vfat": (("mkfs.vfat", "-F", "32"), 64, ("fsck.vfat", "-n")),
}


def bound_to(path):
    """The devices that losetup finds for a file."""
    out = run("losetup", "-n", "-O", "NAME", "-j", path).split()
    return [loopdev.Loop.by_path(name) for name in out]


def unmount(point):
    """Unmounts, and waits until the device that came with the mount is gone."""
    before = loopdev.bound()
    run("umount", point)
    system.settle()
    system.wait_until(lambda: len(loopdev.bound()) < len(before), "umount detached a device")


@suite.cases(**{kind: kind for kind in WRITABLE})
def made_filled_checked(t, kind):
    """Made in the file, filled through the device, checked in the file, read again."""
    mkfs, mebibytes, check = WRITABLE[kind]
    path = blockio.make_sparse(t.path("image"), mebibytes * MIB)
    run(*mkfs, path)
    point = t.mount(path, "-o", "loop")
    equal(run("findmnt", "-n", "-o", "FSTYPE", point).strip(), kind, "FSTYPE")
    before = trees.make(point, links=kind != "vfat")
    unmount(point)
    run(*check, path)
    t.mount(path, "-o", "loop,ro")
    trees.same(point, before, "files after another mount")
    fails_with(errno.EROFS, open, os.path.join(point, "new"), "wb")
    unmount(point)
    run(*check, path)


@suite.cases(ext4=("mkfs.ext4", "-q"), xfs=("mkfs.xfs", "-q"), btrfs=("mkfs.btrfs", "-q"),
             f2fs=("mkfs.f2fs", "-q"))
def made_on_the_device(t, mkfs):
    """mkfs sees a device, discards and zeroes it; the file is then one that the kernel mounts."""
    path = blockio.make_sparse(t.path("image"), 320 * MIB)
    loop = t.losetup(path)
    before = trees.made_on(t, loop.path, *mkfs)
    loop.detach()
    system.settle()
    point = t.mount(path, "-o", "loop,ro")
    trees.same(point, before, "files")
    unmount(point)


@suite.cases(squashfs=("mksquashfs", "SOURCE", "IMAGE", "-quiet", "-no-progress", "-comp", "gzip"),
             iso9660=("xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", "IMAGE", "SOURCE"))
def read_only_image(t, command):
    """Images that can only be read, as snaps and installation media are."""
    source = t.path("source")
    os.mkdir(source)
    before = trees.make(source)
    names = {"SOURCE": source, "IMAGE": t.path("image")}
    run(*(names.get(word, word) for word in command))
    digest = blockio.digest(t.path("image"))
    point = t.mount(t.path("image"), "-o", "loop")
    trees.same(point, before, "files")
    t.record("options", run("findmnt", "-n", "-o", "VFS-OPTIONS", point).strip())
    t.record("ro of the device", bound_to(t.path("image"))[0].attr("ro"))
    unmount(point)
    equal(blockio.digest(t.path("image")), digest, "sha256 of the image")


@suite.test
def odd_size_of_a_squashfs(t):
    """Its last bytes lie in a sector that the device does not have, unless it is padded."""
    source = t.path("source")
    os.mkdir(source)
    before = trees.make(source)
    run("mksquashfs", source, t.path("image"), "-quiet", "-no-progress", "-nopad")
    size = os.path.getsize(t.path("image"))
    ensure(size % 512, "the size is a multiple of 512 after all")
    with open(t.path("image"), "ab") as file:
        file.write(bytes(512 - size % 512 + 100))
    point = t.mount(t.path("image"), "-o", "loop")
    trees.same(point, before, "files")
    equal(bound_to(t.path("image"))[0].size(), size + 512 - size % 512, "size")
    unmount(point)


def grown(t, mkfs, grow):
    """A mounted file system follows its file, which grows from 320 MiB to 400 MiB."""
    path = blockio.make_sparse(t.path("image"), 320 * MIB)
    run(*mkfs, path)
    loop = t.losetup(path)
    point = t.mount(loop.path)
    before = trees.make(point)
    room = os.statvfs(point).f_blocks
    os.truncate(path, 400 * MIB)
    run("losetup", "-c", loop.path)
    equal(loop.size(), 400 * MIB, "size of the device")
    grow(loop, point)
    ensure(os.statvfs(point).f_blocks > room * 1.15, "the file system has not grown")
    trees.same(point, before, "files")
    run("umount", point)
    return path


@suite.test
def grow_ext4(t):
    path = grown(t, ("mkfs.ext4", "-q"), lambda loop, _: run("resize2fs", loop.path))
    run("e2fsck", "-fn", path)


@suite.test
def grow_xfs(t):
    path = grown(t, ("mkfs.xfs", "-q"), lambda _, point: run("xfs_growfs", point))
    run("xfs_repair", "-n", "-f", path)


@suite.test
def grow_btrfs(t):
    path = grown(t, ("mkfs.btrfs", "-q"),
                 lambda _, point: run("btrfs", "filesystem", "resize", "max", point))
    run("btrfs", "check", "--readonly", path)


@suite.test
def btrfs_over_two_devices(t):
    """A mirror: the files are there with either half alone."""
    loops = [t.losetup(blockio.make_sparse(t.path(name), 160 * MIB)) for name in ("a", "b")]
    run("mkfs.btrfs", "-q", "-m", "raid1", "-d", "raid1", *(loop.path for loop in loops))
    system.settle()
    point = t.mount(loops[0].path, "-o", f"device={loops[1].path}")
    before = trees.make(point)
    run("btrfs", "scrub", "start", "-B", point)
    run("umount", point)
    for name, loop in zip("ab", loops):
        loop.detach()
        system.settle()
        run("btrfs", "device", "scan", "--forget")
    for name in ("a", "b"):
        alone = t.losetup(t.path(name))
        system.settle()
        t.allow_log(r"BTRFS (warning|info|error) \(device loop\d+( state \w+)?\): .*missing.*")
        t.allow_log(r"BTRFS error \(device loop\d+( state \w+)?\): failed to read chunk tree: -2")
        t.mount(alone.path, "-o", "degraded,ro")
        trees.same(point, before, f"files with {name} alone")
        run("umount", point)
        alone.detach()
        system.settle()
        run("btrfs", "device", "scan", "--forget")


@suite.test
def trim_gives_space_back(t):
    path = blockio.make_sparse(t.path("image"), 64 * MIB)
    run("mkfs.ext4", "-q", path)
    point = t.mount(path, "-o", "loop")
    blockio.make_file(os.path.join(point, "big"), 6 * MIB)
    run("sync", "-f", point)
    full = blockio.allocated(path)
    os.unlink(os.path.join(point, "big"))
    run("sync", "-f", point)
    ensure("trimmed" in run("fstrim", "-v", point), "fstrim -v")
    ensure(blockio.allocated(path) < full - 5 * MIB, "the file takes as much space as before")
    unmount(point)
    run("e2fsck", "-fn", path)


@suite.test
def file_system_in_a_file_system(t):
    """Three levels, each mounted from a file in the one below."""
    points, path = [], blockio.make_sparse(t.path("image"), 128 * MIB)
    for level in range(3):
        run("mkfs.ext4", "-q", path)
        points.append(t.mount(path, "-o", "loop", where=f"mnt{level}"))
        before = trees.make(points[-1], seed=level)
        path = blockio.make_sparse(os.path.join(points[-1], "image"), (80 - 30 * level) * MIB)
    trees.same(points[2], {**before, "image": blockio.digest(path)}, "files of the third")
    for point in reversed(points):
        unmount(point)
    run("e2fsck", "-fn", t.path("image"))


if __name__ == "__main__":
    suite.main()
