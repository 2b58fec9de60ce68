# SPDX-License-Identifier: GPL-2.0
"""Control groups (version 2) for tests, and programs in them."""

import os
import subprocess
import sys

from lib import system

ROOT = "/sys/fs/cgroup"
HERE = os.path.dirname(os.path.abspath(__file__))
# So little that it is one request, however many pages of the memory lie side by side.
PIECE = 512 << 10

# What a child does with a device: reads or writes it sequentially with O_DIRECT, so that the
# device's own page cache is out of the picture.
CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from lib import blockio
path, what, pos, length, piece = sys.argv[2], sys.argv[3], *map(int, sys.argv[4:7])
with blockio.Direct(path) as device:
    for at in range(pos, pos + length, piece):
        if what == "read":
            device.read(at, piece)
        else:
            device.write(at, blockio.pattern(piece, at))
    if what == "write_and_flush":
        device.flush()
"""


class Group:
    """A control group that exists for the time of a test."""

    def __init__(self, t, name, controllers=("io", "memory")):
        enable(t, controllers)
        self.path = os.path.join(ROOT, name)
        os.mkdir(self.path)
        t.defer(self.remove)

    def remove(self):
        """Ends what runs in the group and removes it, unless that was done."""
        if not os.path.isdir(self.path):
            return
        self.set("cgroup.kill", 1)
        system.wait_until(lambda: not self.get("cgroup.procs"), "the group is empty")
        os.rmdir(self.path)

    def get(self, name):
        """The content of one of its files."""
        with open(os.path.join(self.path, name), encoding="ascii") as file:
            return file.read().strip()

    def set(self, name, value):
        """Writes to one of its files."""
        with open(os.path.join(self.path, name), "w", encoding="ascii") as file:
            file.write(f"{value}\n")

    def memory(self, key):
        """A number of memory.stat, in bytes or events."""
        return dict(line.split() for line in self.get("memory.stat").splitlines())[key]

    def io(self, device):
        """The numbers of io.stat for a block device, by name; all 0 if it has none."""
        number = os.stat(device).st_rdev
        name = f"{os.major(number)}:{os.minor(number)}"
        numbers = dict.fromkeys(("rbytes", "wbytes", "rios", "wios", "dbytes", "dios"), 0)
        for line in self.get("io.stat").splitlines():
            first, *pairs = line.split()
            if first == name:
                found = dict(pair.split("=") for pair in pairs)
                numbers.update((key, int(found[key])) for key in numbers if key in found)
        return numbers

    def dying(self):
        """How many groups below it were removed and are referred to yet."""
        numbers = dict(line.split() for line in self.get("cgroup.stat").splitlines())
        return int(numbers["nr_dying_descendants"])

    def popen(self, *args):
        """Starts a program in the group."""
        script = 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"'
        return subprocess.Popen(["sh", "-c", script, "sh", self.path, *args],
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")

    def run(self, *args):
        """Runs a program in the group; fails if it does."""
        finish(self.popen(*args))

    def start_io(self, device, what, pos, length, piece=PIECE):
        """Starts direct I/O on a device, `what` being read, write, or write_and_flush."""
        return self.popen(sys.executable, "-c", CHILD, os.path.dirname(HERE), device, what,
                          str(pos), str(length), str(piece))

    def do_io(self, device, what, pos, length, piece=PIECE):
        """The same, to its end."""
        finish(self.start_io(device, what, pos, length, piece))


def finish(process):
    """Waits for a program that has to succeed; returns what it printed."""
    output, _ = process.communicate()
    if process.returncode:
        raise OSError(f"exit status {process.returncode}: {output.strip()}")
    return output


def enable(t, controllers):
    """Turns controllers on for the groups below the root, until the test ends."""
    path = os.path.join(ROOT, "cgroup.subtree_control")
    with open(path, encoding="ascii") as file:
        have = file.read().split()
    for name in controllers:
        if name not in have:
            write(path, f"+{name}")
            t.defer(write, path, f"-{name}")


def write(path, text):
    """Writes a line to a file."""
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{text}\n")
