#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""systemd and udev with raw files: units that mount or run images, links, properties, events.
The stock driver passes this suite, too."""

import os
import shutil

from lib import blockio, loopdev, pid1, system, trees
from lib.kmsg import NO_ZERO_RANGE
from lib.ktap import Suite, ensure, equal
from lib.system import attempt, run

MIB = 1 << 20
suite = Suite(udev=True, allow=[NO_ZERO_RANGE])

DISK = "5d0ce1d5-3f1d-4e55-8a35-0e4a4a0d2f11"
PART = "5d0ce1d5-3f1d-4e55-8a35-0e4a4a0d2f12"
FILES = "01234567-89ab-cdef-0123-456789abcdef"
GPT = f"label: gpt\nlabel-id: {DISK}\nsize=16MiB,name=selftest,uuid={PART}\n"


def disk(t):
    """A disk with one partition, and in it an ext4 that has a label."""
    path = blockio.make_sparse(t.path("disk"), 32 * MIB)
    run("sfdisk", "-q", path, text=GPT)
    run("mkfs.ext4", "-q", "-L", "selftest-files", "-U", FILES, "-E", f"offset={MIB}", path, "16M")
    return path


def properties(path):
    """What udev knows of a device, without what differs from one attach to the next."""
    out = run("udevadm", "info", "--query=property", f"--name={path}")
    found = dict(line.split("=", 1) for line in out.splitlines())
    for name in ("DISKSEQ", "USEC_INITIALIZED", "DEVLINKS", "ID_LOOP_BACKING_INODE",
                 "ID_LOOP_BACKING_FILENAME", "ID_LOOP_BACKING_FILENAME_ENC", "MINOR",
                 "ID_PART_ENTRY_DISK", "ID_LOOP_BACKING_DEVICE"):
        found.pop(name, None)
    return sorted(found.items())


def links(path):
    """The symbolic links below /dev that lead to a device node."""
    out = run("udevadm", "info", "--query=symlink", f"--name={path}").split()
    return sorted(f"/dev/{name}" for name in out)


@suite.test
def links_of_a_disk(t):
    path = disk(t)
    loop = t.losetup("-P", "--loop-ref", "selftest", path)
    system.settle()
    stat = os.stat(path)
    inode = f"{os.major(stat.st_dev)}:{os.minor(stat.st_dev)}-{stat.st_ino}"
    common = [f"/dev/disk/by-diskseq/{loop.attr('diskseq')}", f"/dev/disk/by-loop-inode/{inode}",
              "/dev/disk/by-loop-ref/selftest"]
    expected = [f"{name}-part1" for name in common]
    expected += ["/dev/disk/by-label/selftest-files", "/dev/disk/by-partlabel/selftest",
                 f"/dev/disk/by-partuuid/{PART}", f"/dev/disk/by-uuid/{FILES}"]
    equal(links(loop.path), common, "links of the disk")
    equal(links(loop.part(1)), sorted(expected), "links of the partition")
    for name in common:
        equal(os.path.realpath(name), loop.path, name)
    for name in expected:
        equal(os.path.realpath(name), loop.part(1), name)
    run("losetup", "-d", loop.path)
    system.settle()
    left = [name for name in common + expected if os.path.lexists(name)]
    equal(left, common[:1], "links that are left, the one by its sequence number apart")


@suite.test
def properties_of_a_disk(t):
    loop = t.losetup("-P", disk(t))
    system.settle()
    for path in (loop.path, loop.part(1)):
        t.record("properties", [(name, value.replace(loop.name, "loopN"))
                                for name, value in properties(path)])
    loop.detach()
    system.settle()
    t.record("properties when detached", properties(loop.path))


@suite.test
def disk_sequence(t):
    """Every attach and every detach is another disk."""
    path = disk(t)
    loop = t.losetup(path)
    first = int(loop.attr("diskseq"))
    loop.detach()
    system.settle()
    t.record("after detach", int(loop.attr("diskseq")) - first)
    t.attach(path, loop=loop)
    t.record("after another attach", int(loop.attr("diskseq")) - first)


@suite.test
def program_run_by_a_rule(t):
    """What desktops do: a rule that runs a program for each disk with a certain label."""
    rule = "/run/udev/rules.d/99-loop-selftest.rules"
    os.makedirs(os.path.dirname(rule), exist_ok=True)
    t.defer(run, "udevadm", "control", "--reload")
    t.defer(os.unlink, rule)
    seen = t.path("seen")
    with open(rule, "w", encoding="ascii") as file:
        file.write('SUBSYSTEM=="block", ENV{ID_FS_LABEL}=="selftest-files", ACTION!="remove", '
                   f"""RUN+="/bin/sh -c 'echo $env{{ID_FS_UUID}} %k >>{seen}'"\n""")
    run("udevadm", "control", "--reload")
    loop = t.losetup("-P", disk(t))
    system.settle()
    lines = set(blockio.content(seen).decode().splitlines())
    equal(lines, {f"{FILES} {loop.name}p1"}, "what the rule's program has seen")


@suite.test
def locked_while_a_program_works(t):
    """udevd leaves a device alone that somebody holds a lock on; then it looks again."""
    loop = t.losetup(blockio.make_sparse(t.path("disk"), 32 * MIB))
    system.settle()
    run("udevadm", "lock", "--device", loop.path, "sh", "-c",
        'mkfs.ext4 -q -L "$2" "$1" && ! [ -e "/dev/disk/by-label/$2" ]', "sh", loop.path, "locked")
    run("udevadm", "wait", "--timeout=600", "--settle", "/dev/disk/by-label/locked")
    equal(os.path.realpath("/dev/disk/by-label/locked"), loop.path, "link")


def unit_name(point):
    """The name of the unit that mounts something at `point`."""
    return run("systemd-escape", "-p", "--suffix=mount", point).strip()


def release(path):
    """Waits until no device is bound to a file."""
    system.settle()
    system.wait_until(lambda: not run("losetup", "-n", "-j", path), "the device was detached")


@suite.test
def mount_unit(t):
    path, point = disk(t), t.path("mnt")
    os.mkdir(point)
    unit = unit_name(point)
    manager = pid1.Manager(t, {unit: f"[Mount]\nWhat={path}\nWhere={point}\nType=ext4\n"
                                     f"Options=loop,offset={MIB}\n"})
    manager.run("systemctl", "start", unit)
    equal(manager.state(unit), "active", "state")
    equal([loop.attr("loop/offset") for loop in loopdev.bound()], [str(MIB)], "offsets")
    before = {"file": None}
    manager.run("mkdir", f"{point}/file")
    manager.run("systemctl", "stop", unit)
    equal(manager.state(unit), "inactive", "state")
    release(path)
    t.mount(path, "-o", f"loop,ro,offset={MIB}")
    trees.same(point, before, "files")


@suite.test
def mount_unit_that_fails(t):
    path, point = blockio.make_sparse(t.path("disk"), MIB), t.path("mnt")
    os.mkdir(point)
    unit = unit_name(point)
    manager = pid1.Manager(t, {unit: f"[Mount]\nWhat={path}\nWhere={point}\nType=ext4\n"
                                     "Options=loop\n"})
    t.allow_log(r"EXT4-fs \(loop\d+\): VFS: Can't find ext4 filesystem")
    done = attempt(*manager.enter("systemctl", "start", unit))
    ensure(done.returncode != 0, "started nevertheless")
    equal(manager.state(unit), "failed", "state")
    release(path)


@suite.test
def transient_mount(t):
    """systemd-mount makes the unit by itself."""
    path, point = blockio.make_sparse(t.path("disk"), 16 * MIB), t.path("mnt")
    run("mkfs.ext4", "-q", path)
    os.mkdir(point)
    manager = pid1.Manager(t, {})
    manager.run("systemd-mount", "--no-ask-password", "-t", "ext4", path, point)
    equal([loop.attr("loop/backing_file") for loop in loopdev.bound()], [path], "files")
    equal(manager.run("findmnt", "-n", "-o", "FSTYPE", point).strip(), "ext4", "FSTYPE")
    manager.run("systemd-mount", "--umount", point)
    release(path)


@suite.test
def service_in_an_image(t):
    """RootImage=: systemd dissects the disk, attaches it, and runs a program from it."""
    path = disk(t)
    point = t.mount(path, "-o", f"loop,offset={MIB}")
    for name in ("bin", "etc", "usr", "proc", "sys", "dev", "run", "tmp", "var"):
        os.mkdir(os.path.join(point, name))
    shutil.copy("/usr/bin/busybox", os.path.join(point, "bin", "busybox"))
    with open(os.path.join(point, "etc", "os-release"), "w", encoding="ascii") as file:
        file.write("ID=selftest\n")
    run("umount", point)
    release(path)
    manager = pid1.Manager(t, {"image.service": f"[Service]\nType=oneshot\nRootImage={path}\n"
                               "ExecStart=/bin/busybox cp /etc/os-release /etc/copy\n"})
    manager.run("systemctl", "start", "image.service")
    release(path)
    t.mount(path, "-o", f"loop,ro,offset={MIB}")
    equal(blockio.content(os.path.join(point, "etc", "copy")), b"ID=selftest\n", "what it wrote")


if __name__ == "__main__":
    suite.main()
