#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""VHD files with losetup, partitions, mount and udev: the main job."""

import errno
import json
import os

from lib import blockio, images, loopdev, system, vhd
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import attempt, run

MIB = 1 << 20
SIZE = 40 * MIB
suite = Suite()

MBR = "label: dos\nsize=4MiB,type=83\nsize=16MiB,type=83\n"


def partitioned(t, name="disk.vhd"):
    """A dynamic VHD with two partitions, made by qemu-img, and its raw original."""
    raw = blockio.make_sparse(t.path("disk.raw"), SIZE)
    run("sfdisk", "-q", raw, text=MBR)
    data = blockio.pattern(4 * MIB)
    vhd.patch(raw, MIB, data)
    run("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on",
        raw, t.path(name))
    return t.path(name), data


def simple(t, size=SIZE, name="a.vhd", **options):
    """An empty dynamic VHD by qemu-img."""
    options = {"subformat": "dynamic", "force_size": "on", **options}
    return images.create(t.path(name), size, **options)


@suite.test
def attach_acknowledges(t):
    t.expect_log(rf"loop\d+: vhd dynamic image, {SIZE} bytes, read-write")
    loop = t.losetup(simple(t))
    equal(loop.size(), SIZE, "size")
    equal(loop.attr("loop/parser"), "vhd", "parser")
    equal(loop.attr("loop/variant"), "dynamic", "variant")
    equal(loop.attr("loop/size_source"), "current_size", "size_source")
    equal(loop.attr("loop/backing_file"), t.path("a.vhd"), "backing_file")
    equal(loop.attr("ro"), "0", "ro")


@suite.test
def attach_fixed_acknowledges(t):
    t.expect_log(rf"loop\d+: vhd fixed image, {SIZE} bytes, read-write")
    loop = t.losetup(simple(t, subformat="fixed"))
    equal(loop.size(), SIZE, "size")
    equal(loop.attr("loop/variant"), "fixed", "variant")


@suite.test
def attach_read_only(t):
    t.expect_log(rf"loop\d+: vhd dynamic image, {SIZE} bytes, read-only")
    loop = t.losetup("-r", simple(t))
    equal(loop.attr("ro"), "1", "ro")
    fails_with(errno.EPERM, loop.write, 0, bytes(512))


@suite.test
def detach_leaves_nothing(t):
    loop = t.losetup(simple(t))
    run("losetup", "-d", loop.path)
    ensure(not loop.is_bound(), "still bound")
    equal(loop.attr("size"), "0", "size")
    for name in ("variant", "size_source"):
        ensure(not os.path.exists(f"{loop.sysfs}/loop/{name}"), f"{name} is left")


@suite.test
def losetup_lists_it(t):
    path = simple(t)
    loop = t.losetup(path)
    out = json.loads(run("losetup", "-l", "--json", "-O", "NAME,BACK-FILE,OFFSET,RO", loop.path))
    equal(out["loopdevices"], [{"name": loop.path, "back-file": path, "offset": 0, "ro": False}],
          "losetup -l")
    equal(run("losetup", "-n", "-O", "NAME", "-j", path).strip(), loop.path, "losetup -j")


@suite.test
def partitions_by_partscan(t):
    path, data = partitioned(t)
    loop = t.losetup("-P", path)
    same_bytes(blockio.direct_read(loop.part(1), 0, 8 * MIB), data, "partition 1")
    out = run("lsblk", "-n", "-l", "-b", "-x", "NAME", "-o", "NAME,TYPE,SIZE", loop.path)
    expected = [[loop.name, "loop", str(SIZE)], [f"{loop.name}p1", "part", str(4 * MIB)],
                [f"{loop.name}p2", "part", str(16 * MIB)]]
    equal([line.split() for line in out.splitlines()], expected, "lsblk")
    ensure(f"Disk {loop.path}: 40 MiB, {SIZE} bytes" in run("fdisk", "-l", loop.path), "fdisk -l")


@suite.test
def partitions_by_max_part(t):
    path, data = partitioned(t)
    system.unload_loop()
    system.load_loop("ours", "max_part=15")
    try:
        loop = t.losetup(path)
        same_bytes(blockio.direct_read(loop.part(1), 0, 4 * MIB), data, "partition 1")
        loop.detach()
    finally:
        system.unload_loop()
        system.load_loop("ours")


