#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""qcow and qcow2 images on backing files: who may name one, which names are refused, chains, and what
becomes of the files below."""

import contextlib
import errno
import os

from lib import blockio, images, layers, loopdev, mapper, needs, qcow, system, vhd_child
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.qcow import KIB, MIB
from lib.system import run
from lib.tasks import Task

SIZE = 4 * MIB
# The header extension that states the format.
BACKING_FORMAT = b"\xe2\x79\x2a\xca"
suite = Suite()


def overlay(t, base, fmt, name="top.qcow2", kind="qcow2", size=SIZE, **options):
    """An overlay in the test's folder."""
    return images.create(t.path(name), size, kind, backing_file=base, backing_fmt=fmt, **options)


def raw_base(t, size=SIZE, seed=1):
    """A raw file; returns its content."""
    return blockio.make_file(t.path("base.raw"), size, seed)


def rename_backing(path, name, fmt):
    """Another name in the header, without looking whether there is such a file."""
    run("qemu-img", "rebase", "-u", "-b", name, "-F", fmt, path)


@suite.test
def not_without_permission(t):
    raw_base(t)
    path = overlay(t, "base.raw", "raw")
    before = layers.Untouched(loopdev.free(), [path, t.path("base.raw")])
    t.expect_log(r"loop\d+: refused: qcow2: the file names another one, .*base\.raw.*parents.*", 2)
    fails_with(errno.EPERM, t.attach, path)
    fails_with(errno.EPERM, loopdev.attach_read_only, path)
    before.check()


@suite.test
def with_the_parser_named(t):
    data = raw_base(t)
    loop = images.attach_with(t, overlay(t, "base.raw", "raw"), "qcow2")
    same_bytes(images.whole(loop), data, "device")
    equal(layers.paths(loop), [t.path("top.qcow2"), t.path("base.raw")], "layers")


@suite.test
def with_the_parameter(t):
    data = raw_base(t)
    layers.allow_parents(t, "beneath")
    loop = t.attach(overlay(t, "base.raw", "raw"))
    same_bytes(images.whole(loop), data, "device")


@suite.cases(json='json:{"driver":"raw","file.filename":"base.raw"}', url="https://example.org/a.raw",
             nbd="nbd:localhost:10809", protocol="file:base.raw")
def names_that_are_no_files(t, name):
    raw_base(t)
    path = overlay(t, "base.raw", "raw")
    rename_backing(path, name, "raw")
    before = images.Unchanged(path)
    t.expect_log(r"loop\d+: refused: qcow2: .*backing file is named by a URL or json:, not by a path.*")
    layers.allow_parents(t, "any")
    fails_with(errno.EOPNOTSUPP, t.attach, path)
    before.check()


@suite.test
def file_system_below_is_shut_down(t):
    """What it cannot tell any more is an error, and not taken for zeros."""
    needs.file("/proc/sys/vm/drop_caches")
    t.allow_log(r".*XFS.*|I/O error, dev loop\d+, sector 0 .*")
    disk = t.ram_disk(320)
    run("mkfs.xfs", "-q", "-f", disk)
    point = t.mount(disk)
    # It cannot tell what is mounted there either.
    t.defer(run, "umount", disk)
    base = os.path.join(point, "base.raw")
    data = blockio.make_file(base, SIZE)
    layers.allow_parents(t, "any")
    loop = t.attach(overlay(t, base, "raw"))
    with blockio.Direct(loop.path) as device:
        same_bytes(device.read(0, MIB), data[:MIB], "device")
        run("sync")
        run("xfs_io", "-x", "-c", "shutdown", point)
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("3")
        fails_with(errno.EIO, device.read, 0, 4096)


@suite.test
def format_that_is_not_stated_is_found_out(t):
    data = raw_base(t)
    path = overlay(t, "base.raw", "raw")
    # Another extension, of no known kind: qemu-img makes no image without a format any more.
    qcow.overwrite(path, BACKING_FORMAT, b"\x11\x11\x11\x11")
    layers.allow_parents(t, "beneath")
    loop = t.attach(path)
    same_bytes(images.whole(loop), data, "device")
    equal([layer["parser"] for layer in layers.of(loop)], ["qcow2", "raw"], "parsers")


