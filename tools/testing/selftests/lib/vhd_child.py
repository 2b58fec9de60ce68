# SPDX-License-Identifier: GPL-2.0
"""Builds differencing VHDs, and chains of them, from the specification (see vhd.py)."""

import dataclasses
import os
import random
import struct

from lib import blockio, vhd, vhd_chain
from lib.ktap import same_bytes

SECTOR = vhd.SECTOR
KIB = vhd.KIB
MIB = vhd.MIB
NULL_ID = bytes(16)
LOCATORS = 8


def identity(number):
    """A unique id that is easily told from others."""
    return bytes([number]) * 16


@dataclasses.dataclass
class Locator:
    """One of the ways a differencing image tells where its parent is.

    `space`: as recorded, in sectors if it is less than 512, or else in bytes. `length`: as recorded.
    """

    code: bytes
    text: bytes
    space: int = SECTOR
    length: int = None
    place: int = None

    LAYOUT = struct.Struct(">4sIIIQ")

    def room(self):
        """The bytes of the file that it takes."""
        recorded = self.space * SECTOR if self.space < SECTOR else self.space
        return vhd.round_up(max(recorded, len(self.text)), SECTOR)

    def pack(self):
        """The 24 bytes in the header."""
        length = len(self.text) if self.length is None else self.length
        return self.LAYOUT.pack(self.code, self.space, length, 0, self.place)


def utf16(name):
    """A name as Windows locators have it; lone surrogates occur."""
    return name.encode("utf-16-le", "surrogatepass")


def relative(path, **fields):
    """W2ru, as Windows writes it; `path` with slashes."""
    return Locator(b"W2ru", utf16(".\\" + path.replace("/", "\\")), **fields)


def windows(path, **fields):
    r"""W2ku: an absolute path like C:\disks\parent.vhd."""
    return Locator(b"W2ku", utf16(path), **fields)


def mac(url, **fields):
    """MacX: a URL in UTF-8."""
    return Locator(b"MacX", url.encode(), **fields)


def by_tapdisk(path):
    """The three that libvhd writes, in its order; it escapes nothing."""
    same = utf16(".\\" + path.replace("/", "\\"))
    return [mac(f"file://./{path}"), Locator(b"W2ku", same), Locator(b"W2ru", same)]


def by_windows(path, folder="C:\\disks\\"):
    """The two that Windows writes."""
    return [relative(path, space=4096), windows(folder + path.replace("/", "\\"), space=4096)]


class Differencing(vhd.Dynamic):
    """A differencing VHD in the making: sectors that were put into it hide those of its parent.

    `parent`: a path with slashes, relative to the image's folder. `locators`: W2ru if there is no
    list; `header_name`: the last part of the path, unless it is given.
    """

    def __init__(self, size, parent, block_size=2 * MIB, *, parent_id=vhd.Footer.unique_id,
                 unique_id=identity(0xC1), locators=None, header_name=None, footer=None,
                 header=None, **options):
        name = os.path.basename(parent) if header_name is None else header_name
        super().__init__(
            size, block_size, **options,
            footer={"kind": vhd.DIFFERENCING, "unique_id": unique_id, **(footer or {})},
            header={"parent_id": parent_id, "parent_name": name, **(header or {})})
        self.locators = [relative(parent)] if locators is None else locators

    def map_end(self):
        """Where free space begins: behind the names of the parent, too."""
        end = super().map_end()
        for locator in self.locators:
            locator.place = end
            end += locator.room()
        return end

    def write(self, path):
        """Writes the file."""
        self.map_end()
        self.header.locators = b"".join(locator.pack() for locator in self.locators)
        super().write(path)
        for locator in self.locators:
            vhd.patch(path, locator.place, locator.text)
        return path


def put_runs(image, rng, count=6, longest=200):
    """Some runs of data, few of which fill a block."""
    for _ in range(count):
        length = min(rng.randrange(1, longest) * SECTOR, image.size)
        pos = rng.randrange((image.size - length) // SECTOR + 1) * SECTOR
        image.put(pos, rng.randbytes(length))


def put_stale(image, byte=0xEE):
    """Bytes under all clear bits of the blocks that there are: they are never the guest's."""
    for block in image.blocks.values():
        for sector in range(image.block_size // SECTOR):
            if not block.has(sector):
                block.data[sector * SECTOR:(sector + 1) * SECTOR] = bytes([byte]) * SECTOR


@dataclasses.dataclass
class Chain:
    """Files of a chain, the one that the guest writes to first, and what the guest sees."""

    paths: list
    guest: bytes
    raw: bool = False

    def judge(self, expected):
        """Fails unless the files are sound and show `expected`, by the specification."""
        same_bytes(vhd_chain.guest_of(self.paths, self.raw), expected,
                   "files, by the specification")


@dataclasses.dataclass
class Level:
    """What the next file of a chain is like."""

    size: int
    block_size: int = 2 * MIB
    stale: bool = False
    options: dict = dataclasses.field(default_factory=dict)


def base(folder, kind, size, block_size=2 * MIB, seed=0):
    """The end of a chain: "dynamic", "fixed" or "raw"; with data everywhere, or in places."""
    if kind == "dynamic":
        image = vhd.Dynamic(size, block_size)
        put_runs(image, random.Random(seed), 8)
        return Chain([image.write(os.path.join(folder, "base.vhd"))], image.guest())
    data = blockio.pattern(size, seed)
    path = os.path.join(folder, "base.raw" if kind == "raw" else "base.vhd")
    if kind == "fixed":
        vhd.write_fixed(path, data)
        return Chain([path], data)
    with open(path, "wb") as file:
        file.write(data)
    return Chain([path], data, raw=True)


def parent_id(chain):
    """What the next child records as its parent's id."""
    if chain.raw and len(chain.paths) == 1:
        return NULL_ID
    return vhd.Footer.unique_id if len(chain.paths) == 1 else identity(len(chain.paths) - 1)


def child_of(chain, size, **options):
    """An empty child of the first file of a chain, to be written into the same folder."""
    return Differencing(size, os.path.basename(chain.paths[0]), **{
        "parent_id": parent_id(chain), "unique_id": identity(len(chain.paths)), **options})


def child_path(chain):
    """Where the next child of a chain goes."""
    return os.path.join(os.path.dirname(chain.paths[0]), f"child{len(chain.paths)}.vhd")


def grow(chain, level, seed=1):
    """A chain with one more child, which has some data."""
    image = child_of(chain, level.size, block_size=level.block_size, **level.options)
    put_runs(image, random.Random(seed))
    if level.stale:
        put_stale(image)
    path = image.write(child_path(chain))
    return Chain([path, *chain.paths], image.guest(chain.guest), chain.raw)


def build(folder, kind, levels, size=None):
    """A chain on a base of `kind`, with a child per level."""
    chain = base(folder, kind, size or levels[0].size)
    for seed, level in enumerate(levels, 1):
        chain = grow(chain, level, seed)
    return chain
