# SPDX-License-Identifier: GPL-2.0
"""The kernel log during one test: what may appear in it, what must, and nothing else."""

import errno
import os
import re

WARNING = 4

# Lines about loop devices, and lines of warning level or worse, that are as they should be. Any
# other such line fails the test that it appears in.
ALWAYS_FINE = [
    r"loop\d+: detected capacity change from \d+ to \d+",
    r" ?loop\d+:( p\d+( <[p0-9 ]*>)?)*",
    r"loop: module loaded",
    r"loop\d+: vhd (dynamic|fixed|differencing) image, \d+ bytes, (read-only|read-write)",
    r"loop\d+: (qcow v1|qcow2 v[23]) image, \d+ bytes, (read-only|read-write)",
    r"loop\d+: vmdk \w+( \w+)? image, \d+ bytes, (read-only|read-write)",
    r"EXT4-fs \((loop|ram)\d+(p\d+)?\): (un)?mount(ed|ing) filesystem .*",
    r"(loop|loop_parser|qcowloop|vhdloop|vmdkloop): loading out-of-tree module taints kernel\.",
    r"(loop|loop_parser|qcowloop|vhdloop|vmdkloop): module verification failed: .*",
    r"brd: module (un)?loaded",
    # Programs that look at all block devices open nodes whose device has just gone.
    r"block device autoloading is deprecated and will be removed\.",
    # Comes with the next message of its kind, which may be another test's: what was suppressed were
    # messages like those that the earlier test allowed.
    r".*: \d+ callbacks suppressed",
    # The debug kernel keeps a record of it.
    r".* used greatest stack depth: .*",
    # What a busy host does to an emulated guest.
    r"clocksource: .*",
    r"hrtimer: interrupt took .*",
    r"perf: interrupt took too long .*",
    r"sched: DL replenish lagged too much",
    r"systemd-udevd\[\d+\]: \S+: Worker \[\d+\] processing SEQNUM=\d+ is taking a long time",
    r"workqueue: (?!loop)\S+ hogged CPU .*",
]

# For `Suite(allow=…)`: a tmpfs has no way to zero a range; the block layer then writes zeros.
NO_ZERO_RANGE = r"operation not supported error, dev loop\d+, .* op 0x9:\(WRITE_ZEROES\) .*"

# A record's first line; what follows it (a dictionary) is of no interest. The flag c: it goes on with
# a line that had no end, and that another message came behind.
RECORD = re.compile(r"(\d+),\d+,\d+,(.)[^;]*;(.*)")
# In front of a device's name, the module's does not matter.
MODULE_PREFIX = re.compile(r"^loop: (?=loop\d)")


class Log:
    """Kernel log lines that came after this object was made."""

    def __init__(self):
        self.expected = []
        self.allowed = [re.compile(pattern) for pattern in ALWAYS_FINE]
        self.file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.file, 0, os.SEEK_END)
        self.lines = []

    def expect(self, pattern, count=1):
        """Exactly `count` lines will match the whole of `pattern`."""
        self.expected.append((re.compile(pattern), count))

    def allow(self, pattern):
        """Lines that match the whole of `pattern` are fine, whether or not they come."""
        self.allowed.append(re.compile(pattern))

    def read(self):
        """All lines so far as (level, text)."""
        while True:
            try:
                record = os.read(self.file, 8192).decode(errors="replace")
            except BlockingIOError:
                return self.lines
            except OSError as error:
                if error.errno == errno.EPIPE:
                    self.lines.append((0, "the test lost kernel log lines"))
                    continue
                raise
            level, flag, text = RECORD.match(record).groups()
            if flag != "c" or not self.go_on(text):
                self.lines.append((int(level) & 7, MODULE_PREFIX.sub("", text)))

    def go_on(self, text):
        """Puts the end of a line where its beginning is: the last one that ends with a blank. The kernel
        prints what the partition scan says of a partition past the end in two pieces."""
        for number in reversed(range(len(self.lines))):
            level, begun = self.lines[number]
            if begun.endswith(" "):
                self.lines[number] = level, begun + text
                return True
        return False

    def matching(self, pattern):
        """The lines so far that match the whole of `pattern`."""
        regex = re.compile(pattern)
        return [text for _, text in self.read() if regex.fullmatch(text)]

    def problems(self):
        """Closes the log and says what is missing from it or should not be there."""
        lines = [(level, text) for level, text in self.read() if self.notable(level, text)]
        os.close(self.file)
        found = []
        for regex, count in self.expected:
            hits = [line for line in lines if regex.fullmatch(line[1])]
            lines = [line for line in lines if line not in hits]
            if len(hits) != count:
                found.append(f"{len(hits)} log lines match '{regex.pattern}', expected {count}")
                found.extend(f"  {text}" for _, text in hits)
        found.extend(f"unexpected in the kernel log: {text}" for _, text in lines
                     if not any(regex.fullmatch(text) for regex in self.allowed))
        return found

    def notable(self, level, text):
        """Whether a line has to be accounted for."""
        return (level <= WARNING or "loop" in text
                or any(regex.fullmatch(text) for regex, _ in self.expected))
