#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Events and disk sequence numbers: what udev gets to know, step by step, in what order.

The stock driver passes this suite, too: all events are recorded, and have to be the same.
"""

import ctypes
import fcntl
import os
import struct

from lib import blockio, loopdev, modules, system, uevents
from lib.ktap import Suite, equal, name_of
from lib.system import run

MIB = 1 << 20
# Of partitions that have no minor of their disk.
EXTENDED_MAJOR = "259"
BLKRRPART = 0x125F
BLKPG = 0x1269
PARTITION = struct.Struct("=qqi64s64s4x")
BLKPG_ARG = struct.Struct("=iiiiQ")
TABLE = "label: dos\nlabel-id: 0x11111111\nsize=4MiB,type=83\nsize=8MiB,type=7\n"
suite = Suite()


class Observer:
    """Records what a step does to a device: its result, events, disk sequence number."""

    def __init__(self, t, loop):
        self.loop = loop
        self.record = t.record
        self.listener = uevents.Listener()
        self.first = uevents.sequence(loop)
        t.defer(self.listener.socket.close)

    def step(self, name, function, /, *args, **kwargs):
        """Calls a function."""
        try:
            function(*args, **kwargs)
            result = "done"
        except OSError as error:
            result = name_of(error.errno)
        self.record(name, f"{result}, sequence number +{self.increments()}")
        events = self.listener.events()
        for event in events:
            self.record(f"{name}: event", self.relative(event))
        return events

    def increments(self):
        """How often the disk's sequence number was counted up since the last call.

        The number itself is taken from a counter for all disks.
        """
        before, self.first = self.first, uevents.sequence(self.loop)
        return self.first - before

    def relative(self, event):
        """An event without numbers that differ from run to run."""
        if event.env.get("MAJOR") == EXTENDED_MAJOR:
            # The lowest that is free; those of the last partitions may still be in use.
            event.env["MINOR"] = "any"
        if "DISKSEQ" in event.env:
            event.env["DISKSEQ"] = f"{int(event.env['DISKSEQ']) - self.first:+}"
        return event


def disk(t, name="disk", table=TABLE):
    """A file with a partition table."""
    path = blockio.make_sparse(t.path(name), 32 * MIB)
    run("sfdisk", "-q", path, text=table)
    return path


@suite.cases(plain={}, partscan={"flags": loopdev.PARTSCAN}, read_only={"flags": loopdev.READ_ONLY},
             window={"offset": MIB, "sizelimit": 3 * MIB}, sectors_of_4096={"block_size": 4096},
             direct_io={"flags": loopdev.DIRECT_IO}, empty={"offset": 32 * MIB})
def attach_and_detach(t, how):
    path = disk(t)
    observer = Observer(t, loopdev.free())
    for _ in range(2):
        observer.step("attach", t.attach, path, loop=observer.loop, **how)
        observer.step("status", observer.loop.status)
        observer.step("detach", observer.loop.detach)


@suite.test
def attach_by_set_fd(t):
    path = disk(t)
    observer = Observer(t, loopdev.free())
    with open(path, "r+b") as file:
        observer.step("LOOP_SET_FD", observer.loop.set_fd, file.fileno())
    observer.step("name", observer.loop.set_status, name=b"name")
    observer.step("window", observer.loop.set_status, offset=MIB, sizelimit=MIB)
    observer.step("autoclear", observer.loop.set_status, flags=loopdev.AUTOCLEAR, offset=MIB,
                  sizelimit=MIB)


@suite.test
def last_close_with_autoclear(t):
    path = disk(t)
    observer = Observer(t, loopdev.free())
    fd = os.open(observer.loop.path, os.O_RDONLY)
    observer.step("attach", t.attach, path, loop=observer.loop,
                  flags=loopdev.AUTOCLEAR | loopdev.PARTSCAN)
    observer.step("read", os.pread, fd, 4096, 0)
    events = observer.step("close", os.close, fd)
    equal(len(events) > 2, True, "events of the last close")


@suite.test
def refused_attach(t):
    path = disk(t)
    other = disk(t, "other")
    observer = Observer(t, loopdev.free())
    loop = observer.loop
    observer.step("a folder", t.attach, "/", loop=loop, file_flags=os.O_RDONLY)
    observer.step("no descriptor", loop.configure, 999)
    observer.step("unknown flags", t.attach, path, loop=loop, flags=2)
    observer.step("negative offset", t.attach, path, loop=loop, offset=1 << 63)
    observer.step("itself", t.attach, loop.path, loop=loop)
    observer.step("attach", t.attach, path, loop=loop)
    observer.step("busy", t.attach, other, loop=loop)
    observer.step("detach", loop.detach)
    observer.step("detach again", loop.detach)


@suite.test
def change_of_the_file(t):
    paths = [disk(t, "a"), disk(t, "b", "label: dos\nlabel-id: 0x22222222\nsize=2MiB\n")]
    short = blockio.make_sparse(t.path("short"), MIB)
    observer = Observer(t, loopdev.free())
    loop = observer.loop
    observer.step("unbound", loop.change_file_read_only, paths[1])
    observer.step("attach", t.attach, paths[0], loop=loop)
    observer.step("not read-only", loop.change_file_read_only, paths[1])
    observer.step("detach", loop.detach)
    observer.step("attach read-only", t.attach, paths[0], loop=loop,
                  flags=loopdev.READ_ONLY | loopdev.PARTSCAN)
    observer.step("change", loop.change_file_read_only, paths[1])
    observer.step("too short", loop.change_file_read_only, short)
    observer.step("a folder", loop.change_file_read_only, "/")
    observer.step("no descriptor", loop.ioctl, loopdev.CHANGE_FD, 999)
    observer.step("change back", loop.change_file_read_only, paths[0])
    observer.step("detach", loop.detach)


@suite.test
def settings_of_a_bound_device(t):
    path = disk(t)
    observer = Observer(t, loopdev.free())
    loop = observer.loop
    observer.step("attach", t.attach, path, loop=loop)
    observer.step("size is the same", loop.ioctl, loopdev.SET_CAPACITY)
    os.truncate(path, 40 * MIB)
    observer.step("larger", loop.ioctl, loopdev.SET_CAPACITY)
    os.truncate(path, 8 * MIB)
    observer.step("smaller", loop.ioctl, loopdev.SET_CAPACITY)
    os.truncate(path, 0)
    observer.step("empty", loop.ioctl, loopdev.SET_CAPACITY)
    os.truncate(path, 32 * MIB)
    observer.step("not empty", loop.ioctl, loopdev.SET_CAPACITY)
    observer.step("sectors", loop.ioctl, loopdev.SET_BLOCK_SIZE, 2048, os.O_RDWR)
    t.expect_log(r"Invalid logical block size \(1000\)")
    observer.step("bad sectors", loop.ioctl, loopdev.SET_BLOCK_SIZE, 1000, os.O_RDWR)
    observer.step("direct I/O", loop.ioctl, loopdev.SET_DIRECT_IO, 1)
    observer.step("no direct I/O", loop.ioctl, loopdev.SET_DIRECT_IO, 0)
    observer.step("offset", loop.set_status, offset=MIB)
    observer.step("same offset", loop.set_status, offset=MIB)
    observer.step("bad type", loop.ioctl, loopdev.SET_STATUS64,
                  bytes(44) + struct.pack("=I", 99) + bytes(184), os.O_RDWR)
    observer.step("detach", loop.detach)


@suite.test
def partitions_found_later(t):
    observer = Observer(t, loopdev.free())
    loop = observer.loop
    observer.step("attach", t.attach, disk(t), loop=loop)
    observer.step("BLKRRPART without partscan", loop.ioctl, BLKRRPART)
    observer.step("partscan", loop.set_status, flags=loopdev.PARTSCAN)
    observer.step("partscan again", loop.set_status, flags=loopdev.PARTSCAN)
    observer.step("partscan cannot be turned off", loop.set_status)
    observer.step("BLKRRPART", loop.ioctl, BLKRRPART)
    with loop.opened(os.O_RDWR) as fd:
        os.pwrite(fd, bytes(512), 0)
        observer.step("no table", fcntl.ioctl, fd, BLKRRPART)
    observer.step("close", loop.status)
    observer.step("detach", loop.detach)


def blkpg(loop, operation, number, start=0, length=0):
    """BLKPG: 1 adds, 2 deletes, 3 resizes a partition."""
    partition = bytearray(PARTITION.pack(start, length, number, b"", b""))
    address = ctypes.addressof(ctypes.c_char.from_buffer(partition))
    loop.ioctl(BLKPG, BLKPG_ARG.pack(operation, 0, len(partition), 0, address))


@suite.test
def partitions_made_by_hand(t):
    observer = Observer(t, loopdev.free())
    loop = observer.loop
    observer.step("unbound", blkpg, loop, 1, 1, MIB, MIB)
    observer.step("attach", t.attach, blockio.make_sparse(t.path("a"), 8 * MIB), loop=loop)
    observer.step("add", blkpg, loop, 1, 1, MIB, MIB)
    observer.step("overlaps", blkpg, loop, 1, 2, MIB, MIB)
    observer.step("past the end", blkpg, loop, 1, 3, 8 * MIB, MIB)
    observer.step("high number", blkpg, loop, 1, 300, 4 * MIB, MIB)
    observer.step("resize", blkpg, loop, 3, 1, MIB, 2 * MIB)
    observer.step("delete", blkpg, loop, 2, 300)
    observer.step("detach with one left", loop.detach)


@suite.test
def devices_come_and_go(t):
    with uevents.Listener(r".*/(loop|7:)\d+(/.*)?") as listener:
        loop = loopdev.add(4321)
        for event in listener.events():
            event.env.pop("DISKSEQ", None)
            t.record("add", event)
        loopdev.remove(loop.number)
        for event in listener.events():
            event.env.pop("DISKSEQ", None)
            t.record("remove", event)


@suite.test
def driver_comes_and_goes(t):
    """Devices appear and vanish in the order of their numbers."""
    path = modules.loop_file(system.driver_in_use())
    with uevents.Listener(r"(/module|/devices/virtual/(misc|block|bdi))/"
                          r"(loop|loop-control|loop\d+|7:\d+)") as listener:
        modules.delete("loop")
        record_in_order(t, "unload", listener)
        modules.insert(path)
        record_in_order(t, "load", listener)


def record_in_order(t, name, listener):
    """Records events with the number of the device still readable."""
    for event in listener.events():
        t.record(name, f"{event.action} {event.path.replace('/loop', '/loop ')}")


@suite.test
def media_event_files(t):
    """What tells user space which events there are."""
    loop = loopdev.free()
    for name in ("events", "events_async", "events_poll_msecs", "removable", "ro", "hidden",
                 "range", "ext_range", "partscan", "size"):
        t.record(name, repr(loop.attr(name)))
    t.attach(disk(t), loop=loop, flags=loopdev.PARTSCAN)
    for name in ("partscan", "size"):
        t.record(f"{name} when bound", repr(loop.attr(name)))
    loop.detach()
    t.record("partscan after detaching", loop.attr("partscan"))
    equal(loop.is_bound(), False, "bound")


if __name__ == "__main__":
    with modules.parsers_unloaded():
        suite.main()
