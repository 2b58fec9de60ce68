#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""mount, umount and findmnt with raw files. The stock driver passes this suite, too."""

import errno
import json
import os

from lib import blockio, loopdev, system, trees
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import attempt, run

MIB = 1 << 20
suite = Suite(udev=True, allow=[r"EXT4-fs \(loop\d+\): re-mounted .*"])


def file_system(t, name="image", offset=0, size=16 * MIB):
    """A file with an ext4 that begins at `offset` and ends with the file."""
    path = blockio.make_sparse(t.path(name), offset + size)
    run("mkfs.ext4", "-q", "-E", f"offset={offset}", path, f"{size >> 10}k")
    return path


def bound_to(path):
    """The devices that losetup finds for a file."""
    out = run("losetup", "-n", "-O", "NAME", "-j", path).split()
    return [loopdev.Loop.by_path(name) for name in out]


def gone(path):
    """Waits until no device is bound to a file any more."""
    system.settle()
    system.wait_until(lambda: not bound_to(path), "the device was detached")


@suite.test
def device_by_name(t):
    loop = loopdev.free()
    point = t.mount(file_system(t), "-o", f"loop={loop.path}")
    equal(run("findmnt", "-n", "-o", "SOURCE", point).strip(), loop.path, "SOURCE")
    equal(loop.attr("loop/backing_file"), t.path("image"), "backing_file")
    equal(loop.attr("loop/autoclear"), "1", "autoclear")
    run("umount", point)
    gone(t.path("image"))


@suite.test
def device_by_name_is_taken(t):
    loop = t.attach(blockio.make_sparse(t.path("other"), MIB))
    os.mkdir(t.path("mnt"))
    done = attempt("mount", "-o", f"loop={loop.path}", file_system(t), t.path("mnt"))
    t.record("exit status", done.returncode)
    ensure(not os.path.ismount(t.path("mnt")), "mounted nevertheless")
    equal(loop.attr("loop/backing_file"), t.path("other"), "backing_file")


@suite.test
def findmnt_tells_options(t):
    point = t.mount(file_system(t), "-o", "loop,nodev,noexec")
    out = run("findmnt", "--json", "-o", "TARGET,SOURCE,FSTYPE,VFS-OPTIONS,MAJ:MIN", point)
    found = json.loads(out)["filesystems"][0]
    loop = bound_to(t.path("image"))[0]
    equal(found["maj:min"], f"7:{loop.number}", "MAJ:MIN")
    equal((found["target"], found["source"], found["fstype"]), (point, loop.path, "ext4"),
          "findmnt")
    t.record("VFS-OPTIONS", found["vfs-options"])
    out = run("lsblk", "-n", "-o", "MOUNTPOINTS", loop.path).strip()
    equal(out, point, "lsblk MOUNTPOINTS")
    equal(run("findmnt", "-n", "-o", "TARGET", "--source", loop.path).strip(), point,
          "findmnt --source")


@suite.test
def umount_by_the_file(t):
    path = file_system(t)
    point = t.mount(path, "-o", "loop")
    run("umount", path)
    ensure(not os.path.ismount(point), "still mounted")
    gone(path)


@suite.test
def umount_d_detaches(t):
    """The device was not set up by mount, so only -d detaches it."""
    for option, bound in (("-v", 1), ("-d", 0)):
        loop = t.losetup(file_system(t))
        point = t.mount(loop.path)
        run("umount", option, point)
        system.settle()
        if bound:
            ensure(loop.is_bound(), f"umount {option} detached it")
            loop.detach()
        gone(t.path("image"))


@suite.test
def one_device_for_two_mounts(t):
    path = file_system(t)
    first = t.mount(path, "-o", "loop", where="first")
    second = t.mount(path, "-o", "loop", where="second")
    loops = bound_to(path)
    t.record("devices", len(loops))
    before = trees.make(first)
    trees.same(second, before, "files of the second mount")
    run("umount", first)
    system.settle()
    equal([loop.number for loop in bound_to(path)], [loop.number for loop in loops],
          "devices after the first umount")
    run("umount", second)
    gone(path)
    run("e2fsck", "-fn", path)


@suite.test
def two_windows_of_one_file(t):
    path = file_system(t, offset=24 * MIB)
    run("mkfs.ext4", "-q", "-E", f"offset={MIB}", path, "16M")
    first = t.mount(path, "-o", f"loop,offset={MIB},sizelimit={16 * MIB}", where="first")
    second = t.mount(path, "-o", f"loop,offset={24 * MIB}", where="second")
    equal(len(bound_to(path)), 2, "devices")
    trees.make(first, 1)
    trees.make(second, 2)
    before = [trees.listing(point) for point in (first, second)]
    for point in (first, second):
        run("umount", point)
    gone(path)
    for offset, point, expected in ((MIB, first, before[0]), (24 * MIB, second, before[1])):
        run("e2fsck", "-fn", f"{path}?offset={offset}")
        run("mount", "-o", f"loop,ro,offset={offset},sizelimit={16 * MIB}", path, point)
        t.defer(system.unmount_if_mounted, point)
        trees.same(point, expected, "files")
        run("umount", point)


@suite.test
def overlapping_window_is_refused(t):
    path = file_system(t, offset=MIB)
    t.mount(path, "-o", f"loop,offset={MIB}")
    os.mkdir(t.path("second"))
    done = attempt("mount", "-o", "loop", path, t.path("second"))
    t.record("exit status", done.returncode)
    equal(len(bound_to(path)), 1, "devices")


