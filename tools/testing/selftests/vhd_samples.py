#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Images that other tools made: the guest disk has the recorded sha256, or the image is refused."""

import errno
import os

from lib import blockio, images, loopdev, modules, system, vhd_reader
from lib.ktap import Suite, equal, fails_with, same_bytes
from lib.system import run

MIB = 1 << 20
suite = Suite()

SERVED = ("win7dyn.vhd", "win7fixed.vhd", "ext2.vhd", "bx-vpc.vhd", "vb-standard.vhd",
          "vb-fixed.vhd", "xs-fixed-6M.vhd", "xs-dyn-64M.vhd", "xs-prealloc-S1024.vhd")
LARGE = ("win7dyn.vhd", "win7fixed.vhd", "vb-fixed.vhd")
DIFFERENCING = ("xs-snap1.vhd", "xs-snap2.vhd", "xs-rawchild.vhd")
FOREIGN = ("ext2.vmdk", "bx-vmware4.vmdk", "vb-standard.vmdk",
           "vb-fixed.vmdk", "vb-split3g.vmdk", "vb-stream.vmdk", "ov-stream.vmdk")


def by_name(names):
    """Test cases named after files."""
    return {name.replace(".", "_").replace("-", "_"): name for name in names}


@suite.cases(**by_name(SERVED))
def has_the_recorded_content(t, name):
    sample = images.sample(name)
    path = sample.unpack(t)
    before = images.Unchanged(path)
    loop = t.attach(path)
    equal(loop.size(), sample.size, "size")
    equal(loop.attr("loop/parser"), "vhd", "parser")
    equal(blockio.digest(loop.path), sample.sha256, "sha256 of the guest disk")
    loop.detach()
    before.check()


@suite.cases(**by_name(name for name in SERVED if name not in LARGE))
def can_be_written(t, name):
    path = images.sample(name).unpack(t)
    with vhd_reader.Reader(path) as reader:
        shadow = bytearray(reader.read(0, reader.size))
    loop = t.attach(path)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=20)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    images.judge(t, path, bytes(shadow))


@suite.test
def empty_terabyte(t):
    sample = images.sample("vb-empty-1T.vhd")
    path = sample.unpack(t)
    loop = t.attach(path)
    equal(loop.size(), 1 << 40, "size")
    for pos in (0, 1 << 39, (1 << 40) - MIB):
        same_bytes(blockio.direct_read(loop.path, pos, MIB), bytes(MIB), f"at {pos}")
    data = blockio.pattern(MIB)
    blockio.direct_write(loop.path, (1 << 40) - MIB, data)
    loop.detach()
    with vhd_reader.Reader(path) as reader:
        reader.check()
        same_bytes(reader.read((1 << 40) - MIB, MIB), data, "end of the disk in the file")


@suite.cases(**by_name(DIFFERENCING))
def differencing_is_refused_by_default(t, name):
    """It names another file; vhd_differencing allows that."""
    path = images.sample(name).unpack(t)
    before = images.Unchanged(path)
    t.expect_log(r"loop\d+: refused: .*parser.*parents.*", 2)
    fails_with(errno.EPERM, t.attach, path)
    fails_with(errno.EPERM, loopdev.attach_read_only, path)
    before.check()


@suite.cases(**by_name(FOREIGN))
def other_format_is_refused_without_its_parser(t, name):
    t.stack.enter_context(modules.hidden("vmdkloop"))
    path = images.sample(name).unpack(t)
    t.expect_log(r"loop\d+: refused: .*", 1)
    fails_with(errno.ENOPKG, t.attach, path)


@suite.test
def raw_parent_is_raw(t):
    images.sample("xs-fixed-6M.vhd")
    path = images.Sample("xs-rawparent.raw", 0, "").unpack(t)
    loop = t.attach(path)
    equal(loop.attr("loop/parser"), "raw", "parser")
    same_bytes(images.whole(loop), blockio.content(path), "device")


@suite.test
def windows_partition_mounts(t):
    path = images.sample("win7dyn.vhd").unpack(t)
    t.allow_log(r"ntfs: .*")
    loop = t.losetup("-r", "-P", path)
    system.wait_until(lambda: os.path.exists(loop.part(2)), "there is a partition")
    point = t.mount(loop.part(2), "-i", "-t", "ntfs", "-o", "ro")
    with_driver = (tuple(os.statvfs(point)), tree(point))
    run("umount", point)
    loop.detach()
    raw = images.convert(path, t.path("raw"))
    loop = t.losetup("-r", "-P", raw)
    system.wait_until(lambda: os.path.exists(loop.part(2)), "there is a partition")
    point = t.mount(loop.part(2), "-i", "-t", "ntfs", "-o", "ro")
    converted = (tuple(os.statvfs(point)), tree(point))
    equal(with_driver, converted, "file system, as compared to the image converted by qemu-img")


def tree(top):
    """All files below a folder with the hash of their content."""
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                found[os.path.relpath(path, top)] = blockio.digest(path)
    return found


if __name__ == "__main__":
    suite.main()