@suite.test
def partitions_by_kpartx(t):
    """udevd has to tell kpartx that it has seen the maps."""
    t.with_udev()
    path, data = partitioned(t)
    loop = t.losetup(path)
    out = run("kpartx", "-av", "-s", loop.path)
    t.defer(system.unmap_partitions, loop.path)
    equal(out.count("add map"), 2, "lines of kpartx")
    same_bytes(blockio.direct_read(f"/dev/mapper/{loop.name}p1", 0, 4 * MIB), data, "partition 1")


@suite.test
def partitions_by_partx(t):
    path, data = partitioned(t)
    loop = t.losetup(path)
    run("partx", "-a", loop.path)
    same_bytes(blockio.direct_read(loop.part(1), 0, 4 * MIB), data, "partition 1")


@suite.test
def partition_table_written_by_sfdisk(t):
    path = simple(t)
    loop = t.losetup("-P", path)
    run("sfdisk", "-q", loop.path, text=MBR)
    data = blockio.pattern(MIB, 2)
    blockio.direct_write(loop.part(2), 0, data)
    loop.detach()
    raw = images.convert(path, t.path("raw"))
    ensure("Linux" in run("fdisk", "-l", raw), "fdisk -l on the converted image")
    same_bytes(blockio.content(raw)[5 * MIB:6 * MIB], data, "partition 2 in the converted image")


@suite.test
def file_system_on_a_partition(t):
    path, _ = partitioned(t)
    loop = t.losetup("-P", path)
    run("mkfs.ext4", "-q", loop.part(2))
    point = t.mount(loop.part(2))
    data = blockio.make_file(os.path.join(point, "file"), 3 * MIB, 5)
    run("umount", point)
    run("losetup", "-d", loop.path)
    loop = t.losetup("-rP", path)
    run("e2fsck", "-fn", loop.part(2))
    point = t.mount(loop.part(2), "-o", "ro")
    same_bytes(blockio.content(os.path.join(point, "file")), data, "file after another attach")


@suite.test
def mount_option_loop(t):
    path = simple(t)
    loop = t.losetup(path)
    run("mkfs.ext4", "-q", loop.path)
    run("losetup", "-d", loop.path)
    point = t.mount(path, "-o", "loop", "-t", "ext4")
    data = blockio.make_file(os.path.join(point, "file"), MIB)
    run("umount", point)
    system.wait_until(lambda: not loopdev.bound(), "umount detached the device")
    images.convert(path, t.path("raw"))
    run("e2fsck", "-fn", t.path("raw"))
    point = t.mount(path, "-o", "loop,ro", "-t", "ext4")
    same_bytes(blockio.content(os.path.join(point, "file")), data, "file")


@suite.test
def blkid_and_udev_see_the_guest_disk(t):
    t.with_udev()
    loop = t.losetup(simple(t))
    uuid = "01234567-89ab-cdef-0123-456789abcde0"
    run("mkfs.ext4", "-q", "-U", uuid, loop.path)
    run("udevadm", "trigger", "--settle", loop.sysfs)
    equal(run("blkid", "-p", "-o", "value", "-s", "UUID", loop.path).strip(), uuid, "blkid")
    equal(os.path.realpath(f"/dev/disk/by-uuid/{uuid}"), loop.path, "link by udev")


@suite.cases(tmpfs=lambda t: t.dir, ext4=lambda t: t.ext4(128))
def read_only_use_leaves_the_file_alone(t, where):
    raw = t.path("raw")
    blockio.make_file(raw, 8 * MIB)
    path = os.path.join(where(t), "a.vhd")
    run("qemu-img", "convert", "-O", "vpc", raw, path)
    before = images.Unchanged(path)
    for option in (["-r"], []):
        loop = t.losetup("-P", *option, path)
        images.whole(loop)
        attempt("blkid", "-p", loop.path)
        loop.detach()
        before.check()


@suite.test
def writable_attach_without_writes_leaves_the_file_alone(t):
    path = simple(t)
    before = images.Unchanged(path)
    loop = t.losetup(path)
    with blockio.Direct(loop.path) as device:
        device.read(0, MIB)
        device.flush()
    run("blockdev", "--flushbufs", loop.path)
    loop.detach()
    before.check()


