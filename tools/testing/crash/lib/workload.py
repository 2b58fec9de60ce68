# SPDX-License-Identifier: GPL-2.0
"""A guest at work: several tasks that write stamped sectors, overwrite them, and flush.

What they did is a list of lines, in the order in which it happened:

    init FIRST COUNT            sectors that had stamps of generation 0; all others were zero
    write GEN FIRST COUNT       a write begins: from now on the sectors may have these stamps
    zero GEN FIRST COUNT        the same with zeros
    discard GEN FIRST COUNT     from now on they may also be zero
    done GEN                    a write or zero has succeeded
    flush ID                    a flush begins
    detach ID                   the same; it makes the image be closed, too
    fua ID GEN                  a write begins that is durable by itself when it ends
    durable ID                  either has succeeded; then a mark ID goes into the log
"""

import ctypes
import os
import random
import threading
import time

from lib import stamps
from lib.blockio import Direct

SECTOR = 512
TASKS = 3
# Tasks take turns with so many sectors, beginning in the middle of a block.
REGION, SHIFT = 128, 20
SYNC_FILE_RANGE_WRITE = 2


class Journal:
    """What was done; shared by all tasks."""

    def __init__(self, marker):
        self.lines = []
        self.lock = threading.Lock()
        self.marker = marker
        self.generation = self.flushes = 0

    def begin(self, what, first, count):
        """A write, zero or discard begins; returns its generation."""
        with self.lock:
            self.generation += 1
            self.lines.append(f"{what} {self.generation} {first} {count}")
            return self.generation

    def done(self, generation):
        """It has succeeded."""
        with self.lock:
            self.lines.append(f"done {generation}")

    def flush(self):
        """A flush begins; returns its number."""
        return self.promise("flush")

    def detach(self):
        """The same of a detach."""
        return self.promise("detach")

    def promise(self, what):
        """What has succeeded is to be durable."""
        with self.lock:
            self.flushes += 1
            self.lines.append(f"{what} {self.flushes}")
            return self.flushes

    def fua(self, generation):
        """A write is to be durable when it ends; returns the number of that."""
        with self.lock:
            self.flushes += 1
            self.lines.append(f"fua {self.flushes} {generation}")
            return self.flushes

    def durable(self, number):
        """It has succeeded."""
        self.marker.mark(str(number))
        with self.lock:
            self.lines.append(f"durable {number}")


class Task(threading.Thread):
    """Works on the regions that are its own: no two writes to one sector are under way at once."""

    def __init__(self, journal, path, sectors, which, ops, seed):
        super().__init__()
        self.journal = journal
        self.sectors = sectors
        self.device = Direct(path)
        self.can_discard = can_discard(path)
        self.rng = random.Random(seed * TASKS + which)
        self.which = which
        self.ops = ops
        self.places = []
        self.error = None

    def run(self):
        try:
            for _ in range(self.ops):
                self.step()
        except Exception as error:  # pylint: disable=broad-except
            self.error = error
        finally:
            self.device.close()

    def step(self):
        """One write, zero, discard or flush."""
        chance = self.rng.random()
        if chance < 0.15:
            number = self.journal.flush()
            self.device.flush()
            self.journal.durable(number)
        elif chance < 0.20:
            self.write_fua(*self.place())
        elif chance < 0.25:
            self.zero(*self.place())
        elif chance < 0.32 and self.can_discard:
            self.discard(*self.place())
        else:
            self.write(*self.place())

    def place(self):
        """Where to write: often where something was written before."""
        if self.places and self.rng.random() < 0.35:
            return self.rng.choice(self.places)
        first = self.own_sector()
        left = min(REGION - (first + SHIFT) % REGION, self.sectors - first)
        count = 1 + int(left ** self.rng.random()) % left
        self.places.append((first, count))
        return first, count

    def own_sector(self):
        """A sector of one of the task's regions."""
        while True:
            sector = self.rng.randrange(self.sectors)
            if (sector + SHIFT) // REGION % TASKS == self.which:
                return sector

    def write(self, first, count):
        """A write."""
        generation = self.journal.begin("write", first, count)
        self.device.write(first * SECTOR, stamps.make(first, count, generation))
        self.journal.done(generation)

    def write_fua(self, first, count):
        """A write that is durable when it ends (O_DIRECT and O_DSYNC: FUA)."""
        generation = self.journal.begin("write", first, count)
        number = self.journal.fua(generation)
        self.device.write_durably(first * SECTOR, stamps.make(first, count, generation))
        self.journal.durable(number)


    def zero(self, first, count):
        """BLKZEROOUT: write-zeroes, or writes of zeros if the device has none."""
        generation = self.journal.begin("zero", first, count)
        self.device.zero(first * SECTOR, count * SECTOR)
        self.journal.done(generation)

    def discard(self, first, count):
        """BLKDISCARD: nothing is promised."""
        self.journal.begin("discard", first, count)
        self.device.discard(first * SECTOR, count * SECTOR)


def can_discard(path):
    """Whether a device advertises discards."""
    with open(f"/sys/block/{os.path.basename(path)}/queue/discard_max_bytes",
              encoding="ascii") as file:
        return int(file.read()) > 0


class Writeback(threading.Thread):
    """Writes dirty pages of the image's files, any of them and at any time, as the kernel may."""

    def __init__(self, paths, seed):
        super().__init__()
        self.files = [os.open(path, os.O_RDWR) for path in paths]
        self.rng = random.Random(seed)
        self.stop = threading.Event()
        self.libc = ctypes.CDLL(None, use_errno=True)

    def run(self):
        while not self.stop.is_set():
            file = self.rng.choice(self.files)
            size = os.lseek(file, 0, os.SEEK_END)
            first = self.rng.randrange(size) if self.rng.random() < 0.7 else 0
            length = self.rng.choice((4096, 65536, 1 << 20))
            self.libc.sync_file_range(file, ctypes.c_int64(first // 4096 * 4096),
                                      ctypes.c_int64(length), SYNC_FILE_RANGE_WRITE)
            time.sleep(self.rng.random() * 0.02)

    def end(self):
        """No more."""
        self.stop.set()
        self.join()
        for file in self.files:
            os.close(file)


def run(journal, device, files, sectors, ops, seed):
    """Lets all tasks do `ops` steps on a device of so many sectors, which is made of these files."""
    tasks = [Task(journal, device, sectors, which, ops, seed) for which in range(TASKS)]
    writeback = Writeback(files, seed)
    for thread in [writeback, *tasks]:
        thread.start()
    for task in tasks:
        task.join()
    writeback.end()
    for task in tasks:
        if task.error:
            raise task.error
