# SPDX-License-Identifier: GPL-2.0
"""Processes that do one thing, which may hang."""

import errno
import os
import signal
import time

from lib import system


class Task:
    """A child that calls a function. Its outcome: "done", the name of an errno, or "killed"."""

    def __init__(self, function):
        self.pid = os.fork()
        if not self.pid:
            os._exit(number_of(function))
        self.status = None

    def ended(self):
        """Whether it has."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def kill(self):
        """SIGKILL."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)

    def outcome(self):
        """Waits for its end."""
        system.wait_until(self.ended, f"process {self.pid} has ended")
        if os.WIFSIGNALED(self.status):
            return "killed"
        number = os.WEXITSTATUS(self.status)
        return errno.errorcode.get(number, str(number)) if number else "done"

    def wait_until_it_hangs(self):
        """Waits until it sleeps without an end in sight: in one state, for half a second."""
        system.wait_until(self.hangs, f"process {self.pid} hangs")

    def hangs(self):
        """Whether it sleeps, uninterruptibly, whenever one looks."""
        for _ in range(10):
            if state(self.pid) != "D":
                return False
            time.sleep(0.05)
        return True


def number_of(function):
    """Calls a function; 0 or the errno it failed with."""
    try:
        function()
    except OSError as error:
        return error.errno
    return 0


def state(pid):
    """The state of a process, as a letter."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]
