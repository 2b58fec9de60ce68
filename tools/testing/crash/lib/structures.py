# SPDX-License-Identifier: GPL-2.0
"""Checks the structure of images after power failures, without any of the driver's code."""

from lib import qcow_check, system, vhd, vhd_reader, vmdk_check
from lib.qcow_check import Corrupt

SECTOR = vhd.SECTOR


def check_vhd(path):
    """VHDs of all kinds: returns how many bytes of the file hold nothing."""
    with vhd_reader.Reader(path) as reader:
        check_end(reader)
        if reader.kind == vhd.FIXED:
            return reader.file_size - SECTOR - reader.size
        used = regions(reader)
        for (start, size, what), (following, _, other) in zip(used, used[1:]):
            if start + size > following:
                raise Corrupt(f"{what} at {start} reaches into {other} at {following}")
        last, size, what = used[-1]
        if last + size > reader.file_size:
            raise Corrupt(f"{what} at {last} reaches past the end, {reader.file_size}")
        if reader.kind == vhd.DIFFERENCING:
            check_bitmaps(reader)
        reader.check_batmap()
        return reader.file_size - sum(size for _, size, _ in used)


def check_end(reader):
    """A file always ends in a footer: an image with blocks has its copy at 0 besides."""
    end = reader.bytes_at(reader.file_size - SECTOR, SECTOR)
    if end != reader.footer:
        raise Corrupt("the footer at the end is not good")
    if reader.kind != vhd.FIXED and reader.bytes_at(0, SECTOR) != reader.footer:
        raise Corrupt("the copy of the footer at 0 is not good")


def check_bitmaps(reader):
    """A new bitmap is all zeros, and bits are only set for sectors that there are."""
    length = vhd.bitmap_sectors(reader.block_size) * SECTOR
    for number, place in reader.blocks():
        if any(reader.bytes_at(place, length)[reader.block_size // SECTOR // 8:]):
            raise Corrupt(f"the bitmap of block {number} goes on behind its last sector")


def regions(reader):
    """What lies where: (start, size, name), sorted."""
    whole = vhd.bitmap_sectors(reader.block_size) * SECTOR + reader.block_size
    blocks = [(place, whole, f"block {number}") for number, place in reader.blocks()]
    table = vhd.round_up(reader.max_entries * 4, SECTOR)
    names = [(place, vhd.round_up(length, SECTOR), "a name of the parent")
             for _, length, place in reader.locators()]
    header = reader.field(reader.footer, 16, 8)
    if reader.full_map:
        names.append((reader.batmap_at(), SECTOR + len(reader.full_map), "the batmap"))
    return sorted([(0, SECTOR, "the copy of the footer"), (header, 1024, "the header"),
                   (reader.table, table, "the BAT"),
                   (reader.file_size - SECTOR, SECTOR, "the footer"), *names, *blocks])


CHECKS = {"vhd": check_vhd, "qcow": qcow_check.check_qcow1, "qcow2": qcow_check.check_qcow2,
          "vmdk": vmdk_check.check_vmdk}
# What qemu-img calls the formats; it can open VHDs, but not check them. It opens all VMDKs when they are
# checked.
QEMU_NAMES = {"vhd": "vpc", "qcow": "qcow", "qcow2": "qcow2"}
# Formats that say in an image whether it is attached.
OPEN = {"vmdk": vmdk_check.is_open}


def answer(format_name, path):
    """What there is to say of an image."""
    try:
        unused = CHECKS[format_name](path)
        is_open = format_name in OPEN and OPEN[format_name](path)
    except (Corrupt, vhd_reader.Broken, system.CommandError, OSError) as error:
        return " ".join(str(error).split())
    return f"unused {unused}" + " open" * is_open