@suite.test
def format_that_is_stated_is_believed(t):
    """A raw disk whose guest wrote a qcow2 header into it stays raw."""
    inner = images.create(t.path("inner"), SIZE, "qcow2")
    content = blockio.content(inner).ljust(SIZE, b"\0")
    with open(t.path("base.raw"), "wb") as file:
        file.write(content)
    layers.allow_parents(t, "beneath")
    same_bytes(images.whole(t.attach(overlay(t, "base.raw", "raw"))), content, "device")


SUBFORMATS = {
    "sparse": "monolithicSparse", "flat": "monolithicFlat", "split": "twoGbMaxExtentSparse",
    "split_flat": "twoGbMaxExtentFlat", "stream": "streamOptimized"}


@suite.cases(qcow=("qcow", ""), qcow2=("qcow2", ""), vpc=("vpc", "force_size=on"), **{
    f"vmdk_{name}": ("vmdk", f"subformat={subformat}") for name, subformat in SUBFORMATS.items()})
def formats_below(t, case):
    fmt, option = case
    data = raw_base(t)
    options = ["-o", option] if option else []
    run("qemu-img", "convert", "-O", fmt, *options, t.path("base.raw"), t.path("base.img"))
    before = images.Unchanged(t.path("base.img"))
    layers.allow_parents(t, "beneath")
    path = overlay(t, "base.img", fmt)
    loop = t.attach(path)
    shadow = bytearray(data)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=15)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    qcow.judge(t, path, bytes(shadow))
    before.check()


@suite.test
def differencing_vhd_below(t):
    """Chains may be mixed: the whole of a VHD chain is below, and stays as it is."""
    chain = vhd_child.build(t.dir, "raw", [vhd_child.Level(SIZE, 64 * KIB, stale=True)])
    before = [images.Unchanged(path) for path in chain.paths]
    layers.allow_parents(t, "beneath")
    # qemu reads no differencing VHDs: it gets to see the name only afterwards.
    path = overlay(t, "base.raw", "raw")
    rename_backing(path, os.path.basename(chain.paths[0]), "vpc")
    loop = t.attach(path)
    same_bytes(images.whole(loop), chain.guest, "device")
    equal(layers.paths(loop), [path, *chain.paths], "layers")
    shadow = bytearray(chain.guest)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=15, longest=200 * KIB)
    same_bytes(images.whole(loop), bytes(shadow), "device, written to")
    loop.detach()
    for file in before:
        file.check()
    with open(t.path("flat.raw"), "wb") as file:
        file.write(chain.guest)
    rename_backing(path, "flat.raw", "raw")
    qcow.judge(t, path, bytes(shadow))


