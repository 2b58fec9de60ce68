#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Attaching and detaching many times costs nothing that stays."""

import os

from lib import blockio, cgroup, images, loopdev, memory, modules, system, vhd
from lib.ktap import Failure, Suite, ensure, equal
from lib.system import run

MIB = vhd.MIB
CYCLES = 200
# Leaks are exact; what is allowed for is the kernel's own caches. Bytes over all cycles.
TOLERANCE = {"SUnreclaim": CYCLES * 64, "VmallocUsed": CYCLES * 256, "Percpu": CYCLES * 64,
             "pages of unknown use": CYCLES * 256}
suite = Suite()


def threads():
    """Names of kernel threads that have to do with loop devices."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                name = file.read().strip()
            if "loop" in name and not os.path.exists(f"/proc/{pid}/exe"):
                found.append(name)
        except OSError:
            continue
    return sorted(found)


def steady(cycle, cycles=CYCLES):
    """Fails if `cycles` cycles take memory that does not come back.

    Caches of the kernel grow in steps: a leak is what grows every time.
    """
    for number in range(cycles // 4 + 3):
        cycle(number)

    def grown():
        before = memory.settled()
        for number in range(cycles):
            cycle(number)
        after = memory.settled()
        return {name: after[name] - before[name] for name in after
                if after[name] - before[name] > TOLERANCE[name]}

    memory.not_always(grown, f"{cycles} cycles take bytes")


@suite.cases(vhd=True, raw=False)
def attach_write_detach(t, is_vhd):
    image = vhd.Dynamic(8 * MIB)
    image.put(0, blockio.pattern(65536))
    path = image.write(t.path("a"))
    if not is_vhd:
        path = blockio.make_sparse(t.path("raw"), 8 * MIB)

    def cycle(number):
        loop = loopdev.attach(path)
        with blockio.Direct(loop.path) as device:
            device.write(number % 16 * 4096, b"x" * 4096)
            device.read(0, 65536)
        loop.detach()

    steady(cycle)


@suite.test
def new_blocks(t):
    path = t.path("a.vhd")

    def cycle(_):
        with open(path, "wb") as file:
            file.truncate(0)
        vhd.Dynamic(8 * MIB, 65536).write(path)
        loop = loopdev.attach(path)
        with blockio.Direct(loop.path) as device:
            device.write(MIB - 512, b"x" * MIB)
        loop.detach()

    steady(cycle, CYCLES // 2)


@suite.test
def refused_attach(t):
    path = vhd.Dynamic(8 * MIB, header={"block_size": 0, "max_entries": 4}).write(t.path("a.vhd"))
    foreign = images.create(t.path("b"), MIB, "vmdk")
    t.stack.enter_context(modules.hidden("vmdkloop"))
    t.allow_log(r"loop\d+: refused: .*")
    t.allow_log(r".*kmsg.*|.*printk.*|.*callbacks suppressed")

    def cycle(number):
        try:
            loopdev.attach(foreign if number % 8 == 0 else path)
        except OSError:
            return
        raise Failure("attached")

    steady(cycle)


@suite.test
def errors(t):
    image = vhd.Dynamic(8 * MIB)
    image.put(0, blockio.pattern(65536))
    path = image.write(t.path("a.vhd"))
    vhd.patch(path, 0x600, bytes(4))
    t.allow_log(r".*I/O error.*|.*callbacks suppressed|.*loop.*")

    def cycle(_):
        loop = loopdev.attach(path)
        with blockio.Direct(loop.path) as device:
            for action in (lambda: device.read(0, 4096), lambda: device.write(0, b"x" * 4096)):
                try:
                    action()
                except OSError:
                    pass
        loop.detach()

    steady(cycle)


@suite.test
def threads_end_with_the_device(t):
    path = vhd.Dynamic(8 * MIB).write(t.path("a.vhd"))
    names = ["loop-parser warm-up"]
    for _ in range(2):
        before = threads()
        loops = [t.attach(path) for _ in range(8)]
        for loop in loops:
            blockio.direct_write(loop.path, 0, b"x" * 4096)
        for loop in loops:
            loop.detach()
        names = [name for name in threads() if not name.startswith("kworker")]
        before = [name for name in before if not name.startswith("kworker")]
    equal(names, before, "kernel threads")


@suite.test
def control_groups_are_let_go(t):
    """A device keeps a group that has done I/O on it for a minute or two, and not for ever. With
    LP_LONG=1 that is waited for twice."""
    path = blockio.make_sparse(t.path("a"), MIB)
    loop = t.attach(path)
    # Only what is below it is counted: groups of earlier tests may be let go meanwhile.
    above = cgroup.Group(t, "above", controllers=("io",))
    above.set("cgroup.subtree_control", "+io")
    for name in ("first", "second") if os.environ.get("LP_LONG") == "1" else ("first",):
        group = cgroup.Group(t, f"above/{name}", controllers=("io",))
        group.do_io(loop.path, "write", 0, MIB)
        group.remove()
        equal(above.dying(), 1, "groups that were removed and are in use")
        system.wait_until(lambda: not above.dying(), f"the {name} group is let go", 600)


@suite.test
def file_is_let_go(t):
    """The file system under the file can be unmounted at once."""
    folder = t.ext4(64)
    path = vhd.Dynamic(8 * MIB).write(os.path.join(folder, "a.vhd"))
    for _ in range(10):
        loop = t.attach(path)
        blockio.direct_write(loop.path, MIB, b"x" * 4096)
        loop.detach()
    run("umount", folder)


@suite.test
def file_is_let_go_after_a_refusal(t):
    folder = t.ext4(64)
    path = vhd.Dynamic(8 * MIB, header={"block_size": 0, "max_entries": 4}).write(
        os.path.join(folder, "a.vhd"))
    t.expect_log(r"loop\d+: refused: .*", 3)
    for _ in range(3):
        try:
            loopdev.attach(path)
        except OSError:
            continue
    run("umount", folder)


@suite.test
def modules_reload(t):
    """Loading, using and unloading, many times."""
    path = vhd.Dynamic(8 * MIB).write(t.path("a.vhd"))
    steady(lambda _: reload_and_use(path), 6)
    ensure(system.loaded("loop"), "loop is not loaded")


def reload_and_use(path):
    """One time."""
    system.unload_loop()
    system.load_loop("ours")
    loop = loopdev.attach(path)
    blockio.direct_write(loop.path, 0, b"x" * 4096)
    loop.detach()


if __name__ == "__main__":
    suite.main()
