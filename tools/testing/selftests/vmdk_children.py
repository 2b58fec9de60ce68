#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""VMDKs on parents: copy-on-write, content ids, names of parents, chains, live snapshots, and VMDKs under
qcow2 images. The files below the first are never written."""

import errno
import os
import random
import struct

from lib import blockio, images, layers, loopdev, qcow, system, vmdk, vmdk_chain, vmdk_reader
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import run
from lib.vmdk import KIB, MIB, SECTOR
from lib.vmdk_chain import Shape, attach, attach_read_only

SIZE = 4 * MIB
GRAIN = 64 * KIB
suite = Suite(allow=[r"operation not supported error, dev loop\d+, .*"])


def live(t, disk, qemu=True, how=attach, count=20):
    """The life of a child: read, read-only first, written, read again, judged."""
    everything = [images.Unchanged(path) for path in disk.files]
    for attached in (attach_read_only, how):
        loop = attached(t, disk.path)
        equal(loop.size(), len(disk.guest), "size")
        same_bytes(images.whole(loop), disk.guest, f"device, {attached.__name__}")
        loop.detach()
        for file in everything:
            file.check()
    below = [images.Unchanged(path) for path in disk.below()]
    shadow = bytearray(disk.guest)
    loop = how(t, disk.path)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=count)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device after writing")
    loop.detach()
    for file in below:
        file.check()
    vmdk_chain.judge(t, disk.path, bytes(shadow), qemu)
    return shadow


def base(t, kind="sparse", **options):
    """A disk to put children on."""
    return vmdk_chain.build(t.dir, Shape(kind, size=SIZE, **options), 50, "base")


def child(t, parent=None, **options):
    """A child of it."""
    return vmdk_chain.child_of(t.dir, parent or base(t), **options)


def refused(t, number, path, says, how=attach):
    """An attach fails like that, with a line in the log, and leaves nothing behind."""
    files = [t.path(name) for name in sorted(os.listdir(t.dir))]
    before = layers.Untouched(loopdev.free(), [name for name in files if os.path.isfile(name)])
    with layers.one_line(t, rf"loop\d+: refused: vmdk: {says}"):
        fails_with(number, how, t, path)
    before.check()


# Who may name a parent, and how


@suite.test
def not_without_permission(t):
    disk = child(t)
    says = r'the file names another one, "base\.vmdk".*parents.*'
    refused(t, errno.EPERM, disk.path, says, lambda t, path: t.attach(path))
    refused(t, errno.EPERM, disk.path, says, lambda t, path: loopdev.attach_read_only(path))


@suite.test
def with_the_parameter(t):
    layers.allow_parents(t, "beneath")
    live(t, child(t), how=lambda t, path: t.attach(path))


@suite.test
def layers_in_sysfs(t):
    disk = child(t, base(t, "split"))
    loop = attach(t, disk.path)
    found = layers.of(loop)
    equal([layer.path for layer in found], disk.paths, "paths")
    equal([layer["parser"] for layer in found], ["vmdk", "vmdk"], "parsers")
    equal([layer["variant"] for layer in found], ["monolithicSparse", "twoGbMaxExtentSparse"], "variants")
    equal([layer.fields.get("extents") for layer in found], [None, "3"], "extents")


# The parent is p/base.vmdk; the hint may be another way to say so.
HINTS = {
    "relative": "p/base.vmdk", "dot": "./p/base.vmdk", "doubled": "p//base.vmdk", "back": "p/../p/base.vmdk",
    "backslashes": "p\\base.vmdk",
}
# The parent is base.vmdk.
BESIDE = {
    "windows": "C:\\Users\\me\\disks\\base.vmdk", "windows_slashes": "D:/disks/base.vmdk",
    "server": "\\\\server\\share\\base.vmdk", "root_of_a_drive": "C:\\base.vmdk",
    "moved": "/gone/to/another/place/base.vmdk", "folder_that_is_gone": "gone/base.vmdk",
    "backslashes_and_gone": "gone\\base.vmdk",
}


@suite.cases(**HINTS)
def hint(t, text):
    os.mkdir(t.path("p"))
    parent = vmdk_chain.build(t.path("p"), Shape(size=SIZE), 50, "base")
    disk = child(t, parent, hint=text)
    loop = attach(t, disk.path)
    equal(layers.paths(loop), [disk.path, t.path("p/base.vmdk")], "layers")
    same_bytes(images.whole(loop), disk.guest, "device")


@suite.cases(**BESIDE)
def hint_whose_last_part_lies_beside(t, text):
    disk = child(t, hint=text)
    loop = attach(t, disk.path)
    equal(layers.paths(loop), [disk.path, t.path("base.vmdk")], "layers")
    same_bytes(images.whole(loop), disk.guest, "device")


@suite.cases(blanks="a base of mine.vmdk", utf_8="Größe.vmdk", asian="代替.vmdk", hash="#.vmdk",
             long="n" * 255, equals="a=b")
def hint_with_odd_characters(t, name):
    parent = base(t)
    os.rename(t.path("base.vmdk"), t.path(name))
    disk = child(t, parent, hint=name)
    same_bytes(images.whole(attach(t, disk.path)), disk.guest, "device")


@suite.test
def hint_in_latin_1(t):
    parent = base(t)
    os.rename(t.path("base.vmdk"), os.fsencode(t.dir) + b"/Gr\xf6\xdfe.vmdk")
    disk = child(t, parent, hint="Größe.vmdk", fields={"encoding": "latin-1"})
    same_bytes(images.whole(attach(t, disk.path)), disk.guest, "device")


@suite.test
def hint_that_leaves_the_folder(t):
    os.mkdir(t.path("below"))
    parent = base(t)
    disk = vmdk_chain.child_of(t.path("below"), parent)
    refused(t, errno.EXDEV, disk.path, r'parent "\.\./base\.vmdk": EXDEV')
    layers.allow_parents(t, "any")
    same_bytes(images.whole(attach(t, disk.path)), disk.guest, "device, any allowed")


@suite.test
def missing_parent(t):
    disk = child(t)
    os.unlink(t.path("base.vmdk"))
    refused(t, errno.ENOENT, disk.path, r'parent "base\.vmdk": ENOENT')


@suite.cases(raw=lambda path: blockio.make_file(path, SIZE), empty=lambda path: blockio.make_sparse(path, 0),
             qcow2=lambda path: images.create(path, SIZE, "qcow2"))
def parent_of_another_format(t, make):
    """It has to be a VMDK, and is not taken for what it looks like."""
    disk = child(t)
    os.unlink(t.path("base.vmdk"))
    make(t.path("base.vmdk"))
    refused(t, errno.EUCLEAN, disk.path, r'parent "base\.vmdk": \S.*')


# Content ids


@suite.test
def parent_with_another_cid(t):
    disk = child(t)
    with open(t.path("base.vmdk"), "rb") as file:
        at = file.read().index(b"CID=0b0b0b0b") + 4
    vmdk.poke(t.path("base.vmdk"), at, b"0b0b0b0c")
    refused(t, errno.EUCLEAN, disk.path, r'parent "base\.vmdk": .*CID.* at byte \d+')


@suite.test
def parent_that_was_written_by_itself(t):
    """Then it is not what the child was made on: its CID says so."""
    disk = child(t)
    loop = t.attach(t.path("base.vmdk"))
    blockio.direct_write(loop.path, 0, b"w" * 4096)
    loop.detach()
    refused(t, errno.EUCLEAN, disk.path, r'parent "base\.vmdk": .*CID.* at byte \d+')


@suite.test
def parent_that_was_only_read(t):
    """It is what it was; so it is when it was attached read-write."""
    disk = child(t)
    loop = t.attach(t.path("base.vmdk"))
    images.whole(loop)
    loop.detach()
    same_bytes(images.whole(attach(t, disk.path)), disk.guest, "device")


@suite.test
def parent_without_a_cid(t):
    """A COWD file by itself has none."""
    path = vmdk_chain.build(t.dir, Shape("cowd", size=SIZE), 50, "base").path
    disk = vmdk_chain.child_of(t.dir, vmdk_chain.Disk([path], bytes(SIZE), 5, [path], [path]))
    refused(t, errno.EUCLEAN, disk.path, r'parent "base\.vmdk": .*CID.* at byte \d+')


@suite.cases(zero=0, few_digits="b0b", capitals="0B0B0B0B")
def odd_parent_cid(t, cid):
    """Numbers are compared, not how they are written."""
    number = int(cid, 16) if isinstance(cid, str) else cid
    image = vmdk.fill(vmdk.Sparse(SIZE, descriptor=vmdk.Descriptor(cid=f"{number:08x}")), random.Random(1))
    path = image.write(t.path("base.vmdk"))
    parent = vmdk_chain.Disk([path], image.guest(), cid, [path], [path])
    live(t, child(t, parent))


@suite.cases(sparse="sparse", split="split", flat="flat", cowd="vmfs_sparse")
def cid_changes_with_the_first_write(t, kind):
    """Once for each time that the disk is attached and written."""
    disk = base(t, kind)
    seen = {vmdk_chain.cid_of(disk.path)}
    for turn in range(3):
        loop = attach(t, disk.path)
        images.whole(loop)
        ensure(vmdk_chain.cid_of(disk.path) in seen, "the CID is as it was before the first write")
        for number in range(3):
            blockio.direct_write(loop.path, (turn * 3 + number) * 100 * KIB, b"c" * 4096)
            now = vmdk_chain.cid_of(disk.path)
            equal(now in seen, number > 0, f"turn {turn}, write {number}: the CID was seen before")
            seen.add(now)
        loop.detach()
        equal(vmdk_chain.cid_of(disk.path), now, "the CID after detaching")
    equal(len(seen), 4, "different CIDs")
    ensure(not seen & {0xFFFFFFFF, 0xFFFFFFFE}, "CIDs that mean something else")


@suite.cases(discard="discard", zero="zero")
def cid_changes_with_the_first(t, what):
    """A discard changes the disk, too."""
    disk = base(t, zero_grains=True)
    loop = attach(t, disk.path)
    with blockio.Direct(loop.path) as device:
        getattr(device, what)(0, SIZE)
    ensure(vmdk_chain.cid_of(disk.path) != disk.cid, "the CID is another one")
    loop.detach()
    vmdk_chain.judge(t, disk.path, bytes(SIZE))


@suite.test
def childs_parent_cid_stays(t):
    """What is written to a child changes its CID only."""
    disk = child(t)
    live(t, disk)
    with vmdk_reader.Disk(disk.path) as found:
        equal(found.text.parent_cid, vmdk_chain.BASE_CID, "parentCID")
        ensure(found.cid() != disk.cid, "the CID is another one")


# Copy-on-write


GRAINS = {"512": 512, "4k": 4 * KIB, "64k": 64 * KIB, "1m": MIB}


@suite.cases(**GRAINS)
def partial_grain_is_completed_from_below(t, grain):
    """Sectors are written; the rest of the grain is the parent's (a defect of 2011)."""
    parent = base(t)
    image = vmdk.Sparse(SIZE, grain, descriptor=vmdk.Descriptor(parent_cid=parent.cid, hint="base.vmdk"))
    path = image.write(t.path("child.vmdk"))
    shadow = bytearray(parent.guest)
    loop = attach(t, path)
    for pos, length in ((SECTOR, SECTOR), (MIB - SECTOR, 2 * SECTOR), (2 * MIB + 3 * KIB, 70 * KIB),
                        (SIZE - SECTOR, SECTOR)):
        blockio.direct_write(loop.path, pos, b"n" * length)
        shadow[pos:pos + length] = b"n" * length
        same_bytes(images.whole(loop), bytes(shadow), f"device after a write at {pos}")
    loop.detach()
    vmdk_chain.judge(t, path, bytes(shadow))


