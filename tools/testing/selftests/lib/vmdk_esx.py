# SPDX-License-Identifier: GPL-2.0
"""Builds the extents that VMware ESX has: COWD (vmfsSparse) and seSparse (see vmdk.py)."""

import struct

from lib import vmdk
from lib.vmdk import SECTOR, Grains, round_up, sectors

# Fields of the COWD header: offset and struct format.
COWD_FIELDS = {
    "magic": (0, "<4s"), "version": (4, "<I"), "flags": (8, "<I"), "capacity": (12, "<I"),
    "grain_size": (16, "<I"), "gd_offset": (20, "<I"), "gd_entries": (24, "<I"),
    "next_free": (28, "<I"), "parent_name": (32, "<1024s"), "parent_generation": (1056, "<I"),
    "unclean": (1648, "<I"),
}
COWD_ENTRIES = 4096
# Fields of the headers of a seSparse extent.
SESPARSE_FIELDS = {name: (at * 8, "<Q") for at, name in enumerate((
    "magic", "version", "capacity", "grain_size", "gt_size", "flags", "reserved1", "reserved2",
    "reserved3", "reserved4", "volatile_offset", "volatile_size", "journal_header_offset",
    "journal_header_size", "journal_offset", "journal_size", "gd_offset", "gd_size", "gts_offset",
    "gts_size", "free_bitmap_offset", "free_bitmap_size", "backmap_offset", "backmap_size",
    "grains_offset", "grains_size"))}
VOLATILE_FIELDS = {"magic": (0, "<Q"), "free_gt": (8, "<Q"), "next_txn": (16, "<Q"),
                   "replay_journal": (24, "<B")}
SESPARSE_ENTRIES = 4096


def pack(layouts, length, fields):
    """A structure of fields."""
    raw = bytearray(length)
    for name, value in fields.items():
        at, layout = layouts[name]
        struct.pack_into(layout, raw, at, value)
    return bytes(raw)


def patch(path, layouts, base=0, **fields):
    """Overwrites fields of a structure in a file."""
    for name, value in fields.items():
        at, layout = layouts[name]
        vmdk.poke(path, base + at, struct.pack(layout, value))


class Cowd(Grains):
    """A COWD extent: one directory, tables of 4096 entries that are made when they are needed."""

    def __init__(self, size, grain=SECTOR, *, header=None):
        super().__init__(size, grain)
        self.header = header or {}
        self.tables = {}

    def zero(self, first, count=1):
        """There are no zero grains."""
        raise ValueError("no zero grains")

    def entry_at(self, number):
        """The host offset of a grain's table entry."""
        return self.tables[number // COWD_ENTRIES] + 4 * (number % COWD_ENTRIES)

    def write(self, path):
        """Writes the file; returns its path."""
        directory = -(-self.count() // COWD_ENTRIES)
        at = 2048 + round_up(directory * 4, SECTOR)
        for number in sorted({grain // COWD_ENTRIES for grain in self.data}):
            self.tables[number] = at
            at += COWD_ENTRIES * 4
        end = self.place(at, SECTOR)
        fields = {"magic": b"COWD", "version": 1, "flags": 3, "capacity": sectors(self.size),
                  "grain_size": self.grain // SECTOR, "gd_offset": 4, "gd_entries": directory,
                  "next_free": end // SECTOR, **self.header}
        with open(path, "wb") as file:
            file.truncate(end)
            file.write(pack(COWD_FIELDS, 2048, fields))
            for number, table in self.tables.items():
                file.seek(2048 + 4 * number)
                file.write(struct.pack("<I", table // SECTOR))
            for number, place in self.places.items():
                file.seek(self.entry_at(number))
                file.write(struct.pack("<I", place // SECTOR))
            self.write_data(file)
        return path


class SeSparse(Grains):
    """A seSparse extent. `unmapped`: grains that were discarded: zero, whatever is below."""

    GRAIN = 4096

    def __init__(self, size, *, header=None, volatile=None):
        super().__init__(size, self.GRAIN)
        self.header = header or {}
        self.volatile = volatile or {}
        self.unmapped = set()
        self.tables = {}
        self.regions = {}

    def lay_out(self):
        """Places in sectors; returns where the grains begin."""
        directory = -(-self.count() // SESPARSE_ENTRIES)
        used = sorted({number // SESPARSE_ENTRIES for number in (*self.data, *self.zeros)})
        at = 1
        for name, length in (("volatile", 1), ("journal_header", 2), ("journal", 16),
                             ("gd", sectors(directory * 8)), ("gts", 64 * max(1, len(used))),
                             ("free_bitmap", 8), ("backmap", 8),
                             ("grains", 8 * max(1, len(self.data)))):
            at = round_up(at, 8) if name == "grains" else at
            self.regions[name] = (at, length)
            at += length
        self.tables = {number: index for index, number in enumerate(used)}
        start, length = self.regions["grains"]
        for index, number in enumerate(self.data):
            self.places[number] = (start + 8 * index) * SECTOR
        self.end = (start + length) * SECTOR
        return start

    def entry(self, number):
        """The table entry of a grain."""
        if number in self.unmapped:
            return 1 << 60
        if number in self.zeros:
            return 2 << 60
        if number not in self.places:
            return 0
        index = (self.places[number] // SECTOR - self.regions["grains"][0]) // 8
        return 3 << 60 | (index & 0xFFF) << 48 | index >> 12

    def entry_at(self, number):
        """The host offset of a grain's table entry."""
        table = self.tables[number // SESPARSE_ENTRIES]
        return (self.regions["gts"][0] + table * 64) * SECTOR + 8 * (number % SESPARSE_ENTRIES)

    def directory_at(self, number=0):
        """The host offset of a directory entry."""
        return self.regions["gd"][0] * SECTOR + 8 * number

    def write(self, path):
        """Writes the file; returns its path."""
        self.lay_out()
        places = {f"{name}_{what}": value for name, region in self.regions.items()
                  for what, value in zip(("offset", "size"), region)}
        const = {"magic": 0xCAFEBABE, "version": 0x0000000200000001, "capacity": sectors(self.size),
                 "grain_size": 8, "gt_size": 64, **places, **self.header}
        volatile = {"magic": 0xCAFECAFE, "free_gt": len(self.tables), **self.volatile}
        with open(path, "wb") as file:
            file.truncate(self.end)
            file.write(pack(SESPARSE_FIELDS, SECTOR, const))
            file.seek(self.regions["volatile"][0] * SECTOR)
            file.write(pack(VOLATILE_FIELDS, SECTOR, volatile))
            for number, index in self.tables.items():
                file.seek(self.directory_at(number))
                file.write(struct.pack("<Q", 0x10000000 << 32 | index))
            for number in (*self.data, *self.zeros):
                file.seek(self.entry_at(number))
                file.write(struct.pack("<Q", self.entry(number)))
            self.write_data(file)
        return path
