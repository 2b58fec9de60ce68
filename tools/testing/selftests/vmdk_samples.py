#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""VMDKs that other tools made: the guest disk has the recorded sha256, can be written if it is of a
kind that is, and qemu-img and our reader like what they find then."""

import errno
import os
import random

from lib import blockio, images, layers, loopdev, system, vmdk_chain, vmdk_reader
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.vmdk_chain import attach, attach_read_only

MIB = 1 << 20
SECTOR = 512
# By kind of disk; then the files beside the one that is attached.
ALONE = {"ext2": "monolithicSparse", "bx-vmware4": "monolithicSparse", "vb-standard": "monolithicSparse"}
STREAMS = {"vb-stream": "streamOptimized", "ov-stream": "streamOptimized"}
FLAT, SPLIT = "vb-fixed", "vb-split3g"
SETS = {FLAT: ["vb-fixed-flat.vmdk"], SPLIT: ["vb-split3g-s001.vmdk", "vb-split3g-s002.vmdk"]}
suite = Suite()


def by_name(*tables):
    """Test cases named after samples."""
    return {name.replace("-", "_"): name for table in tables for name in table}


def unpacked(t, name):
    """A sample and the paths of its files, that which is attached first."""
    sample = images.sample(f"{name}.vmdk")
    paths = [sample.unpack(t)]
    return sample, paths + [images.Sample(each, 0, "").unpack(t) for each in SETS.get(name, [])]


def shows(loop, sample, variant):
    """The device is the recorded disk."""
    equal(loop.size(), sample.size, "size")
    equal((loop.attr("loop/parser"), loop.attr("loop/variant")), ("vmdk", variant), "parser, variant")
    equal(blockio.digest(loop.path), sample.sha256, "sha256 of the guest disk")


@suite.cases(**by_name(ALONE))
def has_the_recorded_content(t, name):
    sample, (path,) = unpacked(t, name)
    before = images.Unchanged(path)
    loop = t.attach(path)
    shows(loop, sample, ALONE[name])
    loop.detach()
    before.check()


@suite.cases(**by_name(STREAMS))
def stream_is_read_only(t, name):
    sample, (path,) = unpacked(t, name)
    before = images.Unchanged(path)
    t.expect_log(r"loop\d+: refused: vmdk: \S.* at byte \d+.*")
    fails_with(errno.EROFS, t.attach, path)
    loop = loopdev.attach_read_only(path)
    t.defer(loop.detach_if_bound)
    shows(loop, sample, STREAMS[name])
    equal(loop.attr("ro"), "1", "read-only")
    loop.detach()
    before.check()


@suite.cases(named="none", beneath="beneath")
def flat_has_the_recorded_content(t, parents):
    sample, paths = unpacked(t, FLAT)
    before = [images.Unchanged(path) for path in paths]
    layers.allow_parents(t, parents)
    loop = attach(t, paths[0]) if parents == "none" else t.attach(paths[0])
    shows(loop, sample, "monolithicFlat")
    loop.detach()
    for file in before:
        file.check()


@suite.test
def split_has_the_recorded_content(t):
    """3 GiB, of which little is there: that is compared, and places beside it."""
    sample, paths = unpacked(t, SPLIT)
    before = [images.Unchanged(path) for path in paths]
    loop = attach_read_only(t, paths[0])
    equal((loop.size(), loop.attr("loop/variant")), (sample.size, "twoGbMaxExtentSparse"), "size, variant")
    rng = random.Random(3)
    with vmdk_reader.Disk(paths[0]) as disk:
        places = list(disk.ranges())
        ensure(len(places) > 5, "there are data")
        places += [(rng.randrange(sample.size // SECTOR - 2048) * SECTOR, MIB) for _ in range(20)]
        # Where the extents meet.
        places.append(((4192256 - 64) * SECTOR, 128 * SECTOR))
        for pos, length in places:
            same_bytes(blockio.direct_read(loop.path, pos, length), disk.read(pos, length), f"at {pos}")
    loop.detach()
    for file in before:
        file.check()


@suite.cases(**by_name(SETS))
def set_is_refused_by_default(t, name):
    """It names other files."""
    _, paths = unpacked(t, name)
    before = layers.Untouched(loopdev.free(), paths)
    t.expect_log(rf"loop\d+: refused: vmdk: .*{name}.*parser.*parents.*", 2)
    fails_with(errno.EPERM, t.attach, paths[0])
    fails_with(errno.EPERM, loopdev.attach_read_only, paths[0])
    before.check()


@suite.cases(**by_name(ALONE, [FLAT]))
def can_be_written(t, name):
    _, paths = unpacked(t, name)
    with vmdk_reader.Disk(paths[0]) as disk:
        shadow = bytearray(disk.whole())
        cid = disk.cid()
    loop = attach(t, paths[0])
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=20)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    vmdk_chain.judge(t, paths[0], bytes(shadow))
    ensure(vmdk_chain.cid_of(paths[0]) != cid, "the CID is another one")


@suite.test
def split_can_be_written(t):
    """In both extents, where they meet, and to the last sector, which lies within a grain."""
    sample, paths = unpacked(t, SPLIT)
    places = {0: 512, 5 * MIB + 512: 70000 // SECTOR * SECTOR, (4192256 - 9) * SECTOR: 18 * SECTOR,
              3 << 30: 2048, sample.size - 512: 512}
    data = {pos: blockio.pattern(length, seed=pos) for pos, length in places.items()}
    loop = attach(t, paths[0])
    with blockio.Direct(loop.path) as device:
        for pos, part in data.items():
            device.write(pos, part)
        device.flush()
    loop.detach()
    with vmdk_reader.Disk(paths[0]) as disk:
        disk.check()
        equal(disk.size, sample.size, "size")
        for pos, part in data.items():
            same_bytes(disk.read(pos, len(part)), part, f"image at {pos}")
    vmdk_chain.qemu_check(paths[0])


@suite.test
def partitions(t):
    """Of a disk of Windows; their content is that of the disk."""
    sample, (path,) = unpacked(t, "bx-vmware4")
    loop = t.losetup("-r", "-P", path)
    system.wait_until(lambda: os.path.exists(loop.part(2)), "there are partitions")
    with vmdk_reader.Disk(path) as disk:
        equal(disk.size, sample.size, "size")
        for number, (first, count) in enumerate(((128, 10240), (10368, 7680)), 1):
            same_bytes(blockio.content(loop.part(number)), disk.read(first * SECTOR, count * SECTOR),
                       f"partition {number}")


@suite.test
def file_system_mounts(t):
    path = images.sample("ext2.vmdk").unpack(t)
    loop = t.losetup(path)
    t.allow_log(r"EXT4-fs .*")
    point = t.mount(loop.path, "-t", "ext2")
    data = blockio.make_file(f"{point}/new file", 100000)
    system.run("umount", point)
    system.run("e2fsck", "-fn", loop.path)
    content = images.whole(loop)
    loop.detach()
    vmdk_chain.judge(t, path, content)
    point = t.mount(t.losetup("-r", path).path, "-t", "ext2", "-o", "ro")
    same_bytes(blockio.content(f"{point}/new file"), data, "file")


if __name__ == "__main__":
    suite.main()
