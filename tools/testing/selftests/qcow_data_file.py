#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""qcow2 images whose data lie in another file: who may name one, what is written where, and what
becomes of bytes that lie there already."""

import contextlib
import errno
import os

from lib import blockio, images, layers, loopdev, qcow, users
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.model import hammer, shared_memory
from lib.qcow import KIB, MIB

SIZE = 8 * MIB
# The header extension that names the file.
NAME = b"\x44\x41\x54\x41"
SHAPES = {
    "plain": {}, "raw": {"data_file_raw": "on"}, "small": {"cluster_size": 4 * KIB},
    "subclusters": {"extended_l2": "on", "cluster_size": 16 * KIB},
    "lazy": {"lazy_refcounts": "on"},
}
suite = Suite()


def create(t, size=SIZE, **options):
    """An image, and data.raw beside it. qemu looks for that in its current folder, which is the test's
    from now on."""
    t.stack.enter_context(contextlib.chdir(t.dir))
    return images.create(t.path("a.qcow2"), size, "qcow2", data_file="data.raw", **options)


def filled(t, **options):
    """The same, with something in it."""
    path = create(t, **options)
    qcow.fill(path, "qcow2", SIZE, 1)
    return path


def attach(t, path, **how):
    """Attaches with the parser named: the file may name others."""
    return images.attach_with(t, path, "qcow2", **how)


def read_only(t, path):
    """As `losetup -r` does."""
    return attach(t, path, file_flags=os.O_RDONLY, flags=loopdev.READ_ONLY, mode=os.O_RDONLY)


def refused(t, number, how, path, log):
    """Fails unless an attach fails like that, with a line in the log, and leaves nothing behind."""
    t.expect_log(rf"loop\d+: refused: qcow2: {log}")
    untouched(t, number, how, path)


def untouched(t, number, how, path):
    """Fails unless an attach fails like that and leaves nothing behind."""
    before = layers.Untouched(loopdev.free(), [path])
    fails_with(number, how, t, path)
    before.check()


@suite.cases(**SHAPES)
def random(t, options):
    path = filled(t, **options)
    shadow = shared_memory(qcow.guest(t, path))
    loop = attach(t, path)
    same_bytes(images.whole(loop), shadow[:], "device at the beginning")
    hammer(loop, shadow, 320, seed=len(str(options)))
    same_bytes(images.whole(loop), shadow[:], "device at the end")
    loop.detach()
    qcow.judge(t, path, shadow[:])
    if "data_file_raw" in options:
        same_bytes(blockio.content(t.path("data.raw")), shadow[:], "data file by itself")
        ensure(qcow.field(path, "autoclear") & 2, "the image still says that it is the disk by itself")


@suite.cases(read_write=attach, read_only=read_only)
def attaching_changes_nothing(t, how):
    path = filled(t)
    before = [images.Unchanged(path), images.Unchanged(t.path("data.raw"))]
    loop = how(t, path)
    images.whole(loop)
    loop.detach()
    for file in before:
        file.check()


@suite.cases(plain={}, subclusters={"extended_l2": "on"})
def old_bytes_do_not_show(t, options):
    """A cluster without an entry is zeros, whatever lies at its place."""
    path = create(t, **options)
    blockio.make_file(t.path("data.raw"), SIZE)
    shadow = bytearray(SIZE)
    loop = attach(t, path)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    for pos, length in ((0, 512), (MIB + 512, 4 * KIB), (3 * MIB - 512, 1024), (SIZE - 512, 512)):
        blockio.direct_write(loop.path, pos, b"n" * length)
        shadow[pos:pos + length] = b"n" * length
        same_bytes(images.whole(loop), bytes(shadow), f"device after a write at {pos}")
    loop.detach()
    qcow.judge(t, path, bytes(shadow))


@suite.test
def what_the_file_does_not_have_is_zeros(t):
    """The file ends early; a write makes it longer."""
    path = filled(t)
    content = bytearray(qcow.guest(t, path))
    os.truncate(t.path("data.raw"), 3 * MIB + 700)
    shadow = content[:3 * MIB + 700].ljust(SIZE, b"\0")
    loop = attach(t, path)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    for pos in (3 * MIB + 1024, SIZE - 512):
        blockio.direct_write(loop.path, pos, b"n" * 512)
        shadow[pos:pos + 512] = b"n" * 512
    same_bytes(images.whole(loop), bytes(shadow), "device after writes")
    loop.detach()
    qcow.judge(t, path, bytes(shadow))


@suite.cases(plain={}, raw={"data_file_raw": "on"}, subclusters={"extended_l2": "on"})
def discards_make_holes(t, options):
    folder = t.ext4(160)
    t.stack.enter_context(contextlib.chdir(folder))
    path = images.create(os.path.join(folder, "a.qcow2"), 32 * MIB, "qcow2", data_file="data.raw",
                         **options)
    shadow = bytearray(os.urandom(32 * MIB))
    loop = attach(t, path)
    with blockio.Direct(loop.path) as device:
        for pos in range(0, len(shadow), MIB):
            device.write(pos, shadow[pos:pos + MIB])
        device.flush()
        full = blockio.allocated("data.raw")
        device.discard(4 * MIB, 20 * MIB)
        shadow[4 * MIB:24 * MIB] = bytes(20 * MIB)
        device.zero(MIB + 512, 100 * KIB)
        shadow[MIB + 512:MIB + 512 + 100 * KIB] = bytes(100 * KIB)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    ensure(blockio.allocated("data.raw") <= full - 19 * MIB, "the data file has shrunk")
    loop.detach()
    qcow.judge(t, path, bytes(shadow))
    if options.get("data_file_raw"):
        same_bytes(blockio.content("data.raw"), bytes(shadow), "data file by itself")


@suite.test
def below_another_image(t):
    path = filled(t)
    content = bytearray(qcow.guest(t, path))
    top = images.create(t.path("top.qcow2"), SIZE, "qcow2", backing_file="a.qcow2",
                        backing_fmt="qcow2")
    before = [images.Unchanged(path), images.Unchanged(t.path("data.raw"))]
    loop = attach(t, top)
    blockio.direct_write(loop.path, MIB + 512, b"t" * 512)
    content[MIB + 512:MIB + 1024] = b"t" * 512
    same_bytes(images.whole(loop), bytes(content), "device")
    equal([layer.fields.get("data") for layer in layers.of(loop)], [None, t.path("data.raw")],
          "data files in sysfs")
    t.expect_log(r"loop\d+: refused: raw: EBUSY")
    fails_with(errno.EBUSY, t.attach, t.path("data.raw"))
    loop.detach()
    for file in before:
        file.check()
    qcow.judge(t, top, bytes(content))


@suite.test
def over_a_backing_file(t):
    shadow = bytearray(blockio.make_file(t.path("base.raw"), SIZE))
    path = create(t, backing_file="base.raw", backing_fmt="raw")
    loop = attach(t, path)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
        device.zero(MIB, 2 * MIB)
        shadow[MIB:3 * MIB] = bytes(2 * MIB)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    qcow.judge(t, path, bytes(shadow))


@suite.test
def ext4(t):
    path = create(t, size=96 * MIB)
    qcow.keeps_a_file_system(t, path, lambda: attach(t, path))


# Refusals


@suite.test
def not_without_permission(t):
    refused(t, errno.EPERM, lambda t, path: t.attach(path), create(t),
            r"the file names another one, .*data\.raw.*parents.*")


@suite.test
def with_the_parameter(t):
    path = filled(t)
    layers.allow_parents(t, "beneath")
    same_bytes(images.whole(t.attach(path)), qcow.guest(t, path), "device")


@suite.test
def missing(t):
    path = create(t)
    os.unlink(t.path("data.raw"))
    refused(t, errno.ENOENT, attach, path, r'data file "data\.raw": ENOENT')


@suite.test
def no_regular_file(t):
    path = create(t)
    os.unlink(t.path("data.raw"))
    os.mkfifo(t.path("data.raw"))
    refused(t, errno.EACCES, attach, path, r'data file "data\.raw": EACCES')


@suite.test
def the_image_itself(t):
    path = create(t)
    os.unlink(t.path("data.raw"))
    os.link(path, t.path("data.raw"))
    refused(t, errno.ELOOP, attach, path, r'data file "data\.raw": ELOOP')


@suite.test
def without_a_name(t):
    path = create(t)
    qcow.overwrite(path, NAME, b"\x11\x11\x11\x11")
    refused(t, errno.EOPNOTSUPP, attach, path, "qcow2 does not name its external data file .*")


@suite.test
def by_a_url(t):
    path = create(t)
    qcow.overwrite(path, b"data.raw", b"nbd:host")
    refused(t, errno.EOPNOTSUPP, attach, path, "qcow2 data file is named by a URL .*")


@suite.test
def one_writer_of_the_data(t):
    """Nobody else writes to the file, by whichever device; and devices of the image share it."""
    path = filled(t)
    t.expect_log(r"loop\d+: refused: raw: EBUSY")
    t.expect_log(r'loop\d+: refused: qcow2: data file ".*/data\.raw": EBUSY')
    loop = attach(t, path)
    fails_with(errno.EBUSY, t.attach, t.path("data.raw"))
    second = attach(t, path)
    blockio.direct_write(second.path, MIB, b"s" * 512)
    loop.drop_cache()
    same_bytes(blockio.direct_read(loop.path, MIB, 512), b"s" * 512, "what the other one wrote")
    second.detach()
    loop.detach()
    raw = t.attach(t.path("data.raw"))
    fails_with(errno.EBUSY, attach, t, path)
    raw.detach()
    qcow.check(path)


@suite.test
def not_by_a_reader_of_the_data(t):
    """Who has it read-only does not get to write by others who may."""
    path = filled(t)
    t.expect_log(r"loop\d+: refused: qcow2: EBUSY")
    reader = read_only(t, path)
    fails_with(errno.EBUSY, attach, t, path)
    reader.detach()
    attach(t, path)


@suite.cases(may_write=(0o666, True, True), may_read=(0o644, False, True),
             may_nothing=(0o600, False, False))
def owner_of_the_image(t, case):
    """Nobody writes, or reads, through an image of theirs what they may not write or read."""
    mode, may_write, may_read = case
    path = filled(t)
    os.chmod(t.dir, 0o755)
    os.chmod(t.path("data.raw"), mode)
    os.chown(path, users.ALICE, users.ALICE)
    t.expect_log(r'loop\d+: refused: qcow2: data file "data\.raw": EACCES',
                 (may_write, may_read).count(False))
    for how, may in ((attach, may_write), (read_only, may_read)):
        if may:
            how(t, path).detach()
        else:
            untouched(t, errno.EACCES, how, path)


@suite.test
def not_as_a_snapshot(t):
    """LOOP_CHANGE_FD opens no files."""
    blockio.make_file(t.path("base.raw"), SIZE)
    path = create(t, backing_file="base.raw", backing_fmt="raw")
    loop = t.attach(t.path("base.raw"))
    t.expect_log(r"loop\d+: refused: qcow2: its data lie in other files: .*")
    fails_with(errno.EINVAL, loop.change_file, path)


if __name__ == "__main__":
    suite.main()
