# SPDX-License-Identifier: GPL-2.0
"""Builds VMDKs from the specification, sound or broken in a chosen place: descriptors, hosted sparse
extents, and disks put together from several files.

Field offsets: "Virtual Disk Format 5.0" (VMware). Nothing here looks at the driver's code or at
another implementation's output. Other kinds of extent: vmdk_esx.py, vmdk_stream.py.
"""

import dataclasses
import os
import struct

SECTOR = 512
KIB = 1 << 10
MIB = 1 << 20
NO_PARENT = 0xFFFFFFFF
ALL_ONES = (1 << 64) - 1
CID = 0x1B2C3D4E

# Flags of a hosted sparse header.
CHECKED, REDUNDANT, ZERO_GRAINS = 1, 2, 4
COMPRESSED, MARKED = 1 << 16, 1 << 17

# Fields of the hosted sparse header: offset and struct format.
FIELDS = {
    "magic": (0, "<4s"), "version": (4, "<I"), "flags": (8, "<I"), "capacity": (12, "<Q"),
    "grain_size": (20, "<Q"), "desc_offset": (28, "<Q"), "desc_size": (36, "<Q"),
    "entries": (44, "<I"), "rgd_offset": (48, "<Q"), "gd_offset": (56, "<Q"), "overhead": (64, "<Q"),
    "unclean": (72, "<B"), "check": (73, "<4s"), "compression": (77, "<H"),
}
CHECK = b"\n \r\n"