@suite.cases(split=Shape("split", base="flat", empty=True), cowd=Shape("vmfs_sparse", base="flat", empty=True),
             mixed=Shape("split_vmfs_sparse", base="split", empty=True))
def partial_grain_in_a_set(t, shape):
    """The same in the extents of a child: what is below is at the extent's place on the whole disk."""
    disk = vmdk_chain.build(t.dir, shape)
    with vmdk_reader.Disk(disk.path) as found:
        starts = [0]
        for part in found.extents:
            starts.append(starts[-1] + part.sectors * SECTOR)
    shadow = bytearray(disk.guest)
    loop = attach(t, disk.path)
    for start in starts:
        for pos in (start - SECTOR, start, start + 3 * SECTOR):
            if 0 <= pos < SIZE:
                blockio.direct_write(loop.path, pos, b"n" * SECTOR)
                shadow[pos:pos + SECTOR] = b"n" * SECTOR
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    vmdk_chain.judge(t, disk.path, bytes(shadow), shape.qemu_reads())


@suite.cases(within_a_grain=SIZE // 2 + 5 * SECTOR, tiny=SECTOR, larger=SIZE + MIB)
def other_sizes_below(t, size):
    """Behind the parent's end there are zeros; a grain may be partly there."""
    parent = vmdk_chain.build(t.dir, Shape(size=size), 50, "base")
    disk = child(t, parent, size=SIZE)
    loop = attach(t, disk.path)
    same_bytes(images.whole(loop), disk.guest, "device")
    shadow = bytearray(disk.guest)
    for pos in (0, size - SECTOR, size, size + SECTOR, SIZE - SECTOR):
        if pos < SIZE:
            blockio.direct_write(loop.path, pos, b"n" * SECTOR)
            shadow[pos:pos + SECTOR] = b"n" * SECTOR
    same_bytes(images.whole(loop), bytes(shadow), "device after writing")
    loop.detach()
    vmdk_chain.judge(t, disk.path, bytes(shadow))


BASES = ("sparse", "flat", "split", "stream", "vmfs_sparse", "se_sparse", "vmfs")
SHAPES = {shape.name: shape for shape in [Shape(base=kind) for kind in BASES] + [
    Shape(base="flat", zero_grains=True), Shape(base="sparse", redundant=False, primary_first=True),
    Shape("split_evenly", base="split_flat"), Shape("split", base="sparse"),
    Shape("descriptor", base="split"), Shape("vmfs_sparse", base="vmfs", grain=SECTOR, size=MIB)]}


@suite.cases(**SHAPES)
def children_and_parents(t, shape):
    live(t, vmdk_chain.build(t.dir, shape), shape.qemu_reads())


@suite.test
def discard_does_not_uncover(t):
    """Zero grains hide what is below."""
    disk = child(t, zero_grains=True)
    shadow = bytearray(disk.guest)
    loop = attach(t, disk.path)
    with blockio.Direct(loop.path) as device:
        for pos, length in ((0, 512), (MIB + 512, GRAIN), (2 * MIB, MIB), (SIZE - 512, 512)):
            device.zero(pos, length)
            shadow[pos:pos + length] = bytes(length)
        same_bytes(images.whole(loop), bytes(shadow), "device after BLKZEROOUT")
        device.write(3 * MIB, b"w" * (MIB // 2))
        device.discard(3 * MIB, MIB // 2)
        shadow[3 * MIB:7 * MIB // 2] = bytes(MIB // 2)
    same_bytes(images.whole(loop), bytes(shadow), "device after BLKDISCARD")
    loop.detach()
    for pos in range(3 * MIB, 7 * MIB // 2, GRAIN):
        for name in ("gd_offset", "rgd_offset"):
            equal(vmdk.peek(disk.path, vmdk.entry_place(disk.path, pos, name)), 1, f"entry of {pos}")
    vmdk_chain.judge(t, disk.path, bytes(shadow))


@suite.test
def no_discard_without_zero_grains(t):
    """There is no way to say that a grain is zero: nothing is discarded, zeros are written."""
    disk = child(t)
    shadow = bytearray(disk.guest)
    loop = attach(t, disk.path)
    equal(loop.attr("queue/discard_max_bytes"), "0", "discard_max_bytes")
    with blockio.Direct(loop.path) as device:
        fails_with(errno.EOPNOTSUPP, device.discard, 0, MIB)
        device.zero(MIB + 512, MIB)
        shadow[MIB + 512:2 * MIB + 512] = bytes(MIB)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    vmdk_chain.judge(t, disk.path, bytes(shadow))


@suite.test
def parent_is_not_written_meanwhile(t):
    """Neither by itself nor, if it is a set, its extents; what is written cannot be a parent."""
    parent = base(t, "split_flat")
    disk = child(t, parent)
    extent = parent.extents()[-1]
    t.expect_log(r"loop\d+: refused: .*EBUSY", 3)
    loop = attach(t, disk.path)
    fails_with(errno.EBUSY, attach, t, parent.path)
    fails_with(errno.EBUSY, t.attach, extent)
    loop.detach()
    writer = attach(t, parent.path)
    fails_with(errno.EBUSY, attach, t, disk.path)
    writer.detach()
    attach(t, disk.path).detach()


@suite.test
def two_children_of_one_parent(t):
    parent = base(t, "split")
    disks = [child(t, parent, name=f"child{number}", seed=number) for number in range(2)]
    loops = [attach(t, disk.path) for disk in disks]
    below = [images.Unchanged(path) for path in parent.files]
    for number, loop in enumerate(loops):
        blockio.direct_write(loop.path, MIB + 512, bytes([number]) * 1024)
    for number, (loop, disk) in enumerate(zip(loops, disks)):
        expected = disk.guest[:MIB + 512] + bytes([number]) * 1024 + disk.guest[MIB + 1536:]
        same_bytes(images.whole(loop), expected, f"device {number}")
        loop.detach()
        vmdk_chain.judge(t, disk.path, expected, False)
    for file in below:
        file.check()


# Chains


def chain_of(t, count):
    """A chain of so many disks; the first is a set."""
    disk = base(t, "split_flat")
    for number in range(1, count):
        disk = child(t, disk, name=f"child{number}", seed=number, zero_grains=number % 3 == 0)
    return disk


@suite.test
def chain_of_four(t):
    live(t, chain_of(t, 4))


@suite.test
def longest_chain(t):
    """32 disks; one more is refused."""
    disk = chain_of(t, 32)
    loop = attach(t, disk.path)
    shown, more = layers.lines(loop)
    equal(len(shown) + more, 32, "layers")
    same_bytes(images.whole(loop), disk.guest, "device")
    loop.detach()
    one_more = child(t, disk, name="one more")
    t.expect_log(r"loop\d+: refused: .*more than 32 files.*")
    fails_with(errno.EMLINK, attach, t, one_more.path)


@suite.test
def loop_of_names(t):
    first = vmdk.Sparse(SIZE, descriptor=vmdk.Descriptor(cid=5, parent_cid=6, hint="b.vmdk"))
    second = vmdk.Sparse(SIZE, descriptor=vmdk.Descriptor(cid=6, parent_cid=5, hint="a.vmdk"))
    path = first.write(t.path("a.vmdk"))
    second.write(t.path("b.vmdk"))
    refused(t, errno.ELOOP, path, r'parent "a\.vmdk": ELOOP')


@suite.test
def its_own_parent(t):
    image = vmdk.Sparse(SIZE, descriptor=vmdk.Descriptor(parent_cid=vmdk.CID, hint="a.vmdk"))
    refused(t, errno.ELOOP, image.write(t.path("a.vmdk")), r'parent "a\.vmdk": ELOOP')


# Live snapshots


def snapshot_of(path, name, size, **fields):
    """An empty child of a disk that is attached; returns its path."""
    below = {"parent_cid": vmdk_chain.cid_of(path), "hint": os.path.basename(path), **fields}
    image = vmdk.Sparse(size, descriptor=vmdk.Descriptor(cid=0x51515151, **below), zero_grains=True)
    return image.write(os.path.join(os.path.dirname(path), name))


@suite.cases(sparse="sparse", flat="flat", split="split")
def live_snapshots(t, kind):
    """Under a mounted file system: it goes on in the child, and what is below is left as it is."""
    size = 48 * MIB
    path = vmdk_chain.build(t.ext4(160), Shape(kind, size=size, empty=True), 1, "base").path
    layers.allow_parents(t, "beneath")
    loop = t.attach(path)
    run("mkfs.ext4", "-q", loop.path)
    point = t.mount(loop.path)
    files, below = {}, []
    for number in range(4):
        name = f"file{number}"
        files[name] = blockio.make_file(os.path.join(point, name), 200 * KIB, number)
        os.sync()
        path = snapshot_of(path, f"{number}.vmdk", size)
        old = layers.of(loop)[0].path
        loop.change_file(path)
        below.append(images.Unchanged(old))
        equal(layers.paths(loop)[:2], [path, old], "layers")
        # From here on the child is written, so its CID is another one.
        blockio.make_file(os.path.join(point, "more"), 8 * KIB, number)
        os.sync()
    for name, data in files.items():
        same_bytes(blockio.content(os.path.join(point, name)), data, name)
    run("umount", point)
    run("e2fsck", "-fn", loop.path)
    content = images.whole(loop)
    loop.detach()
    for file in below:
        file.check()
    vmdk_chain.judge(t, path, content, qemu=kind != "split")


def as_another_disks_child(path):
    """A child of a disk that is just like it."""
    return snapshot_of(path, "child.vmdk", SIZE, hint="copy.vmdk")


def before_it_was_written(path):
    """A child of the disk as it was, by its CID."""
    return snapshot_of(path, "child.vmdk", SIZE, parent_cid=vmdk_chain.BASE_CID)


def of_several_files(path):
    """A child whose extent is another file."""
    disk = vmdk.Set(os.path.dirname(path), "child.vmdk", "twoGbMaxExtentSparse",
                    parent_cid=vmdk_chain.cid_of(path), hint="base.vmdk")
    return disk.image("extent.vmdk", vmdk.Sparse(SIZE)).write()


CHANGES = {
    "another_disks_child": (as_another_disks_child, "not a child of the device's file"),
    "an_older_one": (before_it_was_written, "not a child of the device's file"),
    "larger": (lambda path: snapshot_of(path, "child.vmdk", SIZE + SECTOR), "not a child of .*"),
    "no_child": (lambda path: vmdk.monolithic(SIZE).write(f"{path}.new"), "not a child of .*"),
    "several_files": (of_several_files, "its data lie in other files: attach it by itself"),
}


@suite.cases(**CHANGES)
def change_is_refused(t, case):
    """And the device goes on with the file that it has."""
    make, says = case
    disk = base(t)
    loop = t.attach(disk.path)
    data = b"w" * 4096
    blockio.direct_write(loop.path, 0, data)
    run("cp", disk.path, t.path("copy.vmdk"))
    path = make(disk.path)
    layers.allow_parents(t, "any")
    file, before = images.Unchanged(path), layers.state(loop)
    with layers.one_line(t, rf"{loop.name}: refused: vmdk: {says}"):
        fails_with(errno.EINVAL, loop.change_file, path)
    file.check()
    system.wait_until(lambda: layers.state(loop) == before, lambda: f"{before}, {layers.state(loop)}")
    blockio.direct_write(loop.path, 4096, data)
    loop.detach()
    vmdk_chain.judge(t, disk.path, data * 2 + disk.guest[8192:])


# Under qcow2


QCOW_BASES = {kind: Shape(kind) for kind in ("sparse", "flat", "split_evenly", "split_flat", "stream",
                                             "vmfs_sparse")} | {"child_of_a_set": Shape(base="split_flat")}


@suite.cases(**QCOW_BASES)
def below_qcow2(t, shape):
    disk = vmdk_chain.build(t.dir, shape, 50, "base" if not shape.base else "below")
    path = images.create(t.path("top.qcow2"), SIZE, "qcow2", backing_file=os.path.basename(disk.path),
                         backing_fmt="vmdk")
    below = [images.Unchanged(name) for name in disk.files]
    loop = images.attach_with(t, path, "qcow2")
    same_bytes(images.whole(loop), disk.guest, "device")
    equal(layers.paths(loop), [path, *disk.paths], "layers")
    shadow = bytearray(disk.guest)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=15)
    same_bytes(images.whole(loop), bytes(shadow), "device after writing")
    loop.detach()
    for file in below:
        file.check()
    qcow.judge(t, path, bytes(shadow))


@suite.test
def below_qcow2_with_an_extent_missing(t):
    disk = base(t, "split_flat")
    path = images.create(t.path("top.qcow2"), SIZE, "qcow2", backing_file="base.vmdk", backing_fmt="vmdk")
    os.unlink(disk.extents()[-1])
    t.expect_log(r'loop\d+: refused: vmdk: extent "base-003\.vmdk": ENOENT')
    fails_with(errno.ENOENT, images.attach_with, t, path, "qcow2")


@suite.test
def entry_of_a_parent_is_an_io_error(t):
    """It says in which file; what does not need it can be read."""
    image = vmdk.Sparse(SIZE, descriptor=vmdk.Descriptor(cid=7))
    image.put(0, blockio.pattern(SIZE))
    path = image.write(t.path("base.vmdk"))
    vmdk.poke(path, image.entry_at(3), struct.pack("<I", 1 << 30))
    top = vmdk.Sparse(SIZE, descriptor=vmdk.Descriptor(parent_cid=7, hint="base.vmdk"))
    loop = attach(t, top.write(t.path("child.vmdk")))
    t.expect_log(r'loop\d+: vmdk: "base\.vmdk": \S.* at byte \d+: I/O error')
    t.allow_log(r"(Buffer )?I/O error.* dev loop\d+.*")
    fails_with(errno.EIO, blockio.direct_read, loop.path, 3 * GRAIN, 4096)
    # Its grain cannot be completed.
    fails_with(errno.EIO, blockio.direct_write, loop.path, 3 * GRAIN, b"w" * 4096)
    rest = blockio.direct_read(loop.path, 4 * GRAIN, MIB)
    same_bytes(rest, image.guest()[4 * GRAIN:4 * GRAIN + MIB], "rest")
    # All of it is written, so nothing of the old one is needed.
    blockio.direct_write(loop.path, 3 * GRAIN, b"w" * GRAIN)
    same_bytes(blockio.direct_read(loop.path, 3 * GRAIN, GRAIN), b"w" * GRAIN, "new grain")


if __name__ == "__main__":
    suite.main()
