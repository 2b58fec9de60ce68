# SPDX-License-Identifier: GPL-2.0
"""Checks the structure of VMDKs. QEMU's own check looks at primary tables only, and at no more of an
entry than whether it points past the end of the file."""

import contextlib
import os
import tempfile

from lib import vmdk, vmdk_reader
from lib.qcow_check import Corrupt, qemu_check, without_parent

SECTOR = vmdk_reader.SECTOR


def check_vmdk(path):
    """A disk in one file, an extent of ESX, or a descriptor with its extents beside it: returns how many
    bytes of the extents hold nothing.

    Whatever was lost, nothing overlaps, and all is within the file. The redundant tables of a file may
    differ from the primary ones as long as it is marked as open.
    """
    try:
        with extents(path) as found:
            unused = sum(check_extent(extent) for extent in found)
    except vmdk_reader.Broken as error:
        raise Corrupt(str(error)) from error
    with for_qemu(path) as shown:
        qemu_check(without_parent("vmdk", shown))
    return unused


def is_open(path):
    """Whether a file of the disk is marked as open: it was not detached."""
    with extents(path) as found:
        return any(getattr(extent, "unclean", 0) for extent in found)


@contextlib.contextmanager
def extents(path):
    """All extents of a disk."""
    with contextlib.ExitStack() as stack:
        def opened(part):
            stack.callback(part.close)
            return part
        alone = vmdk_reader.opened(path)
        if alone:
            yield [opened(alone)]
            return
        with open(path, "rb") as file:
            lines = vmdk_reader.Text(file.read()).lines
        yield [opened(extent(path, *line)) for line in lines]


def extent(path, _, size, kind, name, offset):
    """One that a line of the descriptor tells of."""
    beside = vmdk_reader.beside(path, name)
    if kind == "FLAT":
        return vmdk_reader.Flat(beside, size, offset)
    found = vmdk_reader.opened(beside, size)
    if found is None:
        raise Corrupt(f"{name} is no extent any more")
    return found


@contextlib.contextmanager
def for_qemu(path):
    """What QEMU can open: a COWD file only by a descriptor."""
    with open(path, "rb") as file:
        head = file.read(16)
    if not head.startswith(b"COWD"):
        yield path
        return
    size = int.from_bytes(head[12:16], "little") * SECTOR
    line = vmdk.Line(size, "VMFSSPARSE", os.path.realpath(path))
    with tempfile.NamedTemporaryFile(suffix=".vmdk") as file:
        file.write(vmdk.Descriptor("vmfsSparse", [line]).text())
        file.flush()
        yield file.name


def check_extent(part):
    """How many bytes of its file hold nothing."""
    if isinstance(part, vmdk_reader.Flat):
        return part.file.size - part.sectors * SECTOR
    used = sorted(part.used())
    end, owner = 0, None
    for start, length, what in used:
        if start < end:
            raise Corrupt(f"{what} at sector {start} lies in {owner}")
        end, owner = start + length, what
        check_end(part, start, length, what)
    if isinstance(part, vmdk_reader.Cowd):
        if part.next_free < end:
            raise Corrupt(f"free space begins at sector {part.next_free}, in {owner}")
    else:
        check_grains(part)
        check_copies(part, used)
    return part.file.size - sum(length for _, length, _ in used) * SECTOR


def check_end(part, start, length, what):
    """Everything is within the file."""
    if (start + length) * SECTOR > part.file.size:
        raise Corrupt(f"{what} at sector {start} reaches past the end, {part.file.size}")


def check_grains(part):
    """Grains lie behind the tables that were there at first, and are of the disk."""
    count = -(-part.capacity // part.grain)
    for number, place in part.grains():
        if place < part.overhead:
            raise Corrupt(f"grain {number} at sector {place} lies in the overhead")
        if number >= count:
            raise Corrupt(f"grain {number} lies past the end of the disk")


def check_copies(part, used):
    """The redundant tables: what differs in them, if anything may, points to what nobody uses."""
    if "redundant" not in part.directories:
        return
    places = dict(part.grains())
    taken = {sector: what for start, length, what in used for sector in range(start, start + length)}
    for table in range(len(part.directories["primary"])):
        first, copy = part.table("primary", table), part.table("redundant", table)
        if first == copy:
            continue
        if not part.unclean:
            raise Corrupt(f"the tables {table} differ, but the file is marked as closed")
        for index, entry in enumerate(copy):
            number = table * part.entries + index
            if entry not in (0, 1, first[index]):
                check_copy(part, number, entry, taken, places.get(number))


def check_copy(part, number, entry, taken, own):
    """An entry of a redundant table that is not the primary one."""
    what = f"the redundant entry of grain {number}"
    check_end(part, entry, part.grain, what)
    owners = {taken[sector] for sector in range(entry, entry + part.grain) if sector in taken}
    if owners:
        raise Corrupt(f"{what}, which lies at {own}, points into {owners.pop()}")
