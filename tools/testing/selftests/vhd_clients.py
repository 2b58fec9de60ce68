#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Programs that people use with loop devices, on VHDs. What they have written is afterwards
compared with what qemu-img and our reader see in the image."""

import os

from lib import blockio, images, loopdev, needs, system, trees, vhd, vhd_reader
from lib.kmsg import NO_ZERO_RANGE
from lib.ktap import Suite, ensure, equal, same_bytes
from lib.system import attempt, run

MIB = 1 << 20
NAME = "vhdselftest"
DEVICE = r"loop\d+(p\d+)?"
suite = Suite(udev=True, allow=[
    NO_ZERO_RANGE,
    rf"XFS \({DEVICE}\): (Mounting V5 Filesystem|Unmounting Filesystem|Ending clean mount).*",
    rf"BTRFS: device (label \S+ )?(fsid|devid) .* /dev/{DEVICE} .*",
    rf"BTRFS info \(device {DEVICE}( state \w+)?\): .*",
    r"EXT4-fs \((dm-|md)\d+\): (un)?mount.*",
    r"md/raid1:md\d+: .*", r"md\d+: .*", r"md: .*", r"async_tx: .*",
    r"md_update_sb: can't update sb for read-only array md\d+",
])
TABLE = "label: gpt\nsize=8MiB,name=first\nsize=48MiB,name=second\n"


def empty(t, name="disk.vhd", mebibytes=64):
    """An empty dynamic VHD by qemu-img."""
    return images.create(t.path(name), mebibytes * MIB, subformat="dynamic", force_size="on")


def partitioned(t):
    """A VHD with two partitions and an ext4 in the second; the image, and what is in the ext4."""
    path = empty(t)
    loop = t.losetup("-P", path)
    run("sfdisk", "-q", loop.path, text=TABLE)
    system.settle()
    before = trees.made_on(t, loop.part(2), "mkfs.ext4", "-q", "-L", "second")
    loop.detach()
    system.settle()
    return path, before


def raw_of(t, path):
    """The guest disk as a raw file: by qemu-img, and the same by our reader."""
    raw = images.convert(path, t.path("raw"))
    same_bytes(vhd_reader.guest_of(path), blockio.content(raw), "image by our reader and qemu-img")
    return raw


def trees_in_raw(t, raw, offset, before):
    """Fails unless the ext4 at `offset` of a raw file is sound and has the files."""
    run("e2fsck", "-fn", f"{raw}?offset={offset}")
    point = t.mount(raw, "-o", f"loop,ro,offset={offset}", where="raw.mnt")
    trees.same(point, before, "files in the converted image")
    run("umount", point)


@suite.test
def mount_by_partition(t):
    path, before = partitioned(t)
    loop = t.losetup("-P", path)
    system.settle()
    equal(os.path.realpath("/dev/disk/by-label/second"), loop.part(2), "by-label")
    equal(os.path.realpath("/dev/disk/by-partlabel/second"), loop.part(2), "by-partlabel")
    point = t.mount("LABEL=second")
    equal(run("findmnt", "-n", "-o", "SOURCE", point).strip(), loop.part(2), "SOURCE")
    trees.same(point, before, "files")
    blockio.make_file(os.path.join(point, "more"), MIB)
    before = trees.listing(point)
    run("umount", point)
    loop.detach()
    trees_in_raw(t, raw_of(t, path), 9 * MIB, before)


@suite.test
def mount_whole_disk(t):
    """`mount -o loop image.vhd`: the file system fills the guest disk."""
    path = empty(t)
    loop = t.losetup(path)
    run("mkfs.ext4", "-q", loop.path)
    loop.detach()
    system.settle()
    point = t.mount(path, "-o", "loop")
    equal([loop.attr("loop/parser") for loop in loopdev.bound()], ["vhd"], "parsers")
    before = trees.make(point)
    run("umount", point)
    system.settle()
    system.wait_until(lambda: not loopdev.bound(), "umount detached the device")
    trees_in_raw(t, raw_of(t, path), 0, before)


@suite.cases(xfs=("mkfs.xfs", "-q"), btrfs=("mkfs.btrfs", "-q"))
def other_file_system(t, mkfs):
    """mkfs discards the device first."""
    path = empty(t, mebibytes=320)
    loop = t.losetup(path)
    before = trees.made_on(t, loop.path, *mkfs)
    loop.detach()
    system.settle()
    raw = images.convert(path, t.path("raw"))
    point = t.mount(raw, "-o", "loop,ro")
    trees.same(point, before, "files in the converted image")
    run("umount", point)


@suite.test
def kpartx_on_the_device(t):
    path, before = partitioned(t)
    loop = t.losetup(path)
    run("kpartx", "-a", "-s", loop.path)
    t.defer(attempt, "kpartx", "-d", loop.path)
    point = t.mount(f"/dev/mapper/{loop.name}p2")
    trees.same(point, before, "files")
    run("umount", point)
    system.unmap_partitions(loop.path)
    system.settle()
    ensure(not os.path.exists(f"/dev/mapper/{loop.name}p2"), "the map is left")


@suite.test
def kpartx_on_the_file(t):
    path, before = partitioned(t)
    run("kpartx", "-a", "-s", path)
    t.defer(attempt, "kpartx", "-d", path)
    loop = loopdev.bound()[0]
    equal(loop.attr("loop/parser"), "vhd", "parser")
    point = t.mount(f"/dev/mapper/{loop.name}p2")
    trees.same(point, before, "files")
    run("umount", point)
    system.unmap_partitions(path)
    system.settle()
    system.wait_until(lambda: not loop.is_bound(), "kpartx -d detached the device")


@suite.test
def partition_programs(t):
    """fdisk, parted and sgdisk in turn on one table."""
    path = empty(t)
    loop = t.losetup("-P", path)
    # udevd looks at what each has written, and scans for partitions, too.
    run("fdisk", loop.path, text="g\nn\n1\n\n+8M\nw\n")
    system.settle()
    run("parted", "-s", loop.path, "mkpart", "b", "9MiB", "20MiB")
    system.settle()
    run("sgdisk", "-n", "3:0:+4M", loop.path)
    system.settle()
    run("partx", "-u", loop.path)
    system.settle()
    data = [blockio.pattern(4 * MIB, number) for number in (1, 2, 3)]
    for number in (1, 2, 3):
        blockio.direct_write(loop.part(number), 0, data[number - 1])
    loop.detach()
    raw = raw_of(t, path)
    run("sgdisk", "-v", raw)
    content = blockio.content(raw)
    for start, part in zip((1, 9, 20), data):
        same_bytes(content[start * MIB:(start + 4) * MIB], part, f"partition at {start} MiB")


@suite.test
def luks(t):
    path = empty(t)
    loop = t.losetup(path)
    with open(t.path("key"), "wb") as file:
        file.write(b"a passphrase of many words")
    options = ("--key-file", t.path("key"))
    run("cryptsetup", "-q", "luksFormat", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
        *options, loop.path)
    run("cryptsetup", "open", *options, loop.path, NAME)
    t.defer(attempt, "cryptsetup", "close", NAME)
    run("mkfs.ext4", "-q", f"/dev/mapper/{NAME}")
    point = t.mount(f"/dev/mapper/{NAME}")
    before = trees.make(point)
    run("umount", point)
    run("cryptsetup", "close", NAME)
    loop.detach()
    raw = raw_of(t, path)
    run("cryptsetup", "open", "--readonly", *options, raw, NAME)
    t.mount(f"/dev/mapper/{NAME}", "-o", "ro")
    trees.same(point, before, "files in the converted image")
    run("umount", point)
    run("cryptsetup", "close", NAME)


@suite.test
def logical_volume(t):
    """One physical volume in a VHD, one in a raw file."""
    path = empty(t)
    loops = [t.losetup(path), t.losetup(blockio.make_sparse(t.path("disk.raw"), 64 * MIB))]
    run("vgcreate", "-q", "-y", "-s", "1m", NAME, *(loop.path for loop in loops))
    t.defer(attempt, "vgchange", "-an", NAME)
    run("lvcreate", "-q", "-y", "-i", "2", "-l", "100%FREE", "-n", "data", NAME)
    run("mkfs.ext4", "-q", f"/dev/{NAME}/data")
    point = t.mount(f"/dev/{NAME}/data")
    before = trees.make(point)
    run("umount", point)
    run("vgchange", "-q", "-an", NAME)
    for loop in loops:
        loop.detach()
    system.settle()
    for name in (raw_of(t, path), t.path("disk.raw")):
        t.losetup("-r", name)
    run("vgchange", "-q", "-ay", NAME)
    t.mount(f"/dev/{NAME}/data", "-o", "ro,noload")
    trees.same(point, before, "files, with the converted image in the place of the VHD")
    run("umount", point)
    run("vgchange", "-q", "-an", NAME)


@suite.test
def mirror(t):
    """One half in a VHD, the other in a raw file; the data is in both."""
    needs.module("raid1")
    path = empty(t)
    loops = [t.losetup(path), t.losetup(blockio.make_sparse(t.path("disk.raw"), 64 * MIB))]
    run("mdadm", "--create", "/dev/md/selftest", "--quiet", "--run", "--assume-clean",
        "--level=1", "--metadata=1.2", "--homehost=any", "--raid-devices=2",
        *(loop.path for loop in loops))
    t.defer(attempt, "mdadm", "--stop", "/dev/md/selftest")
    system.settle()
    data = blockio.pattern(12 * MIB)
    blockio.direct_write("/dev/md/selftest", 0, data)
    system.settle()
    run("mdadm", "--stop", "/dev/md/selftest")
    for loop in loops:
        loop.detach()
    ensure(data in blockio.content(raw_of(t, path)), "the VHD does not have the data")
    ensure(data in blockio.content(t.path("disk.raw")), "the raw file does not have the data")


@suite.test
def dissect(t):
    """systemd-dissect attaches by itself, with partition scanning, and finds the root."""
    path = empty(t)
    loop = t.losetup("-P", path)
    run("sfdisk", "-q", loop.path, text="label: gpt\nsize=48MiB,"
        "type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n")
    system.settle()
    run("mkfs.ext4", "-q", loop.part(1))
    point = t.mount(loop.part(1))
    for name in ("usr", "etc"):
        os.mkdir(os.path.join(point, name))
    with open(os.path.join(point, "etc", "os-release"), "w", encoding="ascii") as file:
        file.write("ID=selftest\n")
    trees.make(point)
    before = trees.listing(point)
    run("umount", point)
    loop.detach()
    system.settle()
    run("systemd-dissect", "--mount", path, point)
    t.defer(system.unmount_if_mounted, point)
    trees.same(point, before, "files")
    run("systemd-dissect", "--umount", point)
    system.settle()
    system.wait_until(lambda: not loopdev.bound(), "systemd-dissect --umount detached the device")


@suite.test
def fixed_disk_from_a_raw_one(t):
    """A raw disk becomes a fixed VHD by a footer at its end, and is what it was."""
    raw = blockio.make_sparse(t.path("raw"), 64 * MIB)
    run("sfdisk", "-q", raw, text=TABLE)
    loop = t.losetup("-P", raw)
    system.settle()
    run("mkfs.ext4", "-q", loop.part(2))
    point = t.mount(loop.part(2))
    before = trees.make(point)
    run("umount", point)
    loop.detach()
    system.settle()
    with open(raw, "ab") as file:
        file.write(vhd.fixed_footer(64 * MIB).pack())
    loop = t.losetup("-P", raw)
    equal((loop.attr("loop/parser"), loop.size()), ("vhd", 64 * MIB), "parser and size")
    system.settle()
    t.mount(loop.part(2))
    trees.same(point, before, "files")
    run("umount", point)


if __name__ == "__main__":
    suite.main()
