# SPDX-License-Identifier: GPL-2.0
"""Files and devices of all kinds that a loop device can be on."""

import os

from lib import blockio, needs, system
from lib.system import run

MIB = 1 << 20
LENGTH = 4 * MIB

# How to make a file system on a disk, and how large the disk has to be in MiB.
FILE_SYSTEMS = {
    "ext4_1k": (32, "mkfs.ext4", "-q", "-F", "-b", "1024"),
    "ext4_4k": (32, "mkfs.ext4", "-q", "-F", "-b", "4096"),
    "ext2": (32, "mkfs.ext2", "-q", "-F"),
    "xfs": (320, "mkfs.xfs", "-q", "-f"),
    "btrfs": (160, "mkfs.btrfs", "-q", "-f"),
    "f2fs": (96, "mkfs.f2fs", "-q", "-f"),
    "vfat": (32, "mkfs.vfat"),
}


def on_file_system(t, kind, disk=None):
    """A file of pattern() bytes on a new file system; returns its path."""
    size, program, *args = FILE_SYSTEMS[kind]
    disk = disk or t.ram_disk(size)
    run(program, *args, disk)
    path = os.path.join(t.mount(disk, where=kind), "a")
    blockio.make_file(path, LENGTH)
    return path


def on_tmpfs(t):
    """A file on tmpfs."""
    blockio.make_file(t.path("a"), LENGTH)
    return t.path("a")


def on_root(t):
    """A file on the root of the guest, which is an overlay."""
    path = "/var/tmp/loop-selftest"
    t.defer(os.unlink, path)
    blockio.make_file(path, LENGTH)
    return path


def folder_with_a_file(t):
    """A folder to make a read-only image of."""
    folder = t.path("folder")
    os.mkdir(folder)
    blockio.make_file(os.path.join(folder, "a"), LENGTH)
    return folder


def copied_to_disk(t, image, where):
    """Mounts a read-only image that is on the RAM disk; returns the path of the file in it."""
    disk = t.ram_disk(16)
    blockio.direct_write(disk, 0, padded(blockio.content(image)))
    return os.path.join(t.mount(disk, "-o", "ro", where=where), "a")


def padded(data):
    """Data, filled up to whole blocks."""
    return data + bytes(-len(data) % 4096)


def on_squashfs(t):
    """A file on a squashfs."""
    run("mksquashfs", folder_with_a_file(t), t.path("image"), "-quiet", "-no-progress")
    return copied_to_disk(t, t.path("image"), "squashfs")


def on_iso(t):
    """A file on an ISO 9660 file system."""
    run("xorriso", "-as", "mkisofs", "-quiet", "-r", "-o", t.path("image"), folder_with_a_file(t))
    return copied_to_disk(t, t.path("image"), "iso")


def ram_disk(t):
    """A disk in memory."""
    return t.ram_disk(LENGTH // MIB)


def loop_device(t):
    """Another loop device."""
    return t.attach(on_tmpfs(t)).path


def loop_device_4k(t):
    """Another loop device, with sectors of 4096 bytes."""
    return t.attach(on_tmpfs(t), block_size=4096).path


def scsi_disk(t, **parameters):
    """A disk of scsi_debug, which keeps its data in memory; returns its node."""
    options = {"dev_size_mb": 16, "delay": 0, "add_host": 1, **parameters}
    needs.module("scsi_debug")
    before = disks()
    run("modprobe", "sd_mod")
    t.allow_log(r"scsi_debug:.*")
    t.allow_log(r"scsi \d+:\d+:\d+:\d+: Power-on or device reset occurred")
    run("modprobe", "scsi_debug", *(f"{name}={value}" for name, value in options.items()))
    t.defer(remove_scsi_disk)
    system.wait_until(lambda: disks() - before, "the disk of scsi_debug is there")
    path = f"/dev/{(disks() - before).pop()}"
    system.wait_until(lambda: os.path.exists(path), f"{path} is there")
    return path


def disks():
    """Names of the SCSI disks."""
    return {name for name in os.listdir("/sys/block") if name.startswith("sd")}


def remove_scsi_disk():
    """Undoes scsi_disk()."""
    system.wait_until(lambda: system.attempt("rmmod", "scsi_debug").returncode == 0,
                      "scsi_debug is not in use")


def scsi_512(t):
    """A SCSI disk with sectors of 512 bytes in blocks of 4096, that can unmap and write zeroes."""
    return scsi_disk(t, physblk_exp=3, lbpu=1, lbpws=1, lbprz=1)


def scsi_4k(t):
    """A SCSI disk with sectors of 4096 bytes, that cannot unmap."""
    return scsi_disk(t, sector_size=4096)


def on_ext4_on_scsi_4k(t):
    """A file on ext4 on a disk with sectors of 4096 bytes."""
    return on_file_system(t, "ext4_4k", scsi_disk(t, sector_size=4096, dev_size_mb=32))


def file_on(kind):
    """A function that makes a file on a file system."""
    return lambda t: on_file_system(t, kind)


ALL = {
    **{kind: file_on(kind) for kind in FILE_SYSTEMS},
    "tmpfs": on_tmpfs, "overlay": on_root, "squashfs": on_squashfs, "iso": on_iso,
    "ram_disk": ram_disk, "loop_device": loop_device, "loop_device_4k": loop_device_4k,
    "scsi_512": scsi_512, "scsi_4k": scsi_4k, "ext4_on_scsi_4k": on_ext4_on_scsi_4k,
}
