# SPDX-License-Identifier: GPL-2.0
"""The kinds of images whose crashes are looked at. A new one is an entry in KINDS."""

import dataclasses
import os
import typing

from lib import loopdev, modules, qcow_images, stamps, vhd, vhd_child, vmdk_images

MIB = vhd.MIB
SECTOR = vhd.SECTOR
OLD_BYTE = b"\x5a"
BLOCK = 16 << 10


@dataclasses.dataclass
class Kind:
    """How to make an image, and what to put it on.

    `format` names the format for `crash_check` and `structure.py`, and is the name of its parser.
    `build` writes the image to a path and returns the ranges (first sector, sectors) that have
    stamps of generation 0; the rest of its `guest` sectors is zero. `backing` is "ext4", or "device": the image itself is on the
    block device, which has old bytes behind it. `disk` is the size of that device in bytes.
    `parent`: the path of a file that `build` writes, too, and that the image lies on: in the file
    system that is recorded, or, of an image on a block device, elsewhere. `parts`: the names of
    files that the disk is put together from, beside the image. `sessions`: how often it is attached.
    """

    format: str
    build: typing.Callable
    guest: int
    backing: str
    disk: int
    parent: str = None
    parts: tuple = ()
    sessions: int = 2

    def names_files(self):
        """Whether it has to be allowed to."""
        return bool(self.parent or self.parts)


def stamped(image, ranges):
    """Puts stamps into an image in the making; returns the ranges."""
    for first, count in ranges:
        image.put(first * SECTOR, stamps.make(first, count, 0))
    return ranges


def dynamic(path, size, home=None, **options):
    """A dynamic VHD that has full blocks, and blocks with clear bits and old bytes under them.

    `home`: the size of the block device that it is for. `options`: of vhd.Dynamic.
    """
    image = vhd.Dynamic(size, BLOCK, **options)
    block = BLOCK // SECTOR
    for number in range(3, 80, 4):
        image.put_stale(number * BLOCK, OLD_BYTE * BLOCK)
    full = [(number * block, block) for number in range(1, 80, 5)]
    ranges = stamped(image, full + [(number * block + 5, 11) for number in range(3, 80, 8)])
    image.write(path)
    if home:
        put_on_device(path, home, image.tail.pack())
    return ranges


def put_on_device(path, home, footer):
    """Makes the file what a device of `home` bytes holds: old bytes, the footer in its end."""
    put_old_bytes(path, home)
    with open(path, "r+b") as file:
        vhd.put_at(file, home - SECTOR, footer)


def put_old_bytes(path, home):
    """Fills the rest of what a device of `home` bytes holds with them."""
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        vhd.put_at(file, size, OLD_BYTE * (home - size))


def fixed(path, size):
    """A fixed VHD, half of it stamped."""
    half = size // SECTOR // 2
    vhd.write_fixed(path, stamps.make(0, half, 0) + bytes(size - half * SECTOR))
    return [(0, half)]


class Raw:
    """A raw disk in the making."""

    def __init__(self, size):
        self.data = bytearray(size)

    def put(self, pos, data):
        """Bytes that count."""
        self.data[pos:pos + len(data)] = data

    def put_stale(self, pos, data):
        """Bytes that do not count: there are none."""

    def write(self, path):
        """Writes the file."""
        with open(path, "wb") as file:
            file.write(self.data)


def differencing(path, below, raw=False):
    """A differencing VHD of CHILD bytes on a smaller disk in the same folder, `below`."""
    options = {"parent_id": vhd_child.NULL_ID} if raw else {}
    child = vhd_child.Differencing(CHILD, below, BLOCK, **options)
    parent = Raw(BELOW) if raw else vhd.Dynamic(BELOW, BLOCK)
    ranges = layered(parent, child)
    parent.write(os.path.join(os.path.dirname(path), below))
    child.write(path)
    return ranges


def differencing_on_device(path, below):
    """The same for a block device, in whose folder nothing lies: it names its parent by a URL."""
    child = vhd_child.Differencing(CHILD, below, BLOCK, header_name="",
                                   locators=[vhd_child.mac(f"file://{below}")])
    parent = vhd.Dynamic(BELOW, BLOCK)
    ranges = layered(parent, child)
    parent.write(below)
    child.write(path)
    put_on_device(path, DEVICE, child.tail.pack())
    return ranges


