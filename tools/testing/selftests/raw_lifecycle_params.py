#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Module parameters: which values are taken, what they do, how they are shown.

The stock driver passes this suite, too: outcomes are recorded, and have to be the same.
"""

import os

from lib import blockio, loopdev, modules, system
from lib.ktap import Suite, ensure, equal, name_of
from lib.system import run

PARAMETERS = "/sys/module/loop/parameters"
NAMES = ("hw_queue_depth", "max_loop", "max_part")
PATH = modules.loop_file(system.driver_in_use())
MIB = 1 << 20
LOG = [r"loop: `.*' invalid for parameter `.*'", r"loop: unknown parameter '.*' ignored"]
suite = Suite(allow=LOG)


def devices():
    """The numbers of all loop devices."""
    names = (name[4:] for name in os.listdir("/sys/block") if name.startswith("loop"))
    return sorted(int(name) for name in names)


def value(name):
    """What a parameter shows."""
    return blockio.content(f"{PARAMETERS}/{name}").decode()


def summary():
    """What the driver has made of its parameters."""
    first = loopdev.Loop(devices()[0]) if devices() else loopdev.add(0)
    second = loopdev.Loop(1) if 1 in devices() else loopdev.add(1)
    numbers = [os.stat(loop.path).st_rdev for loop in (first, second)]
    return {"parameters": {name: value(name) for name in NAMES}, "devices": len(devices()),
            "minors": [os.minor(number) for number in numbers],
            **{name: first.attr(name) for name in ("range", "ext_range", "partscan",
                                                   "queue/nr_requests", "mq/0/nr_tags")}}


@suite.cases(
    none="", max_loop_0="max_loop=0", max_loop_1="max_loop=1", max_loop_5="max_loop=5",
    max_loop_hexadecimal="max_loop=0x11", max_loop_negative="max_loop=-1",
    max_loop_bad="max_loop=5x",
    max_loop_empty="max_loop=", max_loop_alone="max_loop", max_loop_wide="max_loop=99999999999",
    max_loop_huge="max_loop=1048577", max_loop_too_many_for_max_part="max_loop=4097 max_part=255",
    max_loop_twice="max_loop=3 max_loop=4", max_part_0="max_part=0", max_part_1="max_part=1",
    max_part_7="max_part=7", max_part_8="max_part=8", max_part_15="max_part=15",
    max_part_255="max_part=255", max_part_256="max_part=256", max_part_300="max_part=300",
    max_part_largest="max_part=2147483647", max_part_negative="max_part=-1",
    max_part_bad="max_part=many", depth_0="hw_queue_depth=0", depth_1="hw_queue_depth=1",
    depth_32="hw_queue_depth=32", depth_octal="hw_queue_depth=010",
    depth_negative="hw_queue_depth=-1", depth_bad="hw_queue_depth=12k",
    depth_empty="hw_queue_depth=", depth_wide="hw_queue_depth=4294967297",
    all_three="max_loop=2 max_part=31 hw_queue_depth=64", unknown="nonesuch=1 max_loop=2")
def loaded_with(t, params):
    """What is loaded at the beginning was loaded by the case before."""
    if system.loaded("loop"):
        modules.delete("loop")
    try:
        modules.insert(PATH, params)
        t.record("loaded", summary())
    except OSError as error:
        t.record("refused", name_of(error.errno))
        ensure(not system.loaded("loop"), "loaded nevertheless")


@suite.test
def loaded_without_parameters_again(_):
    if system.loaded("loop"):
        modules.delete("loop")
    modules.insert(PATH)
    ensure(len(devices()) == 8 and value("max_part") == "0\n", "something is left of the others")


@suite.test
def depth_above_what_the_block_layer_has(t):
    t.expect_log(r"blk-mq: reduced tag depth to \d+", 2)
    with modules.loaded_with("hw_queue_depth=20000 max_loop=0"):
        t.record("loaded", summary())


@suite.test
def small_depth_serves_all(t):
    path = blockio.make_sparse(t.path("a"), 4 * MIB)
    with modules.loaded_with("hw_queue_depth=1"):
        loop = loopdev.attach(path)
        data = blockio.pattern(4 * MIB)
        blockio.direct_write(loop.path, 0, data)
        ensure(loop.read(0, 4 * MIB) == data, "content of the device")
        loop.detach()
    ensure(blockio.content(path) == data, "content of the file")


@suite.test
def files_of_the_parameters(t):
    for name in NAMES:
        path = f"{PARAMETERS}/{name}"
        status = os.stat(path)
        t.record(name, (oct(status.st_mode), status.st_uid, status.st_gid))
        try:
            with open(path, "wb", buffering=0) as file:
                file.write(b"1\n")
            t.record(f"writing {name}", "done")
        except OSError as error:
            t.record(f"writing {name}", name_of(error.errno))
    ensure(set(NAMES) <= set(os.listdir(PARAMETERS)), "a parameter is missing")


@suite.test
def module_information(t):
    """What modprobe and modinfo know, for the names that the stock driver has."""
    path = modules.loop_file(system.driver_in_use())
    for alias in sorted(run("modinfo", "-F", "alias", path).splitlines()):
        t.record("alias", alias)
    for line in sorted(run("modinfo", "-F", "parm", path).splitlines()):
        if line.partition(":")[0] in NAMES:
            t.record("parameter", line)
    equal(run("modinfo", "-F", "license", path).strip().startswith("GPL"), True, "license")


if __name__ == "__main__":
    with modules.parsers_unloaded():
        suite.main()
