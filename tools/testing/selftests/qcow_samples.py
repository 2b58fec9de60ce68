#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""qcow and qcow2 images that other tools made: the guest disk has the recorded sha256, can be
written, and qemu-img likes what it finds then."""

from lib import blockio, images, qcow
from lib.ktap import Suite, equal, same_bytes

suite = Suite()

SAMPLES = {"vb_qcow": ("vb.qcow", "qcow"), "ext2_qcow2": ("ext2.qcow2", "qcow2")}


@suite.cases(**SAMPLES)
def has_the_recorded_content(t, case):
    name, parser = case
    sample = images.sample(name)
    path = sample.unpack(t)
    before = images.Unchanged(path)
    loop = t.attach(path)
    equal(loop.size(), sample.size, "size")
    equal(loop.attr("loop/parser"), parser, "parser")
    equal(blockio.digest(loop.path), sample.sha256, "sha256 of the guest disk")
    loop.detach()
    before.check()


@suite.cases(**SAMPLES)
def can_be_written(t, case):
    name, parser = case
    path = images.sample(name).unpack(t)
    shadow = bytearray(qcow.guest(t, path, parser))
    loop = t.attach(path)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=20)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    qcow.judge(t, path, bytes(shadow), parser)


if __name__ == "__main__":
    suite.main()
