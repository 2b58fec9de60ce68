#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""qcow and qcow2 files that qemu-img and others made: attached, read, refused."""

import errno
import hashlib
import os
import struct

from lib import blockio, images, layers, loopdev
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import run

MIB = 1 << 20
SIZE = 6 * MIB + 512
INCOMPATIBLE = 72
suite = Suite()


def disk(t):
    """A raw disk with data, holes and an odd end."""
    path = blockio.make_sparse(t.path("disk.raw"), SIZE)
    with open(path, "r+b") as file:
        for start, length in ((0, 70000), (MIB - 512, 300000), (3 * MIB, 512), (SIZE - 5120, 5120)):
            file.seek(start)
            file.write(blockio.pattern(length, seed=start + 1))
    return path


def make(t, kind, name="image", **options):
    """An image of the disk, and the disk's bytes."""
    raw = disk(t)
    args = ["-o", ",".join(f"{key}={value}" for key, value in options.items())] if options else []
    run("qemu-img", "convert", "-f", "raw", "-O", kind, *args, raw, t.path(name))
    return t.path(name), blockio.content(raw)


def attach_read_only(t, path, parser="qcow2", **kwargs):
    """As `losetup -r` does, with the parser named: the file may name its backing file."""
    return images.attach_with(t, path, parser, file_flags=os.O_RDONLY, flags=loopdev.READ_ONLY,
                              mode=os.O_RDONLY, **kwargs)


def attach_auto(t, path, **kwargs):
    """The same, without naming the parser."""
    return t.attach(path, file_flags=os.O_RDONLY, flags=loopdev.READ_ONLY, mode=os.O_RDONLY,
                    **kwargs)


