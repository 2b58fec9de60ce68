# SPDX-License-Identifier: GPL-2.0
"""The kinds of images whose crashes are looked at. A new one is an entry in KINDS."""

import dataclasses
import os
import typing

from lib import loopdev, stamps, vhd, vhd_child

MIB = vhd.MIB
SECTOR = vhd.SECTOR
OLD_BYTE = b"\x5a"
BLOCK = 16 << 10


@dataclasses.dataclass
class Kind:
    """How to make an image, and what to put it on.

    `format` names the format for `crash_check` and `structure.py`. `build` writes the image to a
    path and returns the ranges (first sector, sectors) that have stamps of generation 0; the rest
    of its `guest` sectors is zero. `backing` is "ext4", or "device": the image itself is on the
    block device, which has old bytes behind it. `disk` is the size of that device in bytes.
    `parent`: the name of a file that `build` writes into the image's folder, too, and that the
    image lies on.
    """

    format: str
    build: typing.Callable
    guest: int
    backing: str
    disk: int
    parent: str = None


def stamped(image, ranges):
    """Puts stamps into an image in the making; returns the ranges."""
    for first, count in ranges:
        image.put(first * SECTOR, stamps.make(first, count, 0))
    return ranges


def dynamic(path, size, home=None):
    """A dynamic VHD that has full blocks, and blocks with clear bits and old bytes under them.

    `home`: the size of the block device that it is for.
    """
    image = vhd.Dynamic(size, BLOCK)
    block = BLOCK // SECTOR
    for number in range(3, 80, 4):
        image.put_stale(number * BLOCK, OLD_BYTE * BLOCK)
    full = [(number * block, block) for number in range(1, 80, 5)]
    ranges = stamped(image, full + [(number * block + 5, 11) for number in range(3, 80, 8)])
    image.write(path)
    if home:
        put_on_device(path, home, image.tail.pack())
    return ranges


def put_on_device(path, home, footer):
    """Makes the file what a device of `home` bytes holds: old bytes, the footer in its end."""
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        vhd.put_at(file, size, OLD_BYTE * (home - size))
        vhd.put_at(file, home - SECTOR, footer)


def fixed(path, size):
    """A fixed VHD, half of it stamped."""
    half = size // SECTOR // 2
    vhd.write_fixed(path, stamps.make(0, half, 0) + bytes(size - half * SECTOR))
    return [(0, half)]


def differencing(path, size, below):
    """A differencing VHD on a dynamic one of `below` bytes, PARENT, in the same folder.

    Of four blocks the first is the parent's; of the second each has some sectors, and both have
    old bytes where the other one counts; of the third the parent has some sectors; the fourth is
    in neither.
    """
    parent, child = vhd.Dynamic(below, BLOCK), vhd_child.Differencing(size, PARENT, BLOCK)
    step = 4 * BLOCK // SECTOR
    ranges = [shown for first in range(0, below // SECTOR, step)
              for shown in put_below(parent, first)]
    ranges += [shown for first in range(0, size // SECTOR, step)
               for shown in put_above(child, first + step // 4)]
    parent.write(os.path.join(os.path.dirname(path), PARENT))
    child.write(path)
    return ranges


def put_below(parent, first):
    """What a parent has of four blocks, the first of which begins at sector `first`."""
    second, third = first + BLOCK // SECTOR, first + 2 * BLOCK // SECTOR
    for hidden, count in ((second + 5, 11), (second + 20, 4)):
        parent.put(hidden * SECTOR, OLD_BYTE * count * SECTOR)
    parent.put_stale(third * SECTOR, OLD_BYTE * BLOCK)
    return stamped(parent, [(first, second + 5 - first), (second + 16, 4), (second + 24, 8),
                            (third + 5, 11)])


def put_above(child, first):
    """What a child has of the block that begins at sector `first`: stamps, zeros, old bytes."""
    child.put_stale(first * SECTOR, OLD_BYTE * BLOCK)
    child.put((first + 20) * SECTOR, bytes(4 * SECTOR))
    return stamped(child, [(first + 5, 11)])


def attach(path, has_parent):
    """Attaches an image; that its parser is named allows it to name its parent."""
    loop = loopdev.free()
    if has_parent:
        loop.set_attr("loop/parser", "vhd")
    return loopdev.attach(path, loop=loop)


DYNAMIC = 12 * MIB
DEVICE = 18 * MIB
FIXED = 4 * MIB
# A child that is larger than what it lies on.
CHILD, BELOW = 12 * MIB, 9 * MIB
PARENT = "parent.vhd"

KINDS = {
    "vhd_dynamic_ext4": Kind("vhd", lambda path: dynamic(path, DYNAMIC), DYNAMIC // SECTOR,
                             "ext4", 32 * MIB),
    "vhd_dynamic_device": Kind("vhd", lambda path: dynamic(path, DYNAMIC, DEVICE),
                               DYNAMIC // SECTOR, "device", DEVICE),
    "vhd_fixed_ext4": Kind("vhd", lambda path: fixed(path, FIXED), FIXED // SECTOR,
                           "ext4", 16 * MIB),
    "vhd_differencing_ext4": Kind("vhd", lambda path: differencing(path, CHILD, BELOW),
                                  CHILD // SECTOR, "ext4", 40 * MIB, PARENT),
}
