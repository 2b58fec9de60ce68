# SPDX-License-Identifier: GPL-2.0
"""Builds streamOptimized VMDKs, of all the ways in which programs write them (see vmdk.py)."""

import dataclasses
import os
import struct
import zlib

from lib import vmdk
from lib.vmdk import ALL_ONES, KIB, SECTOR, Grains, Line, round_up

END, TABLE, DIRECTORY, FOOTER = range(4)


def marker(kind, metadata=b""):
    """A marker and what belongs to it."""
    metadata = metadata.ljust(round_up(len(metadata), SECTOR), b"\0")
    return struct.pack("<QII", len(metadata) // SECTOR, 0, kind).ljust(SECTOR, b"\0") + metadata


class Stream(Grains):
    """A stream. `tail`: "footer" (VirtualBox: the directory comes last), "end" (VMware: the directory
    is in front, an end marker last) or "" (qemu: not even that). `level`: of compression, by grain.
    """

    def __init__(self, size, grain=64 * KIB, *, tail="footer", descriptor=None, level=6, header=None,
                 redundant=False):
        super().__init__(size, grain)
        self.tail = tail
        self.descriptor = descriptor or vmdk.Descriptor("streamOptimized")
        self.level = level
        self.header = header or {}
        self.redundant = redundant
        self.stored = {}
        # The host offset of the directory and of each table.
        self.directory = 0
        self.tables = {}

    def zero(self, first, count=1):
        """There are no zero grains."""
        raise ValueError("no zero grains")

    def compressed(self, number):
        """A grain, compressed, with its header."""
        data = self.stored.get(number)
        if data is None:
            data = zlib.compress(bytes(self.data[number]), self.level)
        head = struct.pack("<QI", number * self.grain // SECTOR, len(data))
        return (head + data).ljust(round_up(len(head) + len(data), SECTOR), b"\0")

    def table(self, number):
        """A grain table."""
        return b"".join(struct.pack("<I", self.places.get(number * 512 + at, 0) // SECTOR)
                        for at in range(512))

    def directory_bytes(self):
        """The directory."""
        count = -(-self.count() // 512)
        return b"".join(struct.pack("<I", self.tables.get(number, 0) // SECTOR) for number in range(count))

    def pack_header(self, directory, **more):
        """The header, or the footer."""
        flags = vmdk.CHECKED | vmdk.COMPRESSED | vmdk.MARKED | (vmdk.REDUNDANT if self.redundant else 0)
        return vmdk.pack_header({
            "magic": b"KDMV", "version": 3, "flags": flags, "capacity": vmdk.sectors(self.size),
            "grain_size": self.grain // SECTOR, "desc_offset": 1, "desc_size": 20, "entries": 512,
            "gd_offset": directory, "overhead": 128, "check": vmdk.CHECK, "compression": 1,
            **more, **self.header})

    def text(self, path):
        """The descriptor."""
        lines = self.descriptor.lines or [Line(self.size, "SPARSE", os.path.basename(path))]
        return dataclasses.replace(self.descriptor, lines=lines).text()

    def write(self, path):
        """Writes the file; returns its path."""
        with open(path, "wb") as file:
            if self.tail == "footer":
                self.write_with_footer(file)
            else:
                self.write_with_directory_in_front(file)
            self.end = file.tell()
            file.seek(SECTOR)
            file.write(self.text(path))
        return path

    def write_grains(self, file, numbers):
        """Grains, in this order."""
        for number in numbers:
            self.places[number] = file.tell()
            file.write(self.compressed(number))

    def write_with_footer(self, file):
        """Table by table, each behind its grains; then the directory."""
        file.write(self.pack_header(ALL_ONES).ljust(128 * SECTOR, b"\0"))
        for number in sorted({grain // 512 for grain in self.data}):
            self.write_grains(file, sorted(grain for grain in self.data if grain // 512 == number))
            self.tables[number] = file.tell() + SECTOR
            file.write(marker(TABLE, self.table(number)))
        self.directory = file.tell() + SECTOR
        file.write(marker(DIRECTORY, self.directory_bytes()))
        file.write(marker(FOOTER, self.pack_header(self.directory // SECTOR)))
        file.write(marker(END))

    def write_with_directory_in_front(self, file):
        """Directory and tables behind the descriptor, then the grains."""
        self.directory = at = 21 * SECTOR
        at += round_up(len(self.directory_bytes()), SECTOR)
        for number in range(-(-self.count() // 512)):
            self.tables[number] = at
            at += 2048
        overhead = round_up(at, 64 * KIB)
        file.seek(overhead)
        self.write_grains(file, sorted(self.data))
        if self.tail:
            file.write(marker(END))
        file.truncate(max(overhead, file.tell()))
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(self.pack_header(self.directory // SECTOR, overhead=overhead // SECTOR,
                                    rgd_offset=self.directory // SECTOR if self.redundant else 0))
        file.seek(self.directory)
        file.write(self.directory_bytes())
        for number, place in self.tables.items():
            file.seek(place)
            file.write(self.table(number))
        file.seek(end)


def footer_at(path):
    """The host offset of the footer."""
    return os.path.getsize(path) - 2 * SECTOR