def round_up(value, unit):
    """The next multiple of `unit`."""
    return -(-value // unit) * unit


def sectors(length):
    """Bytes in sectors, the last one being whole."""
    return -(-length // SECTOR)


# Descriptors


@dataclasses.dataclass
class Line:
    """A line about an extent. `offset`: in sectors, of a flat one. `rest`: what may follow."""

    size: int
    kind: str = "SPARSE"
    name: str = None
    offset: int = None
    access: str = "RW"
    rest: str = ""

    def text(self):
        """The line."""
        words = [self.access, str(self.size // SECTOR), self.kind]
        words += [f'"{self.name}"'] if self.name is not None else []
        words += [str(self.offset)] if self.offset is not None else []
        return " ".join(words) + self.rest


@dataclasses.dataclass
class Descriptor:
    """A descriptor, in its own file or in that of a sparse extent.

    `more`: lines behind the header's, as they are; `ddb`: those of the disk data base. `cid` may be text.
    """

    create_type: str = "monolithicSparse"
    lines: list = dataclasses.field(default_factory=list)
    cid: int = CID
    parent_cid: int = NO_PARENT
    hint: str = None
    more: tuple = ()
    ddb: tuple = ('ddb.virtualHWVersion = "4"', 'ddb.geometry.cylinders = "8"',
                  'ddb.geometry.heads = "16"', 'ddb.geometry.sectors = "63"',
                  'ddb.adapterType = "ide"')
    encoding: str = "utf-8"

    def text(self):
        """The text, as most programs write it."""
        lines = ["# Disk DescriptorFile", "version=1", f"CID={digits(self.cid)}",
                 f"parentCID={digits(self.parent_cid)}", f'createType="{self.create_type}"']
        lines += [f'parentFileNameHint="{self.hint}"'] if self.hint is not None else []
        lines += [*self.more, "", "# Extent description"]
        lines += [line.text() for line in self.lines]
        lines += ["", "# The Disk Data Base", "#DDB", "", *self.ddb]
        return "".join(f"{line}\n" for line in lines).encode(self.encoding)


def digits(cid):
    """A content id as it is written, unless it is text already."""
    return cid if isinstance(cid, str) else f"{cid:08x}"


def replaced(old, new):
    """A spelling in which something is written otherwise."""
    def spell(text):
        if old not in text:
            raise ValueError(f"nothing to replace: {old}")
        return text.replace(old, new)
    return spell


def upper_keys(text):
    """All keys in capital letters."""
    lines = [line.partition(b"=") for line in text.split(b"\n")]
    return b"\n".join((key.upper() if sign else key) + sign + value for key, sign, value in lines)


def padded_lines(text):
    """Blanks and tabs around everything, in the lines about extents, too."""
    lines = []
    for line in text.split(b"\n"):
        # A name may have blanks of its own.
        words = line.split(b" ", 3)
        if words[0] in (b"RW", b"RDONLY", b"NOACCESS"):
            line = b"\t " + b" \t ".join(words)
        lines.append((line if line.startswith(b"#") else line.replace(b"=", b" =\t")) + b" \t")
    return b"\n".join(lines)


# Ways to write the same: from the usual one, which Descriptor.text() has.
SPELLINGS = {
    "usual": lambda text: text,
    "crlf": replaced(b"\n", b"\r\n"),
    "capitals": upper_keys,
    "lower_case": lambda text: text.replace(b"parentCID", b"parentcid").replace(
        b"createType", b"createtype").replace(b"CID=", b"cid="),
    "lower_case_title": replaced(b"# Disk DescriptorFile", b"# disk descriptorfile"),
    "title_with_blanks": replaced(b"# Disk DescriptorFile", b"# Disk Descriptor File"),
    "title_without_blanks": replaced(b"# Disk DescriptorFile", b"#Disk DescriptorFile"),
    "padded": padded_lines,
    "padded_crlf": lambda text: padded_lines(text).replace(b"\n", b"\r\n"),
    "comments": replaced(b"\nCID", b"\n# CID=00000001\n  # parentCID=00000002\nCID"),
    "empty_lines": replaced(b"\n", b"\n\n"),
    "no_end_of_line_at_the_end": lambda text: text.rstrip(b"\n"),
    "nothing_behind_the_extents": lambda text: text[:text.index(b"\n# The Disk")],
    "parent_cid_first": lambda text: swap_lines(text, b"CID=", b"parentCID="),
    "cid_of_few_digits": replaced(b"CID=1b2c3d4e", b"CID=3d4e"),
    "cid_in_capitals": replaced(b"CID=1b2c3d4e", b"CID=1B2C3D4E"),
    "cid_0": replaced(b"CID=1b2c3d4e", b"CID=00000000"),
    "encoding_of_windows": replaced(b"version=1", b'version=1\nencoding="windows-1252"'),
    "unknown_keys": replaced(b"version=1", b'version=1\nisNativeSnapshot="no"\nfoo.bar = 7'),
    "long_content_id": lambda text: text + b'ddb.longContentID = "0f0e0d0c0b0a09080706050'
                                           b'41b2c3d4e"\n',
}


def swap_lines(text, first, second):
    """Two lines, by how they begin, in each other's place."""
    lines = text.split(b"\n")
    one, other = (next(at for at, line in enumerate(lines) if line.startswith(start))
                  for start in (first, second))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


# Extents


class Grains:
    """What a sparse extent of any kind holds: data by grain, and grains that are zero."""

    def __init__(self, size, grain):
        self.size = size
        self.grain = grain
        self.data = {}
        self.zeros = set()
        # Host offsets in bytes, once it was written.
        self.places = {}
        self.end = 0

    def count(self):
        """How many grains there are."""
        return -(-self.size // self.grain)

    def put(self, pos, data):
        """Data at a position; what the grains do not have yet is zero."""
        while data:
            number, start = divmod(pos, self.grain)
            part = data[:self.grain - start]
            self.zeros.discard(number)
            grain = self.data.setdefault(number, bytearray(self.grain))
            grain[start:start + len(part)] = part
            pos, data = pos + len(part), data[len(part):]

    def zero(self, first, count=1):
        """Grains that are zero, whatever is below."""
        for number in range(first, first + count):
            self.data.pop(number, None)
            self.zeros.add(number)

    def guest(self, below=b""):
        """The guest disk, over what is below it."""
        disk = bytearray(below[:self.size].ljust(self.size, b"\0"))
        for number in self.zeros:
            put(disk, number * self.grain, bytes(self.grain))
        for number, data in self.data.items():
            put(disk, number * self.grain, data)
        return bytes(disk)

    def place(self, at, unit=None):
        """Gives every grain with data its place in the file, from `at`; returns where they end."""
        for number in self.data:
            at = round_up(at, unit or self.grain)
            self.places[number] = at
            at += self.grain
        self.end = at
        return at

    def write_data(self, file):
        """The data, in their places; the last grain is whole, too."""
        for number, at in self.places.items():
            file.seek(at)
            file.write(self.data[number])


def put(disk, pos, data):
    """Data on a disk, as far as it reaches."""
    part = data[:len(disk) - pos]
    disk[pos:pos + len(part)] = part


def fill(grains, rng, share=0.4, zeros=0.0):
    """Puts noise into some grains, and lets some be zero; not in order."""
    numbers = list(range(grains.count()))
    rng.shuffle(numbers)
    for number in numbers:
        kind = rng.random()
        if kind < zeros:
            grains.zero(number)
        elif kind < zeros + share:
            pos = number * grains.grain
            grains.put(pos, rng.randbytes(min(grains.grain, grains.size - pos)))
    return grains


class Sparse(Grains):
    """A hosted sparse extent.

    `descriptor`: one that it has inside. `all_tables`: there is room for every table, as usual.
    `primary_first`: the directory that is used lies in front. `header`: fields that are not what they
    should be.
    """

    def __init__(self, size, grain=64 * KIB, *, descriptor=None, entries=512, version=1, redundant=True,
                 zero_grains=False, all_tables=True, primary_first=False, desc_sectors=20, header=None):
        super().__init__(size, grain)
        self.descriptor = descriptor
        self.entries = entries
        self.version = max(version, 2) if zero_grains else version
        self.redundant = redundant
        self.zero_grains = zero_grains
        self.all_tables = all_tables
        self.primary_first = primary_first
        self.desc_sectors = desc_sectors
        self.header = header or {}
        # Host offsets of the directory and its tables, primary and redundant.
        self.directories = {}
        self.tables = {}

    def zero(self, first, count=1):
        """Grains that are zero, by entries that say so."""
        if not self.zero_grains:
            raise ValueError("there are no zero grains")
        super().zero(first, count)

    def table_numbers(self):
        """The tables that are there."""
        count = -(-self.count() // self.entries)
        used = {number // self.entries for number in (*self.data, *self.zeros)}
        return [number for number in range(count) if self.all_tables or number in used]

    def lay_out(self):
        """Places for everything; returns where the data begin."""
        at = (1 + (self.desc_sectors if self.descriptor else 0)) * SECTOR
        names = ["redundant"] * self.redundant + ["primary"]
        directory = round_up(-(-self.count() // self.entries) * 4, SECTOR)
        table = round_up(self.entries * 4, SECTOR)
        for name in reversed(names) if self.primary_first else names:
            self.directories[name] = at
            at += directory
            self.tables[name] = {}
            for number in self.table_numbers():
                self.tables[name][number] = at
                at += table
        overhead = round_up(at, self.grain)
        self.place(overhead)
        return overhead

    def pack_header(self, overhead):
        """The first sector."""
        flags = CHECKED | (self.redundant and REDUNDANT) | (self.zero_grains and ZERO_GRAINS)
        fields = {
            "magic": b"KDMV", "version": self.version, "flags": flags,
            "capacity": sectors(self.size), "grain_size": self.grain // SECTOR,
            "desc_offset": 1 if self.descriptor else 0,
            "desc_size": self.desc_sectors if self.descriptor else 0, "entries": self.entries,
            "rgd_offset": self.directories.get("redundant", 0) // SECTOR,
            "gd_offset": self.directories["primary"] // SECTOR, "overhead": overhead // SECTOR,
            "unclean": 0, "check": CHECK, "compression": 0, **self.header,
        }
        return pack_header(fields)

    def entry(self, number):
        """The table entry of a grain."""
        if number in self.zeros:
            return 1
        return self.places.get(number, 0) // SECTOR

    def write_tables(self, file, name):
        """A directory and its tables."""
        for number, at in self.tables[name].items():
            file.seek(self.directories[name] + 4 * number)
            file.write(struct.pack("<I", at // SECTOR))
            first = number * self.entries
            entries = [self.entry(grain) for grain in range(first, min(first + self.entries, self.count()))]
            file.seek(at)
            file.write(struct.pack(f"<{len(entries)}I", *entries))

    def write(self, path):
        """Writes the file; returns its path. A descriptor without lines gets that of this file."""
        overhead = self.lay_out()
        with open(path, "wb") as file:
            file.truncate(max(overhead, self.end))
            file.write(self.pack_header(overhead))
            if self.descriptor:
                file.seek(SECTOR)
                file.write(self.text(path))
            for name in self.directories:
                self.write_tables(file, name)
            self.write_data(file)
        return path

    def text(self, path):
        """The descriptor inside; bytes are taken as they are."""
        if isinstance(self.descriptor, bytes):
            return self.descriptor
        lines = self.descriptor.lines or [Line(self.size, "SPARSE", os.path.basename(path))]
        return dataclasses.replace(self.descriptor, lines=lines).text()

    def entry_at(self, number, name="primary"):
        """The host offset of a grain's table entry."""
        return self.tables[name][number // self.entries] + 4 * (number % self.entries)


def pack_header(fields):
    """A hosted sparse header."""
    raw = bytearray(SECTOR)
    for name, value in fields.items():
        at, layout = FIELDS[name]
        struct.pack_into(layout, raw, at, value)
    return bytes(raw)


def monolithic(size, grain=64 * KIB, **options):
    """A disk in one file."""
    return Sparse(size, grain, descriptor=Descriptor(), **options)


class Set:
    """A disk put together from several files, in one folder.

    Each extent is a line, what it shows, and what makes its file.
    """

    def __init__(self, folder, name="disk.vmdk", create_type="custom", **fields):
        self.folder = folder
        self.path = os.path.join(folder, name)
        self.descriptor = Descriptor(create_type, **fields)
        self.parts = []
        self.spell = SPELLINGS["usual"]

    def add(self, line, part):
        """An extent."""
        self.descriptor.lines.append(line)
        self.parts.append(part)
        return self

    def where(self, name):
        """The path of an extent's file."""
        path = os.path.join(os.fsencode(self.folder), name.encode(self.descriptor.encoding))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def flat(self, name, data, *, offset=0, kind="FLAT", access="RW"):
        """Bytes as they are, at an offset of a file, which may have several."""
        path = self.where(name)
        with open(path, "r+b" if os.path.exists(path) else "w+b") as file:
            file.seek(offset)
            file.write(data)
        # A VMFS extent is all of its file.
        place = None if kind == "VMFS" and not offset else offset // SECTOR
        return self.add(Line(len(data), kind, name, place, access), data)

    def image(self, name, image, *, kind="SPARSE", access="RW", size=None, rest=""):
        """A sparse extent of any kind; the line may give it another size than it has itself."""
        image.write(self.where(name))
        return self.add(Line(size or image.size, kind, name, None, access, rest), image)

    def zero(self, size, access="RW"):
        """Zeros, without a file."""
        return self.add(Line(size, "ZERO", None, None, access), bytes(size))

    def write(self):
        """Writes the descriptor; returns its path."""
        with open(self.path, "wb") as file:
            file.write(self.spell(self.descriptor.text()))
        return self.path

    def size(self):
        """What the lines add up to."""
        return sum(line.size for line in self.descriptor.lines)

    def guest(self, below=b""):
        """The guest disk, over what is below it."""
        below = below[:self.size()].ljust(self.size(), b"\0")
        parts, pos = [], 0
        for line, part in zip(self.descriptor.lines, self.parts):
            if isinstance(part, Grains):
                part = part.guest(below[pos:pos + line.size]).ljust(line.size, b"\0")
            parts.append(part[:line.size])
            pos += line.size
        return b"".join(parts)


def shares(size, count):
    """A size in `count` parts, in whole sectors, of which the first are shorter by odd sectors."""
    part = size // count // SECTOR
    parts = [(part - 2 * number - 1) * SECTOR for number in range(count - 1)]
    return parts + [size - sum(parts)]


def even_shares(size, count, unit):
    """A size in `count` parts, of which all but the last are multiples of a unit."""
    part = size // count // unit * unit
    return [part] * (count - 1) + [size - part * (count - 1)]


# Looking into files, and damaging them


def field(path, name):
    """A field of a hosted sparse header."""
    at, layout = FIELDS[name]
    with open(path, "rb") as file:
        file.seek(at)
        return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def patch(path, **fields):
    """Overwrites fields of a hosted sparse header."""
    for name, value in fields.items():
        at, layout = FIELDS[name]
        poke(path, at, struct.pack(layout, value))


def poke(path, at, data):
    """Overwrites bytes; a negative offset counts from the end."""
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        file.write(data)


def peek(path, at):
    """An entry of a directory or a table."""
    with open(path, "rb") as file:
        file.seek(at)
        return struct.unpack("<I", file.read(4))[0]


def entry_place(path, pos, name="gd_offset"):
    """The host offset of the table entry of a guest position, by one of the two directories."""
    grain = field(path, "grain_size") * SECTOR
    table, index = divmod(pos // grain, field(path, "entries"))
    return peek(path, field(path, name) * SECTOR + 4 * table) * SECTOR + 4 * index
