#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What a device costs in memory, beside the stock driver.

Counted are objects of slab caches, per-CPU memory and vmalloc; and, as they are pages that no
counter names, the requests of a device: what is missing from the sum of all counters. A driver may
need FACTOR times what the stock driver needs for an idle device, and for a bound one (the 5 kB of a
bound device come on top of 120 kB). tools/testing/bench/memory prints the numbers.
"""

import os

from lib import memory
from lib.ktap import Suite, ensure
from lib.system import load_loop, unload_loop

DEVICES = 40
# Ours has a few bytes more for parsers; a pool or a buffer per device would not fit in.
FACTOR = 1.05
# Pages of unknown use come and go for other reasons, too: half a megabyte over all.
FACTOR_PAGES = 1.2
suite = Suite()


@suite.test
def not_more_than_the_stock_driver(t):
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
    for state in ("idle", "bound"):
        stock, ours = (taken[driver][state] for driver in ("stock", "ours"))
        for kind, factor in (("objects", FACTOR), ("pages", FACTOR_PAGES)):
            what = f"{kind} of an {state} device" if state == "idle" else f"{kind} of a bound device"
            print(f"# {what}: {ours[kind]} bytes, stock {stock[kind]}")
            ensure(stock[kind] > 1000, f"{what}: not measured")
            ensure(ours[kind] <= stock[kind] * factor, f"{what}: {ours[kind]}, stock {stock[kind]}")


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
