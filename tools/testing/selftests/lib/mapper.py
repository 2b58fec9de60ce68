# SPDX-License-Identifier: GPL-2.0
"""A device-mapper device over the RAM disk, whose behaviour can be switched under load."""

from lib import system
from lib.system import run

NAME = "selftest"
PATH = f"/dev/mapper/{NAME}"


def create(t, *lines):
    """Makes the device from (sectors, target) lines; returns its path."""
    run("dmsetup", "create", NAME, "--noudevsync", text=table(*lines))
    t.defer(remove)
    run("dmsetup", "mknodes")
    return PATH


def remove():
    """Removes it, if it is there."""
    if system.attempt("dmsetup", "info", NAME).returncode == 0:
        run("dmsetup", "remove", "--noudevsync", "--retry", NAME)


def table(*lines):
    """A table; the targets are linear, error, and lossy: it ignores writes without a word."""
    out, start = "", 0
    for sectors, target in lines:
        where = f"{system.RAM_DISK} {start}"
        arguments = {"linear": f"linear {where}", "error": "error",
                     "lossy": f"flakey {where} 0 3600 1 drop_writes"}[target]
        out += f"{start} {sectors} {arguments}\n"
        start += sectors
    return out


def switch(*lines):
    """Gives the device another table, from one request to the next; nothing is written back."""
    run("dmsetup", "load", NAME, text=table(*lines))
    run("dmsetup", "suspend", "--noudevsync", "--nolockfs", "--noflush", NAME)
    run("dmsetup", "resume", "--noudevsync", NAME)
