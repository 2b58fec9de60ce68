#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""VMDKs that are put together from several files: which may be named, how descriptors are spelled, what
extents can be, who else may use their files, and that the disk is one disk all the same."""

import errno
import os
import random
import re
import shutil

from lib import blockio, images, layers, loopdev, system, trace, users, vmdk, vmdk_chain, vmdk_esx
from lib import vmdk_reader, vmdk_stream
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import run
from lib.vmdk import KIB, MIB, SECTOR, Set, Sparse
from lib.vmdk_chain import Shape, attach, attach_read_only

SIZE = 4 * MIB
CID = re.compile(rb"^(\s*CID\s*=\s*)[0-9a-f]+", re.IGNORECASE | re.MULTILINE)
LONG_CID = re.compile(rb'^(ddb\.longContentID = ")([0-9a-f]+)', re.MULTILINE)
WRITABLE = ("descriptor", "split", "split_evenly", "flat", "split_flat", "vmfs", "vmfs_sparse",
            "split_vmfs_sparse", "mixed")
# Requests on ZERO extents, and on files that were cut.
suite = Suite(allow=[r"(blk_update_request: )?I/O error, dev loop\d+, .*",
                     r"Buffer I/O error on dev loop\d+.*"])


def refused(t, number, path, says, how=attach):
    """An attach fails like that, with a line in the log, and leaves nothing behind."""
    folder = os.path.dirname(path)
    files = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    before = layers.Untouched(loopdev.free(), [name for name in files if os.path.isfile(name)])
    with layers.one_line(t, rf"loop\d+: refused: vmdk: {says}"):
        fails_with(number, how, t, path)
    before.check()


def auto(t, path):
    """Attaches without naming the parser."""
    return t.attach(path)


def shows_and_keeps(t, path, data, how=attach):
    """A disk is read, and left as it was."""
    loop = how(t, path)
    same_bytes(images.whole(loop), data, "device")
    loop.detach()


def write_and_judge(t, path, data, qemu=False, how=attach, count=25, longest=MIB):
    """A disk is written, read back, and judged."""
    shadow = bytearray(data)
    loop = how(t, path)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=count, longest=longest)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device after writing")
    loop.detach()
    vmdk_chain.judge(t, path, bytes(shadow), qemu)
    return shadow


def two_flat(t, **fields):
    """Two flat extents, a.vmdk and b.vmdk, of a MiB each, but for a sector."""
    disk = Set(t.dir, create_type="twoGbMaxExtentFlat", **fields)
    disk.flat("a.vmdk", blockio.pattern(MIB - SECTOR, 1)).flat("b.vmdk", blockio.pattern(MIB, 2))
    disk.write()
    return disk


# Which files may be named


@suite.cases(flat="split_flat", sparse="split", cowd="split_vmfs_sparse", one="flat")
def not_without_permission(t, kind):
    disk = vmdk_chain.build(t.dir, Shape(kind))
    says = r"the file names another one, \"disk-001\.vmdk\".*vmdk.*loop/parser.*parents.*"
    refused(t, errno.EPERM, disk.path, says, auto)
    refused(t, errno.EPERM, disk.path, says, lambda _, path: loopdev.attach_read_only(path))


@suite.cases(flat="split_flat", sparse="split", mixed="mixed")
def with_the_parameter(t, kind):
    disk = vmdk_chain.build(t.dir, Shape(kind))
    layers.allow_parents(t, "beneath")
    write_and_judge(t, disk.path, disk.guest, how=auto)


@suite.cases(**{kind: kind for kind in WRITABLE})
def with_the_parser_named(t, kind):
    shape = Shape(kind)
    disk = vmdk_chain.build(t.dir, shape)
    before = [images.Unchanged(path) for path in disk.files]
    loop = attach_read_only(t, disk.path)
    equal(loop.size(), SIZE, "size")
    same_bytes(images.whole(loop), disk.guest, "device, read-only")
    loop.detach()
    shows_and_keeps(t, disk.path, disk.guest)
    for file in before:
        file.check()
    write_and_judge(t, disk.path, disk.guest, shape.qemu_reads())


@suite.test
def se_sparse_is_read_only(t):
    disk = vmdk_chain.build(t.dir, Shape("se_sparse"))
    refused(t, errno.EROFS, disk.path, r".*disk-001\.vmdk.*")
    shows_and_keeps(t, disk.path, disk.guest, attach_read_only)


@suite.cases(below="sub/a.vmdk", deeper="a/b/../b/a.vmdk", dot="./a.vmdk")
def beneath(t, name):
    disk = Set(t.dir)
    os.makedirs(t.path("a/b"))
    disk.flat(name, blockio.pattern(MIB))
    write_and_judge(t, disk.write(), disk.guest())


def outside(t, name):
    """A set in a folder of its own, with an extent by this name."""
    os.mkdir(t.path("set"))
    blockio.make_file(t.path("a.vmdk"), MIB)
    disk = Set(t.path("set"))
    disk.add(vmdk.Line(MIB, "FLAT", name, 0), b"")
    return disk.write()


@suite.cases(above=lambda _: "../a.vmdk", absolute=lambda t: t.path("a.vmdk"))
def not_outside(t, name):
    path = outside(t, name(t))
    refused(t, errno.EXDEV, path, r'extent ".*a\.vmdk": EXDEV')
    layers.allow_parents(t, "any")
    same_bytes(images.whole(attach(t, path)), blockio.content(t.path("a.vmdk")), "device, any allowed")


@suite.test
def symbolic_link_that_stays(t):
    disk = Set(t.dir)
    data = blockio.make_file(t.path("real"), MIB)
    os.symlink("real", t.path("a.vmdk"))
    disk.flat("a.vmdk", data)
    write_and_judge(t, disk.write(), data)
    ensure(os.path.islink(t.path("a.vmdk")), "the link is no link any more")


@suite.test
def symbolic_link_that_leaves(t):
    path = outside(t, "link.vmdk")
    os.symlink("../a.vmdk", t.path("set/link.vmdk"))
    refused(t, errno.EXDEV, path, r'extent "link\.vmdk": EXDEV')


@suite.test
def windows_path_is_not_looked_for(t):
    """A backslash is part of a name here."""
    disk = Set(t.dir)
    disk.flat("C:\\disks\\a.vmdk", blockio.pattern(MIB))
    ensure(os.path.exists(t.path("C:\\disks\\a.vmdk")), "made with its backslashes")
    write_and_judge(t, disk.write(), disk.guest())


NAMES = {"blanks": "a disk of mine.vmdk", "utf_8": "Größe.vmdk", "asian": "代替.vmdk",
         "hash": "#1.vmdk", "equals": "a=b.vmdk", "like_a_line": "RW 1 ZERO.vmdk", "dash": "-f.vmdk",
         "no_extension": "disk", "long": "n" * 250 + ".vmd", "quote": "it's.vmdk"}


@suite.cases(**NAMES)
def names(t, name):
    disk = Set(t.dir)
    disk.flat(name, blockio.pattern(64 * KIB)).image(f"s{name}"[:255], vmdk.fill(Sparse(MIB), random.Random(1)))
    write_and_judge(t, disk.write(), disk.guest())


@suite.test
def names_in_latin_1(t):
    disk = Set(t.dir, encoding="latin-1", more=('encoding="windows-1252"',))
    disk.flat("Größe.vmdk", blockio.pattern(MIB))
    ensure(os.path.exists(os.fsencode(t.dir) + b"/Gr\xf6\xdfe.vmdk"), "made in latin-1")
    write_and_judge(t, disk.write(), disk.guest())


@suite.cases(may_write=(0o666, True, True), may_read=(0o644, False, True), may_nothing=(0o600, False, False))
def owner_of_the_descriptor(t, case):
    """Nobody writes, or reads, through a descriptor of theirs what they may not write or read."""
    mode, may_write, may_read = case
    disk = two_flat(t)
    os.chmod(t.dir, 0o755)
    os.chmod(t.path("b.vmdk"), mode)
    os.chmod(t.path("a.vmdk"), 0o666)
    os.chown(disk.path, users.ALICE, users.ALICE)
    t.expect_log(r'loop\d+: refused: vmdk: extent "b\.vmdk": EACCES', (may_write, may_read).count(False))
    for how, may in ((attach, may_write), (attach_read_only, may_read)):
        if may:
            shows_and_keeps(t, disk.path, disk.guest(), how)
        else:
            fails_with(errno.EACCES, how, t, disk.path)


# What is not there, or not what it should be


@suite.test
def missing(t):
    disk = two_flat(t)
    os.unlink(t.path("b.vmdk"))
    refused(t, errno.ENOENT, disk.path, r'extent "b\.vmdk": ENOENT')


@suite.cases(mark=b"\xef\xbb\xbf# Disk DescriptorFile\r\nversion=1\r\n", version=b"version=1\n",
             comment=b"\n# edited by hand\n# Disk DescriptorFile\n")
def recognised_by_its_beginning(t, start):
    path = t.path("disk.vmdk")
    with open(path, "wb") as file:
        file.write(start + b"CID=12345678\nparentCID=ffffffff\nRW 2048 ZERO\n")
    shows_and_keeps(t, path, bytes(MIB), auto)


# What the log shows of each: all of it, or its end.
LONG = {"fits": ("n" * 250 + ".vmdk", r"n{250}\.vmdk"),
        "escaped": ("漢" * 83 + ".vmdk", r"\.\.\.(\\x5cx[0-9a-f]{2}){126}\.vmdk"),
        "path": ("no/" * 1000 + "b.vmdk", r"\.\.\.o/(no/){168}b\.vmdk")}


@suite.cases(**LONG)
def missing_by_a_long_name(t, case):
    """The line says why, and ends."""
    name, shown = case
    path = t.path("disk.vmdk")
    with open(path, "wb") as file:
        file.write(vmdk.Descriptor("monolithicFlat", [vmdk.Line(MIB, "FLAT", name, 0)]).text())
    refused(t, errno.ENOENT, path, rf'extent "{shown}": ENOENT')


@suite.cases(folder=lambda path: os.mkdir(path), fifo=lambda path: os.mkfifo(path))
def no_regular_file(t, make):
    disk = two_flat(t)
    os.unlink(t.path("b.vmdk"))
    make(t.path("b.vmdk"))
    refused(t, errno.EACCES, disk.path, r'extent "b\.vmdk": EACCES')


@suite.test
def no_file_of_bytes(t):
    """A regular file by its type, but one that nothing can be attached to."""
    layers.allow_parents(t, "any")
    disk = Set(t.dir)
    disk.add(vmdk.Line(MIB, "FLAT", "/proc/kmsg", 0), b"")
    path = disk.write()
    fails_with(errno.EINVAL, loopdev.attach_read_only, "/proc/kmsg")
    refused(t, errno.EACCES, path, r'extent "/proc/kmsg": EACCES')


@suite.test
def the_descriptor_itself(t):
    disk = Set(t.dir)
    disk.flat("a.vmdk", bytes(SECTOR))
    disk.add(vmdk.Line(SECTOR, "FLAT", "disk.vmdk", 0), b"")
    refused(t, errno.ELOOP, disk.write(), r'extent "disk\.vmdk": ELOOP')


@suite.test
def another_descriptor(t):
    inner = Set(t.dir, "inner.vmdk")
    inner.flat("a.vmdk", bytes(MIB)).write()
    disk = Set(t.dir)
    disk.add(vmdk.Line(MIB, "SPARSE", "inner.vmdk"), b"")
    refused(t, errno.EOPNOTSUPP, disk.write(), r'extent "inner\.vmdk": .* at byte \d+')


@suite.test
def sparse_extent_that_is_raw(t):
    disk = Set(t.dir)
    blockio.make_file(t.path("a.vmdk"), MIB)
    disk.add(vmdk.Line(MIB, "SPARSE", "a.vmdk"), b"")
    refused(t, errno.EUCLEAN, disk.write(), r'extent "a\.vmdk": .* at byte \d+')


@suite.test
def flat_extent_that_is_sparse(t):
    """The descriptor says what it is: its bytes are the disk's."""
    vmdk.monolithic(MIB).write(t.path("a.vmdk"))
    data = blockio.content(t.path("a.vmdk"))
    disk = Set(t.dir)
    disk.flat("a.vmdk", data)
    write_and_judge(t, disk.write(), data)


