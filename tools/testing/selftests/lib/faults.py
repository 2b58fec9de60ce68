# SPDX-License-Identifier: GPL-2.0
"""Fault injection (Documentation/fault-injection): memory that is not to be had, broken disks.

Needs the debug kernel (tools/testing/vm/run --kernel debug). `Nth` fails the nth allocation that
the calling task makes while a function of the loop driver is on its stack, and no other.
"""

import contextlib
import errno
import os

DEBUGFS = "/sys/kernel/debug"
MEMORY = ("failslab", "fail_page_alloc", "fail_usercopy")
DEPTH = 32
# What a task that could not get memory, or not reach its own, is told.
ERRNOS = (errno.ENOMEM, errno.EFAULT)
# More than any operation here allocates.
NEVER = 1 << 20


def available():
    """Whether the kernel has fault injection."""
    return os.path.isdir(f"{DEBUGFS}/{MEMORY[0]}")


def write(path, value):
    """Writes a knob."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(value))


def driver_text(module="loop_parser"):
    """Where the code of a module is: first address, address behind the last function."""
    places = []
    with open("/proc/kallsyms", encoding="ascii") as file:
        for line in file:
            words = line.split()
            if len(words) == 4 and words[3] == f"[{module}]" and words[1] in "tT":
                places.append(int(words[0], 16))
    return min(places), (max(places) | 4095) + 1


def function_text(name):
    """Where a function of the kernel is: its address, and that of what follows."""
    with open("/proc/kallsyms", encoding="ascii") as file:
        lines = [line.split() for line in file]
    start = next(int(words[0], 16) for words in lines if words[2:] == [name])
    return start, min(at for at in (int(words[0], 16) for words in lines) if at > start)


@contextlib.contextmanager
def memory(start, end):
    """Lets allocations fail, once somebody says which, of tasks in code between two addresses."""
    for name in MEMORY:
        knobs = {"verbose": 0, "probability": 0, "times": 0, "stacktrace-depth": DEPTH,
                 "require-start": hex(start), "require-end": hex(end)}
        if name != "fail_usercopy":
            knobs["ignore-gfp-wait"] = "N"
        if name == "fail_page_alloc":
            knobs.update({"ignore-gfp-highmem": "N", "min-order": 0})
        for knob, value in knobs.items():
            write(f"{DEBUGFS}/{name}/{knob}", value)
    yield


@contextlib.contextmanager
def some_memory_fails(percent, names=("failslab", "fail_page_alloc")):
    """Within memory(): that many of a hundred allocations fail, of any task."""
    for name in names:
        write(f"{DEBUGFS}/{name}/times", -1)
        write(f"{DEBUGFS}/{name}/probability", percent)
    try:
        yield
    finally:
        for name in names:
            write(f"{DEBUGFS}/{name}/probability", 0)


@contextlib.contextmanager
def disk_fails(disk, percent=100):
    """Bios to a disk (a name as in /sys/block) fail with EIO."""
    knobs = {"verbose": 0, "interval": 1, "space": 0, "times": -1, "probability": percent}
    for knob, value in knobs.items():
        write(f"{DEBUGFS}/fail_make_request/{knob}", value)
    write(f"/sys/block/{disk}/make-it-fail", 1)
    try:
        yield
    finally:
        write(f"/sys/block/{disk}/make-it-fail", 0)
        write(f"{DEBUGFS}/fail_make_request/probability", 0)


class Nth:
    """Fails the nth allocation of this task."""

    def __init__(self):
        self.fd = os.open("/proc/self/fail-nth", os.O_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def call(self, number, function):
        """Calls a function; returns the OSError it raised, or None, and what was left of number."""
        error = None
        os.pwrite(self.fd, b"%d" % number, 0)
        try:
            function()
        except OSError as raised:
            error = raised
        left = int(os.pread(self.fd, 16, 0))
        os.pwrite(self.fd, b"0", 0)
        return error, left

    def count(self, function):
        """How many allocations a function makes that could fail; what it raises is passed on."""
        error, left = self.call(NEVER, function)
        if error:
            raise error
        return NEVER - left


def numbers(count, limit):
    """At most `limit` of 1 … count: all, or the first ones and then an even spread."""
    if count <= limit:
        return list(range(1, count + 1))
    first = limit // 2
    step = (count - first) / (limit - first)
    return list(range(1, first + 1)) + [first + int((i + 1) * step) for i in range(limit - first)]
