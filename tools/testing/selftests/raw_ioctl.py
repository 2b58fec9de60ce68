#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A table of ioctls: states of a device, calls, arguments (lib/ioctl_rows_*.py). The stock driver
says what is right."""

from lib import ioctl_runner

suite = ioctl_runner.suite()

if __name__ == "__main__":
    suite.main()
