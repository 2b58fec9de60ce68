#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What raw devices are used for: on each other, swap, the root; frozen, counted."""

import errno
import os
import subprocess
import sys
import time

from lib import backings, blockio, cgroup, loopdev, system, trace
from lib.blockio import Direct
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import run

MIB = 1 << 20
LENGTH = backings.LENGTH
suite = Suite()

# Takes more memory than its group may have, fills it, and looks whether it is all still there.
HOG = """
import sys
size, page = int(sys.argv[1]), 4096
memory = bytearray(size)
for turn in range(2):
    for at in range(0, size, page):
        memory[at:at + 8] = (at + turn).to_bytes(8, "little")
    for at in range(0, size, page):
        assert memory[at:at + 8] == (at + turn).to_bytes(8, "little"), at
"""


@suite.test
def ten_devices_on_each_other(t):
    path = backings.on_tmpfs(t)
    data = blockio.content(path)
    loops = []
    for _ in range(10):
        loops.append(t.attach(loops[-1].path if loops else path))
    same_bytes(blockio.direct_read(loops[-1].path, 0, LENGTH), data, "uppermost device")
    changed = blockio.pattern(65536, 9)
    blockio.direct_write(loops[-1].path, MIB, changed)
    for loop in reversed(loops):
        loop.detach()
    same_bytes(blockio.content(path)[MIB:MIB + 65536], changed, "file")


@suite.test
def cycles_are_refused(t):
    loops = [t.attach(backings.on_tmpfs(t), flags=loopdev.READ_ONLY, mode=os.O_RDONLY)]
    for _ in range(3):
        loops.append(t.attach(loops[-1].path, file_flags=os.O_RDONLY))
    fails_with(errno.EBADF, loops[0].change_file_read_only, loops[-1].path)
    fails_with(errno.EBADF, loops[0].change_file_read_only, loops[0].path)
    for loop in reversed(loops):
        loop.detach()


@suite.cases(buffered="off", direct="on")
def swap(t, direct):
    t.allow_log(r"Adding \d+k swap on .*")
    path = os.path.join(t.ext4(192), "swap")
    run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=128", "status=none")
    loop = t.losetup(f"--direct-io={direct}", path)
    run("mkswap", loop.path)
    run("swapon", loop.path)
    t.defer(swap_off, loop)
    group = cgroup.Group(t, "hog", controllers=("memory",))
    group.set("memory.max", 48 * MIB)
    process = group.popen(sys.executable, "-c", HOG, str(80 * MIB))
    output, _ = process.communicate()
    equal((process.returncode, output), (0, ""), "the program that needs more memory than it has")
    used = int(group.memory("pswpout")) * 4096
    ensure(used >= 16 * MIB, f"only {used} bytes were swapped out")
    run("swapoff", loop.path)


def swap_off(loop):
    """swapoff, if it is on."""
    system.attempt("swapoff", loop.path)


@suite.test
def a_root_on_a_loop_device(t):
    folder = t.path("root")
    for name in ("bin", "proc", "old", "tmp"):
        os.makedirs(os.path.join(folder, name))
    run("cp", "/bin/busybox", os.path.join(folder, "bin"))
    blockio.make_file(os.path.join(folder, "data"), LENGTH)
    image = blockio.make_sparse(t.path("image"), 24 * MIB)
    run("mkfs.ext4", "-q", "-F", "-d", folder, image)
    point = t.mount(image, "-o", "loop")
    expected = blockio.digest(os.path.join(folder, "data"))
    said = run("chroot", point, "/bin/busybox", "sha256sum", "/data")
    equal(said.split()[0], expected, "SHA-256, from a program on the device")
    script = ('cd "$1" && pivot_root . old && exec /bin/busybox chroot . /bin/busybox sh -c "'
              "/bin/busybox umount -l /old; /bin/busybox sha256sum /data; "
              '/bin/busybox cp /data /tmp/copy; /bin/busybox sync"')
    said = run("unshare", "--mount", "--propagation", "private", "sh", "-c",
               f'mount --bind "$1" "$1" && {script}', "sh", point)
    equal(said.split()[0], expected, "SHA-256, from a program whose root the device is")
    equal(blockio.digest(os.path.join(point, "tmp/copy")), expected, "SHA-256 of what it wrote")
    run("umount", point)
    run("e2fsck", "-fn", image)


def writer(loop, pos):
    """A program that writes to a device, synchronously."""
    return subprocess.Popen(["dd", "if=/dev/zero", f"of={loop.path}", "bs=64k", "count=16",
                             f"seek={pos >> 16}", "oflag=direct", "conv=notrunc,fsync",
                             "status=none"])


@suite.cases(buffered="off", direct="on")
def a_frozen_file_system_holds_writers_up(t, direct):
    path = backings.on_file_system(t, "ext4_4k")
    loop = t.losetup(f"--direct-io={direct}", path)
    run("fsfreeze", "-f", os.path.dirname(path))
    try:
        job = writer(loop, MIB)
        time.sleep(1)
        equal(job.poll(), None, "exit status of the writer")
        equal(loop.attr("loop/offset"), "0", "an attribute read meanwhile")
    finally:
        run("fsfreeze", "-u", os.path.dirname(path))
    equal(job.wait(), 0, "exit status of the writer")
    same_bytes(blockio.direct_read(loop.path, MIB, MIB), bytes(MIB), "device")


