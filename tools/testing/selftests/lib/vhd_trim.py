# SPDX-License-Identifier: GPL-2.0
"""What may become of a range that was discarded, and of the blocks of a VHD that it was in."""

import errno

from lib import vhd, vhd_reader
from lib.ktap import Failure, same_bytes

SECTOR = vhd.SECTOR
ZERO = bytes(SECTOR)


def discard(device, shadow, pos, length):
    """BLKDISCARD: every sector reads as zero now, or as it did before, and stays so.

    It may turn out that what is below cannot do it.
    """
    try:
        device.discard(pos, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    found = device.read(pos, length)
    for at in range(0, length, SECTOR):
        sector = found[at:at + SECTOR]
        if sector not in (ZERO, shadow[pos + at:pos + at + SECTOR]):
            raise Failure(f"other bytes are shown at {pos + at}, after a discard of {length} bytes "
                          f"at {pos}")
    shadow[pos:pos + length] = found


def zero(device, shadow, pos, length):
    """BLKZEROOUT: every sector reads as zero."""
    device.zero(pos, length)
    same_bytes(device.read(pos, length), bytes(length), f"{length} zeros at {pos}")
    shadow[pos:pos + length] = bytes(length)


def write(device, shadow, pos, data):
    """A write."""
    device.write(pos, data)
    shadow[pos:pos + len(data)] = data


def random_steps(device, shadow, rng, count, longest):
    """Discards, zeroes and writes at random places, compared step by step."""
    for _ in range(count):
        length = min(int((longest // SECTOR) ** rng.random()) * SECTOR, len(shadow))
        pos = rng.randrange((len(shadow) - length) // SECTOR + 1) * SECTOR
        action = rng.choice((discard, zero, write, write))
        if action is write:
            write(device, shadow, pos, rng.randbytes(length))
        else:
            action(device, shadow, pos, length)
        around = max(0, pos - SECTOR)
        same_bytes(device.read(around, SECTOR), bytes(shadow[around:around + SECTOR]),
                   f"sector in front of {pos} after {action.__name__}")


def places(path):
    """Block number → host offset of its bitmap, for all blocks that are allocated."""
    with vhd_reader.Reader(path) as reader:
        return dict(reader.blocks())
