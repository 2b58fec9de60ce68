# SPDX-License-Identifier: GPL-2.0
"""VMDKs to begin with. Of eight pieces of the disk

    0  has the parent's stamps, if there is one
    1  has some stamps; the rest is zero, whatever the parent has
    2  has some of the parent's stamps
    3  is a zero grain over other bytes of the parent, if there can be zero grains
    5  has stamps

and 4, 6 and 7 are not there. A part of the disk is not there at all, so that it has no tables, either.
"""

import os
import tempfile

from lib import stamps, vmdk, vmdk_esx
from lib.system import run
from lib.vmdk import KIB, SECTOR

PIECE = 16 * KIB
PIECES = 8
# Of four so large parts of the disk the last has nothing in it.
PART = 512 * KIB
# Sectors of pieces 1 and 2 that have stamps.
SOME = range(5, 16)
OLD_BYTES = b"\x5a" * PIECE
BASE = "base.vmdk"
BASE_CID = 0x0B0B0B0B


def rounds(start, end):
    """Where eight pieces begin."""
    return [at for at in range(start, end - PIECES * PIECE + 1, PIECES * PIECE) if at // PART % 4 < 3]


class Filler:
    """Puts stamps into parts of a disk."""

    def __init__(self):
        self.ranges = []

    def stamp(self, image, start, at, sectors=range(PIECE // SECTOR)):
        """Some sectors of a piece; the image begins at `start` of the disk."""
        first = at // SECTOR + sectors.start
        image.put(first * SECTOR - start, stamps.make(first, len(sectors), 0))
        self.ranges.append((first, len(sectors)))

    def fill(self, image, start=0):
        """The pieces that the image has itself."""
        for at in rounds(-(-start // PIECE) * PIECE, start + image.size):
            image.put(at + PIECE - start, bytes(PIECE))
            self.stamp(image, start, at + PIECE, SOME)
            if getattr(image, "zero_grains", False):
                image.zero((at + 3 * PIECE - start) // image.grain, PIECE // image.grain)
            self.stamp(image, start, at + 5 * PIECE)
        return image

    def fill_below(self, image):
        """Those of the parent."""
        for at in rounds(0, image.size):
            self.stamp(image, 0, at)
            image.put(at + PIECE, OLD_BYTES)
            self.stamp(image, 0, at + 2 * PIECE, SOME)
        return image


class Qemu:
    """An image that QEMU makes and fills: with grains of 64 KiB. It takes bytes from files."""

    def __init__(self, size, scratch):
        self.size = size
        self.scratch = scratch
        self.commands = []

    def put(self, pos, data):
        """Bytes."""
        source = os.path.join(self.scratch, str(len(self.commands)))
        with open(source, "wb") as file:
            file.write(data)
        self.commands += ["-c", f"write -q -s {source} {pos} {len(data)}"]

    def write(self, path):
        """Writes the file."""
        options = "subformat=monolithicSparse"
        run("qemu-img", "create", "-q", "-f", "vmdk", "-o", options, path, str(self.size))
        run("qemu-io", "-f", "vmdk", *self.commands, path)


def made_by_qemu(path, size):
    """A monolithicSparse disk of QEMU's."""
    filler = Filler()
    with tempfile.TemporaryDirectory() as scratch:
        filler.fill(Qemu(size, scratch)).write(path)
    return filler.ranges


def sparse(path, size, grain, **options):
    """One of our own making, in which tables are made when they are needed."""
    filler = Filler()
    image = vmdk.Sparse(size, grain, descriptor=vmdk.Descriptor(), all_tables=False, **options)
    filler.fill(image).write(path)
    return filler.ranges


def left_open(path, size, grain, **options):
    """The same, after a power failure: redundant tables are old, and one is not there."""
    ranges = sparse(path, size, grain, **options)
    for pos in (PIECE, PART + 5 * PIECE):
        vmdk.poke(path, vmdk.entry_place(path, pos, "rgd_offset"), bytes(4))
    vmdk.poke(path, vmdk.field(path, "rgd_offset") * SECTOR + 4, bytes(4))
    vmdk.patch(path, unclean=1)
    return ranges


def cowd(path, size, grain):
    """A COWD file alone."""
    filler = Filler()
    filler.fill(vmdk_esx.Cowd(size, grain)).write(path)
    return filler.ranges


def base(path, filler, size):
    """What a child lies on, in the same folder; returns what the child's descriptor says of it."""
    below = vmdk.Sparse(size, PIECE, descriptor=vmdk.Descriptor(cid=BASE_CID))
    filler.fill_below(below).write(os.path.join(os.path.dirname(path), BASE))
    return {"parent_cid": BASE_CID, "hint": BASE}


def child(path, size, below, grain):
    """A child with zero grains, on a smaller disk."""
    filler = Filler()
    descriptor = vmdk.Descriptor(**base(path, filler, below))
    image = vmdk.Sparse(size, grain, descriptor=descriptor, zero_grains=True, entries=128)
    filler.fill(image).write(path)
    return filler.ranges


def in_parts(path, parts, fields=None, filler=None):
    """A descriptor, and extents beside it: (file, kind, size, grain) each."""
    filler = filler or Filler()
    disk = vmdk.Set(os.path.dirname(path), os.path.basename(path), **(fields or {}))
    start = 0
    for name, kind, size, grain in parts:
        if kind == "FLAT":
            flat = Flat(size)
            filler.fill(flat, start)
            disk.flat(name, flat.data, offset=FLAT_AT)
        else:
            make = {"SPARSE": vmdk.Sparse, "VMFSSPARSE": vmdk_esx.Cowd}[kind]
            disk.image(name, filler.fill(make(size, grain), start), kind=kind)
        start += size
    disk.write()
    return filler.ranges


# A flat extent need not begin where its file does.
FLAT_AT = 7 * SECTOR


class Flat:
    """Bytes as they are."""

    def __init__(self, size):
        self.data = bytearray(size)
        self.size = size

    def put(self, pos, data):
        """Bytes."""
        self.data[pos:pos + len(data)] = data


def snapshot(path, size, below, part):
    """A snapshot as ESX makes them: a descriptor with a COWD extent, on a smaller disk."""
    filler = Filler()
    fields = base(path, filler, below)
    return in_parts(path, [(part, "VMFSSPARSE", size, SECTOR)],
                    {"create_type": "vmfsSparse", **fields}, filler)
