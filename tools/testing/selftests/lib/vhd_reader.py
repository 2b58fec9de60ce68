# SPDX-License-Identifier: GPL-2.0
"""Reads one VHD file the slow and obvious way, as the specification says.

The oracle for what qemu-img gets wrong: it ignores clear bitmap bits of dynamic images, and the
parents of differencing ones. What a differencing image has not itself, vhd_chain.py knows.
"""

import os
import struct

from lib import vhd

SECTOR = vhd.SECTOR
WITH_BLOCKS = (vhd.DYNAMIC, vhd.DIFFERENCING)


class Broken(Exception):
    """The file is not what it should be."""


class Reader:
    """A VHD file, opened for reading."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.raw = file.fileno()
            self.raw = os.dup(self.raw)
        self.file_size = os.lseek(self.raw, 0, os.SEEK_END)
        self.footer = self.find_footer()
        self.kind = self.field(self.footer, 60, 4)
        self.block_size = self.max_entries = self.table = 0
        self.header = self.full_map = b""
        if self.kind in WITH_BLOCKS:
            self.read_header()
            self.full_map = self.read_batmap()
        self.size = self.guest_size()

    def close(self):
        """Closes the file."""
        os.close(self.raw)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @staticmethod
    def field(raw, at, length):
        """A big-endian number."""
        return int.from_bytes(raw[at:at + length], "big")

    def bytes_at(self, pos, length):
        """Bytes of the file; it is an error if it ends before."""
        data = os.pread(self.raw, length, pos)
        if len(data) != length:
            raise Broken(f"{length} bytes at {pos} reach past the end of the file")
        return data

    def find_footer(self):
        """The copy at 0 if it is good, or else the footer at the end."""
        length = SECTOR - 1 if self.file_size % SECTOR == SECTOR - 1 else SECTOR
        for pos, size in ((0, SECTOR), (self.file_size - length, length)):
            raw = self.bytes_at(pos, size).ljust(SECTOR, b"\0")
            if raw[:8] == b"conectix" and self.field(raw, 64, 4) == vhd.checksum(raw, 64):
                return raw
        raise Broken("no good footer")

    def read_header(self):
        """The dynamic header."""
        self.header = header = self.bytes_at(self.field(self.footer, 16, 8), 1024)
        if header[:8] != b"cxsparse" or self.field(header, 36, 4) != vhd.checksum(header, 36):
            raise Broken("bad dynamic header")
        self.table = self.field(header, 16, 8)
        self.max_entries = self.field(header, 28, 4)
        self.block_size = self.field(header, 32, 4)

    def batmap_at(self):
        """Where tapdisk puts the header of a batmap."""
        return vhd.round_up(self.table + self.max_entries * 4, SECTOR)

    def read_batmap(self):
        """The batmap, if there is one whose checksum is right; it says which blocks are full."""
        header = os.pread(self.raw, SECTOR, self.batmap_at())
        if header[:8] != b"tdbatmap":
            return b""
        full = self.bytes_at(self.field(header, 8, 8), self.field(header, 16, 4) * SECTOR)
        covered = max(1, -(-(self.field(self.footer, 48, 8) >> 24) // SECTOR)) * SECTOR
        right = ~sum(full[:covered]) & 0xFFFFFFFF
        return full if self.field(header, 24, 4) == right else b""

    def locators(self):
        """The parent locators as (code, length, place)."""
        for at in range(576, 768, 24):
            code = self.header[at:at + 4]
            if code.strip(b"\0"):
                yield code, self.field(self.header, at + 8, 4), self.field(self.header, at + 16, 8)

    def guest_size(self):
        """By creator: what the geometry says, or current_size."""
        current = self.field(self.footer, 48, 8)
        chs = tuple(self.field(self.footer, at, size) for at, size in ((56, 2), (58, 1), (59, 1)))
        covered = (self.max_entries * self.block_size if self.kind in WITH_BLOCKS
                   else self.file_size - SECTOR)
        by_chs = vhd.geometry_size(chs)
        if self.footer[28:32] in (b"vpc ", b"qemu") and chs != vhd.MAX_GEOMETRY \
                and 0 < by_chs <= covered:
            return by_chs
        return current

    def entry(self, block):
        """The host offset of a block's bitmap, or None."""
        sector = self.field(self.bytes_at(self.table + block * 4, 4), 0, 4)
        return None if sector == vhd.UNUSED else sector * SECTOR

    def blocks(self):
        """The numbers of all allocated blocks and their host offsets."""
        table = self.bytes_at(self.table, self.max_entries * 4)
        for first in range(0, self.max_entries, 1024):
            part = table[first * 4:(first + 1024) * 4]
            if part.count(0xFF) == len(part):
                continue
            for block, (sector,) in enumerate(struct.iter_unpack(">I", part), first):
                if sector != vhd.UNUSED:
                    yield block, sector * SECTOR

    def is_full(self, block):
        """Whether the batmap says that all bits of a block are set."""
        return bool(self.full_map[block // 8:block // 8 + 1]
                    and self.full_map[block // 8] & 0x80 >> block % 8)

    def stored(self, block):
        """The bitmap and the data of a block; no bitmap at all if the block is not allocated."""
        place = self.entry(block)
        if place is None:
            return b"", b""
        head = vhd.bitmap_sectors(self.block_size) * SECTOR
        bitmap = b"\xff" * head if self.is_full(block) else self.bytes_at(place, head)
        return bitmap, self.bytes_at(place + head, self.block_size)

    def read_block(self, block):
        """A whole block as the guest sees it; the image has no parent."""
        if self.kind == vhd.DIFFERENCING:
            raise Broken("a differencing image cannot be read by itself")
        bitmap, data = self.stored(block)
        if not bitmap:
            return bytes(self.block_size)
        sectors = self.block_size // SECTOR
        if all(byte == 0xFF for byte in bitmap[:sectors // 8]) and sectors % 8 == 0:
            return data
        return b"".join(
            data[s * SECTOR:(s + 1) * SECTOR] if bitmap[s // 8] & 0x80 >> s % 8 else bytes(SECTOR)
            for s in range(sectors))

    def read(self, pos, length):
        """A range of the guest disk."""
        if self.kind not in WITH_BLOCKS:
            return self.bytes_at(pos, length)
        parts = []
        while length:
            block, start = divmod(pos, self.block_size)
            part = self.read_block(block)[start:start + length]
            parts.append(part)
            pos += len(part)
            length -= len(part)
        return b"".join(parts)

    def check(self, footer_at_end=True):
        """Fails unless the file is sound: both footers good and equal, nothing overlaps.

        `footer_at_end`: False for a block device on which the footer lies elsewhere.
        """
        length = len(self.footer)
        if footer_at_end and self.bytes_at(self.file_size - length, length) != self.footer:
            raise Broken("the footer at the end differs from the one used")
        if self.kind not in WITH_BLOCKS:
            return
        if self.bytes_at(0, SECTOR) != self.footer:
            raise Broken("the footer copy at 0 differs")
        used = self.used()
        if footer_at_end:
            used.append((self.file_size - SECTOR, SECTOR))
        used.sort()
        for (start, size), (following, _) in zip(used, used[1:]):
            if start + size > following:
                raise Broken(f"{size} bytes at {start} reach into what begins at {following}")
        start, size = used[-1]
        if start + size > self.file_size:
            raise Broken(f"{size} bytes at {start} reach past the end")
        self.check_batmap()

    def used(self):
        """All that lies in the file, the footer at the end apart: (start, length)."""
        used = [(0, SECTOR), (self.field(self.footer, 16, 8), 1024),
                (self.table, self.max_entries * 4)]
        used += [(place, length) for _, length, place in self.locators()]
        if self.full_map:
            used.append((self.batmap_at(), SECTOR + len(self.full_map)))
        whole = vhd.bitmap_sectors(self.block_size) * SECTOR + self.block_size
        return used + [(place, whole) for _, place in self.blocks()]

    def check_batmap(self):
        """A block that the batmap calls full has all its bits set."""
        for block, place in self.blocks():
            length = max(1, self.block_size // SECTOR // 8)
            if self.is_full(block) and self.bytes_at(place, length) != b"\xff" * length:
                raise Broken(f"block {block} is full by the batmap, but not by its bitmap")


def guest_of(path):
    """The whole guest disk; the file must be sound."""
    with Reader(path) as reader:
        reader.check()
        return reader.read(0, reader.size)