@suite.cases(dynamic="dynamic", fixed="fixed")
def window_of_the_guest_disk(t, subformat):
    path = simple(t, subformat=subformat)
    loop = t.losetup(path)
    data = blockio.pattern(6 * MIB)
    blockio.direct_write(loop.path, 3 * MIB, data)
    loop.detach()
    window = t.attach(path, offset=4 * MIB, sizelimit=3 * MIB)
    equal(window.size(), 3 * MIB, "size")
    same_bytes(images.whole(window), data[MIB:4 * MIB], "window")
    blockio.direct_write(window.path, MIB, b"x" * MIB)
    window.detach()
    expected = bytes(3 * MIB) + data[:2 * MIB] + b"x" * MIB + data[3 * MIB:]
    images.judge(t, path, expected.ljust(SIZE, b"\0"))


@suite.test
def window_not_aligned_to_sectors(t):
    """Refused, or served to the byte: no piece may reach into what is not the guest's."""
    image = vhd.Dynamic(SIZE)
    image.put(0, blockio.pattern(6 * MIB))
    path, shadow = image.write(t.path("a.vhd")), bytearray(image.guest())
    t.allow_log(r"loop\d+: refused: .*")
    try:
        loop = t.attach(path, offset=1000, sizelimit=9 * MIB)
    except OSError:
        equal(loopdev.bound(), [], "devices bound after a refusal")
        images.judge(t, path, bytes(shadow))
        return
    same_bytes(images.whole(loop), bytes(shadow[1000:1000 + 9 * MIB]), "window")
    for pos in (2 * MIB - 1024, 2 * MIB - 1536, 6 * MIB - 1024, 8 * MIB - 1024):
        blockio.direct_write(loop.path, pos, b"x" * 1024)
        shadow[1000 + pos:1000 + pos + 1024] = b"x" * 1024
    loop.detach()
    images.judge(t, path, bytes(shadow))


@suite.test
def window_past_the_end_is_empty(t):
    loop = t.attach(simple(t), offset=SIZE + MIB)
    equal(loop.size(), 0, "size")


@suite.test
def window_set_by_set_status(t):
    path = simple(t)
    loop = t.attach(path)
    data = blockio.pattern(MIB)
    blockio.direct_write(loop.path, 5 * MIB, data)
    loop.set_status(offset=5 * MIB, sizelimit=MIB)
    same_bytes(images.whole(loop), data, "window")


@suite.test
def set_fd_and_set_status(t):
    path = simple(t)
    loop = loopdev.free()
    t.defer(loop.detach_if_bound)
    with open(path, "r+b", buffering=0) as file:
        loop.set_fd(file.fileno())
    equal((loop.size(), loop.attr("loop/parser")), (SIZE, "vhd"), "size and parser")
    loop.set_status(name=b"name", flags=loopdev.AUTOCLEAR)
    system.wait_until(lambda: not loop.is_bound(), "autoclear detached it")


@suite.test
def capacity_is_that_of_the_disk(t):
    loop = t.losetup(simple(t))
    blockio.direct_write(loop.path, 0, blockio.pattern(3 * MIB))
    run("losetup", "-c", loop.path)
    equal(loop.size(), SIZE, "size after losetup -c")


@suite.test
def sector_size_4096(t):
    path = simple(t)
    loop = t.losetup("-b", "4096", path)
    data = blockio.pattern(MIB)
    blockio.direct_write(loop.path, 8192, data)
    fails_with(errno.EINVAL, blockio.direct_read, loop.path, 512, 512)
    loop.detach()
    images.judge(t, path, (bytes(8192) + data).ljust(SIZE, b"\0"))


@suite.test
def change_fd_to_another_vhd(t):
    paths = [simple(t, 8 * MIB, name) for name in ("a.vhd", "b.vhd")]
    data = blockio.pattern(MIB)
    loop = t.losetup(paths[1])
    blockio.direct_write(loop.path, MIB, data)
    loop.detach()
    loop = loopdev.attach_read_only(paths[0])
    t.defer(loop.detach_if_bound)
    loop.change_file_read_only(paths[1])
    same_bytes(blockio.direct_read(loop.path, MIB, MIB), data, "device")
    equal(loop.attr("loop/backing_file"), paths[1], "backing_file")


@suite.test
def ten_devices_at_once(t):
    loops = []
    for number in range(10):
        loops.append(t.losetup(simple(t, 4 * MIB, f"{number}.vhd")))
        blockio.direct_write(loops[-1].path, 0, blockio.pattern(MIB, number))
    for number, loop in enumerate(loops):
        same_bytes(blockio.direct_read(loop.path, 0, MIB), blockio.pattern(MIB, number), loop.path)
    equal(system.references("vhdloop"), 10, "references to vhdloop")


if __name__ == "__main__":
    suite.main()
