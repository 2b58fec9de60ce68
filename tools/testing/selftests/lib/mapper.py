# SPDX-License-Identifier: GPL-2.0
"""A device-mapper device over the RAM disk, whose behaviour can be switched under load."""

from lib import system
from lib.system import run
from lib.tasks import Task

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
    """A table; the targets are linear, error, lossy: it ignores writes without a word, and slow:
    a write or a flush takes three seconds."""
    out, start = "", 0
    for sectors, target in lines:
        where = f"{system.RAM_DISK} {start}"
        arguments = {"linear": f"linear {where}", "error": "error",
                     "lossy": f"flakey {where} 0 3600 1 drop_writes",
                     "slow": f"delay {where} 0 {where} 3000"}[target]
        out += f"{start} {sectors} {arguments}\n"
        start += sectors
    return out


def hang(t):
    """From now on every request to the device waits."""
    run("dmsetup", "suspend", "--noudevsync", "--nolockfs", "--noflush", NAME)
    t.defer(go_on)


def go_on():
    """Lets it go on."""
    run("dmsetup", "resume", "--noudevsync", NAME)


def hanging(t, function):
    """A task that waits for the device by now, and ends with the test."""
    task = Task(function)
    t.defer(task.outcome)
    t.defer(go_on)
    task.wait_until_it_hangs()
    return task


def switch(*lines):
    """Gives the device another table, from one request to the next; nothing is written back."""
    run("dmsetup", "load", NAME, text=table(*lines))
    run("dmsetup", "suspend", "--noudevsync", "--nolockfs", "--noflush", NAME)
    run("dmsetup", "resume", "--noudevsync", NAME)
