# SPDX-License-Identifier: GPL-2.0
"""Builds VHD files from the specification, sound or broken in a chosen place.

Field offsets: "Virtual Hard Disk Image Format Specification" (Microsoft). Nothing here looks at the
driver's code or at another implementation's output.
"""

import dataclasses
import os
import struct

SECTOR = 512
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
UNUSED = 0xFFFFFFFF
ALL_ONES = (1 << 64) - 1
MAX_SIZE = 2040 * GIB
MAX_GEOMETRY = (65535, 16, 255)

FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4


def checksum(raw, at):
    """The complement of the sum of all bytes, those of the checksum itself taken as zero."""
    return ~(sum(raw) - sum(raw[at:at + 4])) & 0xFFFFFFFF


def round_up(value, unit):
    """The next multiple of `unit`."""
    return -(-value // unit) * unit


def geometry(size):
    """Cylinders, heads, sectors per track for a disk of `size` bytes (specification, appendix)."""
    total = min(size // SECTOR, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        return total // (16 * 255), 16, 255
    track, rest = 17, total // 17
    heads = max(4, -(-rest // 1024))
    if rest >= heads * 1024 or heads > 16:
        track, heads, rest = 31, 16, total // 31
    if rest >= heads * 1024:
        track, heads, rest = 63, 16, total // 63
    return rest // heads, heads, track


def geometry_size(chs):
    """The bytes that a geometry addresses."""
    return chs[0] * chs[1] * chs[2] * SECTOR


@dataclasses.dataclass
class Footer:
    """A footer, and the copy of it at the start of a dynamic image."""

    current_size: int
    kind: int = DYNAMIC
    cookie: bytes = b"conectix"
    features: int = 2
    version: int = 0x00010000
    data_offset: int = SECTOR
    timestamp: int = 0x2C000000
    creator: bytes = b"win "
    creator_version: int = 0x000A0000
    creator_os: bytes = b"Wi2k"
    original_size: int = None
    geometry: tuple = None
    checksum: int = None
    unique_id: bytes = bytes(range(16))
    saved_state: int = 0
    hidden: int = 0

    LAYOUT = struct.Struct(">8sIIQI4sI4sQQHBBII16sBB426x")
    CHECKSUM_AT = 64

    def pack(self):
        """The 512 bytes."""
        chs = geometry(self.current_size) if self.geometry is None else self.geometry
        original = self.current_size if self.original_size is None else self.original_size
        raw = bytearray(self.LAYOUT.pack(
            self.cookie, self.features, self.version, self.data_offset, self.timestamp,
            self.creator, self.creator_version, self.creator_os, original, self.current_size,
            *chs, self.kind, 0, self.unique_id, self.saved_state, self.hidden))
        return seal(raw, self.CHECKSUM_AT, self.checksum)


@dataclasses.dataclass
class Header:
    """The dynamic disk header."""

    max_entries: int
    block_size: int = 2 * MIB
    cookie: bytes = b"cxsparse"
    data_offset: int = ALL_ONES
    table_offset: int = 0x600
    version: int = 0x00010000
    checksum: int = None
    parent_id: bytes = bytes(16)
    parent_timestamp: int = 0
    parent_name: str = ""
    locators: bytes = b""

    LAYOUT = struct.Struct(">8sQQIIII16sII512s192s256x")
    CHECKSUM_AT = 36

    def pack(self):
        """The 1024 bytes."""
        raw = bytearray(self.LAYOUT.pack(
            self.cookie, self.data_offset, self.table_offset, self.version, self.max_entries,
            self.block_size, 0, self.parent_id, self.parent_timestamp, 0,
            self.parent_name.encode("utf-16-be"), self.locators))
        return seal(raw, self.CHECKSUM_AT, self.checksum)


def seal(raw, at, given):
    """Puts in the checksum: the right one, unless another is given."""
    value = checksum(raw, at) if given is None else given
    struct.pack_into(">I", raw, at, value)
    return bytes(raw)


def bitmap_sectors(block_size):
    """How many sectors the bitmap in front of a block takes."""
    return max(1, -(-block_size // SECTOR // 8 // SECTOR))


class Block:
    """An allocated block: its bitmap and its data."""

    def __init__(self, block_size):
        self.bitmap = bytearray(bitmap_sectors(block_size) * SECTOR)
        self.data = bytearray(block_size)

    def has(self, sector):
        """Whether a sector's bit is set."""
        return self.bitmap[sector // 8] & (0x80 >> sector % 8)

    def mark(self, first, end):
        """Sets the bits of sectors first..end."""
        for sector in range(first, end):
            if sector % 8 == 0 and sector + 8 <= end:
                self.bitmap[sector // 8] = 0xFF
            else:
                self.bitmap[sector // 8] |= 0x80 >> sector % 8

    def runs(self):
        """Ranges of sectors (first, end) whose bits are set."""
        first, sectors = None, len(self.data) // SECTOR
        for sector in range(sectors):
            if bool(self.has(sector)) == (first is not None):
                continue
            if first is None:
                first = sector
            else:
                yield first, sector
                first = None
        if first is not None:
            yield first, sectors

    def is_full(self):
        """Whether all bits that stand for a sector are set."""
        return list(self.runs()) == [(0, len(self.data) // SECTOR)]


class Dynamic:
    """A dynamic VHD in the making.

    `align`: data begins at a multiple of so many sectors (8 as tapdisk and Windows 10 do it).
    `footer_gap`: unused bytes between the last block and the footer. `batmap`: write one.
    `footer`, `header`: fields of both footers and of the dynamic header. `head`, `tail`: fields of
    one footer only, on top of those.
    """

    def __init__(self, size, block_size=2 * MIB, *, align=1, footer_length=SECTOR, footer_gap=0,
                 batmap=False, footer=None, header=None, head=None, tail=None):
        self.size = size
        self.block_size = block_size
        self.align = align
        self.footer_length = footer_length
        self.footer_gap = footer_gap
        self.batmap = batmap
        base = Footer(size, **(footer or {}))
        self.head = dataclasses.replace(base, **(head or {}))
        self.tail = dataclasses.replace(base, **(tail or {}))
        self.header = Header(**{"max_entries": -(-size // block_size), "block_size": block_size,
                                **(header or {})})
        self.blocks = {}
        self.places = {}

    def put(self, pos, data):
        """Guest bytes that count: stored, and their bits set. Whole sectors."""
        assert pos % SECTOR == 0 and len(data) % SECTOR == 0
        for block, start, part in self.pieces(pos, data):
            block.data[start:start + len(part)] = part
            block.mark(start // SECTOR, (start + len(part)) // SECTOR)

    def put_stale(self, pos, data):
        """Bytes under clear bits: the guest must see zeros there."""
        for block, start, part in self.pieces(pos, data):
            block.data[start:start + len(part)] = part

    def block(self, number):
        """A block, allocated if it was not; blocks lie in the order of their allocation."""
        if number not in self.blocks:
            self.blocks[number] = Block(self.block_size)
        return self.blocks[number]

    def pieces(self, pos, data):
        """Splits a guest range at block boundaries."""
        while data:
            number, start = divmod(pos, self.block_size)
            part = data[:self.block_size - start]
            yield self.block(number), start, part
            pos += len(part)
            data = data[len(part):]

    def guest(self, below=b""):
        """What the guest must see; `below`: the parent's disk, if there is one. For small disks."""
        image = bytearray(below[:self.size].ljust(self.size, b"\0"))
        for number, block in self.blocks.items():
            for first, end in block.runs():
                pos = number * self.block_size
                part = block.data[first * SECTOR:end * SECTOR]
                image[pos + first * SECTOR:pos + end * SECTOR] = part
        return bytes(image[:self.size])

    def map_end(self):
        """Where free space begins: behind the BAT and the batmap."""
        end = round_up(self.header.table_offset + self.header.max_entries * 4, SECTOR)
        return end + SECTOR + self.map_size() if self.batmap else end

    def map_size(self):
        """Bytes of the batmap."""
        return max(1, -(-self.header.max_entries // 8 // SECTOR)) * SECTOR

    def write(self, path):
        """Writes the file; `places` then tells the host offset of each block's bitmap."""
        with open(path, "wb") as file:
            put_at(file, 0, self.head.pack())
            put_at(file, self.head.data_offset, self.header.pack())
            put_at(file, self.header.table_offset,
                   b"\xff" * round_up(self.header.max_entries * 4, SECTOR))
            end = self.write_blocks(file, self.map_end())
            if self.batmap:
                self.write_batmap(file)
            put_at(file, end + self.footer_gap, self.tail.pack()[:self.footer_length])
        return path

    def write_blocks(self, file, end):
        """Writes blocks and their BAT entries; returns where the last block ends."""
        for number, block in self.blocks.items():
            start = round_up(end + len(block.bitmap), self.align * SECTOR) - len(block.bitmap)
            put_at(file, start, block.bitmap + block.data)
            put_at(file, self.header.table_offset + number * 4, struct.pack(">I", start // SECTOR))
            self.places[number] = start
            end = start + len(block.bitmap) + len(block.data)
        return end

    def write_batmap(self, file):
        """Writes the batmap: which blocks have all their bits set."""
        at = round_up(self.header.table_offset + self.header.max_entries * 4, SECTOR)
        full = bytearray(self.map_size())
        for number, block in self.blocks.items():
            if block.is_full():
                full[number // 8] |= 0x80 >> number % 8
        covered = full[:max(1, -(-(self.size >> 24) // SECTOR)) * SECTOR]
        header = struct.pack(">8sQIII", b"tdbatmap", at + SECTOR, len(full) // SECTOR, 0x00010002,
                             ~sum(covered) & 0xFFFFFFFF)
        put_at(file, at, header.ljust(SECTOR, b"\0") + full)


def write_fixed(path, data, footer_length=SECTOR, **fields):
    """Writes a fixed VHD with guest content `data`."""
    with open(path, "wb") as file:
        file.write(data)
        file.write(fixed_footer(len(data), **fields).pack()[:footer_length])
    return path


def fixed_footer(size, **fields):
    """The footer of a fixed VHD."""
    return Footer(size, **{"kind": FIXED, "data_offset": ALL_ONES, **fields})


def tapdisk(**fields):
    """Footer fields as libvhd and tapdisk write them."""
    return {"creator": b"tap\0", "creator_version": 0x00010003, "creator_os": bytes(4), **fields}


def put_at(file, pos, data):
    """Writes at a position, leaving a hole in front if the file ends before."""
    file.seek(pos)
    file.write(data)


def patch(path, pos, data):
    """Overwrites bytes of a file; a negative position counts from the end."""
    with open(path, "r+b") as file:
        file.seek(pos, os.SEEK_END if pos < 0 else os.SEEK_SET)
        file.write(data)


def reseal(path, pos, length, at):
    """Corrects the checksum of a footer or header after a patch."""
    with open(path, "r+b") as file:
        file.seek(pos, os.SEEK_END if pos < 0 else os.SEEK_SET)
        start = file.tell()
        raw = bytearray(file.read(length))
        put_at(file, start, seal(raw, at, None))
