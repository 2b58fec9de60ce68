#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Programs for partitions on raw devices: fdisk, sfdisk, sgdisk, parted, partx, kpartx,
systemd-dissect and what looks at devices. The stock driver passes this suite, too."""

import json
import os
import re

from lib import blockio, loopdev, system, trees
from lib.kmsg import NO_ZERO_RANGE
from lib.ktap import Suite, ensure, equal, same_bytes
from lib.system import attempt, run

MIB = 1 << 20
suite = Suite(udev=True, allow=[NO_ZERO_RANGE])

GPT = "label: gpt\nlabel-id: 5D0CE1D5-3F1D-4E55-8A35-0E4A4A0D2F11\n" \
      "size=4MiB,name=first,uuid=5D0CE1D5-3F1D-4E55-8A35-0E4A4A0D2F12\n" \
      "size=8MiB,name=second,uuid=5D0CE1D5-3F1D-4E55-8A35-0E4A4A0D2F13\n"
FOUR = "label: gpt\n" + "size=2MiB\n" * 4
# The discoverable partitions specification's root partition for x86-64.
ROOT = "label: gpt\nsize=24MiB,name=root,type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n"


def disk(t, table=GPT, size=32 * MIB):
    """A file with a partition table."""
    path = blockio.make_sparse(t.path("disk"), size)
    run("sfdisk", "-q", path, text=table)
    return path


def empty(t, *options):
    """A device on an empty file."""
    return t.losetup(*options, blockio.make_sparse(t.path("disk"), 32 * MIB))


def partitions(loop):
    """The partitions that the kernel knows: number to (start, length) in MiB."""
    system.settle()
    found = {}
    for name in os.listdir(loop.sysfs):
        if match := re.fullmatch(rf"{loop.name}p(\d+)", name):
            found[int(match.group(1))] = tuple(
                int(loop.attr(f"{name}/{attr}")) * 512 / MIB for attr in ("start", "size"))
    return dict(sorted(found.items()))


def mapped(loop):
    """The device-mapper devices that kpartx made for a loop device."""
    system.settle()
    return sorted(name for name in os.listdir("/dev/mapper") if name.startswith(loop.name))


# What the tools write, told to them in their own ways: 4 MiB at 1 MiB, 8 MiB at 5 MiB.
WRITERS = {
    "sfdisk": (("sfdisk", "-q"), (), GPT),
    "fdisk": (("fdisk",), (), "g\nn\n1\n\n+4M\nn\n2\n\n+8M\nw\n"),
    "sgdisk": (("sgdisk", "-n", "1:2048:+4M", "-n", "2:0:+8M"), (), None),
    "parted": (("parted", "-s"), ("mklabel", "gpt", "mkpart", "a", "1MiB", "5MiB", "mkpart", "b",
                                  "5MiB", "13MiB"), None),
}


@suite.cases(**{f"{name}{'_partscan' if scan else ''}": (writer, scan)
                for name, writer in WRITERS.items() for scan in (True, False)})
def table_written_by(t, case):
    """With partition scanning the partitions appear; without it that is up to the program."""
    (before, after, text), scan = case
    loop = empty(t, *(("-P",) if scan else ()))
    done = attempt(*before, loop.path, *after, text=text)
    t.record("exit status", done.returncode)
    seen = partitions(loop)
    t.record("partitions", seen)
    expected = {1: (1, 4), 2: (5, 8)}
    if scan:
        equal(seen, expected, "partitions")
    loop.detach()
    system.settle()
    equal(partitions(t.losetup("-P", t.path("disk"))), expected, "partitions after -P")


@suite.test
def table_changed_while_a_partition_is_mounted(t):
    """The kernel does not re-read the table then; partx -u and parted tell it the difference."""
    loop = t.losetup("-P", disk(t))
    system.settle()
    run("mkfs.ext4", "-q", loop.part(1))
    point = t.mount(loop.part(1))
    done = attempt("blockdev", "--rereadpt", loop.path)
    t.record("blockdev --rereadpt", done.returncode)
    done = attempt("sfdisk", "-q", "--append", "--no-reread", loop.path, text="size=2MiB\n")
    t.record("sfdisk --append", done.returncode)
    run("partx", "-u", loop.path)
    equal(partitions(loop), {1: (1, 4), 2: (5, 8), 3: (13, 2)}, "partitions")
    run("parted", "-s", loop.path, "mkpart", "c", "15MiB", "16MiB")
    equal(partitions(loop), {1: (1, 4), 2: (5, 8), 3: (13, 2), 4: (15, 1)}, "partitions")
    trees.same(point, trees.make(point), "files")


@suite.test
def partx_ranges(t):
    loop = t.losetup(disk(t, FOUR))
    run("partx", "-a", "--nr", "2:3", loop.path)
    equal(list(partitions(loop)), [2, 3], "partitions after partx -a --nr 2:3")
    done = attempt("partx", "-a", loop.path)
    t.record("partx -a of those and more", done.returncode)
    equal(list(partitions(loop)), [1, 2, 3, 4], "partitions after partx -a")
    run("partx", "-d", "--nr", "2:-1", loop.path)
    equal(list(partitions(loop)), [1], "partitions after partx -d --nr 2:-1")
    run("partx", "-d", loop.path)
    equal(partitions(loop), {}, "partitions after partx -d")


@suite.test
def partx_on_the_file(t):
    """partx takes a loop device for a regular file."""
    path = disk(t)
    run("partx", "-a", path)
    loop = loopdev.bound()[0]
    t.defer(loop.detach_if_bound)
    equal(partitions(loop), {1: (1, 4), 2: (5, 8)}, "partitions")
    equal(loop.attr("loop/backing_file"), path, "backing_file")


@suite.test
def parted_adds_resizes_removes(t):
    """parted tells the kernel one partition at a time, so nothing has to be scanned."""
    loop = empty(t)
    run("parted", "-s", loop.path, "mklabel", "gpt", "mkpart", "a", "1MiB", "3MiB")
    equal(partitions(loop), {1: (1, 2)}, "partitions after mkpart")
    with open(loop.part(1), "rb"):
        run("parted", "-s", loop.path, "resizepart", "1", "5MiB")
        equal(partitions(loop), {1: (1, 4)}, "partitions after resizepart, while open")
    data = blockio.pattern(4 * MIB)
    blockio.direct_write(loop.part(1), 0, data)
    same_bytes(blockio.content(t.path("disk"))[MIB:5 * MIB], data, "file")
    # A partition that udevd is looking at cannot be removed.
    system.settle()
    run("parted", "-s", loop.path, "rm", "1")
    equal(partitions(loop), {}, "partitions after rm")


@suite.test
def many_partitions(t):
    """More than MBRs have; each takes a number of its own, as the device has no range of them."""
    loop = t.losetup("-P", disk(t, "label: gpt\n" + "size=1MiB\n" * 20))
    equal(partitions(loop), {number: (number, 1) for number in range(1, 21)}, "partitions")
    data = blockio.pattern(MIB, 3)
    blockio.direct_write(loop.part(20), 0, data)
    same_bytes(blockio.content(t.path("disk"))[20 * MIB:21 * MIB], data, "file")


@suite.test
def sectors_of_4096_bytes(t):
    """The table is where the sector size says it is."""
    loop = empty(t, "-P", "-b", "4096")
    run("sfdisk", "-q", loop.path, text=GPT)
    equal(partitions(loop), {1: (1, 4), 2: (5, 8)}, "partitions")
    equal(run("blockdev", "--getss", loop.part(1)).strip(), "4096", "blockdev --getss")
    loop.detach()
    system.settle()
    loop = t.losetup("-P", t.path("disk"))
    t.record("partitions with sectors of 512 bytes", partitions(loop))


def kpartx_round(t, names, *options):
    """kpartx -a, content, -l, -d."""
    loop = t.losetup(disk(t))
    data = blockio.pattern(4 * MIB)
    blockio.direct_write(loop.path, MIB, data)
    run("kpartx", "-a", "-s", *options, loop.path)
    t.defer(attempt, "kpartx", "-d", loop.path)
    equal(mapped(loop), [name.replace("loopN", loop.name) for name in names], "maps")
    first = f"/dev/mapper/{mapped(loop)[0]}"
    same_bytes(blockio.direct_read(first, 0, 8 * MIB), data, "partition")
    listed = run("kpartx", "-l", *options, loop.path).replace(loop.name, "loopN")
    t.record("kpartx -l", re.sub(r"/dev/dm-\d+|\b254:\d+|\b7:\d+", "…", listed).split())
    run("kpartx", "-d", "-s", *options, loop.path)
    equal(mapped(loop), [], "maps after kpartx -d")
    ensure(loop.is_bound(), "kpartx -d detached the device")


@suite.cases(plain=(["loopNp1", "loopNp2"],), delimiter=(["loopN_part1", "loopN_part2"], "-p",
                                                         "_part"))
def kpartx_on_a_device(t, case):
    kpartx_round(t, *case)


@suite.test
def kpartx_updates(t):
    loop = t.losetup(disk(t))
    run("kpartx", "-a", "-s", loop.path)
    t.defer(attempt, "kpartx", "-d", loop.path)
    run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", "--delete", loop.path, "2")
    run("kpartx", "-u", "-s", loop.path)
    equal(mapped(loop), [f"{loop.name}p1"], "maps after a partition was deleted")
    run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", "--append", loop.path,
        text="size=16MiB\n")
    run("kpartx", "-u", "-s", loop.path)
    out = run("blockdev", "--getsize64", f"/dev/mapper/{loop.name}p2")
    equal(int(out), 16 * MIB, "size of the new partition's map")


@suite.test
def kpartx_on_the_file(t):
    """kpartx attaches and detaches by itself."""
    path = disk(t)
    run("kpartx", "-a", "-s", path)
    loop = loopdev.bound()[0]
    t.defer(attempt, "kpartx", "-d", path)
    equal(mapped(loop), [f"{loop.name}p1", f"{loop.name}p2"], "maps")
    run("mkfs.ext4", "-q", f"/dev/mapper/{loop.name}p2")
    point = t.mount(f"/dev/mapper/{loop.name}p2")
    before = trees.make(point)
    run("umount", point)
    system.unmap_partitions(path)
    system.settle()
    system.wait_until(lambda: not loop.is_bound(), "kpartx -d detached the device")
    t.mount(path, "-o", f"loop,ro,offset={5 * MIB},sizelimit={8 * MIB}")
    trees.same(point, before, "files")


@suite.test
def wipefs_and_blkid(t):
    loop = t.losetup("-P", disk(t))
    system.settle()
    run("mkfs.ext4", "-q", "-L", "label", "-U", "01234567-89ab-cdef-0123-456789abcdef",
        loop.part(2))
    t.record("blkid of the device", run("blkid", "-p", "-o", "export", loop.path).splitlines()[1:])
    t.record("blkid of a partition",
             run("blkid", "-p", "-o", "export", loop.part(2)).splitlines()[1:])
    t.record("wipefs", run("wipefs", "-i", "-n", "-O", "TYPE,OFFSET,LABEL", loop.path).split())
    run("wipefs", "-q", "-a", loop.part(2))
    equal(attempt("blkid", "-p", loop.part(2)).returncode, 0, "blkid: the partition's entry")
    ensure("TYPE" not in run("blkid", "-p", "-o", "export", loop.part(2)).replace(
        "PART_ENTRY_TYPE", ""), "the file system is still there")
    # The table is not read again while udevd is looking at a partition.
    system.settle()
    run("wipefs", "-q", "-a", loop.path)
    equal(attempt("blkid", "-p", loop.path).returncode, 2, "blkid after wipefs")
    equal(partitions(loop), {}, "partitions after wipefs")


@suite.test
def blockdev_reports(t):
    loop = t.losetup(disk(t))
    gets = ["--getsz", "--getsize64", "--getss", "--getpbsz", "--getbsz", "--getiomin",
            "--getioopt", "--getalignoff", "--getmaxsect", "--getra", "--getfra", "--getro",
            "--getdiscardzeroes"]
    for option in gets:
        t.record(option, run("blockdev", option, loop.path).strip())
    for name in ("ra", "bsz"):
        run("blockdev", f"--set{name}", "1024", loop.path)
        t.record(f"after --set{name} 1024", run("blockdev", f"--get{name}", loop.path).strip())
    run("blockdev", "--setro", loop.path)
    equal(loop.attr("ro"), "1", "ro after --setro")
    t.record("dd to a read-only device",
             attempt("dd", "if=/dev/zero", f"of={loop.path}", "count=1", "conv=notrunc").returncode)
    run("blockdev", "--setrw", loop.path)
    run("blockdev", "--flushbufs", loop.path)
    loop.write(0, bytes(512))


@suite.test
def lsblk_says_the_same(t):
    loop = t.losetup("-P", disk(t))
    system.settle()
    columns = ["ALIGNMENT", "DAX", "DISC-ALN", "DISC-GRAN", "DISC-MAX", "DISC-ZERO", "FSTYPE",
               "HOTPLUG", "LOG-SEC", "MIN-IO", "MODEL", "OPT-IO", "PARTFLAGS", "PARTLABEL",
               "PARTN", "PARTTYPE", "PARTUUID", "PHY-SEC", "PTTYPE", "PTUUID", "RA", "RAND", "REV",
               "RM", "RO", "ROTA", "RQ-SIZE", "SCHED", "SERIAL", "SIZE", "START", "STATE",
               "SUBSYSTEMS", "TRAN", "TYPE", "VENDOR", "WSAME", "WWN", "ZONED"]
    out = run("lsblk", "--json", "--bytes", "-x", "NAME", "-o", ",".join(columns), loop.path)
    devices = json.loads(out)["blockdevices"]
    equal([device["type"] for device in devices], ["loop", "part", "part"], "TYPE")
    for found in devices:
        t.record("lsblk", sorted(found.items()))


@suite.test
def dissect_and_mount(t):
    """systemd-dissect finds the root file system of a disk image."""
    path = disk(t, ROOT)
    loop = t.losetup("-P", path)
    system.settle()
    run("mkfs.ext4", "-q", "-L", "root", loop.part(1))
    point = t.mount(loop.part(1))
    for name in ("usr", "etc", "proc", "sys", "dev", "run", "tmp", "var"):
        os.mkdir(os.path.join(point, name))
    with open(os.path.join(point, "etc", "os-release"), "w", encoding="ascii") as file:
        file.write("ID=selftest\n")
    os.mkdir(os.path.join(point, "data"))
    before = trees.make(os.path.join(point, "data"))
    run("umount", point)
    loop.detach()
    system.settle()
    out = json.loads(run("systemd-dissect", "--json=short", path))
    t.record("mounts", [(mount["designator"], mount["fstype"], mount["partno"])
                        for mount in out["mounts"]])
    names = run("systemd-dissect", "--list", path).splitlines()
    ensure(any(name.endswith("data/link") for name in names), "systemd-dissect --list")
    run("systemd-dissect", "--copy-from", path, "data", t.path("copy"))
    trees.same(t.path("copy"), before, "what systemd-dissect --copy-from brought")
    run("systemd-dissect", "--mount", path, point)
    t.defer(system.unmount_if_mounted, point)
    # The devices of the commands before go when udevd has looked at them.
    system.settle()
    equal([loop.attr("loop/backing_file") for loop in loopdev.bound()], [path], "bound devices")
    trees.same(os.path.join(point, "data"), before, "files after systemd-dissect --mount")
    run("systemd-dissect", "--umount", point)
    system.settle()
    system.wait_until(lambda: not loopdev.bound(), "systemd-dissect --umount detached the device")


@suite.test
def dissect_attach(t):
    path = disk(t, ROOT)
    name = run("systemd-dissect", "--attach", "--loop-ref=selftest", path).strip()
    loop = loopdev.Loop.by_path(name)
    t.defer(loop.detach_if_bound)
    equal(partitions(loop), {1: (1, 24)}, "partitions")
    for attribute in ("autoclear", "partscan", "dio", "offset", "sizelimit"):
        t.record(attribute, loop.attr(f"loop/{attribute}"))
    # It flushes every loop device. One that had a file before refuses that.
    t.allow_log(r"I/O error, dev loop\d+, sector 0 op 0x1:\(WRITE\) flags 0x800 .*")
    # It tries for three seconds to remove the device, which udevd must not look at for longer.
    run("udevadm", "control", "--stop-exec-queue")
    t.defer(run, "udevadm", "control", "--start-exec-queue")
    run("systemd-dissect", "--detach", path)
    run("udevadm", "control", "--start-exec-queue")
    system.settle()
    equal(run("losetup", "-n", "-j", path), "", "devices")
    t.record("removed", not os.path.exists(loop.path))


if __name__ == "__main__":
    suite.main()
