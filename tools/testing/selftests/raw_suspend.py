#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The machine goes to sleep while a loop device is busy, and wakes up again.

As far as this one can: programs and kernel threads are frozen, and work queues that can be, those of
the loop driver among them; then all go on (Documentation/power/basic-pm-debugging.rst). Its devices
stay awake. The root of the guest is on 9p over virtio, which does not come back from sleep, whatever
the loop driver.
"""

import os
import signal
import subprocess

from lib import blockio, loopdev, needs, system, trees
from lib.ktap import Suite, ensure, same_bytes
from lib.system import run

MIB = 1 << 20
TIMES = 3
suite = Suite()


def write(path, text):
    """Writes to a file of sysfs."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def set_meanwhile(t, path, text):
    """Writes to a file of sysfs what it shall say until the test ends."""
    with open(path, encoding="ascii") as file:
        t.defer(write, path, file.read().strip())
    write(path, text)


def prepare(t):
    """Until the test ends, a suspend lasts a second and goes as far as this machine can."""
    needs.file("/sys/power/pm_test")
    set_meanwhile(t, "/sys/module/suspend/parameters/pm_test_delay", "1")
    # Milliseconds: who waits for a slow disk is not frozen before it has answered.
    set_meanwhile(t, "/sys/power/pm_freeze_timeout", "300000")
    write("/sys/power/pm_test", "freezer")
    t.defer(write, "/sys/power/pm_test", "none")


def writes(loop):
    """How many writes a device has done."""
    return int(loop.attr("stat").split()[4])


def is_busy(loop):
    """Waits until a device has done some more writes."""
    before = writes(loop)
    system.wait_until(lambda: writes(loop) > before + 10, "the device is busy")


def sleep_while_busy(loop):
    """Suspends the machine several times while a device is busy. OSError if it refuses."""
    for _ in range(TIMES):
        is_busy(loop)
        write("/sys/power/state", "freeze")
    is_busy(loop)


def interrupted(job):
    """Ends a program that ends only if it is told to; returns what it printed."""
    job.send_signal(signal.SIGINT)
    return job.communicate()[0]


def end(job):
    """Kills a program and those it has started."""
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def file_on_ext4(t):
    """A file without blocks, on ext4."""
    return blockio.make_sparse(os.path.join(t.ext4(96), "a"), 48 * MIB)


@suite.cases(buffered="off", direct="on")
def requests_in_flight(t, direct):
    """fio writes, and reads what it has written, until it is interrupted."""
    prepare(t)
    path = file_on_ext4(t)
    loop = t.losetup(f"--direct-io={direct}", path)
    job = subprocess.Popen(["fio", "--name=x", f"--filename={loop.path}", "--ioengine=libaio",
                            "--direct=1", "--rw=randwrite", "--bs=4k", "--iodepth=16",
                            "--size=16m", "--loops=1000000", "--verify=crc32c",
                            "--verify_backlog=64", "--verify_fatal=1", "--verify_state_save=0",
                            "--fsync=256"], stdout=subprocess.PIPE, encoding="utf-8",
                           start_new_session=True)
    t.defer(end, job)
    sleep_while_busy(loop)
    said = interrupted(job)
    ensure(": err= 0:" in said, f"fio: {said}")
    written = blockio.direct_read(loop.path, 0, 48 * MIB)
    ensure(any(written), "nothing was written")
    loop.detach()
    same_bytes(blockio.content(path), written, "file")


@suite.test
def a_file_system_in_use(t):
    """A suspend begins with a sync of all file systems, and threads write back until the end."""
    prepare(t)
    path = file_on_ext4(t)
    run("mkfs.ext4", "-q", "-F", path)
    point = t.mount(path, "-o", "loop", where="image")
    before = trees.make(point)
    script = 'while cp -a "$1" "$2" && sync -f "$2" && rm -r "$2"; do :; done'
    job = subprocess.Popen(["bash", "-c", script, "-", f"{point}/folder 0", f"{point}/copy"],
                           start_new_session=True)
    t.defer(end, job)
    sleep_while_busy(loopdev.bound()[0])
    end(job)
    run("rm", "-rf", f"{point}/copy")
    run("umount", point)
    system.wait_until(lambda: not loopdev.bound(), "umount detached the device")
    run("e2fsck", "-fn", path)
    t.mount(path, "-o", "loop,ro", where="image")
    trees.same(point, before, "files")


if __name__ == "__main__":
    suite.main()
