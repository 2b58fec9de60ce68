#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Device mapper, LVM and MD over raw devices. The stock driver passes this suite, too."""

import json
import os

from lib import blockio, needs, system, trees
from lib.kmsg import NO_ZERO_RANGE
from lib.ktap import Suite, ensure, equal, same_bytes
from lib.system import attempt, run

MIB = 1 << 20
NAME = "loopselftest"
suite = Suite(udev=True, allow=[NO_ZERO_RANGE, r"EXT4-fs \((dm-|md)\d+\): (un)?mount.*"])


def devices(t, count, mebibytes=48):
    """That many devices on files of their own."""
    return [t.losetup(blockio.make_sparse(t.path(f"disk{number}"), mebibytes * MIB))
            for number in range(count)]


def attached_again(t, loops):
    """The same files, attached in another order than before."""
    for loop in loops:
        loop.detach()
    system.settle()
    names = [t.path(f"disk{number}") for number in range(len(loops))]
    return [t.losetup(name) for name in reversed(names)]


def key_file(t):
    """A file with a passphrase."""
    with open(t.path("key"), "wb") as file:
        file.write(b"a passphrase of many words")
    return t.path("key")


def luks_format(t, path):
    """A LUKS header whose key costs next to nothing to derive."""
    run("cryptsetup", "-q", "luksFormat", "--type", "luks2", "--pbkdf", "pbkdf2",
        "--pbkdf-force-iterations", "1000", "--key-file", key_file(t), path)


def luks_open(t, path, *options):
    """Opens it; returns the path of the plain device."""
    run("cryptsetup", "open", *options, "--key-file", t.path("key"), path, NAME)
    t.defer(attempt, "cryptsetup", "close", NAME)
    system.settle()
    return f"/dev/mapper/{NAME}"


def luks_close():
    """Closes it."""
    run("cryptsetup", "close", NAME)
    system.settle()


@suite.test
def luks(t):
    loop, = devices(t, 1)
    luks_format(t, loop.path)
    run("mkfs.ext4", "-q", luks_open(t, loop.path))
    point = t.mount(f"/dev/mapper/{NAME}")
    before = trees.make(point)
    secret = blockio.content(os.path.join(point, "link"))
    run("umount", point)
    luks_close()
    loop, = attached_again(t, [loop])
    ensure(secret[:512] not in blockio.content(t.path("disk0")), "a file's bytes are readable")
    with open(t.path("wrong"), "wb") as file:
        file.write(b"not it")
    done = attempt("cryptsetup", "open", "--key-file", t.path("wrong"), loop.path, NAME)
    equal(done.returncode, 2, "cryptsetup open with a wrong passphrase")
    luks_open(t, loop.path)
    t.mount(f"/dev/mapper/{NAME}", "-o", "ro")
    trees.same(point, before, "files")
    run("umount", point)
    luks_close()


@suite.test
def luks_in_a_file(t):
    """cryptsetup attaches the file itself, and the device goes away with the mapping."""
    path = blockio.make_sparse(t.path("disk0"), 48 * MIB)
    luks_format(t, path)
    mapped = luks_open(t, path)
    status = run("cryptsetup", "status", NAME)
    ensure("loop:" in status and path in status, "cryptsetup status does not tell the file")
    data = blockio.pattern(3 * MIB)
    blockio.direct_write(mapped, MIB, data)
    luks_close()
    system.wait_until(lambda: not run("losetup", "-n", "-j", path), "the device was detached")
    mapped = luks_open(t, path, "--readonly")
    same_bytes(blockio.direct_read(mapped, MIB, 3 * MIB), data, "plain device")
    luks_close()
    system.wait_until(lambda: not run("losetup", "-n", "-j", path), "the device was detached")


@suite.test
def luks_grows(t):
    loop, = devices(t, 1)
    luks_format(t, loop.path)
    mapped = luks_open(t, loop.path)
    before = int(run("blockdev", "--getsize64", mapped))
    os.truncate(t.path("disk0"), 64 * MIB)
    run("losetup", "-c", loop.path)
    run("cryptsetup", "resize", "--key-file", t.path("key"), NAME)
    equal(int(run("blockdev", "--getsize64", mapped)), before + 16 * MIB, "size")
    luks_close()


