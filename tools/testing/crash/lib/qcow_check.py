# SPDX-License-Identifier: GPL-2.0
"""Checks the structure of qcow and qcow2 images: of the latter, QEMU does that."""

import json
import os
import stat
import struct
import tempfile

from lib import qcow_images, system
from lib.system import run

ENTRY = 8
COMPRESSED = 1 << 63
# Of the incompatible features: dirty, corrupt.
DAMAGED = 3
# A snapshot in the table of them: up to the size of what comes before its names.
SNAPSHOT = struct.Struct(">QIHH20xI")


class Corrupt(Exception):
    """What is wrong."""


def check_qcow2(path):
    """Versions 2 and 3: returns how many bytes have leaked.

    Whatever was lost, qemu-img check finds no errors; nothing that QEMU would have to repair is
    announced; and snapshots are what their names say.
    """
    with open(path, "rb") as file:
        check_flags(file)
        names = snapshots(file)
        cluster = 1 << number(file, 20, ">I")
    opened = without_parent("qcow2", path)
    leaked = qemu_check(opened)
    for name in names:
        check_snapshot(opened, name)
    return leaked * cluster


def without_parent(driver, path):
    """How QEMU is told of an image whose parent does not matter, and need not be there."""
    kind = "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
    return "json:" + json.dumps({"driver": driver, "backing": None,
                                 "file": {"driver": kind, "filename": path}})


def qemu_check(opened):
    """What QEMU has found; returns how many clusters have leaked."""
    done = system.attempt("qemu-img", "check", "--output=json", opened)
    try:
        found = json.loads(done.stdout)
    except ValueError as error:
        raise Corrupt(f"qemu-img check: {done.stderr or done.stdout}") from error
    if found.get("check-errors") or found.get("corruptions"):
        done = system.attempt("qemu-img", "check", opened)
        raise Corrupt(f"qemu-img check: {done.stderr}{done.stdout}")
    leaks = found.get("leaks", 0)
    if done.returncode != (3 if leaks else 0):
        raise Corrupt(f"qemu-img check: exit status {done.returncode}: {done.stderr}")
    return leaks


def number(file, at, layout):
    """A number of the file."""
    file.seek(at)
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def check_flags(file):
    """Refcounts are exact, so that the image is never marked dirty."""
    if number(file, 4, ">I") >= 3 and number(file, 72, ">Q") & DAMAGED:
        raise Corrupt("the image is marked dirty or corrupt")


def snapshots(file):
    """The names of the internal snapshots."""
    count, at = number(file, 60, ">I"), number(file, 64, ">Q")
    names = []
    for _ in range(count):
        file.seek(at)
        _, _, id_size, name_size, extra = SNAPSHOT.unpack(file.read(SNAPSHOT.size))
        start = at + SNAPSHOT.size + extra + id_size
        file.seek(start)
        names.append(file.read(name_size).decode("ascii"))
        at = (start + name_size + 7) // 8 * 8
    return names


def check_snapshot(opened, name):
    """The guest never changes a snapshot."""
    with tempfile.TemporaryDirectory() as folder:
        raw = os.path.join(folder, "raw")
        run("qemu-img", "convert", "-l", f"snapshot.name={name}", "-O", "raw", opened, raw)
        if qcow_images.digest(raw) != name:
            raise Corrupt("the snapshot has changed")


def check_qcow1(path):
    """Version 1: returns how many bytes of the file hold nothing."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        used = sorted(regions(file))
    end, owner = 0, None
    for start, length, what in used:
        if start < end:
            raise Corrupt(f"{what} at {start} lies in {owner}")
        end, owner = start + length, what
        if end > size:
            raise Corrupt(f"{what} at {start} reaches past the end, {size}")
    return size - sum(length for _, length, _ in used)


def regions(file):
    """What lies where: (start, length, name). Compressed clusters may begin and end anywhere."""
    cluster_bits, l2_bits = number(file, 32, ">B"), number(file, 33, ">B")
    name_at, name_size = number(file, 8, ">Q"), number(file, 16, ">I")
    covers = 1 << cluster_bits + l2_bits
    l1_at, l1_size = number(file, 40, ">Q"), -(-number(file, 24, ">Q") // covers)
    yield 0, 48, "the header"
    yield l1_at, l1_size * ENTRY, "the L1"
    if name_at:
        yield name_at, name_size, "the name of the parent"
    for table in table_of(file, l1_at, l1_size):
        if not table:
            continue
        yield table, ENTRY << l2_bits, "an L2 table"
        for entry in table_of(file, table, 1 << l2_bits):
            if entry & COMPRESSED:
                shift = 63 - cluster_bits
                yield (entry & (1 << shift) - 1, entry >> shift & (1 << cluster_bits) - 1,
                       "a compressed cluster")
            elif entry:
                yield entry, 1 << cluster_bits, "a cluster"


def table_of(file, at, entries):
    """The entries of a table."""
    file.seek(at)
    data = file.read(entries * ENTRY)
    if len(data) < entries * ENTRY:
        raise Corrupt(f"a table at {at} reaches past the end")
    return struct.unpack(f">{entries}Q", data)
