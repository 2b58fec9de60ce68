# SPDX-License-Identifier: GPL-2.0
"""qcow and qcow2 images to begin with: QEMU makes them, and fills them with all there can be.

Of eight pieces of the disk

    0  is not there: the parent's, or zero
    1  has stamps
    2  is zero; there were other bytes, whose place is kept for it if the format can say so
    3  has some stamps; the rest is the parent's, or zero
    4  has stamps, the first of them compressed
    5  is like 0
    6  is zero; there were other bytes, whose place is free, where there are refcounts
    7  has stamps; if there is a snapshot, half of them were written when that had been made: the
       tables of the others are still the snapshot's, too
"""

import dataclasses
import hashlib
import os
import tempfile

from lib import stamps
from lib.system import run

SECTOR = 512
PIECE = 16 << 10
PIECES = 8
# This much of piece 4 is compressed, if that is a cluster.
COMPRESSED = 4 << 10
# Sectors of piece 3 that the image has itself.
OWN = range(5, 16)
OLD_BYTE = 0x5A
OLD_BYTES = bytes([OLD_BYTE]) * PIECE


@dataclasses.dataclass
class Shape:
    """What an image is like. `options`: of qemu-img create; `below`: size in bytes of the raw file
    `parent.raw` that it lies on; `full`: so many bytes of the disk have something in them."""

    size: int
    format: str = "qcow2"
    options: tuple = ()
    below: int = 0
    snapshot: bool = False
    full: int = 1 << 40


PARENT = "parent.raw"


class Maker:
    """Makes an image."""

    def __init__(self, path, shape, scratch):
        self.path = path
        self.shape = shape
        self.scratch = scratch
        self.commands = []
        self.ranges = []

    def make(self):
        """Everything; returns the ranges of sectors that have stamps."""
        self.create()
        rounds = range(0, min(self.shape.size, self.shape.full), PIECES * PIECE)
        for start in rounds:
            self.fill(start)
        self.fill_last(rounds[1::2])
        self.qemu_io()
        for start in rounds:
            self.free(start + 6 * PIECE)
        self.qemu_io()
        if self.shape.snapshot:
            snapshot(self.path, self.scratch)
        self.fill_last(rounds[::2])
        self.qemu_io()
        return self.ranges

    def create(self):
        """An empty image, and what it lies on."""
        shape = self.shape
        args = ["-o", ",".join(shape.options)] if shape.options else []
        if shape.below:
            with open(os.path.join(os.path.dirname(self.path), PARENT), "wb") as file:
                file.write(self.parent())
            args += ["-b", PARENT, "-F", "raw"]
        run("qemu-img", "create", "-q", "-f", shape.format, *args, self.path, str(shape.size))

    def parent(self):
        """The bytes of the file below. Whatever the image has itself is none of its business."""
        data = bytearray(OLD_BYTES * (self.shape.below // PIECE))
        for start in range(0, self.shape.below, PIECES * PIECE):
            first = start // SECTOR
            third = first + 3 * PIECE // SECTOR
            for shown, count in ((first, PIECE // SECTOR), (third, OWN.start),
                                 (third + OWN.stop, PIECE // SECTOR - OWN.stop)):
                data[shown * SECTOR:(shown + count) * SECTOR] = stamps.make(shown, count, 0)
                self.ranges.append((shown, count))
            data[start + 5 * PIECE:start + 6 * PIECE] = bytes(PIECE)
        return data

    def fill(self, start):
        """The pieces behind `start`, but what is to be freed or comes last."""
        first, count = start // SECTOR, PIECE // SECTOR
        self.stamp(first + count, count)
        if self.is_qcow2():
            self.old_bytes(start + 2 * PIECE)
            self.commands.append(f"write -q -z {start + 2 * PIECE} {PIECE}")
            self.old_bytes(start + 6 * PIECE)
        self.stamp(first + 3 * count + OWN.start, len(OWN))
        self.stamp_compressed(first + 4 * count, count)
        if self.shape.snapshot:
            self.old_bytes(start + 7 * PIECE)

    def fill_last(self, rounds):
        """Piece 7 of each."""
        for start in rounds:
            self.stamp((start + 7 * PIECE) // SECTOR, PIECE // SECTOR)

    def old_bytes(self, pos):
        """A piece of them."""
        self.commands.append(f"write -q -P {OLD_BYTE} {pos} {PIECE}")

    def free(self, pos):
        """Frees the clusters of a piece, but leaves the bytes in the file."""
        if self.is_qcow2():
            self.commands.append(f"discard -q {pos} {PIECE}")

    def stamp(self, first, count, how=""):
        """Stamps; qemu-io takes them from a file."""
        source = os.path.join(self.scratch, str(first))
        with open(source, "wb") as file:
            file.write(stamps.make(first, count, 0))
        self.commands.append(f"write -q {how} -s {source} {first * SECTOR} {count * SECTOR}")
        self.ranges.append((first, count))

    def stamp_compressed(self, first, count):
        """The same, in compressed clusters at first."""
        step = self.cluster() // SECTOR
        packed = max(step, COMPRESSED // SECTOR)
        for cluster in range(first, first + packed, step):
            self.stamp(cluster, step, "-c")
        if packed < count:
            self.stamp(first + packed, count - packed)

    def cluster(self):
        """Bytes in a cluster; QEMU makes those of version 1 so large."""
        for option in self.shape.options:
            if option.startswith("cluster_size="):
                return int(option.partition("=")[2])
        return 4096

    def is_qcow2(self):
        """Not version 1."""
        return self.shape.format == "qcow2"

    def qemu_io(self):
        """Lets qemu-io do what has been collected."""
        words = [word for command in self.commands for word in ("-c", command)]
        self.commands = []
        if not words:
            return
        options = f"driver={self.shape.format},file.filename={self.path},discard=unmap"
        if self.is_qcow2():
            options += ",pass-discard-request=off"
        run("qemu-io", "--image-opts", *words, options)


def make(path, shape):
    """Makes an image; returns the ranges (first sector, sectors) that have stamps."""
    with tempfile.TemporaryDirectory() as scratch:
        return Maker(path, shape, scratch).make()


def snapshot(path, scratch):
    """Makes an internal snapshot: its name says what is in it."""
    raw = os.path.join(scratch, "raw")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
    run("qemu-img", "snapshot", "-c", digest(raw), path)


def digest(path):
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
