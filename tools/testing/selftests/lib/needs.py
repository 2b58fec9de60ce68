# SPDX-License-Identifier: GPL-2.0
"""What not every kernel has, the small debug kernel least of all. A test that needs it is skipped
where it is missing."""

import os

from lib import system


class Skip(Exception):
    """The test cannot be done here; the reason is printed and the skip is counted."""


def file(path):
    """A file of /proc or /sys."""
    if not os.path.exists(path):
        raise Skip(f"this kernel has no {path}")


def file_system(name):
    """A file system."""
    if not system.has_file_system(name):
        raise Skip(f"this kernel has no {name}")


def module(name):
    """What a module brings, if it is not built in."""
    if system.attempt("modprobe", "--dry-run", "--quiet", name).returncode:
        raise Skip(f"this kernel has no {name}")
