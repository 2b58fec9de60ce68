# SPDX-License-Identifier: GPL-2.0
"""systemd as the first process of namespaces of its own, as in a container."""

import os
import subprocess

from lib import system
from lib.ktap import Failure
from lib.system import attempt, run

# $1: a folder for mounting. $2: what has to stay visible below /run. A fresh /run, and nothing in
# it but that, what udevd keeps there, and a program for chroots.
SETUP = """
set -e
mount -t proc proc /proc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir -p "$1/udev" "$1/${2#/run/}"
mount --rbind /run/udev "$1/udev"
mount --rbind "$2" "$1/${2#/run/}"
mount --rbind "$1" /run
exec /usr/lib/systemd/systemd --system --unit=selftest.target
"""
NAMESPACES = ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--propagation", "slave",
              "--fork", "--kill-child")
ENVIRONMENT = {"container": "selftest", "SYSTEMD_LOG_TARGET": "null", "SYSTEMD_GENERATOR_PATH": "",
               "SYSTEMD_ENVIRONMENT_GENERATOR_PATH": ""}


class Manager:
    """A running systemd that knows no units but `units`: file name to text."""

    def __init__(self, t, units):
        folder, place = t.path("units"), t.path("run")
        os.mkdir(folder)
        os.mkdir(place)
        for name, text in {"selftest.target": "", **units}.items():
            with open(os.path.join(folder, name), "w", encoding="ascii") as file:
                file.write(f"[Unit]\nDefaultDependencies=no\n{text}")
        self.group = own_group() + "/loop-selftest"
        os.mkdir(self.group)
        t.defer(self.stop)
        t.allow_log(r"\(\w+\)\[\d+\]: .*: Failed to connect stdout to the journal socket, .*")
        self.process = subprocess.Popen(
            ["sh", "-c", 'echo $$ >"$0/cgroup.procs"; exec unshare "$@"', self.group, *NAMESPACES,
             "sh", "-c", SETUP, "sh", place, system.scratch()],
            env={**os.environ, **ENVIRONMENT, "SYSTEMD_UNIT_PATH": folder},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        system.wait_until(self.answers, "systemd answers")

    def enter(self, *command):
        """A command line that runs a program beside systemd."""
        child = attempt("pgrep", "-P", str(self.process.pid)).stdout.strip()
        return "nsenter", "-t", child or "0", "-m", "-p", "-u", "-i", "-C", "-r", *command

    def answers(self):
        """Whether systemd has come up; fails if it has ended."""
        if self.process.poll() is not None:
            raise Failure(f"systemd has ended: {self.process.stdout.read().decode()}")
        state = attempt(*self.enter("systemctl", "is-active", "selftest.target"))
        return state.stdout.strip() == "active"

    def run(self, *command):
        """Runs a program in systemd's namespaces; what it printed."""
        return run(*self.enter(*command))

    def state(self, unit):
        """A unit's state, in a word."""
        return attempt(*self.enter("systemctl", "is-active", unit)).stdout.strip()

    def stop(self):
        """Ends systemd and all that it has started. Its mounts go with it."""
        with open(f"{self.group}/cgroup.kill", "w", encoding="ascii") as file:
            file.write("1")
        self.process.wait()
        self.process.stdout.close()
        for folder, _, _ in os.walk(self.group, topdown=False):
            system.wait_until(lambda folder=folder: is_removed(folder), f"{folder} is empty")


def is_removed(group):
    """Removes a control group; whether that worked."""
    try:
        os.rmdir(group)
    except OSError:
        return False
    return True


def own_group():
    """The control group of this process."""
    with open("/proc/self/cgroup", encoding="ascii") as file:
        return "/sys/fs/cgroup" + file.read().strip().rpartition(":")[2].rstrip("/")
