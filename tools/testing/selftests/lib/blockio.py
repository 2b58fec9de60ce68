# SPDX-License-Identifier: GPL-2.0
"""I/O on files and devices, and test data."""

import fcntl
import hashlib
import mmap
import os
import random
import struct

from lib import loopdev

SECTOR = 512
PIECE = 1 << 20


def pattern(length, seed=1):
    """Bytes that look random and are the same for the same seed."""
    return random.Random(seed).randbytes(length)


def make_file(path, length, seed=1):
    """A file of pattern() bytes; returns them."""
    data = pattern(length, seed)
    with open(path, "wb") as file:
        file.write(data)
    return data


def make_sparse(path, length):
    """A file without blocks; returns its path."""
    with open(path, "wb") as file:
        file.truncate(length)
    return path


def content(path):
    """All of a file."""
    with open(path, "rb") as file:
        return file.read()


def digest(path):
    """The sha256 of a file's or device's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def allocated(path):
    """Bytes that a file takes in its file system."""
    return os.stat(path).st_blocks * SECTOR


class Direct:
    """A file or device opened with O_DIRECT: every access reaches the driver, once."""

    def __init__(self, path, flags=os.O_RDWR):
        self.fd = os.open(path, flags | os.O_DIRECT)
        self.buffer = mmap.mmap(-1, PIECE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes it."""
        os.close(self.fd)

    def read(self, pos, length):
        """Reads whole sectors; up to a mebibyte in one system call."""
        parts = []
        while length:
            part = min(length, PIECE)
            done = os.preadv(self.fd, [memoryview(self.buffer)[:part]], pos)
            if not done:
                break
            parts.append(self.buffer[:done])
            pos += done
            length -= done
        return b"".join(parts)

    def write(self, pos, data, flags=0):
        """Writes whole sectors; up to a mebibyte in one system call."""
        view = memoryview(data)
        while view:
            part = view[:PIECE]
            self.buffer[:len(part)] = part
            done = os.pwritev(self.fd, [memoryview(self.buffer)[:len(part)]], pos, flags)
            pos += done
            view = view[done:]

    def write_durably(self, pos, data):
        """The same; what was written is durable then: FUA, if this is a device."""
        self.write(pos, data, os.RWF_DSYNC)

    def flush(self):
        """A FLUSH, if this is a device."""
        os.fsync(self.fd)

    def zero(self, pos, length):
        """BLKZEROOUT."""
        fcntl.ioctl(self.fd, loopdev.BLKZEROOUT, struct.pack("=2Q", pos, length))

    def discard(self, pos, length):
        """BLKDISCARD."""
        fcntl.ioctl(self.fd, loopdev.BLKDISCARD, struct.pack("=2Q", pos, length))


def number_from(fd, request):
    """An ioctl that tells one int."""
    return struct.unpack("=i", fcntl.ioctl(fd, request, bytes(4)))[0]


def direct_read(path, pos, length):
    """Reads from a device, past its page cache."""
    with Direct(path, os.O_RDONLY) as device:
        return device.read(pos, length)


def direct_write(path, pos, data):
    """Writes to a device past its page cache, and flushes."""
    with Direct(path) as device:
        device.write(pos, data)
        device.flush()