@suite.test
def snapshot(t):
    """dm-snapshot with origin and changes on two loop devices."""
    needs.module("dm-snapshot")
    origin, changes = devices(t, 2)
    data = blockio.pattern(4 * MIB)
    blockio.direct_write(origin.path, 0, data)
    table = f"0 {origin.size() // 512} snapshot {origin.path} {changes.path} P 8"
    run("dmsetup", "create", NAME, text=table)
    t.defer(attempt, "dmsetup", "remove", NAME)
    other = blockio.pattern(MIB, 2)
    blockio.direct_write(f"/dev/mapper/{NAME}", MIB, other)
    changed = data[:MIB] + other + data[2 * MIB:]
    same_bytes(blockio.direct_read(f"/dev/mapper/{NAME}", 0, 4 * MIB), changed, "snapshot")
    same_bytes(blockio.direct_read(origin.path, 0, 4 * MIB), data, "origin")
    # udevd looks at what was written to.
    system.settle()
    run("dmsetup", "remove", NAME)
    system.settle()


def volume_group(t, loops):
    """A volume group over the devices; removed with the test."""
    run("vgcreate", "-q", "-y", "-s", "1m", NAME, *(loop.path for loop in loops))
    t.defer(attempt, "vgchange", "-an", NAME)


def physical_volumes():
    """The devices of the group."""
    out = run("pvs", "--reportformat", "json", "-o", "pv_name", "-S", f"vg_name={NAME}")
    return sorted(row["pv_name"] for row in json.loads(out)["report"][0]["pv"])


@suite.test
def logical_volume_over_two_devices(t):
    loops = devices(t, 2)
    volume_group(t, loops)
    run("lvcreate", "-q", "-y", "-l", "100%FREE", "-n", "data", NAME)
    volume = f"/dev/{NAME}/data"
    equal(int(run("blockdev", "--getsize64", volume)), 94 * MIB, "size")
    run("mkfs.ext4", "-q", volume)
    point = t.mount(volume)
    trees.make(point)
    with open(os.path.join(point, "long"), "wb") as file:
        file.write(blockio.pattern(MIB, 7) * 60)
    before = trees.listing(point)
    run("umount", point)
    run("vgchange", "-q", "-an", NAME)
    loops = attached_again(t, loops)
    run("vgchange", "-q", "-ay", NAME)
    equal(physical_volumes(), sorted(loop.path for loop in loops), "physical volumes")
    t.mount(volume, "-o", "ro")
    trees.same(point, before, "files")
    run("umount", point)
    run("vgchange", "-q", "-an", NAME)
    run("vgremove", "-q", "-y", NAME)


@suite.test
def volumes_move_between_devices(t):
    needs.module("dm-mirror")
    loops = devices(t, 2)
    volume_group(t, loops[:1])
    run("lvcreate", "-q", "-y", "-L", "8m", "-n", "data", NAME)
    data = blockio.pattern(8 * MIB)
    blockio.direct_write(f"/dev/{NAME}/data", 0, data)
    run("vgextend", "-q", "-y", NAME, loops[1].path)
    run("pvmove", "-q", "-i", "1", loops[0].path)
    run("vgreduce", "-q", NAME, loops[0].path)
    equal(physical_volumes(), [loops[1].path], "physical volumes")
    loops[0].detach()
    same_bytes(blockio.direct_read(f"/dev/{NAME}/data", 0, 8 * MIB), data, "volume")
    run("vgchange", "-q", "-an", NAME)
    run("vgremove", "-q", "-y", NAME)


@suite.test
def volume_grows_with_its_file(t):
    loop, = devices(t, 1)
    volume_group(t, [loop])
    run("lvcreate", "-q", "-y", "-l", "100%FREE", "-n", "data", NAME)
    os.truncate(t.path("disk0"), 64 * MIB)
    run("losetup", "-c", loop.path)
    run("pvresize", "-q", loop.path)
    run("lvextend", "-q", "-l", "+100%FREE", f"{NAME}/data")
    equal(int(run("blockdev", "--getsize64", f"/dev/{NAME}/data")), 63 * MIB, "size")
    run("vgchange", "-q", "-an", NAME)
    run("vgremove", "-q", "-y", NAME)