@suite.cases(smaller=SIZE // 2 - 512, larger=2 * SIZE, tiny=512)
def other_sizes_below(t, size):
    data = raw_base(t, size)
    expected = data[:SIZE].ljust(SIZE, b"\0")
    layers.allow_parents(t, "beneath")
    path = overlay(t, "base.raw", "raw")
    loop = t.attach(path)
    same_bytes(images.whole(loop), expected, "device")
    shadow = bytearray(expected)
    with blockio.Direct(loop.path) as device:
        for pos in (0, size - 512, size, size + 512, SIZE - 512):
            if 0 <= pos < SIZE:
                device.write(pos, b"\xa5" * 512)
                shadow[pos:pos + 512] = b"\xa5" * 512
    loop.detach()
    qcow.judge(t, path, bytes(shadow))


@suite.test
def partial_cluster_is_completed_from_below(t):
    """One sector is written; the rest of the cluster is the file's below (a defect of 2011)."""
    data = raw_base(t)
    layers.allow_parents(t, "beneath")
    path = overlay(t, "base.raw", "raw", cluster_size=64 * KIB)
    loop = t.attach(path)
    blockio.direct_write(loop.path, 64 * KIB + 512, b"n" * 512)
    loop.detach()
    expected = data[:65 * KIB - 512] + b"n" * 512 + data[65 * KIB:]
    qcow.judge(t, path, expected)


@suite.cases(v1=("qcow", False, {}), v2=("qcow2", False, {"compat": "0.10"}),
             v3=("qcow2", False, {}), subclusters=("qcow2", False, {"extended_l2": "on"}),
             over_compressed=("qcow2", True, {}))
def disk_that_ends_within_a_cluster(t, how):
    """Its last cluster can be written, in whole and in part, and qemu sees the same."""
    kind, is_compressed, options = how
    size = MIB + 1024
    shadow = bytearray(raw_base(t, size))
    base, fmt = "base.raw", "raw"
    if is_compressed:
        base, fmt = "base.qcow2", "qcow2"
        run("qemu-img", "convert", "-c", "-O", fmt, t.path("base.raw"), t.path(base))
    layers.allow_parents(t, "beneath")
    path = overlay(t, base, fmt, kind=kind, size=size, **options)
    loop = t.attach(path)
    for pos, length in ((size - 512, 512), (MIB, 512), (MIB - 512, 1024)):
        blockio.direct_write(loop.path, pos, b"z" * length)
        shadow[pos:pos + length] = b"z" * length
        same_bytes(images.whole(loop), bytes(shadow), f"device after a write at {pos}")
    loop.detach()
    qcow.judge(t, path, bytes(shadow), kind)


@suite.test
def chain_of_sixteen(t):
    shadow = bytearray(raw_base(t))
    below, fmt = "base.raw", "raw"
    for number in range(15):
        path = overlay(t, below, fmt, f"{number}.qcow2")
        data = blockio.pattern(64 * KIB, number)
        pos = number * 200 * KIB
        run("qemu-io", "-f", "qcow2", "-c", f"write -q -P {number + 1} {pos} 64k", path)
        shadow[pos:pos + 64 * KIB] = bytes([number + 1]) * len(data)
        below, fmt = f"{number}.qcow2", "qcow2"
    layers.allow_parents(t, "beneath")
    loop = t.attach(path)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    equal(len(layers.paths(loop)), 16, "layers")


@suite.cases(raw="raw", vpc="vpc")
def chain_of_thirty_two(t, fmt):
    """The longest chain there can be, of both kinds of image in turn: read, written, and one more."""
    shadow = bytearray(raw_base(t))
    options = ["-o", "force_size=on"] if fmt == "vpc" else []
    run("qemu-img", "convert", "-O", fmt, *options, t.path("base.raw"), t.path("0"))
    below = fmt
    for number in range(1, 32):
        kind = "qcow2" if number % 2 else "qcow"
        path = overlay(t, str(number - 1), below, str(number), kind)
        pos = number * 100 * KIB
        run("qemu-io", "-f", kind, "-c", f"write -q -P {number} {pos} 64k", path)
        shadow[pos:pos + 64 * KIB] = bytes([number]) * 64 * KIB
        below = kind
    layers.allow_parents(t, "beneath")
    untouched = [images.Unchanged(t.path(str(number))) for number in range(31)]
    loop = t.attach(path)
    shown, more = layers.lines(loop)
    equal(len(shown) + more, 32, "layers")
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=15)
    loop.detach()
    for image in untouched:
        image.check()
    qcow.judge(t, path, bytes(shadow))
    one_more = overlay(t, "31", "qcow2", "32")
    t.expect_log(r"loop\d+: refused: .*more than 32 files.*")
    fails_with(errno.EMLINK, t.attach, one_more)


@suite.test
def loop_of_names(t):
    raw_base(t)
    first = overlay(t, "base.raw", "raw", "first.qcow2")
    second = overlay(t, "first.qcow2", "qcow2", "second.qcow2")
    rename_backing(first, "second.qcow2", "qcow2")
    layers.allow_parents(t, "beneath")
    t.expect_log(r"loop\d+: refused: .*", 1)
    try:
        t.attach(second)
    except OSError as error:
        ensure(error.errno in (errno.ELOOP, errno.EBUSY), f"errno: {error}")
    else:
        ensure(False, "attached")


@suite.test
def missing_file_below(t):
    raw_base(t)
    path = overlay(t, "base.raw", "raw")
    os.unlink(t.path("base.raw"))
    layers.allow_parents(t, "beneath")
    t.expect_log(r"loop\d+: refused: qcow2: .*base\.raw.*")
    fails_with(errno.ENOENT, t.attach, path)