@suite.test
def reads_that_do_not_want_to_wait(t):
    path = backings.on_file_system(t, "ext4_4k")
    data = blockio.content(path)
    for direct in ("off", "on"):
        loop = t.losetup(f"--direct-io={direct}", path)
        with Direct(loop.path) as device:
            done = os.preadv(device.fd, [memoryview(device.buffer)[:65536]], MIB, os.RWF_NOWAIT)
            equal((done, device.buffer[:done]), (65536, data[MIB:MIB + 65536]), "read")
            device.buffer[:4096] = bytes(4096)
            done = os.pwritev(device.fd, [memoryview(device.buffer)[:4096]], 0, os.RWF_NOWAIT)
            equal(done, 4096, "bytes written")
        loop.detach()
        same_bytes(blockio.content(path)[:4096], bytes(4096), "file")


@suite.cases(idle=("-c", "3"), best_effort=("-c", "2", "-n", "6"), realtime=("-c", "1", "-n", "1"))
def priority_of_direct_io(t, priority):
    t.allow_log(r"scsi_debug:.*|scsi \d+:.*|sd \d+:.*")
    disk = backings.scsi_disk(t)
    path = backings.on_file_system(t, "ext4_4k", disk)
    os.sync()
    loop = t.losetup("--direct-io=on", path)
    with trace.tracing("block/block_rq_issue", device=disk) as traced:
        run("ionice", *priority, "dd", f"of={loop.path}", "if=/dev/zero", "bs=16k", "count=4",
            "oflag=direct", "conv=notrunc", "status=none")
    seen = sorted(set(traced.fields("block_rq_issue", r" (W\w*) 16384 .* \+ 32 (.*?) \[")))
    ensure(seen, "no write reached the disk")
    t.record("writes on the disk", seen)


COUNTERS = {"reads": 0, "read merges": 1, "sectors read": 2, "writes": 4, "write merges": 5,
            "sectors written": 6, "in flight": 8, "discards": 11, "sectors discarded": 13,
            "flushes": 15}


def counters(path):
    """/sys/block/NAME/stat, but for the times, once it has counted all that is done.

    A request is counted after its last bio has ended: whoever waits for that may be earlier.
    """
    found = {}

    def counted():
        with open(f"/sys/block/{os.path.basename(path)}/stat", encoding="ascii") as file:
            numbers = [int(number) for number in file.read().split()]
        found.update((name, numbers[place]) for name, place in COUNTERS.items())
        return not found["in flight"]

    system.wait_until(counted, f"nothing is in flight on {path}")
    return found


# So little that it is one request, however many pages of the memory lie side by side.
COUNTED = 256 << 10


@suite.cases(buffered="off", direct="on")
def io_is_counted(t, direct):
    disk = t.ram_disk(16)
    loop = t.losetup(f"--direct-io={direct}", disk)
    watched = {"loop": loop.path, "disk": disk}
    with Direct(loop.path) as device:
        for name, function, *args in (
                ("write", device.write, 0, blockio.pattern(COUNTED)),
                ("read", device.read, 0, COUNTED),
                ("small read", device.read, 512, 512), ("flush", device.flush),
                ("again", device.read, 0, COUNTED)):
            before = {key: counters(path) for key, path in watched.items()}
            function(*args)
            for key, path in watched.items():
                now = counters(path)
                t.record(f"{name}, {key}", {which: now[which] - before[key][which]
                                            for which in now if now[which] != before[key][which]})


@suite.test
def discards_are_counted(t):
    loop = t.attach(backings.on_tmpfs(t))
    before = counters(loop.path)
    with Direct(loop.path) as device:
        device.discard(0, MIB)
        device.discard(MIB, 512)
    now = counters(loop.path)
    t.record("discards", {name: now[name] - before[name] for name in now})


@suite.test
def queue_depth_changed_under_io(t):
    loop = t.attach(backings.on_file_system(t, "ext4_4k"))
    job = subprocess.Popen(["fio", "--name=x", f"--filename={loop.path}", "--ioengine=libaio",
                            "--direct=1", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=4m",
                            "--loops=4", "--verify=crc32c", "--verify_fatal=1",
                            "--verify_state_save=0", "--output=/dev/null"])
    for depth in ("4", "128", "16", "64"):
        loop.set_attr("queue/nr_requests", depth)
        for scheduler in ("mq-deadline", "none"):
            loop.set_attr("queue/scheduler", scheduler)
    equal(job.wait(), 0, "exit status of fio")


@suite.cases(newline="a\nb", not_utf8="a\udcff\udcfe", spaces=" a  b ", backslash="a\\012b",
             deleted="a (deleted)")
def odd_names(t, name):
    path = t.path(name)
    blockio.make_sparse(path, MIB)
    loop = t.attach(path)
    content = blockio.content(f"{loop.sysfs}/loop/backing_file")
    t.record("backing_file", content)
    os.rename(path, t.path("renamed"))
    equal(blockio.content(f"{loop.sysfs}/loop/backing_file"), f"{t.path('renamed')}\n".encode(),
          "backing_file after a rename")
    os.unlink(t.path("renamed"))
    equal(blockio.content(f"{loop.sysfs}/loop/backing_file"),
          f"{t.path('renamed')} (deleted)\n".encode(), "backing_file after unlink")
    equal(os.fsencode(path)[:63], loop.status().file_name, "name in the status")


@suite.test
def a_path_longer_than_a_page(t):
    def opened(*args, **kwargs):
        fd = os.open(*args, **kwargs)
        t.defer(os.close, fd)
        return fd

    folder = opened(t.dir, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=folder)
        folder = opened("x" * 250, os.O_RDONLY, dir_fd=folder)
    fd = opened("a", os.O_RDWR | os.O_CREAT, dir_fd=folder)
    os.truncate(fd, MIB)
    loop = loopdev.free()
    t.defer(loop.detach_if_bound)
    loop.configure(fd)
    fails_with(errno.ENAMETOOLONG, blockio.content, f"{loop.sysfs}/loop/backing_file")
    equal(loop.size(), MIB, "size")


if __name__ == "__main__":
    suite.main()
