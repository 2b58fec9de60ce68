#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Most of the table of raw_ioctl, by a 32-bit program: this one, run again by the Python below /opt/i386.

That Python is loaded by its own loader from where it is, so that everything else (files, devices,
programs to run) is as in any other suite.
"""

import os
import struct
import sys

from lib import ioctl_runner
from lib.ktap import Skip, Suite

HOME = "/opt/i386"
LOADER = [f"{HOME}/usr/lib/ld-linux.so.2", "--library-path", f"{HOME}/usr/lib/i386-linux-gnu",
          f"{HOME}/usr/bin/python3"]


def run_in_32_bits():
    """Becomes a 32-bit process."""
    os.execve(LOADER[0], [*LOADER, *sys.argv], {**os.environ, "PYTHONHOME": f"{HOME}/usr"})


def skipped(_):
    """Stands for the whole table."""
    raise Skip(f"there is no 32-bit Python below {HOME}")


if __name__ == "__main__":
    if struct.calcsize("P") == 4:
        del os.environ["PYTHONHOME"]
        ioctl_runner.suite_of(ioctl_runner.COMPAT).main()
    elif os.path.exists(LOADER[-1]):
        run_in_32_bits()
    else:
        suite = Suite()
        suite.add("all", skipped)
        suite.main()
