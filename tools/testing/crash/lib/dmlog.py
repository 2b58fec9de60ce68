# SPDX-License-Identifier: GPL-2.0
"""A device that records what is written to it and flushed: dm-log-writes over two RAM disks."""

import fcntl
import os
import struct

from lib import system
from lib.system import run

NAME = "crash"
PATH = f"/dev/mapper/{NAME}"
DISK, LOG = "/dev/ram0", "/dev/ram1"
SECTOR = 512
SUPER = struct.Struct("<3QI")
ENTRY = struct.Struct("<4Q")
MAGIC = 0x6A736677736872
DISCARD = 4
PIECE = 1 << 20

# linux/dm-ioctl.h: a struct dm_ioctl, a struct dm_target_msg behind it.
HEADER = struct.Struct("=6IiIIIQ128s129s7x")
DM_TARGET_MSG = 3 << 30 | HEADER.size << 16 | 0xFD << 8 | 14


def make_disks(mebibytes):
    """The two RAM disks, of equal size; what is not written takes no memory."""
    run("modprobe", "brd", "rd_nr=2", f"rd_size={mebibytes << 10}")
    for path in (DISK, LOG):
        system.wait_until(lambda path=path: os.path.exists(path), f"{path} is there")


def create(size):
    """Begins to record what reaches the first `size` bytes of DISK."""
    run("dmsetup", "create", NAME, "--noudevsync",
        text=f"0 {size // SECTOR} log-writes {DISK} {LOG}\n")
    run("dmsetup", "mknodes")


def remove():
    """Ends it."""
    run("dmsetup", "remove", "--noudevsync", "--retry", NAME)


class Marker:
    """Puts marks into the log."""

    def __init__(self):
        self.control = os.open("/dev/mapper/control", os.O_RDWR)

    def close(self):
        """No more marks."""
        os.close(self.control)

    def mark(self, text):
        """A mark: whatever was flushed before is in front of it."""
        message = struct.pack("=Q", 0) + f"mark {text}".encode() + b"\0"
        data = HEADER.pack(4, 0, 0, HEADER.size + len(message), HEADER.size, 0, 0, 0, 0, 0, 0,
                           NAME.encode(), b"")
        fcntl.ioctl(self.control, DM_TARGET_MSG, bytearray(data + message))


def save(path):
    """Copies the log to a file; returns the number of its entries."""
    with open(LOG, "rb", buffering=PIECE) as log, open(path, "wb") as out:
        magic, _, entries, size = SUPER.unpack_from(log.read(SECTOR))
        if magic != MAGIC or size != SECTOR:
            raise ValueError("no log of dm-log-writes with sectors of 512 bytes")
        out.write(SUPER.pack(magic, 1, entries, size).ljust(SECTOR, b"\0"))
        for _ in range(entries):
            head = log.read(SECTOR)
            _, sectors, flags, _ = ENTRY.unpack_from(head)
            out.write(head)
            if not flags & DISCARD:
                out.write(log.read(sectors * SECTOR))
    return entries
