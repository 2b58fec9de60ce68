# SPDX-License-Identifier: GPL-2.0
"""A disk that several processes write to and discard at once, each of whose sectors can be checked.

Every sector says which one it is and how often it was written. A sector is written by one process
only, its owner; a block as a whole is discarded by one process only. When each of these things was
done is recorded for all to see, so that whoever reads a sector knows what it may hold. A read may
see a part of what is being done to the sector meanwhile, but every word of it must be right.
"""

import mmap
import struct
import time

from lib import blockio, images, jobs
from lib.ktap import Failure

SECTOR = 512
WORKERS = 4
ZERO = bytes(SECTOR)
CELL = struct.Struct("<QQ")
# What was done last to a block as a whole.
NOTHING, DISCARDED, ZEROED = range(3)
# How often a sector was written that nobody has written to since the image was made.
FIRST = 1


def cell(sector, version):
    """The content of a sector; version 0: zeros."""
    return CELL.pack(sector + 1, version) * (SECTOR // CELL.size) if version else ZERO


def first_content(size):
    """A disk that nobody has written to since it was made."""
    return b"".join(cell(sector, FIRST) for sector in range(size // SECTOR))


def numbers(count):
    """Numbers of 64 bits that processes made by fork share."""
    return memoryview(mmap.mmap(-1, max(count, 1) * 8)).cast("Q")


class Board:
    """What was done to a disk. `version`: of all sectors at the start: 0 if they are zeros."""

    def __init__(self, size, block_size, version):
        count = size // SECTOR
        self.size = size
        self.block_size = block_size
        self.blocks = size // block_size
        self.versions, self.begun, self.done = numbers(count), numbers(count), numbers(count)
        self.newest = numbers(count)
        self.trims = [numbers(self.blocks) for _ in range(3)]
        for sector in range(count):
            self.versions[sector] = self.newest[sector] = version

    def block_of(self, sector):
        """The number of the block that a sector is in."""
        return sector * SECTOR // self.block_size

    def write(self, device, sector):
        """The owner writes the next version."""
        version = self.newest[sector] + 1
        self.newest[sector] = version
        self.store(sector, version, lambda: device.write(sector * SECTOR, cell(sector, version)))

    def clear(self, device, sector):
        """The owner makes it zero."""
        self.store(sector, 0, lambda: device.zero(sector * SECTOR, SECTOR))

    def store(self, sector, version, action):
        """Does what changes a sector, and records it."""
        begun = time.monotonic_ns()
        action()
        self.versions[sector] = version
        self.begun[sector], self.done[sector] = begun, time.monotonic_ns()

    def trim(self, device, block, kind):
        """Discards or zeroes a block as a whole."""
        begun, done, kinds = self.trims
        done[block], kinds[block] = 0, kind
        begun[block] = time.monotonic_ns()
        action = device.zero if kind == ZEROED else device.discard
        action(block * self.block_size, self.block_size)
        done[block] = time.monotonic_ns()

    def last_trim(self, block):
        """(begun, done, kind) of what was done last to a block; done is 0 while it goes on."""
        return tuple(values[block] for values in self.trims)

    def check(self, device, sector, own=True):
        """Reads a sector, of which nobody else writes meanwhile if it is one's own."""
        block = self.block_of(sector)
        before = self.last_trim(block)
        data = device.read(sector * SECTOR, SECTOR)
        after = self.last_trim(block)
        if own:
            self.judge(sector, data, before, after)
        else:
            self.glance(sector, data)

    def judge(self, sector, data, before, after):
        """Fails unless a sector holds what it must, if nobody is writing to it."""
        version = self.versions[sector]
        allowed = [cell(sector, version)]
        begun, done, kind = after
        if kind != NOTHING and not (before == after and done and done < self.begun[sector]):
            allowed.append(ZERO)
        quiet = before == after and done
        if quiet and kind == ZEROED and begun > self.done[sector]:
            allowed = [ZERO]
        if data not in allowed and (quiet or kind == NOTHING or not mixed(data, allowed)):
            raise Failure(f"sector {sector}: {described(data)}, expected "
                          f"{' or '.join(map(described, allowed))}; its last write took from "
                          f"{self.begun[sector]} to {self.done[sector]}, the last discard of its "
                          f"block {before}, {after}")

    def glance(self, sector, data):
        """Fails unless all words of a sector were once written to it."""
        if data == ZERO:
            return
        newest = self.newest[sector]
        for number, version in CELL.iter_unpack(data):
            if number not in (0, sector + 1) or version > newest:
                raise Failure(f"sector {sector}: {described(data)}; version {newest} is the newest")

    def judge_all(self, content, what):
        """Judges a whole disk that nobody changes."""
        for sector in range(self.size // SECTOR):
            trim = self.last_trim(self.block_of(sector))
            try:
                self.judge(sector, content[sector * SECTOR:(sector + 1) * SECTOR], trim, trim)
            except Failure as failure:
                raise Failure(f"{what}: {failure}") from failure


def mixed(data, allowed):
    """Whether each word of a sector is from one of several contents."""
    return all(word in words for word, *words in zip(*(memoryview(each).cast("Q")
                                                       for each in (data, *allowed))))


def described(data):
    """What a sector holds."""
    if data == ZERO:
        return "zeros"
    number, version = CELL.unpack(data[:CELL.size])
    if number and data == cell(number - 1, version):
        return f"version {version} of sector {number - 1}"
    return f"neither: {data[:16].hex()} … {data[-16:].hex()}"


class Worker:
    """A process's part in it: sectors that are dealt out one by one in turn, and blocks, too."""

    def __init__(self, board, open_device, number, workers):
        self.board = board
        self.open_device = open_device
        self.number = number
        self.workers = workers
        self.device = None

    def actions(self):
        """What a job does; a function that is there twice is done more often."""
        return [self.write, self.write, self.write, self.run, self.check, self.check,
                self.look, self.trim, self.clear, self.flush]

    def ready(self):
        """The device, opened by the process that uses it."""
        if self.device is None:
            self.device = self.open_device()
        return self.device

    def own(self, rng):
        """One of its sectors."""
        return rng.randrange(self.board.size // SECTOR // self.workers) * self.workers + self.number

    def write(self, rng):
        """Writes to a sector."""
        self.board.write(self.ready(), self.own(rng))

    def run(self, rng):
        """Writes to all its sectors of a page's length or two, and reads them back."""
        first = self.own(rng)
        for sector in range(first, min(first + 16, self.board.size // SECTOR), self.workers):
            self.board.write(self.ready(), sector)
            self.board.check(self.ready(), sector)

    def check(self, rng):
        """Reads a sector that nobody else writes."""
        self.board.check(self.ready(), self.own(rng))

    def look(self, rng):
        """Reads sectors of others, in one go: requests that are written or discarded meanwhile."""
        first = rng.randrange(self.board.size // SECTOR - 128)
        data = self.ready().read(first * SECTOR, 128 * SECTOR)
        for at in range(128):
            self.board.glance(first + at, data[at * SECTOR:(at + 1) * SECTOR])

    def trim(self, rng):
        """Discards a block, or makes it zero."""
        block = rng.randrange(self.board.blocks // self.workers) * self.workers + self.number
        self.board.trim(self.ready(), block, rng.choice((DISCARDED, DISCARDED, ZEROED)))

    def clear(self, rng):
        """Makes a sector zero."""
        self.board.clear(self.ready(), self.own(rng))

    def flush(self, _):
        """A FLUSH."""
        self.ready().flush()


def finish(board, loops):
    """Judges what all the devices of an image show, and detaches them; returns what that is."""
    for loop in loops:
        loop.drop_cache()
        board.judge_all(images.whole(loop), loop.path)
    content = images.whole(loops[0])
    for loop in loops:
        loop.detach()
    return content


def start(t, board, loops, seconds, with_discards=True):
    """Starts workers on these devices of one image, in turn."""
    workers = [Worker(board, lambda loop=loops[number % len(loops)]: blockio.Direct(loop.path),
                      number, WORKERS) for number in range(WORKERS)]
    return [jobs.Job(t, worker.number,
                     [action for action in worker.actions() if with_discards or action != worker.trim],
                     seconds)
            for worker in workers]
