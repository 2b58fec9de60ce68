# SPDX-License-Identifier: GPL-2.0
"""Memory that the kernel holds for itself, counted as exactly as it can be."""

import contextlib
import gc
import glob
import os

from lib import loopdev, needs
from lib.ktap import Failure


def meminfo():
    """/proc/meminfo, in bytes."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = (line.split() for line in file)
        return {field[0][:-1]: int(field[1]) << 10 for field in fields}


def free_per_cpu():
    """Bytes of free pages that processors keep for themselves; MemFree does not count them."""
    with open("/proc/zoneinfo", encoding="ascii") as file:
        lines = (line.split() for line in file)
        return sum(int(words[1]) << 12 for words in lines if words and words[0] == "count:")


def give_back():
    """Makes the kernel give back what it keeps for later. Where that cannot be done, as on the debug
    kernel, memory is not measured."""
    gc.collect()
    os.sync()
    for knob, value in (("drop_caches", "3"), ("compact_memory", "1"), ("stat_refresh", "1")):
        path = f"/proc/sys/vm/{knob}"
        needs.file(path)
        with open(path, "w", encoding="ascii") as file:
            file.write(value)


def not_always(excess, what):
    """Fails if `excess` finds something three times in a row: the rest of the kernel takes more or less
    meanwhile, and its caches grow in steps; what is ours is there every time."""
    for _ in range(3):
        found = excess()
        if not found:
            return
    raise Failure(f"{what}, three times in a row: {found}")


def settled():
    """Memory that the kernel holds for itself, without what it could give back."""
    give_back()
    return held()


def held():
    """Memory that the kernel holds for itself."""
    info = meminfo()
    known = sum(info[name] for name in ("MemFree", "Buffers", "Cached", "AnonPages", "Slab",
                                        "PageTables", "KernelStack", "VmallocUsed", "Percpu"))
    kernel = {name: info[name] for name in ("SUnreclaim", "VmallocUsed", "Percpu")}
    kernel["pages of unknown use"] = info["MemTotal"] - known - free_per_cpu()
    return kernel


def slab_objects():
    """The objects in use, by slab cache: (number, bytes of one)."""
    give_back()
    for path in glob.glob("/sys/kernel/slab/*/shrink"):
        with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as file:
            file.write("1")
    with open("/proc/slabinfo", encoding="ascii") as file:
        lines = (line.split() for line in file.readlines()[2:])
        return {line[0]: (int(line[1]), int(line[3])) for line in lines}


def slab_bytes():
    """The bytes of all objects in use."""
    return sum(number * size for number, size in slab_objects().values())


def taken(before, after, number):
    """What `number` devices have taken between two snapshots, in bytes for each of them."""
    return {kind: (after[kind] - before[kind]) // number for kind in after}


def snapshot():
    """Bytes in use: objects that a counter names, and pages that none does."""
    objects = slab_bytes()
    info = held()
    return {"objects": objects + info["Percpu"] + info["VmallocUsed"],
            "pages": info["pages of unknown use"]}


def devices(number, folder, first=0):
    """What a new device takes, and what it takes once a file is attached; both from nothing.

    Removes the devices again.
    """
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, str(index)) for index in range(number)]
    for path in paths:
        with open(path, "wb") as file:
            file.write(bytes(65536))
    before = snapshot()
    loops = [loopdev.add(first + index) for index in range(number)]
    idle = taken(before, snapshot(), number)
    for loop, path in zip(loops, paths):
        loopdev.attach(path, loop=loop)
    bound = taken(before, snapshot(), number)
    for loop in loops:
        loop.detach()
        loopdev.remove(loop.number)
    return {"idle": idle, "bound": bound}