@suite.test
def short_flat_extent(t):
    disk = two_flat(t)
    os.truncate(t.path("b.vmdk"), MIB - SECTOR)
    refused(t, errno.EUCLEAN, disk.path, rf'extent ".*/b\.vmdk".* {MIB - SECTOR} bytes.*')


@suite.test
def flat_extent_that_begins_behind_its_end(t):
    disk = Set(t.dir)
    blockio.make_file(t.path("a.vmdk"), MIB)
    disk.add(vmdk.Line(SECTOR, "FLAT", "a.vmdk", MIB // SECTOR), b"")
    refused(t, errno.EUCLEAN, disk.write(), r'extent ".*/a\.vmdk".*')


@suite.cases(sparse=("SPARSE", Sparse), cowd=("VMFSSPARSE", vmdk_esx.Cowd))
def short_extent(t, case):
    """Its header says that it has less than the line says."""
    kind, make = case
    disk = Set(t.dir)
    disk.image("a.vmdk", make(MIB), kind=kind, size=MIB + SECTOR)
    refused(t, errno.EUCLEAN, disk.write(), r'extent "a\.vmdk": .* at byte \d+')


@suite.cases(sparse=("SPARSE", Sparse), cowd=("VMFSSPARSE", vmdk_esx.Cowd))
def larger_extent(t, case):
    """VirtualBox rounds up what the header says; the line counts."""
    kind, make = case
    disk = Set(t.dir)
    disk.image("a.vmdk", vmdk.fill(make(2 * MIB), random.Random(1)), kind=kind, size=MIB + 5 * SECTOR)
    disk.flat("b.vmdk", blockio.pattern(64 * KIB))
    loop = attach(t, disk.write())
    equal(loop.size(), MIB + 5 * SECTOR + 64 * KIB, "size")
    loop.detach()
    write_and_judge(t, disk.path, disk.guest(), longest=100 * KIB)


@suite.test
def larger_flat_extent(t):
    disk = two_flat(t)
    with open(t.path("a.vmdk"), "ab") as file:
        file.write(b"behind the extent" * 100)
    write_and_judge(t, disk.path, disk.guest())
    equal(blockio.content(t.path("a.vmdk"))[-17:], b"behind the extent", "what lies behind it")


@suite.test
def cut_while_attached(t):
    """What is lost cannot be read; the other extents can."""
    disk = two_flat(t)
    loop = attach(t, disk.path)
    os.truncate(t.path("b.vmdk"), 0)
    same_bytes(blockio.direct_read(loop.path, 0, MIB - SECTOR), disk.guest()[:MIB - SECTOR], "the first")
    t.allow_log(r"loop\d+: .*")
    try:
        found = blockio.direct_read(loop.path, MIB, MIB // 2)
    except OSError as error:
        equal(error.errno, errno.EIO, "errno")
    else:
        same_bytes(found, bytes(len(found)), "what was cut off")


# Where the files are


@suite.cases(flat="split_flat", sparse="split_evenly")
def folder_is_renamed(t, kind):
    os.mkdir(t.path("old"))
    disk = vmdk_chain.build(t.path("old"), Shape(kind))
    os.rename(t.path("old"), t.path("new"))
    write_and_judge(t, t.path("new/disk.vmdk"), disk.guest)


@suite.test
def folder_is_renamed_while_attached(t):
    os.mkdir(t.path("old"))
    disk = vmdk_chain.build(t.path("old"), Shape("mixed"))
    loop = attach(t, disk.path)
    os.rename(t.path("old"), t.path("new"))
    shadow = bytearray(disk.guest)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
    equal(layers.paths(loop), [t.path("new/disk.vmdk")], "layers")
    loop.detach()
    vmdk_chain.judge(t, t.path("new/disk.vmdk"), bytes(shadow), False)


@suite.test
def monolithic_file_is_renamed(t):
    """The name inside is stale then, and means nothing; no permission is needed."""
    image = vmdk.fill(vmdk.monolithic(SIZE), random.Random(1))
    os.rename(image.write(t.path("old.vmdk")), t.path("new.vmdk"))
    write_and_judge(t, t.path("new.vmdk"), image.guest(), qemu=True, how=auto)


@suite.test
def extent_is_renamed(t):
    disk = two_flat(t)
    os.rename(t.path("a.vmdk"), t.path("c.vmdk"))
    refused(t, errno.ENOENT, disk.path, r'extent "a\.vmdk": ENOENT')


# Spellings


@suite.cases(**vmdk.SPELLINGS)
def spelling(t, spell):
    """Read, and written: nothing changes but the CID, which keeps its length."""
    disk = Set(t.dir, create_type="twoGbMaxExtentFlat", hint="not counted.vmdk")
    disk.flat("a b.vmdk", blockio.pattern(63 * KIB)).flat("b.vmdk", blockio.pattern(64 * KIB, 2))
    disk.spell = spell
    path = disk.write()
    changes_only_the_cid(t, path, disk.guest(), lambda: write_and_judge(t, path, disk.guest(), count=5))


@suite.cases(**vmdk.SPELLINGS)
def spelling_inside(t, spell):
    """The same, in a sparse extent."""
    image = vmdk.fill(vmdk.monolithic(MIB), random.Random(1))
    image.descriptor = spell(vmdk.Descriptor(lines=[vmdk.Line(MIB, name="gone.vmdk")]).text())
    path = image.write(t.path("a.vmdk"))
    changes_only_the_cid(t, path, image.guest(),
                         lambda: write_and_judge(t, path, image.guest(), how=auto, count=5),
                         SECTOR, 21 * SECTOR)


def changes_only_the_cid(t, path, data, write, start=0, end=None):
    """Looks at a descriptor before and after a disk was read, and written."""
    before = blockio.content(path)[start:end]
    old = vmdk_chain.cid_digits(path)
    shows_and_keeps(t, path, data)
    same_bytes(blockio.content(path)[start:end], before, "descriptor after reading")
    write()
    new = vmdk_chain.cid_digits(path)
    equal(len(new), len(old), "digits of the CID")
    ensure(int(new, 16) != int(old, 16), "the CID is another one")
    expected = CID.sub(rb"\g<1>" + new.encode(), before)
    expected = LONG_CID.sub(lambda match: match[1] + match[2][:-len(new)] + new.encode(), expected)
    same_bytes(blockio.content(path)[start:end], expected, "descriptor after writing")


@suite.test
def thousands_of_extents(t):
    """2000 of them, with holes of zeros between; attached, read, written in each."""
    disk = Set(t.dir)
    for number in range(1000):
        disk.flat(f"{number}.vmdk", blockio.pattern(SECTOR * (1 + number % 3), number))
        disk.zero(SECTOR * (1 + number % 2))
    path = disk.write()
    shadow = bytearray(disk.guest())
    loop = attach(t, path)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    equal(layers.of(loop)[0]["extents"], "2000", "extents in sysfs")
    pos = 0
    with blockio.Direct(loop.path) as device:
        for line in disk.descriptor.lines:
            if line.kind == "FLAT":
                device.write(pos, b"w" * SECTOR)
                shadow[pos:pos + SECTOR] = b"w" * SECTOR
            pos += line.size
    same_bytes(images.whole(loop), bytes(shadow), "device after writing")
    loop.detach()
    vmdk_chain.judge(t, path, bytes(shadow), False)


@suite.test
def too_many_extents(t):
    disk = Set(t.dir)
    disk.descriptor.lines = [vmdk.Line(SECTOR, "ZERO")] * 8193
    refused(t, errno.EOPNOTSUPP, disk.write(), r".*extents.* at byte \d+")


# Extents that are not plain


def with_zeros(t, access="RW"):
    """A MiB of data, 100 KiB of zeros, and a MiB of data; on a file system that can zero ranges."""
    disk = Set(t.ext4(32))
    disk.flat("a.vmdk", blockio.pattern(MIB)).zero(100 * KIB, access)
    disk.image("b.vmdk", vmdk.fill(Sparse(MIB), random.Random(1)))
    disk.write()
    return disk


@suite.cases(rw="RW", rdonly="RDONLY", noaccess="NOACCESS")
def zero_extent(t, access):
    """It reads as zero, and is not written; what is beside it can be."""
    disk = with_zeros(t, access)
    shadow = bytearray(disk.guest())
    loop = attach(t, disk.path)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    t.allow_log(r"loop\d+: vmdk: .*")
    with blockio.Direct(loop.path) as device:
        for pos in (MIB, MIB + 99 * KIB):
            fails_with(errno.EIO, device.write, pos, b"x" * KIB)
        device.write(MIB - KIB, b"l" * KIB)
        device.write(MIB + 100 * KIB, b"r" * KIB)
        shadow[MIB - KIB:MIB] = b"l" * KIB
        shadow[MIB + 100 * KIB:MIB + 101 * KIB] = b"r" * KIB
        # Zeros are what is there.
        device.zero(MIB - 512, 200 * KIB)
        shadow[MIB - 512:MIB - 512 + 200 * KIB] = bytes(200 * KIB)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device after writing")
    loop.detach()
    vmdk_chain.judge(t, disk.path, bytes(shadow), False)


@suite.test
def write_that_reaches_into_zeros(t):
    """It fails; what is not zeros may be new or old, the zeros stay."""
    disk = with_zeros(t)
    loop = attach(t, disk.path)
    t.allow_log(r"loop\d+: vmdk: .*")
    fails_with(errno.EIO, blockio.direct_write, loop.path, MIB - 4 * KIB, b"x" * 8 * KIB)
    found = images.whole(loop)
    same_bytes(found[MIB:], disk.guest()[MIB:], "device from the zeros on")
    same_bytes(found[:MIB - 4 * KIB], disk.guest()[:MIB - 4 * KIB], "device in front")


@suite.cases(flat=lambda disk: disk.flat("b.vmdk", blockio.pattern(MIB, 2), access="RDONLY"),
             sparse=lambda disk: disk.image("b.vmdk", vmdk.fill(Sparse(MIB), random.Random(1)),
                                            access="RDONLY"))
def read_only_extent(t, add):
    disk = Set(t.dir)
    add(disk.flat("a.vmdk", blockio.pattern(MIB)))
    path = disk.write()
    refused(t, errno.EROFS, path, r".*read-only.* at byte \d+.*losetup -r.*")
    shows_and_keeps(t, path, disk.guest(), attach_read_only)


@suite.cases(noaccess=("NOACCESS", "FLAT"), rdm=("RW", "VMFSRDM"), raw=("RW", "VMFSRAW"),
             unknown=("RW", "PMEM"))
def unsupported_extent(t, case):
    access, kind = case
    disk = two_flat(t)
    disk.descriptor.lines[1].access = access
    disk.descriptor.lines[1].kind = kind
    for how in (attach, attach_read_only):
        refused(t, errno.EOPNOTSUPP, disk.write(), r".*extent.* at byte \d+", how)


@suite.test
def stream_as_an_extent(t):
    """It can be read, and makes the disk read-only."""
    stream = vmdk.fill(vmdk_stream.Stream(MIB), random.Random(1))
    disk = Set(t.dir)
    disk.flat("a.vmdk", blockio.pattern(MIB)).image("b.vmdk", stream)
    path = disk.write()
    refused(t, errno.EROFS, path, r'extent "b\.vmdk": .* at byte \d+.*')
    shows_and_keeps(t, path, disk.guest(), attach_read_only)


@suite.test
def extents_in_one_file(t):
    """At offsets, not in order, with gaps that belong to nobody."""
    disk = Set(t.dir)
    gaps = b"nobody's" * 128 * KIB
    with open(t.path("all.vmdk"), "wb") as file:
        file.write(gaps)
    for number, (offset, size) in enumerate(((512 * KIB, 100 * KIB), (KIB, 64 * KIB), (700 * KIB, SECTOR),
                                             (128 * KIB, 33 * KIB))):
        disk.flat("all.vmdk", blockio.pattern(size, number), offset=offset)
    before = blockio.content(t.path("all.vmdk"))
    write_and_judge(t, disk.write(), disk.guest(), longest=100 * KIB)
    after = blockio.content(t.path("all.vmdk"))
    for start, end in ((0, 1), (65, 128), (161, 512), (612, 700), (701, 1024)):
        same_bytes(after[start * KIB:end * KIB], before[start * KIB:end * KIB], f"gap at {start} KiB")


@suite.cases(past_4_gib=(4 << 30) + SECTOR, past_2_tib=(2 << 40) + SECTOR)
def far_into_a_file(t, offset):
    disk = Set(t.dir)
    disk.flat("a.vmdk", blockio.pattern(MIB), offset=offset)
    write_and_judge(t, disk.write(), disk.guest())


@suite.test
def extent_without_a_descriptor(t):
    """A sparse extent by itself: its header says how large it is."""
    image = vmdk.fill(Sparse(SIZE - 5 * SECTOR), random.Random(1))
    path = image.write(t.path("a.vmdk"))
    loop = t.attach(path)
    equal(loop.size(), SIZE - 5 * SECTOR, "size")
    equal(len(layers.of(loop)), 1, "layers")
    loop.detach()
    write_and_judge(t, path, image.guest(), how=auto)


@suite.cases(monolithic=Shape(), descriptor_inside=Shape("split"))
def sysfs(t, shape):
    disk = vmdk_chain.build(t.dir, shape)
    loop = attach(t, disk.path)
    layer, = layers.of(loop)
    equal(layer.path, disk.path, "path")
    equal((layer["parser"], layer.number("size"), layer["state"]), ("vmdk", SIZE, "clean"), "parser, …")
    equal(layer.fields.get("extents"), "3" if shape.kind == "split" else None, "extents")
    allocated = sum(blockio.allocated(path) for path in disk.own)
    equal(layer.number("allocated"), allocated, "allocated bytes")
    equal(loop.attr("loop/backing_file"), disk.path, "backing file")


# Who else uses the files


@suite.cases(flat=("split_flat", "raw"), sparse=("split_evenly", "vmdk"))
def one_writer_of_an_extent(t, case):
    """Nobody else writes to an extent of a disk that is written, whichever comes first."""
    kind, parser = case
    disk = vmdk_chain.build(t.dir, Shape(kind))
    extent = disk.extents()[-1]
    t.expect_log(rf"loop\d+: refused: {parser}: EBUSY")
    t.expect_log(rf'loop\d+: refused: vmdk: extent ".*/{os.path.basename(extent)}": EBUSY')
    loop = attach(t, disk.path)
    fails_with(errno.EBUSY, t.attach, extent)
    loop.detach()
    other = t.attach(extent)
    fails_with(errno.EBUSY, attach, t, disk.path)
    other.detach()
    attach(t, disk.path).detach()


@suite.test
def two_disks_that_share_an_extent(t):
    """Both can read it; only one can be written."""
    disk = two_flat(t)
    second = Set(t.dir, "second.vmdk")
    second.descriptor.lines = [disk.descriptor.lines[1]]
    second.write()
    readers = [attach_read_only(t, disk.path), attach_read_only(t, second.path)]
    same_bytes(images.whole(readers[1]), disk.guest()[MIB - SECTOR:], "second disk")
    for loop in readers:
        loop.detach()
    t.expect_log(r'loop\d+: refused: vmdk: extent ".*/b\.vmdk": EBUSY')
    attach(t, disk.path)
    fails_with(errno.EBUSY, attach, t, second.path)


@suite.cases(flat="split_flat", sparse="split", cowd="split_vmfs_sparse")
def two_devices(t, kind):
    """On one set: what is written to one is read from the other."""
    disk = vmdk_chain.build(t.dir, Shape(kind))
    loops = [attach(t, disk.path) for _ in range(2)]
    shadow = bytearray(disk.guest)
    rng = random.Random(4)
    for turn in range(12):
        pos, data = rng.randrange(SIZE // SECTOR - 300) * SECTOR, rng.randbytes(300 * SECTOR)
        blockio.direct_write(loops[turn % 2].path, pos, data)
        shadow[pos:pos + len(data)] = data
        same_bytes(blockio.direct_read(loops[1 - turn % 2].path, pos, len(data)), data, f"turn {turn}")
    loops[0].detach()
    same_bytes(images.whole(loops[1]), bytes(shadow), "the device that is left")
    loops[1].detach()
    vmdk_chain.judge(t, disk.path, bytes(shadow), False)


@suite.test
def files_are_let_go(t):
    """The file system under them can be unmounted at once, after a refusal, too."""
    folder = t.ext4(64)
    disk = vmdk_chain.build(folder, Shape("mixed"))
    loop = attach(t, disk.path)
    blockio.direct_write(loop.path, 0, b"x" * MIB)
    loop.detach()
    os.truncate(disk.extents()[0], 0)
    t.expect_log(r'loop\d+: refused: vmdk: extent .*')
    fails_with(errno.EUCLEAN, attach, t, disk.path)
    images.nothing_is_held(folder, "vmdkloop")


# It is one disk


def boundaries(disk):
    """Where extents of a Set meet."""
    pos = 0
    for line in disk.descriptor.lines[:-1]:
        pos += line.size
        yield pos


@suite.cases(buffered=0, direct=loopdev.DIRECT_IO)
def requests_across_boundaries(t, flags):
    disk = Set(t.ext4(64))
    rng = random.Random(2)
    for number, size in enumerate((70 * KIB, SECTOR, 200 * KIB, 3 * SECTOR, MIB, 5 * KIB)):
        disk.flat(f"f{number}.vmdk", rng.randbytes(size))
        disk.image(f"s{number}.vmdk", vmdk.fill(Sparse(size, 4 * KIB), rng))
    shadow = bytearray(disk.guest())
    loop = attach(t, disk.write(), flags=flags)
    with blockio.Direct(loop.path) as device:
        for pos in boundaries(disk):
            for length in (1024, 64 * KIB, MIB):
                start = max(0, min(pos - length // 2 // SECTOR * SECTOR, len(shadow) - length))
                data = rng.randbytes(length)
                device.write(start, data)
                shadow[start:start + length] = data
                same_bytes(device.read(start, length), data, f"read back at {start}")
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    vmdk_chain.judge(t, disk.path, bytes(shadow), False)


@suite.test
def partition_across_a_boundary(t):
    """A partition that lies in three extents, with a file system."""
    disk = Set(t.dir)
    for number in range(3):
        disk.image(f"{number}.vmdk", Sparse(7 * MIB + (number + 1) * SECTOR))
    loop = t.losetup("-P", with_parser(t, disk.write()))
    run("sfdisk", "-q", loop.path, text="label: dos\nstart=2048, size=38000\n")
    system.wait_until(lambda: os.path.exists(loop.part(1)), "there is a partition")
    run("mkfs.ext4", "-q", loop.part(1))
    point = t.mount(loop.part(1))
    data = blockio.make_file(os.path.join(point, "file"), 9 * MIB)
    run("umount", point)
    run("e2fsck", "-fn", loop.part(1))
    content = images.whole(loop)
    loop.detach()
    vmdk_chain.judge(t, disk.path, content, False)
    loop = t.losetup("-P", with_parser(t, disk.path))
    system.wait_until(lambda: os.path.exists(loop.part(1)), "there is a partition")
    point = t.mount(loop.part(1))
    same_bytes(blockio.content(os.path.join(point, "file")), data, "file")
    run("umount", point)


def with_parser(t, path):
    """Lets sets name their files, as long as the test runs; returns the path."""
    layers.allow_parents(t, "beneath")
    return path


@suite.test
def flush_reaches_all_files_that_were_written(t):
    folder = t.ext4(64)
    disk = vmdk_chain.build(folder, Shape("mixed"))
    inodes = {os.stat(path).st_ino for path in disk.own}
    loop = attach(t, disk.path)
    with blockio.Direct(loop.path) as device:
        for start in range(0, SIZE, 256 * KIB):
            device.write(start, b"f" * 4096)
        with trace.tracing("ext4/ext4_sync_file_enter") as traced:
            device.flush()
    synced = {int(ino) for ino, in traced.fields("ext4_sync_file_enter", r"ino (\d+)")}
    extents = {os.stat(path).st_ino for path in disk.extents()}
    equal(extents - synced, set(), "extents that were not synced")
    equal(synced - inodes, set(), "synced files that are not the disk's")


@suite.test
def detach_leaves_nothing_in_flight(t):
    """What was written and not flushed is in the files after detaching; they are marked clean."""
    disk = vmdk_chain.build(t.dir, Shape("split"))
    loop = attach(t, disk.path)
    with blockio.Direct(loop.path) as device:
        device.write(0, b"d" * SIZE)
    equal([vmdk.field(path, "unclean") for path in disk.extents()], [1] * 3, "unclean while it is written")
    loop.detach()
    equal([vmdk.field(path, "unclean") for path in disk.extents()], [0] * 3, "unclean")
    same_bytes(vmdk_reader.guest_of(disk.path), b"d" * SIZE, "image")


@suite.test
def only_what_is_written_changes(t):
    """Extents that nobody writes to stay as they are."""
    disk = vmdk_chain.build(t.dir, Shape("mixed"))
    first, *rest = disk.extents()
    before = [images.Unchanged(path) for path in rest]
    loop = attach(t, disk.path)
    blockio.direct_write(loop.path, 0, b"x" * 4096)
    loop.detach()
    equal(blockio.content(first)[:4096], b"x" * 4096, "the first extent")
    for file in before:
        file.check()


@suite.test
def ext4(t):
    """A file system, trimmed: files get holes."""
    folder = t.ext4(200)
    disk = Set(folder)
    for number in range(2):
        disk.image(f"s{number}.vmdk", Sparse(24 * MIB))
        disk.flat(f"f{number}.vmdk", bytes(8 * MIB))
    loop = t.losetup(with_parser(t, disk.write()))
    run("mkfs.ext4", "-q", loop.path)
    point = t.mount(loop.path)
    blockio.make_file(os.path.join(point, "gone"), 24 * MIB)
    data = blockio.make_file(os.path.join(point, "file"), 8 * MIB, 2)
    os.sync()
    full = layers.of(loop)[0].number("allocated")
    os.unlink(os.path.join(point, "gone"))
    os.sync()
    run("fstrim", point)
    run("umount", point)
    run("e2fsck", "-fn", loop.path)
    left = layers.of(loop)[0].number("allocated")
    ensure(left < full - 12 * MIB, f"{full} bytes, {left} after fstrim")
    content = images.whole(loop)
    loop.detach()
    vmdk_chain.judge(t, disk.path, content, False)
    point = t.mount(t.losetup(disk.path).path)
    same_bytes(blockio.content(os.path.join(point, "file")), data, "file")
    run("umount", point)


@suite.test
def copy_of_a_set(t):
    """Taken after a flush, while it is attached: what a crash would leave."""
    os.mkdir(t.path("set"))
    disk = vmdk_chain.build(t.path("set"), Shape("mixed"))
    shadow = bytearray(disk.guest)
    loop = attach(t, disk.path)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
        device.flush()
        shutil.copytree(t.path("set"), t.path("copy"))
    t.expect_log(r'loop\d+: vmdk: extent ".*/copy/disk-00\d\.vmdk": .*; served nevertheless')
    t.expect_log(r"loop\d+: vmdk: something is wrong with 1 more extents; served nevertheless")
    copy = attach(t, t.path("copy/disk.vmdk"))
    same_bytes(images.whole(copy), bytes(shadow), "copy")
    blockio.direct_write(copy.path, 0, bytes(shadow[:SIZE]))
    copy.detach()
    vmdk_chain.judge(t, t.path("copy/disk.vmdk"), bytes(shadow), False)


if __name__ == "__main__":
    suite.main()
