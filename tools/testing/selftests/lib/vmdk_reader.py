# SPDX-License-Identifier: GPL-2.0
"""Reads VMDKs the slow and obvious way, as the specification says: descriptors, sets of extents of
every kind, and chains of children.

The oracle for what qemu-img gets wrong or does not read: extents that are not RW, ZERO extents, sizes
that the headers of extents round up, tables that differ, grains that overlap.
"""

import hashlib
import os
import re
import struct
import sys
import zlib

SECTOR = 512
PIECE = 1 << 20
ALL_ONES = (1 << 64) - 1
NO_PARENT = 0xFFFFFFFF
FLAT_KINDS = ("FLAT", "VMFS")
LINE = re.compile(r'(RW|RDONLY|NOACCESS)\s+(\d+)\s+(\w+)(?:\s+"([^"]*)"(?:\s+(\d+))?)?.*', re.IGNORECASE)


class Broken(Exception):
    """The file is not what it should be."""


class File:
    """A file, opened for reading."""

    def __init__(self, path):
        self.path = os.fsdecode(path)
        self.fd = os.open(path, os.O_RDONLY)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)

    def close(self):
        """Closes it."""
        os.close(self.fd)

    def read(self, pos, length):
        """Bytes of the file; it is an error if it ends before."""
        data = os.pread(self.fd, length, pos)
        if len(data) != length:
            raise Broken(f"{self.path}: {length} bytes at {pos} reach past the end of the file")
        return data

    def number(self, pos, length):
        """A little-endian number."""
        return int.from_bytes(self.read(pos, length), "little")

    def numbers(self, pos, count, length=4):
        """An array of them."""
        layout = {4: "I", 8: "Q"}[length]
        return struct.unpack(f"<{count}{layout}", self.read(pos, count * length))


# Descriptors


class Text:
    """What a descriptor says."""

    def __init__(self, raw):
        self.keys = {}
        self.lines = []
        for line in raw.partition(b"\0")[0].decode("latin-1").split("\n"):
            self.take(line.strip(" \t\r"))
        self.cid = int(self.keys.get("cid", "0"), 16)
        self.parent_cid = int(self.keys.get("parentcid", "ffffffff"), 16)
        self.hint = self.keys.get("parentfilenamehint")

    def take(self, line):
        """A line."""
        if not line or line.startswith("#"):
            return
        if match := LINE.fullmatch(line):
            access, size, kind, name, offset = match.groups()
            self.lines.append((access.upper(), int(size), kind.upper(), name, int(offset or 0)))
            return
        key, sign, value = line.partition("=")
        if sign:
            self.keys.setdefault(key.strip(" \t").lower(), value.strip(" \t").strip('"'))

    def has_parent(self):
        """Whether there is something below."""
        return self.parent_cid != NO_PARENT


def beside(path, name):
    """The path of a file that a descriptor names: bytes in whatever encoding."""
    return os.path.join(os.path.dirname(os.fsencode(path)), name.encode("latin-1"))


def parent_of(path, hint):
    """The path of the parent that a child names: as it is, as one of Windows, or its last part."""
    slashes = hint.replace("\\", "/")
    paths = [beside(path, name) for name in (hint, slashes, slashes.rpartition("/")[2])]
    return next(filter(os.path.exists, paths), paths[0])


# Extents. Each has `sectors`, and piece(): what lies at a sector and belongs together: how many sectors, and
# their bytes, or None if they are the parent's.


class Zero:
    """Zeros."""

    def __init__(self, size):
        self.sectors = size

    def close(self):
        """Nothing."""

    def piece(self, sector):
        """All the rest."""
        return self.sectors - sector, b""

    def check(self):
        """Nothing can be wrong."""