def mirror(t, loops):
    """RAID 1 over two devices; stopped with the test."""
    needs.module("raid1")
    run("mdadm", "--create", "/dev/md/selftest", "--quiet", "--run", "--assume-clean",
        "--level=1", "--metadata=1.2", "--bitmap=internal", "--homehost=any",
        "--raid-devices=2", *(loop.path for loop in loops))
    t.defer(stop_mirror)
    system.settle()
    return "/dev/md/selftest"


def stop_mirror():
    """Ends every array there is."""
    system.settle()
    attempt("mdadm", "--stop", "--scan")
    system.settle()


def state(device):
    """What mdadm says of an array."""
    out = run("mdadm", "--detail", device)
    return dict(line.strip().split(" : ", 1) for line in out.splitlines() if " : " in line)


MD_LOG = [r"md/raid1:md\d+: .*", r"md\d+: .*", r"md: .*", r"async_tx: .*",
          r"md_update_sb: can't update sb for read-only array md\d+"]


@suite.test
def mirror_fails_and_recovers(t):
    for pattern in MD_LOG:
        t.allow_log(pattern)
    loops = devices(t, 2)
    array = mirror(t, loops)
    data = blockio.pattern(8 * MIB)
    blockio.direct_write(array, 0, data)
    run("mdadm", array, "--fail", loops[1].path)
    equal(state(array)["Failed Devices"], "1", "failed devices")
    other = blockio.pattern(2 * MIB, 2)
    blockio.direct_write(array, 3 * MIB, other)
    data = data[:3 * MIB] + other + data[5 * MIB:]
    run("mdadm", array, "--remove", loops[1].path)
    run("mdadm", array, "--re-add", loops[1].path)
    system.wait_until(lambda: state(array)["Active Devices"] == "2", "it has recovered")
    run("mdadm", array, "--fail", loops[0].path)
    same_bytes(blockio.direct_read(array, 0, 8 * MIB), data, "array on what was re-added")


@suite.test
def mirror_assembled_again(t):
    for pattern in MD_LOG:
        t.allow_log(pattern)
    loops = devices(t, 2)
    array = mirror(t, loops)
    run("mkfs.ext4", "-q", array)
    point = t.mount(array)
    before = trees.make(point)
    run("umount", point)
    stop_mirror()
    loops = attached_again(t, loops)
    system.settle()
    # udevd may have done it already.
    attempt("mdadm", "--assemble", array, *(loop.path for loop in loops))
    system.settle()
    equal(state(array)["Active Devices"], "2", "active devices")
    t.mount(array, "-o", "ro")
    trees.same(point, before, "files")
    run("umount", point)
    stop_mirror()
    starts = [blockio.content(t.path(f"disk{number}"))[8 * MIB:] for number in (0, 1)]
    same_bytes(starts[0], starts[1], "second half of the mirror")


@suite.test
def verity(t):
    """dm-verity serves what it can prove, and nothing else."""
    needs.module("dm-verity")
    data, hashes = devices(t, 2, 8)
    content = blockio.make_file(t.path("disk0"), 8 * MIB)
    root = run("veritysetup", "format", data.path, hashes.path)
    root = next(line.split()[-1] for line in root.splitlines() if "Root hash" in line)
    run("veritysetup", "open", data.path, NAME, hashes.path, root)
    t.defer(attempt, "veritysetup", "close", NAME)
    same_bytes(blockio.direct_read(f"/dev/mapper/{NAME}", 0, 8 * MIB), content, "device")
    run("veritysetup", "close", NAME)
    with open(t.path("disk0"), "r+b") as file:
        file.seek(5 * MIB)
        file.write(b"changed")
    t.allow_log(r"device-mapper: verity: 7:\d+: data block \d+ is corrupted")
    t.allow_log(r"Buffer I/O error on dev dm-\d+.*")
    run("veritysetup", "open", data.path, NAME, hashes.path, root)
    same_bytes(blockio.direct_read(f"/dev/mapper/{NAME}", 0, MIB), content[:MIB], "device")
    done = attempt("dd", f"if=/dev/mapper/{NAME}", "of=/dev/null", "bs=4096", "skip=1280",
                   "count=1")
    equal(done.returncode, 1, "dd of the changed block")
    run("veritysetup", "close", NAME)


if __name__ == "__main__":
    suite.main()