@suite.test
def thousand_and_twenty_three_bytes_of_name(t):
    """The longest name there can be."""
    folder = "x" * 200
    name = "/".join([folder] * 5) + "/" + "y" * 18
    equal(len(name), 1023, "length of the name")
    os.makedirs(os.path.join(t.dir, os.path.dirname(name)))
    data = blockio.make_file(os.path.join(t.dir, name), SIZE)
    blockio.make_sparse(t.path("base.raw"), SIZE)
    path = overlay(t, "base.raw", "raw")
    rename_backing(path, name, "raw")
    layers.allow_parents(t, "beneath")
    same_bytes(images.whole(t.attach(path)), data, "device")


@suite.test
def live_snapshot(t):
    """LOOP_CHANGE_FD to an overlay, under a mounted file system."""
    path = images.create(os.path.join(t.ext4(128), "base.qcow2"), 32 * MIB, "qcow2")
    layers.allow_parents(t, "beneath")
    loop = t.attach(path)
    run("mkfs.ext4", "-q", loop.path)
    point = t.mount(loop.path)
    expected = {}
    for number in range(5):
        name = f"file{number}"
        expected[name] = blockio.pattern(200 * KIB, number)
        with open(os.path.join(point, name), "wb") as file:
            file.write(expected[name])
        child = os.path.join(os.path.dirname(path), f"{number}.qcow2")
        below = os.path.basename(path if number == 0 else f"{number - 1}.qcow2")
        images.create(child, 32 * MIB, "qcow2", backing_file=below, backing_fmt="qcow2")
        loop.change_file(child)
    for name, data in expected.items():
        same_bytes(blockio.content(os.path.join(point, name)), data, name)
    run("umount", point)
    run("e2fsck", "-fn", loop.path)
    loop.detach()
    for number in range(5):
        qcow.check(os.path.join(os.path.dirname(path), f"{number}.qcow2"))


@suite.test
def caller_of_a_snapshot_is_killed(t):
    """While the file below is made durable. What is left to be written to it, the counts of clusters that
    were not used, does not depend on who has asked for the snapshot."""
    needs.module("dm-delay")
    sectors = 64 * 2048
    t.ram_disk(sectors // 2048)
    disk = mapper.create(t, (sectors, "linear"))
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", disk)
    base = images.create(os.path.join(t.mount(disk), "base.qcow2"), SIZE, "qcow2")
    child = overlay(t, base, "qcow2")
    layers.allow_parents(t, "any")
    loop = t.attach(base)
    shadow = bytearray(SIZE)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, 1, count=15)
        mapper.switch((sectors, "slow"))
        task = Task(lambda: loop.change_file(child))
        task.wait_until_it_hangs()
        task.kill()
        equal(task.outcome(), "killed", "LOOP_CHANGE_FD")
        mapper.switch((sectors, "linear"))
        equal(layers.paths(loop), [child, base], "layers")
        images.scribble(device, shadow, 2, count=15)
        device.flush()
    equal([layer["state"] for layer in layers.of(loop)], ["clean"] * 2, "states")
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    qcow.check(base)
    qcow.judge(t, child, bytes(shadow))


# Overlays that are not put on top of a device's file

NOT_A_CHILD = "not a child of the device's file"
DATA_ELSEWHERE = "its data lie in other files: .*"


def renamed(name, fmt):
    """An overlay with another name in it."""
    def make(t):
        path = overlay(t, "base.raw", "raw")
        rename_backing(path, name, fmt)
        return path
    return make


def of_a_copy(t):
    """An overlay of a file that is just like the device's."""
    blockio.make_file(t.path("copy.raw"), SIZE)
    return overlay(t, "copy.raw", "raw")


def of_an_overlay(t):
    """It would skip one."""
    overlay(t, "base.raw", "raw", "first.qcow2")
    return overlay(t, "first.qcow2", "qcow2")


def with_a_data_file(t):
    """What it has itself would lie in a file that is opened by a name."""
    t.stack.enter_context(contextlib.chdir(t.dir))
    return overlay(t, "base.raw", "raw", data_file="data.raw")


def patched(**fields):
    """An overlay with other fields in its header."""
    def make(t):
        path = overlay(t, "base.raw", "raw")
        qcow.patch(path, **fields)
        return path
    return make


