#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What a device costs in memory, beside the stock driver.

Counted are objects of slab caches, per-CPU memory and vmalloc; and, as they are pages that no
counter names, the requests of a device: what is missing from the sum of all counters. Our driver
may need FACTOR times what the stock driver needs, for an idle device and for a bound one.
tools/testing/bench/memory prints the numbers.
"""

import os

from lib import memory
from lib.ktap import Suite, ensure
from lib.system import load_loop, unload_loop

DEVICES = 40
# Ours has a kilobyte more for the image; a pool or a buffer per device would not fit in.
FACTOR = 1.05
# Pages of unknown use come and go for other reasons, too: half a megabyte over all.
FACTOR_PAGES = 1.2
suite = Suite()


def measured(t):
    """What a device takes, by driver."""
    taken = {}
    try:
        for driver in ("stock", "ours"):
            unload_loop()
            load_loop(driver, "max_loop=0")
            # The first time, caches of the kernel grow.
            memory.devices(DEVICES // 2, t.path("files"))
            taken[driver] = memory.devices(DEVICES, t.path("files"))
    finally:
        unload_loop()
        load_loop("ours")
    return taken


def excess(taken):
    """Where ours takes too much."""
    found = []
    for state in ("idle", "bound"):
        stock, ours = (taken[driver][state] for driver in ("stock", "ours"))
        for kind, factor in (("objects", FACTOR), ("pages", FACTOR_PAGES)):
            line = f"{kind} per device, {state}: {ours[kind]} bytes, stock {stock[kind]}"
            print(f"# {line}")
            ensure(stock[kind] > 1000, f"not measured: {line}")
            if ours[kind] > stock[kind] * factor:
                found.append(line)
    return found


@suite.test
def not_more_than_the_stock_driver(t):
    memory.not_always(lambda: excess(measured(t)), "too much")


@suite.test
def all_of_it_comes_back(t):
    memory.devices(DEVICES // 2, t.path("files"), first=100)
    before = memory.slab_objects()
    memory.devices(DEVICES, t.path("more"), first=100)
    after = memory.slab_objects()
    for cache in ("request_queue", "bdev_cache", "pool_workqueue", "filp"):
        grown = after[cache][0] - before[cache][0]
        ensure(grown < DEVICES // 10, f"{cache}: {grown} objects more")
    ensure(not os.path.exists("/dev/loop100"), "a device is left")


if __name__ == "__main__":
    suite.main()
