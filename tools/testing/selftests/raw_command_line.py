#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Parameters on the kernel's command line.

Needs a machine of its own, started with COMMAND_LINE; run_in_vm runs this suite only if it is
named. The stock driver passes it, too.
"""

import errno
import os
import shutil
import stat

from lib import blockio, loopdev, modules, system
from lib.ktap import Suite, ensure, equal, fails_with
from lib.system import run

COMMAND_LINE = "loop.max_loop=3 loop.max_part=7 loop.hw_queue_depth=16 max_loop=5 max_part=1"
PARAMETERS = "/sys/module/loop/parameters"
# A node that has no device was opened; see block/bdev.c.
suite = Suite()


def modprobe(t, *params):
    """Loads the driver in use by modprobe, which reads the command line; insmod does not.

    The distribution's module is found in a folder of modules that has no others of its name.
    """
    root = t.path("root")
    release = os.uname().release
    if system.driver_in_use() == "ours":
        command = ["modprobe"]
    else:
        folder = f"{root}/lib/modules/{release}"
        os.makedirs(folder, exist_ok=True)
        shutil.copy(system.stock_loop(), folder)
        run("depmod", "-b", root, release)
        command = ["modprobe", "-d", root]
    modules.delete("loop")
    run(*command, "loop", *params)


def parameters():
    """What the parameters of the stock driver show."""
    return [int(blockio.content(f"{PARAMETERS}/{name}"))
            for name in ("max_loop", "max_part", "hw_queue_depth")]


def devices():
    """The names of all loop devices."""
    return sorted(name for name in os.listdir("/sys/block") if name.startswith("loop"))


@suite.test
def command_line_of_the_machine(_):
    words = blockio.content("/proc/cmdline").decode().split()
    missing = [word for word in COMMAND_LINE.split() if word not in words]
    equal(missing, [], "words that are not on the command line")


@suite.test
def names_with_the_module_in_front_count(t):
    """Those without it do so only for a driver that is built in."""
    modprobe(t)
    equal(parameters(), [3, 7, 16], "parameters")
    equal(devices(), ["loop0", "loop1", "loop2"], "devices")
    equal(os.stat("/dev/loop2").st_rdev, os.makedev(7, 16), "device number")
    equal(loopdev.Loop(0).attr("queue/nr_requests"), "16", "nr_requests")


@suite.test
def limit_holds_for_nodes(t):
    modprobe(t)
    os.mknod(t.path("node"), 0o600 | stat.S_IFBLK, os.makedev(7, 24))
    fails_with(errno.ENXIO, os.open, t.path("node"), os.O_RDONLY)
    equal(loopdev.add(3).number, 3, "device above the limit")
    ensure("loop3" in devices(), "loop3 is not there")


@suite.test
def arguments_of_modprobe_win(t):
    modprobe(t, "max_loop=2", "max_part=15")
    equal(parameters(), [2, 15, 16], "parameters")
    equal(devices(), ["loop0", "loop1"], "devices")


@suite.test
def insmod_does_not_read_it(_):
    path = modules.loop_file(system.driver_in_use())
    modules.delete("loop")
    modules.insert(path)
    equal(parameters(), [8, 0, 128], "parameters")


if __name__ == "__main__":
    with modules.parsers_unloaded():
        suite.main()