def patch(path, offset, data):
    """Overwrites bytes of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@suite.cases(v2={"compat": "0.10"}, v3={}, c512={"cluster_size": 512},
             c2m={"cluster_size": 2 * MIB}, extended={"extended_l2": "on"},
             extended_16k={"extended_l2": "on", "cluster_size": 16384},
             refcount_1={"refcount_bits": 1}, refcount_64={"refcount_bits": 64},
             lazy={"lazy_refcounts": "on"}, metadata={"preallocation": "metadata"},
             full={"preallocation": "full"})
def reads_as_qemu_img_wrote(t, options):
    path, data = make(t, "qcow2", **options)
    before = images.Unchanged(path)
    loop = attach_auto(t, path)
    equal(loop.attr("loop/parser"), "qcow2", "parser")
    equal(loop.attr("loop/variant"), "v2" if "compat" in options else "v3", "variant")
    equal(loop.size(), SIZE, "size")
    same_bytes(images.whole(loop), data, "device")
    loop.detach()
    before.check()


@suite.test
def shows_the_active_state(t):
    path, data = make(t, "qcow2")
    run("qemu-img", "snapshot", "-c", "one", path)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 64k 200k", "-c", "write -z 2M 1M", path)
    expected = bytearray(data)
    expected[65536:65536 + 204800] = b"\x07" * 204800
    expected[2 * MIB:3 * MIB] = bytes(MIB)
    same_bytes(images.whole(attach_auto(t, path)), bytes(expected), "device")


@suite.cases(raw="raw", qcow2="qcow2", qcow="qcow", vpc="vpc")
def lies_on_a_backing_file(t, kind):
    options = {"force_size": "on"} if kind == "vpc" else {}
    base, data = make(t, kind, name="base", **options)
    del base
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", kind, t.path("top"),
        str(2 * SIZE - 512))
    run("qemu-io", "-f", "qcow2", "-c", "write -P 9 100k 5k", t.path("top"))
    expected = bytearray(data.ljust(2 * SIZE - 512, b"\0"))
    expected[102400:102400 + 5120] = b"\x09" * 5120
    loop = attach_read_only(t, t.path("top"))
    same_bytes(images.whole(loop), bytes(expected), "device")
    equal(len(layers.of(loop)), 2, "layers")
    loop.detach()
    # Nobody said that it may name other files.
    t.expect_log(r"loop\d+: refused: qcow2: the file names another one.*")
    fails_with(errno.EPERM, attach_auto, t, t.path("top"))


@suite.test
def unknown_feature_is_named(t):
    path, _ = make(t, "qcow2")
    patch(path, INCOMPATIBLE, struct.pack(">Q", 1 << 7))
    # The image has a table of names; its first entry becomes that of the bit.
    with open(path, "rb") as file:
        header = file.read(4096)
    at = header.index(struct.pack(">I", 0x6803f857)) + 8
    patch(path, at, b"\0\x07" + b"warp drive".ljust(46, b"\0"))
    t.expect_log(r'loop\d+: refused: qcow2: unknown incompatible feature bit 7 \("warp drive"\)'
                 r" at byte 72")
    fails_with(errno.EOPNOTSUPP, attach_auto, t, path)


@suite.cases(dirty=1, corrupt=2)
def damaged_is_read_only(t, bit):
    path, data = make(t, "qcow2")
    patch(path, INCOMPATIBLE, struct.pack(">Q", bit))
    t.expect_log(r"loop\d+: refused: qcow2: .*qemu-img check -r all.*losetup -r.*")
    fails_with(errno.EROFS, t.attach, path)
    t.expect_log(r"loop\d+: qcow2: .*qemu-img check -r all.*; served nevertheless")
    same_bytes(images.whole(attach_auto(t, path)), data, "device")


@suite.test
def bad_entry_is_an_io_error(t):
    path, data = make(t, "qcow2")
    with open(path, "rb") as file:
        l1_at, = struct.unpack(">Q", file.read(48)[40:])
        file.seek(l1_at)
        table, = struct.unpack(">Q", file.read(8))
    patch(path, (table & ((1 << 56) - 512)) + 8, struct.pack(">Q", 1 << 63 | 1 << 40))
    loop = attach_auto(t, path)
    t.expect_log(r"loop\d+: qcow2: qcow2 L2 entry points past the end of the file at byte \d+: "
                 r"I/O error")
    t.allow_log(r"(blk_update_request: )?I/O error, dev loop\d+, .*")
    t.allow_log(r"Buffer I/O error on dev loop\d+.*")
    same_bytes(blockio.direct_read(loop.path, 0, 65536), data[:65536], "sound cluster")
    fails_with(errno.EIO, blockio.direct_read, loop.path, 65536, 512)


@suite.test
def version_1_is_written(t):
    path, data = make(t, "qcow")
    loop = t.attach(path)
    equal(loop.attr("loop/parser"), "qcow", "parser")
    equal(loop.attr("loop/variant"), "v1", "variant")
    shadow = bytearray(data)
    same_bytes(images.whole(loop), data, "device")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
    run("sync", loop.path)
    loop.detach()
    raw = images.convert(path, t.path("after.raw"), "qcow")
    same_bytes(blockio.content(raw), bytes(shadow), "image, by qemu-img convert")


@suite.test
def version_1_copies_from_below(t):
    """What a cluster was in the backing file, it is around what was written."""
    make(t, "raw", name="base")
    run("qemu-img", "create", "-q", "-f", "qcow", "-b", "base", "-F", "raw", t.path("top"))
    shadow = bytearray(blockio.content(t.path("base")))
    before = images.Unchanged(t.path("base"))
    with open(t.path("base"), "rb") as file:
        ensure(file.read(4) != b"QFI\xfb", "the disk looks like an image")
    loop = images.attach_with(t, t.path("top"), "qcow")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, seed=2)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    before.check()
    raw = images.convert(t.path("top"), t.path("after.raw"), "qcow")
    same_bytes(blockio.content(raw), bytes(shadow), "image, by qemu-img convert")


@suite.cases(qcow="vb.qcow", qcow2="ext2.qcow2")
def sample_has_the_recorded_content(t, name):
    sample = images.sample(name)
    path = sample.unpack(t)
    before = images.Unchanged(path)
    loop = attach_auto(t, path)
    equal(loop.size(), sample.size, "size")
    equal(hashlib.sha256(images.whole(loop)).hexdigest(), sample.sha256, "sha256")
    loop.detach()
    before.check()


if __name__ == "__main__":
    suite.main()
