#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""No memory: every single allocation of every operation on a device fails once.

Needs the debug kernel. An operation either fails with a clean error and leaves the device as it
was, or succeeds without the memory; then the same operation works. What it has lost is found by
kmemleak after the suite (run_in_vm).
"""

import ctypes
import errno
import os

from lib import blockio, deadline, faults, loopdev, system, vhd
from lib.ktap import Failure, Skip, Suite, ensure, equal, name_of, same_bytes
from lib.system import run

MIB = 1 << 20
# How many failures of one operation are tried at most.
LIMIT = 100
FINIT_MODULE = 313
# Backtraces and complaints of the kernel about the lack of memory. A WARN would still end the run
# with a status of its own, and is not allowed here.
NOISE = r"(?!WARNING|BUG|INFO|refcount|list_).*"
suite = Suite(allow=[NOISE])


def sweep(operation, ready, undo, text=None, errnos=faults.ERRNOS):
    """Fails each allocation of `operation` once.

    `ready` is called after each operation that failed, and has to find the device as it was before;
    `undo` after each that worked, and has to bring the device there. It ends before its time, as
    skipped, if there is none left: this is a hundred operations, and may take minutes.
    """
    failed = worked = 0
    with faults.memory(*(text or faults.driver_text())), faults.Nth() as nth:
        # Once without counting, as the first time makes caches.
        operation()
        undo()
        count = nth.count(operation)
        undo()
        ensure(count > 0, "the operation allocates nothing: nothing to test")
        chosen = faults.numbers(count, LIMIT)
        for number in chosen:
            if deadline.passed():
                raise Skip(f"{deadline.REASON}: {failed + worked} of {len(chosen)} failures were tried")
            error, _ = nth.call(number, operation)
            if error is None:
                worked += 1
                undo()
                continue
            failed += 1
            ensure(error.errno in errnos,
                   f"allocation {number}: {name_of(error.errno)}")
            ready()
        operation()
        undo()
    print(f"# {count} allocations: {failed} failures were reported, {worked} were made up for")


def unbound(loop):
    """Fails unless nothing is attached, and nothing is to be seen of an attempt."""
    ensure(not loop.is_bound(), "bound")
    equal(loop.size(), 0, "size")
    ensure(not os.path.exists(f"{loop.sysfs}/loop/backing_file"), "loop/backing_file is there")


def image(t, kind):
    """A file of some kind and what the device shows of it."""
    if kind == "raw":
        path = t.path("a.raw")
        return path, blockio.make_file(path, MIB)
    sound = vhd.Dynamic(8 * MIB)
    sound.put(2 * MIB, blockio.pattern(65536))
    return sound.write(t.path("a.vhd")), sound.guest()


def check_and_detach(loop, data):
    """The undo of an attach: it is what it should be, and it can be detached."""
    same_bytes(blockio.direct_read(loop.path, 0, 65536), data[:65536], "device")
    equal(loop.size(), len(data), "size")
    loop.detach()
    unbound(loop)


@suite.cases(raw="raw", vhd="vhd")
def attach(t, kind):
    path, data = image(t, kind)
    loop = loopdev.free()
    with loopdev.opened(path, os.O_RDWR) as file:
        sweep(lambda: loop.configure(file, flags=loopdev.PARTSCAN),
              lambda: unbound(loop), lambda: check_and_detach(loop, data))


@suite.cases(raw="raw", vhd="vhd")
def detach(t, kind):
    """Cannot fail, whatever is lacking."""
    path, data = image(t, kind)
    loop = t.attach(path)
    block = blockio.pattern(4096, seed=2)
    data = block + data[4096:]

    def again():
        unbound(loop)
        loopdev.attach(path, loop=loop)
        blockio.direct_write(loop.path, 0, block)
        same_bytes(blockio.direct_read(loop.path, 0, 65536), data[:65536], "device")

    loop.detach()
    again()
    sweep(loop.detach, never, again)


def never():
    """The `ready` of an operation that must not fail."""
    raise Failure("it failed")


@suite.cases(raw="raw", vhd="vhd")
def change_fd(t, kind):
    path, data = image(t, kind)
    copy, other = t.path("b"), b"other" + data[5:]
    run("cp", path, copy)
    loop = t.attach(copy)
    blockio.direct_write(loop.path, 0, other[:512])
    loop.detach()
    loopdev.attach_read_only(path, loop=loop)
    t.defer(loop.detach_if_bound)

    def holds(expected):
        same_bytes(blockio.direct_read(loop.path, 0, 65536), expected[:65536], "device")

    def back():
        holds(other)
        loop.ioctl(loopdev.CHANGE_FD, first)
        holds(data)

    with loopdev.opened(path) as first, loopdev.opened(copy) as second:
        sweep(lambda: loop.ioctl(loopdev.CHANGE_FD, second), lambda: holds(data), back)


@suite.test
def set_status(t):
    path, data = image(t, "raw")
    loop = t.attach(path)

    def is_at(offset):
        same_bytes(blockio.direct_read(loop.path, 0, 65536), data[offset:offset + 65536], "device")
        equal(loop.size(), MIB - offset, "size")

    def back():
        is_at(4096)
        loop.set_status(offset=0)
        is_at(0)

    sweep(lambda: loop.set_status(offset=4096, flags=loopdev.PARTSCAN), lambda: is_at(0), back)


@suite.test
def set_capacity(t):
    path, _ = image(t, "raw")
    loop = t.attach(path)

    def back():
        equal(loop.size(), 2 * MIB, "size")
        os.truncate(path, MIB)
        loop.ioctl(loopdev.SET_CAPACITY)
        os.truncate(path, 2 * MIB)

    os.truncate(path, 2 * MIB)
    sweep(lambda: loop.ioctl(loopdev.SET_CAPACITY), lambda: equal(loop.size(), MIB, "size"),
          back)


@suite.test
def add_device(t):
    loop = loopdev.Loop(100)
    t.defer(remove_if_there, loop)
    # EINVAL is the block layer's answer if there is no memory for the device's name.
    sweep(lambda: loopdev.add(100), lambda: gone(loop), lambda: works_and_goes(t, loop),
          errnos=faults.ERRNOS + (errno.EINVAL,))


@suite.test
def remove_device(t):
    """Cannot fail either."""
    loop = loopdev.add(100)
    t.defer(remove_if_there, loop)

    def again():
        gone(loop)
        loopdev.add(100)

    sweep(lambda: loopdev.remove(100), never, again)


@suite.test
def open_dead_node(t):
    """Makes the device, or says that there is none."""
    loop = loopdev.Loop(101)
    t.defer(remove_if_there, loop)
    node = t.path("node")
    run("mknod", node, "b", "7", "101")

    def open_it():
        with loopdev.opened(node):
            pass

    sweep(open_it, lambda: gone(loop), lambda: works_and_goes(t, loop),
          errnos=faults.ERRNOS + (errno.ENXIO,))


def gone(loop):
    """Fails if there is anything of a device."""
    ensure(not os.path.exists(loop.sysfs), f"{loop.sysfs} is there")
    ensure(not os.path.exists(loop.path), f"{loop.path} is there")


def works_and_goes(t, loop):
    """A new device can be used, and removed."""
    path = blockio.make_sparse(t.path("sparse"), 65536)
    loopdev.attach(path, loop=loop)
    same_bytes(blockio.direct_read(loop.path, 0, 512), bytes(512), "device")
    loop.detach()
    loopdev.remove(loop.number)
    gone(loop)


def remove_if_there(loop):
    """Removes a device that a failed test has left."""
    if os.path.exists(loop.sysfs):
        loopdev.remove(loop.number)


@suite.cases(loop_parser="loop_parser", loop="loop", vhdloop="vhdloop")
def load(t, module):
    """Loading a module: all that its init does. What it is based on is there."""
    t.defer(system.load_loop)
    t.defer(system.unload_loop)
    system.unload_loop()
    if module != "loop_parser":
        run("insmod", run("modinfo", "-n", "loop_parser").strip())
    parameters = b"max_loop=1" if module == "loop" else b""

    def absent():
        ensure(not system.loaded(module), f"{module} is loaded")
        ensure(not os.path.exists("/sys/block/loop0"), "loop0 is there")

    with loopdev.opened(run("modinfo", "-n", module).strip()) as file:
        # EIO: the major cannot be had, for whatever reason, as with the C driver.
        sweep(lambda: finit_module(file, parameters), absent, lambda: run("rmmod", module),
              text=faults.function_text("do_init_module"), errnos=faults.ERRNOS + (errno.EIO,))


def finit_module(file, parameters):
    """finit_module(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(FINIT_MODULE, file, parameters, 0):
        raise OSError(ctypes.get_errno(), "finit_module")


if __name__ == "__main__":
    suite.main()