class Flat:
    """Bytes of a file as they are."""

    def __init__(self, path, size, offset):
        self.file = File(path)
        self.sectors = size
        self.offset = offset
        if (offset + size) * SECTOR > self.file.size:
            raise Broken(f"{self.file.path}: the extent reaches past the end of the file")

    def close(self):
        """Closes the file."""
        self.file.close()

    def piece(self, sector):
        """Up to a MiB."""
        count = min(self.sectors - sector, PIECE // SECTOR)
        return count, self.file.read((self.offset + sector) * SECTOR, count * SECTOR)

    def check(self):
        """Nothing else can be wrong."""


class Grained:
    """An extent with grains."""

    grain = 0
    sectors = 0

    def __init__(self, file):
        self.file = file

    def close(self):
        """Closes the file."""
        self.file.close()

    def stored(self, number):
        """The bytes of a grain, b"" if it is zero, or None."""
        raise NotImplementedError

    def piece(self, sector):
        """The rest of a grain."""
        number, start = divmod(sector, self.grain)
        count = min(self.grain - start, self.sectors - sector)
        data = self.stored(number)
        return count, data and data[start * SECTOR:(start + count) * SECTOR]

    def bytes_of(self, what):
        """Bytes of a grain or a table, of which all are in the file."""
        return self.file.read(what * SECTOR, self.grain * SECTOR)

    def used(self):
        """All that lies in the file: (start, length, what) in sectors."""
        raise NotImplementedError

    def check(self):
        """Fails unless nothing overlaps and all is within the file."""
        used = sorted(self.used())
        for (start, size, one), (following, _, other) in zip(used, used[1:]):
            if start + size > following:
                raise Broken(f"{self.file.path}: {one} at sector {start} reaches into {other} at "
                             f"{following}")
        for start, size, what in used:
            if (start + size) * SECTOR > self.file.size:
                raise Broken(f"{self.file.path}: {what} at sector {start} reaches past the end of the file")


class Sparse(Grained):
    """A hosted sparse extent. Which grains are where is looked up in the primary tables."""

    def __init__(self, file, size=None):
        super().__init__(file)
        self.header = file.read(0, SECTOR)
        self.read_header()
        if size is not None and size > self.capacity:
            raise Broken(f"{file.path}: the extent is smaller than its line says")
        self.sectors = self.capacity if size is None else size
        self.directories = {"primary": self.directory(self.gd)}
        if self.flags & 2:
            self.directories["redundant"] = self.directory(self.rgd)

    def read_header(self):
        """The header's fields."""
        (magic, self.version, self.flags, self.capacity, self.grain, self.desc_offset, self.desc_size,
         self.entries, self.rgd, self.gd, self.overhead, self.unclean, self.check_bytes,
         self.compression) = struct.unpack("<4sIIQQQQIQQQB4sH", self.header[:79])
        if magic != b"KDMV" or self.version not in (1, 2, 3):
            raise Broken(f"{self.file.path}: no sparse extent")
        if self.flags & 1 and self.check_bytes != b"\n \r\n":
            raise Broken(f"{self.file.path}: was changed by a transfer as text")

    def text(self):
        """The descriptor inside, if there is one."""
        if not self.desc_offset:
            return None
        raw = self.file.read(self.desc_offset * SECTOR, self.desc_size * SECTOR).partition(b"\0")[0]
        return Text(raw) if raw.strip() else None

    def directory(self, sector):
        """A directory: where its tables are."""
        count = -(-self.capacity // (self.grain * self.entries))
        return self.file.numbers(sector * SECTOR, count)

    def table(self, name, number):
        """A table, or zeros if there is none."""
        sector = self.directories[name][number]
        return self.file.numbers(sector * SECTOR, self.entries) if sector else (0,) * self.entries

    def entry(self, number):
        """The entry of a grain."""
        sector = self.directories["primary"][number // self.entries]
        return self.file.number(sector * SECTOR + 4 * (number % self.entries), 4) if sector else 0

    def stored(self, number):
        entry = self.entry(number)
        if entry == 0:
            return None
        if entry == 1 and self.flags & 4:
            return b""
        return self.bytes_of(entry)

    def grains(self):
        """The number of every grain that has a place, and the place."""
        for table in range(len(self.directories["primary"])):
            for index, entry in enumerate(self.table("primary", table), table * self.entries):
                if entry and not (entry == 1 and self.flags & 4):
                    yield index, entry

    def used(self):
        yield 0, 1, "the header"
        if self.desc_offset:
            yield self.desc_offset, self.desc_size, "the descriptor"
        for name, sector in (("primary", self.gd), ("redundant", self.rgd)):
            if name in self.directories:
                directory = self.directories[name]
                yield sector, -(-len(directory) * 4 // SECTOR), f"the {name} directory"
                yield from ((at, -(-self.entries * 4 // SECTOR), f"a {name} table")
                            for at in directory if at)
        yield from ((place, self.size_of(place), f"grain {number}") for number, place in self.grains())

    def size_of(self, _):
        """How many sectors of the file a grain takes."""
        return self.grain

    def check(self):
        """The tables are the same, too, and the extent was closed."""
        super().check()
        if self.unclean:
            raise Broken(f"{self.file.path}: unclean")
        for number in range(len(self.directories["primary"])):
            if "redundant" in self.directories \
                    and self.table("primary", number) != self.table("redundant", number):
                raise Broken(f"{self.file.path}: the tables {number} differ")
        count = -(-self.capacity // self.grain)
        if any(number >= count for number, _ in self.grains()):
            raise Broken(f"{self.file.path}: a grain past the end of the disk")


class Stream(Sparse):
    """A streamOptimized extent: its grains are compressed."""

    def read_header(self):
        super().read_header()
        if self.gd == ALL_ONES:
            self.header = self.file.read(self.file.size - 2 * SECTOR, SECTOR)
            super().read_header()

    def head(self, place):
        """The header of a grain: its sector and its length."""
        return struct.unpack("<QI", self.file.read(place * SECTOR, 12))

    def bytes_of(self, what):
        lba, length = self.head(what)
        if self.entry(lba // self.grain) != what:
            raise Broken(f"{self.file.path}: the grain at sector {what} is another one")
        data = zlib.decompress(self.file.read(what * SECTOR + 12, length))
        if len(data) > self.grain * SECTOR:
            raise Broken(f"{self.file.path}: the grain at sector {what} is too long")
        return data.ljust(self.grain * SECTOR, b"\0")

    def size_of(self, place):
        return -(-(12 + self.head(place)[1]) // SECTOR)


class Cowd(Grained):
    """A COWD extent."""

    ENTRIES = 4096

    def __init__(self, file, size=None):
        super().__init__(file)
        (magic, version, _, self.capacity, self.grain, self.gd, self.gd_entries,
         self.next_free) = struct.unpack("<4s7I", file.read(0, 32))
        self.unclean = file.number(1648, 4)
        if magic != b"COWD" or version != 1:
            raise Broken(f"{file.path}: no COWD extent")
        if size is not None and size > self.capacity:
            raise Broken(f"{file.path}: the extent is smaller than its line says")
        self.sectors = self.capacity if size is None else size
        self.directory = file.numbers(self.gd * SECTOR, self.gd_entries)

    def stored(self, number):
        table = self.directory[number // self.ENTRIES]
        entry = table and self.file.number(table * SECTOR + 4 * (number % self.ENTRIES), 4)
        return self.bytes_of(entry) if entry else None

    def used(self):
        yield 0, 4, "the header"
        yield self.gd, -(-self.gd_entries * 4 // SECTOR), "the directory"
        for table in filter(None, self.directory):
            yield table, 32, "a table"
            for entry in filter(None, self.file.numbers(table * SECTOR, self.ENTRIES)):
                yield entry, self.grain, "a grain"

    def check(self):
        """Nothing lies where the next grain goes to, either."""
        super().check()
        if self.unclean:
            raise Broken(f"{self.file.path}: unclean")
        end = max(start + size for start, size, _ in self.used())
        if end > self.next_free:
            raise Broken(f"{self.file.path}: the next free sector is {self.next_free}, but {end} are used")


class SeSparse(Grained):
    """A seSparse extent."""

    ENTRIES = 4096

    def __init__(self, file, size=None):
        super().__init__(file)
        fields = file.numbers(0, 26, 8)
        if fields[:2] != (0xCAFEBABE, 0x200000001) or fields[3:6] != (8, 64, 0):
            raise Broken(f"{file.path}: no seSparse extent")
        self.capacity, self.grain = fields[2], fields[3]
        self.volatile, self.gd, self.gd_size = fields[10], fields[16], fields[17]
        self.gts, self.gts_size, self.first = fields[18], fields[19], fields[24]
        magic, _, _, replay = file.numbers(self.volatile * SECTOR, 4, 8)
        if magic != 0xCAFECAFE or replay & 0xFF:
            raise Broken(f"{file.path}: a journal to be replayed")
        if size is not None and size > self.capacity:
            raise Broken(f"{file.path}: the extent is smaller than its line says")
        self.sectors = self.capacity if size is None else size

    def entry(self, number):
        """The entry of a grain."""
        table, index = divmod(number, self.ENTRIES)
        entry = self.file.number(self.gd * SECTOR + 8 * table, 8)
        if not entry:
            return 0
        if entry >> 32 != 0x10000000:
            raise Broken(f"{self.file.path}: directory entry {table}")
        return self.file.number((self.gts + 64 * (entry & 0xFFFFFFFF)) * SECTOR + 8 * index, 8)

    def place(self, entry):
        """Where the grain of an entry lies."""
        return self.first + 8 * ((entry >> 48 & 0xFFF) | (entry & (1 << 48) - 1) << 12)

    def stored(self, number):
        entry = self.entry(number)
        kind = entry >> 60
        if kind == 0 and entry == 0:
            return None
        if kind in (1, 2):
            return b""
        if kind != 3:
            raise Broken(f"{self.file.path}: the entry of grain {number} is {entry:#x}")
        return self.bytes_of(self.place(entry))

    def used(self):
        yield 0, 1, "the header"
        yield self.volatile, 1, "the volatile header"
        yield self.gd, self.gd_size, "the directory"
        yield self.gts, self.gts_size, "the tables"
        for number in range(-(-self.capacity // self.grain)):
            if (entry := self.entry(number)) >> 60 == 3:
                yield self.place(entry), self.grain, f"grain {number}"


def opened(path, size=None):
    """An extent by what its file begins with, or None for a descriptor."""
    file = File(path)
    head = file.read(0, min(file.size, SECTOR))
    if head.startswith(b"KDMV"):
        kind = Stream if int.from_bytes(head[8:12], "little") >> 16 & 1 else Sparse
    elif head.startswith(b"COWD"):
        kind = Cowd
    elif head.startswith(b"\xbe\xba\xfe\xca\0\0\0\0"):
        kind = SeSparse
    else:
        file.close()
        return None
    return kind(file, size)


# Disks


class Disk:
    """A whole disk, and what is below it: `parent` is a Disk, or is found by the hint."""

    def __init__(self, path, parent=None):
        self.path = os.fsdecode(path)
        self.extents = []
        first = opened(path)
        if first is None:
            with open(path, "rb") as file:
                self.text = Text(file.read())
            for _, size, kind, name, offset in self.text.lines:
                self.extents.append(self.extent(size, kind, name, offset))
        else:
            self.text = first.text() if isinstance(first, Sparse) else None
            self.extents.append(self.cut(first))
        self.sectors = sum(extent.sectors for extent in self.extents)
        self.size = self.sectors * SECTOR
        self.parent = parent
        if self.text and self.text.has_parent() and not parent:
            self.parent = Disk(parent_of(path, self.text.hint))
        if self.parent and self.text and self.parent.cid() != self.text.parent_cid:
            raise Broken(f"{self.path}: the parent's CID is {self.parent.cid():08x}, not "
                         f"{self.text.parent_cid:08x}")

    def cut(self, extent):
        """The only extent: as long as the descriptor says, if there is one."""
        if self.text and len(self.text.lines) == 1:
            extent.sectors = min(extent.sectors, self.text.lines[0][1])
        return extent

    def extent(self, size, kind, name, offset):
        """An extent by its line."""
        if kind == "ZERO":
            return Zero(size)
        path = beside(self.path, name)
        if kind in FLAT_KINDS:
            return Flat(path, size, offset)
        extent = opened(path, size)
        expected = {"SPARSE": (Sparse, Stream), "VMFSSPARSE": (Cowd,), "SESPARSE": (SeSparse,)}[kind]
        if not isinstance(extent, expected):
            raise Broken(f"{os.fsdecode(path)}: no extent of kind {kind}")
        return extent

    def cid(self):
        """The content id."""
        return self.text.cid if self.text else None

    def close(self):
        """Closes all files."""
        for extent in self.extents:
            extent.close()
        if self.parent:
            self.parent.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def pieces(self, first, end):
        """What lies in a range of sectors: (sector, count, bytes or None), one after the other."""
        start = 0
        for extent in self.extents:
            while max(start, first) < min(start + extent.sectors, end):
                count, data = extent.piece(first - start)
                count = min(count, end - first)
                yield first, count, data if data is None else data[:count * SECTOR].ljust(
                    count * SECTOR, b"\0")
                first += count
            start += extent.sectors

    def read_sectors(self, first, count):
        """A range of the guest disk."""
        parts = []
        for sector, length, data in self.pieces(first, first + count):
            if data is None:
                data = self.below(sector, length)
            parts.append(data)
        return b"".join(parts)

    def below(self, sector, count):
        """What the parent has there; zeros where it ends."""
        if not self.parent:
            return bytes(count * SECTOR)
        there = max(0, min(count, self.parent.sectors - sector))
        return self.parent.read_sectors(sector, there).ljust(count * SECTOR, b"\0")

    def read(self, pos, length):
        """The same in bytes."""
        return self.read_sectors(pos // SECTOR, length // SECTOR)

    def whole(self):
        """All of the guest disk."""
        return self.read(0, self.size)

    def ranges(self):
        """Where this disk has data of its own: (position, length) in bytes, by pieces."""
        for sector, count, data in self.pieces(0, self.sectors):
            if data:
                yield sector * SECTOR, count * SECTOR

    def digest(self):
        """The sha256 of the guest disk, in hexadecimal."""
        total = hashlib.sha256()
        for pos in range(0, self.size, PIECE):
            total.update(self.read(pos, min(PIECE, self.size - pos)))
        return total.hexdigest()

    def check(self):
        """Fails unless all files of the disk, and those below it, are sound."""
        for extent in self.extents:
            extent.check()
        if self.parent:
            self.parent.check()


def guest_of(path):
    """The whole guest disk; its files must be sound."""
    with Disk(path) as disk:
        disk.check()
        return disk.whole()


if __name__ == "__main__":
    with Disk(sys.argv[1]) as shown:
        shown.check()
        print(f"{shown.digest()}  {shown.size}")