@suite.cases(
    copy=(of_a_copy, errno.EINVAL, NOT_A_CHILD),
    missing=(renamed("missing.raw", "raw"), errno.EINVAL, NOT_A_CHILD),
    another_format=(renamed("base.raw", "qcow2"), errno.EINVAL, NOT_A_CHILD),
    overlay_of_an_overlay=(of_an_overlay, errno.EINVAL, NOT_A_CHILD),
    no_overlay=(lambda t: images.create(t.path("top.qcow2"), SIZE, "qcow2"), errno.EINVAL,
                NOT_A_CHILD),
    larger=(lambda t: overlay(t, "base.raw", "raw", size=SIZE + 512), errno.EINVAL, NOT_A_CHILD),
    smaller=(lambda t: overlay(t, "base.raw", "raw", size=SIZE - 512), errno.EINVAL, NOT_A_CHILD),
    data_file=(with_a_data_file, errno.EINVAL, DATA_ELSEWHERE),
    dirty=(patched(incompatible=1), errno.EROFS, "qcow2 was not closed: .*"),
    corrupt=(patched(incompatible=2), errno.EROFS, "qcow2 is marked corrupt.*"),
    encrypted=(patched(crypt_method=1), errno.EOPNOTSUPP, "qcow2 is encrypted .*"),
    malformed=(patched(l1_offset=512), errno.EUCLEAN, ".* at byte 40"),
)
def overlay_is_refused(t, case):
    """The change fails, and the device goes on with the file that it has."""
    make, number, says = case
    data = raw_base(t)
    path = make(t)
    loop = t.attach(t.path("base.raw"))
    layers.allow_parents(t, "any")
    system.attempt("modprobe", "qcowloop")
    files = [images.Unchanged(name) for name in (path, t.path("base.raw"))]
    before = layers.state(loop)
    with layers.one_line(t, rf"{loop.name}: refused: qcow2: {says}"):
        fails_with(number, loop.change_file, path)
    for file in files:
        file.check()
    system.wait_until(lambda: layers.state(loop) == before, lambda: f"{before}, {layers.state(loop)}")
    blockio.direct_write(loop.path, 4 * KIB, b"o" * 512)
    loop.detach()
    same_bytes(blockio.content(t.path("base.raw")),
               data[:4 * KIB] + b"o" * 512 + data[4 * KIB + 512:], "file")


@suite.test
def read_only_device_gets_an_overlay_with_permission(t):
    """A file that is put in place of another names no more than one that is attached."""
    data = raw_base(t)
    path = overlay(t, "base.raw", "raw")
    loop = loopdev.attach_read_only(blockio.make_sparse(t.path("other.raw"), SIZE))
    t.defer(loop.detach_if_bound)
    system.attempt("modprobe", "qcowloop")
    before = layers.state(loop)
    with loopdev.opened(path) as fd:
        with layers.one_line(t, rf"{loop.name}: refused: qcow2: the file names another one, .*"):
            fails_with(errno.EPERM, loop.change_fd, fd, os.O_RDONLY)
        system.wait_until(lambda: layers.state(loop) == before, lambda: f"{before}, {layers.state(loop)}")
        same_bytes(images.whole(loop), bytes(SIZE), "device")
        layers.allow_parents(t, "beneath")
        loop.change_fd(fd, os.O_RDONLY)
    same_bytes(images.whole(loop), data, "device, changed")


@suite.test
def overlay_with_compressed_data(t):
    """It is a child like any other: what it has hides what is below."""
    data = raw_base(t)
    hidden = b"compress me" * 6000 + data[66000:]
    with open(t.path("new.raw"), "wb") as file:
        file.write(hidden)
    path = t.path("top.qcow2")
    run("qemu-img", "convert", "-c", "-O", "qcow2", "-B", "base.raw", "-F", "raw",
        t.path("new.raw"), path)
    below = images.Unchanged(t.path("base.raw"))
    loop = t.attach(t.path("base.raw"))
    loop.change_file(path)
    same_bytes(images.whole(loop), hidden, "device")
    blockio.direct_write(loop.path, 512, b"n" * 512)
    loop.detach()
    below.check()
    qcow.judge(t, path, hidden[:512] + b"n" * 512 + hidden[1024:])


if __name__ == "__main__":
    suite.main()
