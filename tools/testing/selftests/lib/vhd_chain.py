# SPDX-License-Identifier: GPL-2.0
"""Reads a chain of differencing VHDs the slow and obvious way, sector by sector.

Which files the chain has is for the caller to say: nothing here follows names. Used as a program,
it prints the sha256 of the guest disk: python3 -m lib.vhd_chain CHILD PARENT…
"""

import contextlib
import hashlib
import os
import sys

from lib import vhd, vhd_reader

SECTOR = vhd.SECTOR
PIECE = 4096 * SECTOR


class Raw:
    """A file that is the disk, as tapdisk has it at the end of a chain."""

    def __init__(self, path):
        self.file = os.open(path, os.O_RDONLY)
        self.size = os.lseek(self.file, 0, os.SEEK_END)

    def close(self):
        """Closes the file."""
        os.close(self.file)

    def sector(self, number):
        """A sector: it has them all. What the file lacks of its last one is zero."""
        return os.pread(self.file, SECTOR, number * SECTOR).ljust(SECTOR, b"\0")

    def may_have(self, _first, _count):
        """See Image.may_have()."""
        return True


class Image:
    """A VHD of any kind."""

    def __init__(self, path):
        self.reader = vhd_reader.Reader(path)
        self.size = self.reader.size
        self.block = self.bitmap = self.data = None

    def close(self):
        """Closes the file."""
        self.reader.close()

    def sector(self, number):
        """A sector that the file itself holds; None if its parent is to be asked.

        Past its end a disk reads as zero: a larger child never sees the parent's parent there.
        """
        pos = number * SECTOR
        if pos >= self.size:
            return bytes(SECTOR)
        if self.reader.kind == vhd.FIXED:
            return self.reader.bytes_at(pos, SECTOR)
        block, start = divmod(pos, self.reader.block_size)
        self.load(block)
        within = start // SECTOR
        if self.bitmap and self.bitmap[within // 8] & 0x80 >> within % 8:
            return self.data[start:start + SECTOR]
        return bytes(SECTOR) if self.reader.kind == vhd.DYNAMIC else None

    def may_have(self, first, count):
        """Whether sector() has to be asked for these sectors, which lie in one block."""
        if self.reader.kind != vhd.DIFFERENCING or (first + count) * SECTOR > self.size:
            return True
        self.load(first * SECTOR // self.reader.block_size)
        return bool(self.bitmap)

    def load(self, block):
        """Reads a block, unless it was the last one that was read."""
        if block != self.block:
            self.bitmap, self.data = self.reader.stored(block)
            self.block = block


class Chain:
    """Files, the one that the guest writes to first; the last one has no parent.

    `raw`: the last one is not a VHD, or is not to be taken for one.
    """

    def __init__(self, paths, raw=False):
        self.layers = [Image(path) for path in paths[:len(paths) - raw]]
        self.layers += [Raw(path) for path in paths[len(paths) - raw:]]
        self.size = self.layers[0].size
        blocks = [image.reader.block_size for image in self.layers[:len(paths) - raw]]
        # No block of any file ends within so many sectors.
        self.step = min(filter(None, blocks), default=PIECE) // SECTOR

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for layer in self.layers:
            layer.close()

    def read(self, pos, length):
        """A range of the guest disk, in whole sectors."""
        first, end = pos // SECTOR, (pos + length) // SECTOR
        parts = []
        while first < end:
            count = min(self.step - first % self.step, end - first)
            # Most files of a long chain have nothing of most blocks.
            layers = [layer for layer in self.layers if layer.may_have(first, count)]
            parts += [sector_of(layers, number) for number in range(first, first + count)]
            first += count
        return b"".join(parts)

    def digest(self):
        """The sha256 of the guest disk, in hexadecimal."""
        total = hashlib.sha256()
        for pos in range(0, self.size, PIECE):
            total.update(self.read(pos, min(PIECE, self.size - pos)))
        return total.hexdigest()


def sector_of(layers, number):
    """A sector of the guest disk: that of the first layer that has it."""
    for layer in layers:
        data = layer.sector(number)
        if data is not None:
            return data
    raise vhd_reader.Broken("the last file of the chain has a parent, too")


def guest_of(paths, raw=False):
    """The whole guest disk; every VHD of the chain must be sound."""
    with Chain(paths, raw) as chain:
        for layer in chain.layers:
            if isinstance(layer, Image):
                layer.reader.check()
        return chain.read(0, chain.size)


def ends_in_raw(paths):
    """Whether the last file is no VHD."""
    with contextlib.suppress(vhd_reader.Broken):
        vhd_reader.Reader(paths[-1]).close()
        return False
    return True


if __name__ == "__main__":
    with Chain(sys.argv[1:], ends_in_raw(sys.argv[1:])) as whole:
        print(f"{whole.digest()}  {whole.size}")