def layered(parent, child):
    """Fills a child and what it lies on.

    Of four blocks the first is the parent's; of the second each has some sectors, and both have
    old bytes where the other one counts; of the third the parent has some sectors; the fourth is
    in neither.
    """
    step = 4 * BLOCK // SECTOR
    ranges = [shown for first in range(0, BELOW // SECTOR, step)
              for shown in put_below(parent, first)]
    return ranges + [shown for first in range(0, CHILD // SECTOR, step)
                     for shown in put_above(child, first + step // 4)]


def put_below(parent, first):
    """What a parent has of four blocks, the first of which begins at sector `first`."""
    second, third = first + BLOCK // SECTOR, first + 2 * BLOCK // SECTOR
    for hidden, count in ((second + 5, 11), (second + 20, 4)):
        parent.put(hidden * SECTOR, OLD_BYTE * count * SECTOR)
    parent.put_stale(third * SECTOR, OLD_BYTE * BLOCK)
    return stamped(parent, [(first, second + 5 - first), (second + 16, 4), (second + 24, 8),
                            (third + 5, 11)])


def put_above(child, first):
    """What a child has of the block that begins at sector `first`: stamps, zeros, old bytes."""
    child.put_stale(first * SECTOR, OLD_BYTE * BLOCK)
    child.put((first + 20) * SECTOR, bytes(4 * SECTOR))
    return stamped(child, [(first + 5, 11)])


def attach(path, parser, backing, names_files):
    """Attaches an image. That its parser is named allows it to name files in its folder; one on
    a block device has none, and needs leave to name any file."""
    loop = loopdev.free()
    if names_files:
        loop.set_attr("loop/parser", parser)
    if names_files and backing == "device":
        with modules.parameter("parents", "any"):
            return loopdev.attach(path, loop=loop)
    return loopdev.attach(path, loop=loop)


DYNAMIC = 12 * MIB
DEVICE = 18 * MIB
FIXED = 4 * MIB
# A child that is larger than what it lies on.
CHILD, BELOW = 12 * MIB, 9 * MIB
# Outside of the device that is recorded.
ELSEWHERE = "/run/crash.parent"


def on_ext4(build, guest, disk, below=None):
    """A kind whose image is a file; `below`: the name of its parent."""
    return Kind("vhd", build, guest // SECTOR, "ext4", disk, below and f"/{below}")


def on_device(build, guest, parent=None):
    """A kind whose image is a block device."""
    return Kind("vhd", build, guest // SECTOR, "device", DEVICE, parent)


def qcow(shape, disk):
    """A kind that QEMU makes."""
    return Kind(shape.format, lambda path: qcow_images.make(path, shape), shape.size // SECTOR,
                "ext4", disk, f"/{qcow_images.PARENT}" if shape.below else None)


def qcow2(size, disk, *options, **more):
    """The same of qcow2, version 3 unless `options` say otherwise."""
    return qcow(qcow_images.Shape(size, options=options, **more), disk)


# A VMDK is marked as open when it is attached: what becomes of that is looked at more often.
VMDK_SESSIONS = 4
# In whole grains: QEMU takes the last one of an extent for whole.
PARTS = (("part-1.vmdk", "SPARSE", 253 * 16 << 10, 16 << 10),
         ("part-2.vmdk", "FLAT", 2 * MIB, None),
         ("part-3.vmdk", "VMFSSPARSE", 3 * MIB, 4 << 10))
# QEMU does not know that a disk can be a "custom" one.
SET = {"create_type": "twoGbMaxExtentSparse"}
SNAPSHOT = "part.vmdk"
ODD = 8 * MIB - 5 * SECTOR


def vmdk_on(backing, build, guest, disk, below=None, parts=()):
    """A VMDK."""
    return Kind("vmdk", build, guest // SECTOR, backing, disk, below and f"/{below}", tuple(parts),
                VMDK_SESSIONS)


def vmdk(build, guest, disk, **more):
    """One in a file."""
    return vmdk_on("ext4", build, guest, disk, **more)


def vmdk_on_device(path):
    """For a block device, which has old bytes behind it."""
    ranges = vmdk_images.sparse(path, DYNAMIC, BLOCK, entries=8)
    put_old_bytes(path, DEVICE)
    return ranges


KINDS = {
    "vhd_dynamic_ext4": on_ext4(lambda path: dynamic(path, DYNAMIC), DYNAMIC, 32 * MIB),
    "vhd_dynamic_device": on_device(lambda path: dynamic(path, DYNAMIC, DEVICE), DYNAMIC),
    # Places begin at pages; what is full at first is so by the batmap, too, which nobody writes.
    "vhd_tapdisk_ext4": on_ext4(lambda path: dynamic(path, DYNAMIC, align=8, batmap=True,
                                                     footer=vhd.tapdisk()), DYNAMIC, 32 * MIB),
    "vhd_fixed_ext4": on_ext4(lambda path: fixed(path, FIXED), FIXED, 16 * MIB),
    "vhd_differencing_ext4": on_ext4(lambda path: differencing(path, "parent.vhd"), CHILD, 40 * MIB,
                                     "parent.vhd"),
    "vhd_differencing_raw_ext4": on_ext4(lambda path: differencing(path, "parent.raw", raw=True),
                                         CHILD, 40 * MIB, "parent.raw"),
    "vhd_differencing_device": on_device(lambda path: differencing_on_device(path, ELSEWHERE),
                                         CHILD, ELSEWHERE),
    "qcow1_ext4": qcow(qcow_images.Shape(6 * MIB, format="qcow"), 32 * MIB),
    # Many tables and refcount blocks are made.
    "qcow2_v2_ext4": qcow2(8 * MIB, 32 * MIB, "compat=0.10", "cluster_size=1024"),
    "qcow2_snapshot_ext4": qcow2(8 * MIB, 40 * MIB, "cluster_size=1024", "refcount_bits=64",
                                 snapshot=True),
    "qcow2_lazy_ext4": qcow2(8 * MIB, 32 * MIB, "cluster_size=4096", "lazy_refcounts=on",
                             "compression_type=zstd"),
    "qcow2_subclusters_ext4": qcow2(12 * MIB, 40 * MIB, "cluster_size=16384", "extended_l2=on"),
    "qcow2_backing_ext4": qcow2(8 * MIB, 40 * MIB, "cluster_size=4096", below=6 * MIB),
    # The refcount table, of 2 MiB, has to grow.
    "qcow2_growing_ext4": qcow2(6 * MIB, 32 * MIB, "cluster_size=512", "refcount_bits=64",
                                full=7 << 19),
    "vmdk_sparse_ext4": vmdk(lambda path: vmdk_images.made_by_qemu(path, DYNAMIC), DYNAMIC, 32 * MIB),
    # Zero grains; many tables are made; it was not detached when it was written to last. The disk ends
    # within a grain.
    "vmdk_zeroed_ext4": vmdk(lambda path: vmdk_images.left_open(path, ODD, 4096, entries=128,
                                                                zero_grains=True), ODD, 40 * MIB),
    "vmdk_set_ext4": vmdk(lambda path: vmdk_images.in_parts(path, PARTS, SET),
                          sum(size for _, _, size, _ in PARTS), 40 * MIB,
                          parts=[name for name, *_ in PARTS]),
    "vmdk_child_ext4": vmdk(lambda path: vmdk_images.child(path, CHILD, BELOW, BLOCK), CHILD, 40 * MIB,
                            below=vmdk_images.BASE),
    "vmdk_cowd_ext4": vmdk(lambda path: vmdk_images.cowd(path, 8 * MIB, 4096), 8 * MIB, 32 * MIB),
    # The usual grain of a snapshot is a sector.
    "vmdk_snapshot_ext4": vmdk(lambda path: vmdk_images.snapshot(path, 6 * MIB, 5 * MIB, SNAPSHOT),
                               6 * MIB, 40 * MIB, below=vmdk_images.BASE, parts=[SNAPSHOT]),
    "vmdk_sparse_device": vmdk_on("device", vmdk_on_device, DYNAMIC, DEVICE),
}
