# SPDX-License-Identifier: GPL-2.0
"""Content that says which sector it is of, and which write put it there.

A sector is 16 times: magic, sector number, generation, and the three of them mixed; all little
endian, 64 bits. `crash_check` reads them (tools/testing/host/crash_check/src/stamp.rs).
"""

import struct

MAGIC = 0x506D617473686372
MASK = (1 << 64) - 1
REPEATS = 16


def make(first, count, generation):
    """Content for `count` sectors."""
    return b"".join(unit(sector, generation) * REPEATS for sector in range(first, first + count))


def unit(sector, generation):
    """32 bytes."""
    mixed = (MAGIC ^ sector * 0x9E3779B97F4A7C15 ^ generation * 0xC2B2AE3D27D4EB4F) & MASK
    return struct.pack("<4Q", MAGIC, sector, generation, mixed)
