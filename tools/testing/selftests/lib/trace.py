# SPDX-License-Identifier: GPL-2.0
"""Kernel trace events, in a trace instance of our own."""

import contextlib
import os
import re

from lib import needs

INSTANCE = "/sys/kernel/tracing/instances/loop-selftests"
PROBES = "/sys/kernel/tracing/kprobe_events"
# "  comm-pid  [cpu] flags time: event: fields"
LINE = re.compile(r".*?\[\d+\] \S+ +[\d.]+: (\w+): (.*)")


class Trace:
    """What was traced while a `with` block ran."""

    def __init__(self):
        self.events = []

    def named(self, name):
        """The text of all events of one name."""
        return [text for event, text in self.events if event == name]

    def fields(self, name, pattern):
        """What the groups of a regular expression caught in each event of one name."""
        found = [re.search(pattern, text) for text in self.named(name)]
        return [match.groups() for match in found if match]


@contextlib.contextmanager
def tracing(*events, device=None):
    """Traces events like "ext4/ext4_fallocate_enter"; of one device, if its node is given."""
    trace = Trace()
    os.mkdir(INSTANCE)
    try:
        # The same on all processors.
        write("trace_clock", "mono")
        for event in events:
            if device:
                write(f"events/{event}/filter", f"dev == {number(device)}")
            write(f"events/{event}/enable", "1")
        yield trace
        for event in events:
            write(f"events/{event}/enable", "0")
        with open(f"{INSTANCE}/trace", encoding="utf-8", errors="replace") as file:
            found = [LINE.match(line.rstrip("\n")) for line in file]
        trace.events.extend(match.groups() for match in found if match)
    finally:
        os.rmdir(INSTANCE)


@contextlib.contextmanager
def calls(function):
    """Two events for tracing() while a `with` block runs: "called" and "returned", of a function of
    the kernel."""
    needs.file(PROBES)
    probes = {"called": "p", "returned": "r"}
    with contextlib.ExitStack() as stack:
        for name, kind in probes.items():
            append(PROBES, f"{kind}:selftests/{name} {function}")
            stack.callback(append, PROBES, f"-:selftests/{name}")
        yield [f"selftests/{name}" for name in probes]


def append(path, line):
    """Adds a line to a file of tracefs, in which there is no seeking to the end."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, f"{line}\n".encode("ascii"))
    finally:
        os.close(fd)


def number(path):
    """A device number as the kernel has it in memory."""
    device = os.stat(path).st_rdev
    return os.major(device) << 20 | os.minor(device)


def write(name, text):
    """Writes to a file of the instance."""
    with open(f"{INSTANCE}/{name}", "w", encoding="ascii") as file:
        file.write(f"{text}\n")
