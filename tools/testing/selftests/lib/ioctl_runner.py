# SPDX-License-Identifier: GPL-2.0
"""Runs the ioctl table: a test per group, a record per row.

A record tells what the calls returned, all that can be seen of the device then, whether the device
stays bound when everybody has closed it, and what the kernel logged. Nothing is expected here:
run_in_vm compares the records of the two drivers.
"""

import os
import re

from lib import ioctl_rows_attach, ioctl_rows_bound, ioctl_rows_other, loopdev
from lib.ioctl_bench import Bench, renew
from lib.ktap import Suite, equal

TABLES = (ioctl_rows_attach, ioctl_rows_bound, ioctl_rows_other)
# What the rows are meant to provoke; it is part of their records.
ALLOW = [
    r"(loop: )?support for the xor transformation has been removed\.",
    r"(loop: )?support for cryptoloop has been removed\.  Use dm-crypt instead\.",
    r"(loop: )?deleting an unspecified loop device is not supported\.",
    r"(loop: )?loop_reread_partitions: partition scan of loop\d+ .* failed \(rc=-\d+\)",
    r"(Buffer )?I/O error.* dev loop\d+.*",
    r"operation not supported error, dev loop\d+, .*",
    r"loop\d+p\d+: partition table partially beyond EOD, (truncated|enabling native capacity)",
    r"loop\d+: p1 .* beyond EOD.*",
    r"loop\d+: partition table (partially )?beyond EOD, truncated",
    r" ?(Dev )?loop\d+: unable to read (partition table|RDB block \d+)",
    r"Invalid logical block size \(-?\d+\)",
    r"block device autoloading is deprecated and will be removed\.",
    r"Adding \d+k swap on .*",
    r"EXT4-fs .*",
]
# How often they come depends on the time, or on what was done before.
NOT_RECORDED = re.compile(r"I/O error|callbacks suppressed|EXT4-fs|not supported error|"
                          r"detected capacity change|unspecified loop device")


# For a 32-bit program: what has structures, numbers or pointers that are other ones there.
COMPAT = ("set_fd", "configure_rest", "set_status64", "set_status", "get_status", "change_fd",
          "set_block_size", "set_direct_io", "control", "unknown_calls", "questions")


def suite():
    """All of the table."""
    made = suite_of([name for table in TABLES for name in table.GROUPS])
    made.add("on_ext4", lambda t: run_rows(t, ext4_rows(), f"{t.ext4(64)}/rows"))
    return made


def suite_of(groups):
    """Some groups of the table."""
    made = Suite(allow=ALLOW)
    for table in TABLES:
        for name, rows in table.GROUPS.items():
            if name in groups:
                made.add(name, lambda t, rows=rows: run_rows(t, rows, t.path("rows")))
    return made


def ext4_rows():
    """Those that want their files on a disk."""
    return [(f"{group}: {name}", steps) for table in TABLES
            for group, rows in table.EXT4_GROUPS.items() for name, steps in rows]


def run_rows(t, rows, folder):
    """One group."""
    names = [name for name, _ in rows]
    equal(sorted(set(names)), sorted(names), "names of rows, each once")
    os.mkdir(folder)
    renew(loopdev.free())
    for number, (name, steps) in enumerate(rows):
        own = os.path.join(folder, str(number))
        os.mkdir(own)
        before = len(t.log.read())
        said = run_row(Bench(t, own), steps)
        t.record(name, f"{said}; log={logged(t.log.read()[before:])}")


def run_row(bench, steps):
    """One row: what it has to say."""
    try:
        said = [text for text in [step(bench) for step in steps] if text]
        return " ".join(said) + f"; {bench.state()}; in the end {bench.finish()}"
    finally:
        bench.clean_up()


def logged(lines):
    """Kernel log lines about loop devices. Messages of Rust modules begin with the module's name,
    those of the C driver do not."""
    texts = (re.sub(r"^loop: ", "", text) for _, text in lines)
    return [text for text in texts if re.search("loop|transformation|block size", text)
            and not NOT_RECORDED.search(text)]
