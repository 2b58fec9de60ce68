# SPDX-License-Identifier: GPL-2.0
"""The kinds of images whose crashes are looked at. A new one is an entry in KINDS."""

import dataclasses
import os
import typing

from lib import stamps, vhd

MIB = vhd.MIB
SECTOR = vhd.SECTOR
OLD_BYTE = b"\x5a"


@dataclasses.dataclass
class Kind:
    """How to make an image, and what to put it on.

    `format` names the format for `crash_check` and `structure.py`. `build` writes the image to a
    path and returns the ranges (first sector, sectors) that have stamps of generation 0; the rest
    of its `guest` sectors is zero. `backing` is "ext4", or "device": the image itself is on the
    block device, which has old bytes behind it. `disk` is the size of that device in bytes.
    """

    format: str
    build: typing.Callable
    guest: int
    backing: str
    disk: int


def stamped(image, ranges):
    """Puts stamps into an image in the making; returns the ranges."""
    for first, count in ranges:
        image.put(first * SECTOR, stamps.make(first, count, 0))
    return ranges


def dynamic(path, size, home=None):
    """A dynamic VHD that has full blocks, and blocks with clear bits and old bytes under them.

    `home`: the size of the block device that it is for.
    """
    image = vhd.Dynamic(size, 16 << 10)
    block = image.block_size // SECTOR
    for number in range(3, 80, 4):
        image.put_stale(number * image.block_size, OLD_BYTE * image.block_size)
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


DYNAMIC = 12 * MIB
DEVICE = 18 * MIB
FIXED = 4 * MIB

KINDS = {
    "vhd_dynamic_ext4": Kind("vhd", lambda path: dynamic(path, DYNAMIC), DYNAMIC // SECTOR,
                             "ext4", 32 * MIB),
    "vhd_dynamic_device": Kind("vhd", lambda path: dynamic(path, DYNAMIC, DEVICE),
                               DYNAMIC // SECTOR, "device", DEVICE),
    "vhd_fixed_ext4": Kind("vhd", lambda path: fixed(path, FIXED), FIXED // SECTOR,
                           "ext4", 16 * MIB),
}