@suite.test
def read_only_and_writable_again(t):
    point = t.mount(file_system(t), "-o", "loop")
    before = trees.make(point)
    run("mount", "-o", "remount,ro", point)
    fails_with(errno.EROFS, open, os.path.join(point, "new"), "wb")
    trees.same(point, before, "files")
    run("mount", "-o", "remount,rw", point)
    blockio.make_file(os.path.join(point, "new"), 100)
    run("umount", point)
    gone(t.path("image"))
    run("e2fsck", "-fn", t.path("image"))


@suite.test
def read_only_mount_cannot_become_writable(t):
    """`-o loop,ro` makes a read-only device."""
    point = t.mount(file_system(t), "-o", "loop,ro")
    loop = bound_to(t.path("image"))[0]
    equal(run("blockdev", "--getro", loop.path).strip(), "1", "blockdev --getro")
    t.allow_log(r"EXT4-fs \(loop\d+\): write access unavailable, .*")
    t.allow_log(r"/dev/loop\d+: Can't open blockdev")
    done = attempt("mount", "-o", "remount,rw", point)
    t.record("exit status of remount,rw", done.returncode)
    fails_with(errno.EROFS, open, os.path.join(point, "new"), "wb")


@suite.test
def file_on_a_read_only_file_system(t):
    """mount cannot open the file for writing, and falls back to a read-only device."""
    folder = t.ext4(64)
    path = blockio.make_sparse(os.path.join(folder, "image"), 16 * MIB)
    run("mkfs.ext4", "-q", path)
    run("mount", "-o", "remount,ro", folder)
    t.allow_log(r"EXT4-fs \(ram0\): re-mounted .*")
    point = t.mount(path, "-o", "loop")
    equal(bound_to(path)[0].attr("ro"), "1", "ro of the device")
    t.record("options", run("findmnt", "-n", "-o", "VFS-OPTIONS", point).strip())
    run("umount", point)
    gone(path)


@suite.test
def lazy_umount_detaches_at_the_last_close(t):
    path = file_system(t)
    point = t.mount(path, "-o", "loop")
    data = blockio.make_file(os.path.join(point, "file"), MIB)
    with open(os.path.join(point, "file"), "rb") as file:
        run("umount", "-l", point)
        ensure(not os.path.ismount(point), "still mounted")
        equal(len(bound_to(path)), 1, "devices while a file is open")
        same_bytes(file.read(), data, "the open file")
    gone(path)
    run("e2fsck", "-fn", path)


@suite.test
def file_removed_while_mounted(t):
    path = file_system(t)
    point = t.mount(path, "-o", "loop")
    loop = bound_to(path)[0]
    os.unlink(path)
    equal(loop.attr("loop/backing_file"), f"{path} (deleted)", "backing_file")
    out = run("losetup", "-n", "-O", "BACK-FILE", loop.path).strip()
    t.record("BACK-FILE", out.replace(t.dir, "…"))
    before = trees.make(point)
    loop.drop_cache()
    trees.same(point, before, "files")
    run("umount", point)
    system.settle()
    system.wait_until(lambda: not loop.is_bound(), "the device was detached")


@suite.test
def file_replaced_while_mounted(t):
    """What a package manager does: the mount keeps the old file."""
    path = file_system(t)
    point = t.mount(path, "-o", "loop,ro")
    other = blockio.make_file(t.path("new"), 16 * MIB)
    os.rename(t.path("new"), path)
    equal(bound_to(path), [], "devices of the new file")
    run("ls", "-lR", point)
    run("umount", point)
    same_bytes(blockio.content(path), other, "the new file")


@suite.test
def fstab_entry(t):
    path = file_system(t, offset=MIB)
    point = t.path("mnt")
    os.mkdir(point)
    with open(t.path("fstab"), "w", encoding="ascii") as file:
        file.write(f"{path} {point} ext4 loop,offset={MIB},noatime 0 0\n")
    run("mount", "-T", t.path("fstab"), "-a")
    t.defer(system.unmount_if_mounted, point)
    equal(bound_to(path)[0].attr("loop/offset"), str(MIB), "offset")
    t.record("second mount -a", attempt("mount", "-T", t.path("fstab"), "-a").returncode)
    equal(len(bound_to(path)), 1, "devices")
    run("umount", point)
    gone(path)


@suite.test
def without_the_option(t):
    """mount sees a regular file with a file system and takes a loop device by itself."""
    path = file_system(t)
    point = t.mount(path)
    equal(len(bound_to(path)), 1, "devices")
    run("umount", point)
    gone(path)


@suite.test
def no_file_system(t):
    """A mount that fails leaves no device behind."""
    path = blockio.make_sparse(t.path("image"), MIB)
    os.mkdir(t.path("mnt"))
    t.allow_log(r"EXT4-fs \(loop\d+\): VFS: Can't find ext4 filesystem")
    done = attempt("mount", "-t", "ext4", "-o", "loop", path, t.path("mnt"))
    t.record("exit status", done.returncode)
    ensure(done.returncode != 0, "mounted nevertheless")
    gone(path)


@suite.test
def many_mounts_at_once(t):
    """Six mount programs compete for free devices."""
    names = [file_system(t, f"image{number}", size=4 * MIB) for number in range(6)]
    points = [f"{name}.mnt" for name in names]
    script = 'for i; do mkdir "$i.mnt"; mount -o loop "$i" "$i.mnt" & done; wait'
    run("sh", "-c", script, "sh", *names)
    for number, (name, point) in enumerate(zip(names, points)):
        t.defer(system.unmount_if_mounted, point)
        equal(len(bound_to(name)), 1, f"devices of {name}")
        blockio.make_file(os.path.join(point, "file"), 5000, number)
    run("sh", "-c", 'for i; do umount "$i" & done; wait', "sh", *points)
    for name in names:
        gone(name)
        run("e2fsck", "-fn", name)


if __name__ == "__main__":
    suite.main()
