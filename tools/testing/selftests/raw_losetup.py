#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Raw files with losetup, mount, lsblk, blkid and udev. The stock driver passes this suite, too."""

import errno
import json
import os

from lib import blockio, loopdev, system
from lib.kmsg import NO_ZERO_RANGE
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import attempt, run

MIB = 1 << 20
suite = Suite(allow=[NO_ZERO_RANGE])


def listed(loop, *columns):
    """What `losetup --list` says of a device, by column."""
    out = run("losetup", "--list", "--json", "--output", ",".join(columns), loop.path)
    return json.loads(out)["loopdevices"][0]


@suite.test
def find_names_a_free_device(t):
    name = run("losetup", "-f").strip()
    loop = loopdev.Loop.by_path(name)
    ensure(not loop.is_bound(), f"{name} is bound")
    path = blockio.make_sparse(t.path("a"), MIB)
    equal(t.losetup(path).path, name, "device taken by the next attach")


@suite.test
def attach_by_name(t):
    data = blockio.make_file(t.path("a"), MIB)
    loop = loopdev.free()
    run("losetup", loop.path, t.path("a"))
    t.defer(loop.detach_if_bound)
    same_bytes(loop.read(0, MIB), data, "device")


@suite.test
def show_and_sysfs(t):
    data = blockio.make_file(t.path("a"), MIB)
    loop = t.losetup(t.path("a"))
    equal(loop.size(), MIB, "size")
    same_bytes(loop.read(0, 2 * MIB), data, "device")
    for name, expected in {"backing_file": t.path("a"), "offset": "0", "sizelimit": "0",
                           "autoclear": "0", "partscan": "0", "dio": "0"}.items():
        equal(loop.attr(f"loop/{name}"), expected, name)
    equal(loop.attr("size"), str(MIB // 512), "size in sysfs")


@suite.test
def writes_reach_the_file(t):
    blockio.make_file(t.path("a"), MIB)
    loop = t.losetup(t.path("a"))
    data = blockio.pattern(5000, 2)
    loop.write(12345, data)
    same_bytes(blockio.content(t.path("a"))[12345:17345], data, "file")


@suite.test
def read_only_option(t):
    blockio.make_file(t.path("a"), MIB)
    loop = t.losetup("-r", t.path("a"))
    equal(run("blockdev", "--getro", loop.path).strip(), "1", "blockdev --getro")
    equal(listed(loop, "RO")["ro"], True, "RO column")
    fails_with(errno.EPERM, loop.write, 0, bytes(512))


@suite.test
def file_without_write_permission_is_read_only(t):
    blockio.make_file(t.path("a"), MIB)
    loop = t.attach(t.path("a"), file_flags=os.O_RDONLY)
    equal(loop.attr("ro"), "1", "ro")
    fails_with(errno.EPERM, loop.write, 0, bytes(512))


@suite.test
def offset_option(t):
    data = blockio.make_file(t.path("a"), MIB)
    loop = t.losetup("-o", "65536", t.path("a"))
    same_bytes(loop.read(0, MIB), data[65536:], "device")
    equal(listed(loop, "OFFSET")["offset"], 65536, "OFFSET column")


@suite.test
def sizelimit_option(t):
    data = blockio.make_file(t.path("a"), MIB)
    loop = t.losetup("--sizelimit", "100k", t.path("a"))
    same_bytes(loop.read(0, MIB), data[:100 << 10], "device")
    equal(listed(loop, "SIZELIMIT")["sizelimit"], 100 << 10, "SIZELIMIT column")


@suite.test
def offset_and_sizelimit_not_aligned_to_sectors(t):
    data = blockio.make_file(t.path("a"), MIB)
    loop = t.losetup("-o", "1000", "--sizelimit", "2000", t.path("a"))
    equal(loop.size(), 1536, "size")
    same_bytes(loop.read(0, 1536), data[1000:2536], "device")
    loop.write(512, b"x" * 512)
    expected = data[:1512] + b"x" * 512 + data[2024:]
    same_bytes(blockio.content(t.path("a")), expected, "file")


@suite.cases(offset=("-o", "2M"), at_the_end=("-o", "1M"))
def empty_window(t, args):
    blockio.make_file(t.path("a"), MIB)
    done = attempt("losetup", "-f", "--show", *args, t.path("a"))
    t.record("exit status", done.returncode)
    for loop in loopdev.bound():
        t.record("size", loop.size())
        loop.detach()


@suite.cases(bytes_0=0, bytes_1=1, bytes_100=100, bytes_511=511, bytes_512=512, bytes_1000=1000,
             bytes_1023=1023, bytes_4097=4097)
def odd_file_size(t, length):
    data = blockio.make_file(t.path("a"), length)
    loop = t.attach(t.path("a"))
    equal(loop.size(), length // 512 * 512, "size")
    same_bytes(loop.read(0, 8192), data[:length // 512 * 512], "device")


@suite.test
def detach_option(t):
    blockio.make_file(t.path("a"), MIB)
    loop = t.losetup(t.path("a"))
    run("losetup", "-d", loop.path)
    ensure(not loop.is_bound(), "still bound")
    equal(loop.attr("size"), "0", "size")


@suite.test
def detach_waits_for_the_last_close(t):
    blockio.make_file(t.path("a"), MIB)
    loop = t.losetup(t.path("a"))
    with loop.opened() as fd:
        run("losetup", "-d", loop.path)
        ensure(loop.is_bound(), "unbound while open")
        equal(loop.attr("loop/autoclear"), "1", "autoclear")
        equal(len(os.pread(fd, 4096, 8192)), 4096, "bytes read")
    system.wait_until(lambda: not loop.is_bound(), "it is unbound")


@suite.test
def detach_all_option(t):
    for name in ("a", "b", "c"):
        blockio.make_sparse(t.path(name), MIB)
        t.losetup(t.path(name))
    equal(len(loopdev.bound()), 3, "bound devices")
    run("losetup", "-D")
    equal(loopdev.bound(), [], "bound devices")


@suite.test
def list_columns(t):
    blockio.make_sparse(t.path("a"), MIB)
    loop = t.losetup("-o", "4096", "--sizelimit", "8192", t.path("a"))
    inode = os.stat(t.path("a")).st_ino
    expected = {"name": loop.path, "autoclear": False, "back-file": t.path("a"), "back-ino": inode,
                "sizelimit": 8192, "offset": 4096, "ro": False, "partscan": False, "dio": False,
                "log-sec": 512, "maj:min": f"7:{loop.number}"}
    if int(listed(loop, "MAJ:MIN")["maj:min"].strip().split(":")[1]) != loop.number:
        expected["maj:min"] = "?"
    actual = listed(loop, *(name.upper() for name in expected))
    actual["maj:min"] = actual["maj:min"].strip()
    equal(actual, expected, "losetup --list")


@suite.test
def list_all(t):
    loops = []
    for name in ("a", "b"):
        blockio.make_sparse(t.path(name), MIB)
        loops.append(t.losetup(t.path(name)).path)
    out = json.loads(run("losetup", "-l", "--json"))["loopdevices"]
    equal(sorted(device["name"] for device in out), sorted(loops), "devices")
    equal(len(run("losetup", "-a").splitlines()), 2, "lines of losetup -a")


@suite.test
def associated_option(t):
    blockio.make_sparse(t.path("a"), MIB)
    blockio.make_sparse(t.path("b"), MIB)
    loop = t.losetup("-o", "512", t.path("a"))
    t.losetup(t.path("b"))
    equal(run("losetup", "-n", "-O", "NAME", "-j", t.path("a")).strip(), loop.path, "-j")
    found = run("losetup", "-n", "-O", "NAME", "-j", t.path("a"), "-o", "512").strip()
    equal(found, loop.path, "-j with -o")
    equal(run("losetup", "-j", t.path("a"), "-o", "1024"), "", "-j with another -o")


@suite.test
def nooverlap_option(t):
    blockio.make_sparse(t.path("a"), MIB)
    loop = t.losetup(t.path("a"))
    again = run("losetup", "-f", "--show", "-L", t.path("a")).strip()
    equal(again, loop.path, "device for the same file")
    done = attempt("losetup", "-f", "--show", "-L", "-o", "512", t.path("a"))
    ensure(done.returncode != 0, "an overlapping device was made")


@suite.test
def capacity_option(t):
    data = blockio.make_file(t.path("a"), MIB)
    loop = t.losetup(t.path("a"))
    with open(t.path("a"), "ab") as file:
        file.write(data)
    equal(loop.size(), MIB, "size before")
    run("losetup", "-c", loop.path)
    same_bytes(loop.read(0, 4 * MIB), data + data, "device after growing")
    os.truncate(t.path("a"), MIB // 2)
    run("losetup", "-c", loop.path)
    same_bytes(loop.read(0, 4 * MIB), data[:MIB // 2], "device after shrinking")


@suite.test
def sector_size_option(t):
    data = blockio.make_file(t.path("a"), MIB)
    loop = t.losetup("-b", "4096", t.path("a"))
    equal(run("blockdev", "--getss", loop.path).strip(), "4096", "sector size")
    equal(listed(loop, "LOG-SEC")["log-sec"], 4096, "LOG-SEC column")
    same_bytes(blockio.direct_read(loop.path, 4096, 8192), data[4096:12288], "device")
    fails_with(errno.EINVAL, blockio.direct_read, loop.path, 512, 512)


@suite.test
def direct_io_option(t):
    path = os.path.join(t.ext4(64), "a")
    data = blockio.make_file(path, MIB)
    loop = t.losetup("--direct-io=on", path)
    t.record("dio after --direct-io=on", loop.attr("loop/dio"))
    same_bytes(blockio.direct_read(loop.path, 0, MIB), data, "device")
    changed = blockio.pattern(70000 // 512 * 512, 3)
    blockio.direct_write(loop.path, 1536, changed)
    same_bytes(blockio.content(path)[1536:1536 + len(changed)], changed, "file")
    run("losetup", "--direct-io=off", loop.path)
    equal(loop.attr("loop/dio"), "0", "dio after --direct-io=off")
    same_bytes(loop.read(1536, len(changed)), changed, "device afterwards")


@suite.test
def direct_io_switched_while_bound(t):
    path = os.path.join(t.ext4(64), "a")
    data = blockio.make_file(path, MIB)
    loop = t.losetup(path)
    for state in ("on", "off", "on"):
        done = attempt("losetup", f"--direct-io={state}", loop.path)
        t.record(f"--direct-io={state}", (done.returncode, loop.attr("loop/dio")))
        same_bytes(blockio.direct_read(loop.path, 0, MIB), data, f"device, direct I/O {state}")


@suite.test
def block_device(t):
    disk = t.ram_disk(16)
    loop = t.losetup("-o", str(MIB), disk)
    equal(loop.size(), 15 * MIB, "size")
    equal(listed(loop, "BACK-FILE")["back-file"], disk, "BACK-FILE column")
    run("mkfs.ext4", "-q", loop.path)
    point = t.mount(loop.path)
    data = blockio.make_file(os.path.join(point, "file"), MIB)
    run("umount", point)
    run("losetup", "-d", loop.path)
    point = t.mount(disk, "-o", f"loop,ro,offset={MIB}")
    same_bytes(blockio.content(os.path.join(point, "file")), data, "file after another attach")


@suite.test
def attaching_a_bound_device_is_busy(t):
    blockio.make_sparse(t.path("a"), MIB)
    loop = t.attach(t.path("a"))
    with open(t.path("a"), "rb") as file:
        fails_with(errno.EBUSY, loop.configure, file.fileno())
        fails_with(errno.EBUSY, loop.set_fd, file.fileno())


@suite.test
def ioctls_on_an_unbound_device(t):
    loop = loopdev.free()
    fails_with(errno.ENXIO, loop.detach)
    fails_with(errno.ENXIO, loop.status)
    fails_with(errno.ENXIO, loop.set_status)
    fails_with(errno.ENXIO, loop.ioctl, loopdev.SET_CAPACITY)
    fails_with(errno.ENXIO, loop.ioctl, loopdev.SET_BLOCK_SIZE, 512)
    fails_with(errno.ENXIO, loop.ioctl, loopdev.SET_DIRECT_IO, 1)
    t.record("read", loop.read(0, 512))


@suite.cases(a_folder="/", a_character_device="/dev/null")
def not_a_file(t, path):
    loop = loopdev.free()
    fails_with(errno.EINVAL, t.attach, path, loop=loop, file_flags=os.O_RDONLY)
    ensure(not loop.is_bound(), "bound")


@suite.test
def not_a_descriptor(t):
    fails_with(errno.EBADF, loopdev.free().configure, 999)


@suite.test
def its_own_backing_is_refused(t):
    blockio.make_sparse(t.path("a"), MIB)
    first = t.attach(t.path("a"))
    second = t.attach(first.path)
    first.detach()
    t.record("first bound", first.is_bound())
    loop = loopdev.free()
    fails_with(errno.EBADF, t.attach, loop.path, loop=loop)
    second.detach()


@suite.test
def control_node_adds_and_removes(t):
    blockio.make_sparse(t.path("a"), MIB)
    loop = loopdev.add(77)
    fails_with(errno.EEXIST, loopdev.add, 77)
    t.attach(t.path("a"), loop=loop)
    fails_with(errno.EBUSY, loopdev.remove, 77)
    loop.detach()
    loopdev.remove(77)
    ensure(not os.path.exists("/sys/block/loop77"), "loop77 is still there")
    fails_with(errno.ENODEV, loopdev.remove, 77)


@suite.test
def mount_option_loop(t):
    blockio.make_sparse(t.path("fs"), 16 * MIB)
    run("mkfs.ext4", "-q", t.path("fs"))
    point = t.mount(t.path("fs"), "-o", "loop")
    with open(os.path.join(point, "file"), "w", encoding="ascii") as file:
        file.write("content")
    loop = loopdev.bound()[0]
    equal(loop.attr("loop/autoclear"), "1", "autoclear")
    run("umount", point)
    system.wait_until(lambda: not loop.is_bound(), "umount detached the device")
    point = t.mount(t.path("fs"), "-o", "loop,ro")
    equal(blockio.content(os.path.join(point, "file")), b"content", "file after another mount")
    fails_with(errno.EROFS, open, os.path.join(point, "new"), "wb")
    run("umount", point)
    run("e2fsck", "-fn", t.path("fs"))


@suite.test
def mount_options_offset_and_sizelimit(t):
    blockio.make_sparse(t.path("fs"), 16 * MIB)
    run("mkfs.ext4", "-q", "-E", f"offset={MIB}", t.path("fs"), "8M")
    point = t.mount(t.path("fs"), "-o", f"loop,offset={MIB},sizelimit={8 * MIB}")
    loop = loopdev.bound()[0]
    equal(loop.size(), 8 * MIB, "size")
    run("umount", point)


@suite.test
def lsblk_shows_it(t):
    blockio.make_sparse(t.path("a"), MIB)
    loop = t.losetup(t.path("a"))
    out = run("lsblk", "--json", "--bytes", "-o", "NAME,SIZE,TYPE,RO,MAJ:MIN", loop.path)
    device = json.loads(out)["blockdevices"][0]
    equal((device["name"], device["size"], device["type"], device["ro"]),
          (loop.name, MIB, "loop", False), "lsblk")


@suite.test
def blkid_sees_the_file_system(t):
    t.with_udev()
    blockio.make_sparse(t.path("fs"), 16 * MIB)
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    run("mkfs.ext4", "-q", "-L", "label", "-U", uuid, t.path("fs"))
    loop = t.losetup(t.path("fs"))
    equal(run("blkid", "-p", "-o", "value", "-s", "UUID", loop.path).strip(), uuid, "blkid -p")
    system.settle()
    equal(os.path.realpath(f"/dev/disk/by-uuid/{uuid}"), loop.path, "link by udev")


@suite.test
def udev_links_by_loop_reference(t):
    t.with_udev()
    blockio.make_sparse(t.path("a"), MIB)
    loop = t.losetup("--loop-ref", "selftest", t.path("a"))
    system.settle()
    equal(os.path.realpath("/dev/disk/by-loop-ref/selftest"), loop.path, "by-loop-ref")
    stat = os.stat(t.path("a"))
    device = f"{os.major(stat.st_dev)}:{os.minor(stat.st_dev)}"
    link = f"/dev/disk/by-loop-inode/{device}-{stat.st_ino}"
    equal(os.path.realpath(link), loop.path, "by-loop-inode")
    run("losetup", "-d", loop.path)
    system.settle()
    ensure(not os.path.lexists("/dev/disk/by-loop-ref/selftest"), "the link is left")


@suite.test
def sequence_number_and_change_event(t):
    blockio.make_sparse(t.path("a"), MIB)
    loop = t.attach(t.path("a"))
    first = int(loop.attr("diskseq"))
    loop.detach()
    t.attach(t.path("a"), loop=loop)
    t.record("increments of the disk sequence number", int(loop.attr("diskseq")) - first)


@suite.test
def parameters_are_visible(t):
    for name in ("max_loop", "max_part", "hw_queue_depth"):
        path = f"/sys/module/loop/parameters/{name}"
        t.record(name, (blockio.content(path).decode().strip(), oct(os.stat(path).st_mode)))


@suite.test
def status_flags(t):
    blockio.make_sparse(t.path("a"), MIB)
    loop = t.attach(t.path("a"), offset=512, sizelimit=1024)
    status = loop.status()
    stat = os.stat(t.path("a"))
    equal((status.offset, status.sizelimit, status.number, status.flags),
          (512, 1024, loop.number, 0), "status")
    equal((status.inode, status.file_name), (stat.st_ino, t.path("a").encode()), "file")
    equal(status.device, stat.st_dev, "device of the file")


@suite.test
def autoclear_flag(t):
    blockio.make_sparse(t.path("a"), MIB)
    loop = loopdev.free()
    with loop.opened(os.O_RDWR) as held:
        t.attach(t.path("a"), loop=loop, flags=loopdev.AUTOCLEAR)
        equal(loop.status().flags, loopdev.AUTOCLEAR, "flags")
        equal(len(os.pread(held, 512, 0)), 512, "bytes read")
    system.wait_until(lambda: not loop.is_bound(), "the last close detached it")


@suite.test
def set_status_changes_the_window(t):
    data = blockio.make_file(t.path("a"), MIB)
    loop = t.attach(t.path("a"))
    loop.set_status(offset=4096, sizelimit=8192, name=b"renamed")
    same_bytes(loop.read(0, MIB), data[4096:12288], "device")
    equal(loop.status().file_name, b"renamed", "name")
    loop.set_status()
    same_bytes(loop.read(0, MIB), data, "device with the window removed")


@suite.test
def many_devices(t):
    loops = []
    for number in range(12):
        blockio.make_file(t.path(str(number)), 8192, number)
        loops.append(t.attach(t.path(str(number))))
    equal(len({loop.path for loop in loops}), 12, "different devices")
    for number, loop in enumerate(loops):
        same_bytes(loop.read(0, 8192), blockio.pattern(8192, number), f"device {number}")


if __name__ == "__main__":
    suite.main()
