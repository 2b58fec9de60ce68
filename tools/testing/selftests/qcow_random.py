#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Random I/O on qcow and qcow2 images of all shapes against a shadow copy (lib/model.py): the device
at the end, and the image after detaching, hold the same, and qemu-img check finds nothing.

LP_LONG=1 runs all shapes, and more I/O on each; otherwise it is a part of them, which changes with
the sources of the driver and the parser.
"""

import dataclasses
import glob
import itertools
import os
import zlib

from lib import images, layers, loopdev, qcow
from lib.ktap import Suite, equal, same_bytes
from lib.model import hammer, shared_memory
from lib.qcow import KIB, MIB, Shape

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = [f"{HERE}/../../../drivers/block/{name}/**/*.rs" for name in ("loop_parser", "qcowloop", "vmdkloop")]
LONG = os.environ.get("LP_LONG") == "1"
# How many parts the shapes are divided into; each has one of every family below.
PARTS = 6
suite = Suite()

CLUSTERS = [512, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 2 * MIB]


def plain():
    """Versions and sizes of clusters."""
    for version, cluster in itertools.product((2, 3), CLUSTERS):
        yield Shape(version=version, cluster=cluster)


def refcounts():
    """Widths of reference counts."""
    for bits in (1, 2, 4, 8, 16, 32, 64):
        yield Shape(refcount_bits=bits, cluster=4 * KIB, content="nothing")
        yield Shape(refcount_bits=bits, lazy=True)


def subclusters():
    """Extended L2 entries."""
    for cluster, base in itertools.product((16 * KIB, 64 * KIB, 2 * MIB), ("", "raw", "qcow2")):
        yield Shape(extended=True, cluster=cluster, base=base)


def backed():
    """Files below, of all formats and sizes."""
    for version, base in itertools.product((2, 3), ("raw", "qcow", "qcow2", "vpc", "vmdk")):
        for share in (0.6, 1.0, 1.4):
            yield Shape(version=version, base=base, base_size=share, content="nothing")
    yield Shape(base="raw", cluster=512)
    yield from (Shape(version=version, base="raw", size=8 * MIB - 1536) for version in (1, 2, 3))
    yield Shape(base="raw", extended=True, size=8 * MIB - 1536)
    yield Shape(base="raw", cluster=2 * MIB, content="nothing")


def compressed():
    """Compressed clusters below the writes."""
    for zstd, cluster in itertools.product((False, True), (4 * KIB, 64 * KIB, 2 * MIB)):
        yield Shape(zstd=zstd, cluster=cluster, content="compressed")
    yield Shape(version=2, content="compressed")
    yield Shape(content="compressed", extended=True)
    yield Shape(content="compressed", refcount_bits=1, cluster=4 * KIB)


def layered():
    """Compressed clusters in the image, in the file below, and in both."""
    yield Shape(base="raw", content="compressed")
    yield Shape(base="raw", content="compressed", version=2, cluster=4 * KIB, base_size=0.6)
    yield Shape(base="raw", content="compressed", version=1)
    yield Shape(base="qcow2", packed=True)
    yield Shape(base="qcow2", packed=True, extended=True, cluster=2 * MIB)
    yield Shape(base="qcow2", packed=True, extended=True, cluster=16 * KIB, content="compressed")
    yield Shape(base="qcow2", packed=True, zstd=True, cluster=2 * MIB, content="compressed")
    yield Shape(base="qcow", packed=True, base_size=1.4, content="nothing")
    yield Shape(base="vmdk", packed=True)
    yield Shape(base="vmdk", packed=True, extended=True, cluster=16 * KIB, content="compressed")


def widths():
    """Widths of reference counts, with subclusters."""
    for bits in (1, 2, 4, 8, 32, 64):
        yield Shape(extended=True, refcount_bits=bits, cluster=16 * KIB)


def others():
    """What is left: snapshots, preallocation, version 1, odd sizes."""
    yield from (Shape(preallocation=how, content="nothing")
                for how in ("metadata", "falloc", "full"))
    yield from (Shape(snapshot=True, version=version, cluster=cluster)
                for version in (2, 3) for cluster in (4 * KIB, 64 * KIB))
    yield Shape(snapshot=True, extended=True)
    yield Shape(snapshot=True, content="compressed")
    yield Shape(preallocation="metadata", extended=True, content="nothing")
    yield from (Shape(version=1, base=base, content=content)
                for base in ("", "raw") for content in ("nothing", "written"))
    yield Shape(version=1, content="compressed")
    yield Shape(size=8 * MIB - 512)
    yield Shape(size=512)
    yield Shape(version=2, size=100 * KIB, cluster=64 * KIB)


FAMILIES = [list(family()) for family in
            (plain, refcounts, subclusters, backed, compressed, layered, widths, others)]


def part():
    """Which part of the shapes it is today."""
    found = 0
    for path in sorted(path for where in SOURCES for path in glob.glob(where, recursive=True)):
        with open(path, "rb") as file:
            found = zlib.crc32(file.read(), found)
    return found % PARTS


def chosen():
    """The shapes to run."""
    for family in FAMILIES:
        yield from family if LONG else family[part()::PARTS]


def model(t, shape):
    """Runs the model test on one shape."""
    path = qcow.make(t.dir, shape)
    layers.allow_parents(t, "beneath")
    before = qcow.guest(t, path, shape.kind)
    shadow = shared_memory(before)
    loop = t.attach(path)
    equal((loop.size(), loop.attr("loop/parser")), (shape.size, shape.kind), "size and parser")
    same_bytes(images.whole(loop), before, "device at the beginning")
    # Version 1 has none.
    hammer(loop, shadow, 2400 if LONG else 320, seed=len(shape.name), discards=shape.version > 1)
    same_bytes(images.whole(loop), shadow[:], "device at the end")
    loop.detach()
    qcow.judge(t, path, shadow[:], shape.kind)
    if shape.snapshot:
        snapshot_is_untouched(t, path, shape)


def snapshot_is_untouched(t, path, shape):
    """What was in the image when the snapshot was made is still there."""
    os.mkdir(t.path("again"))
    original = qcow.make(t.path("again"), dataclasses.replace(shape, snapshot=False))
    expected = qcow.guest(t, original)
    qcow.run("qemu-img", "snapshot", "-a", "before", path)
    qcow.judge(t, path, expected)
    qcow.run("qemu-img", "snapshot", "-d", "before", path)
    qcow.check(path)


for one in chosen():
    suite.add(one.name, lambda t, one=one: model(t, one))


@suite.cases(buffered=0, direct_to_file=loopdev.DIRECT_IO)
def deep_queues(t, flags):
    """fio with many requests in flight that meet in the same clusters."""
    path = images.create(os.path.join(t.ext4(96), "a.qcow2"), 32 * MIB, "qcow2")
    loop = t.attach(path, flags=flags)
    qcow.run("fio", "--name=x", f"--filename={loop.path}", "--ioengine=libaio", "--direct=1",
             "--rw=randrw", "--bsrange=512-64k", "--iodepth=32", "--size=32m",
             "--io_size=32m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
             "--randseed=5", "--fsync=50")
    content = images.whole(loop)
    loop.detach()
    qcow.judge(t, path, content)


if __name__ == "__main__":
    suite.main()
