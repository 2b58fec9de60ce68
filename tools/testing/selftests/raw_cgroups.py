#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""To whom the work of a loop device is charged: the control group that does I/O on the device."""

import os

from lib import blockio, cgroup
from lib.ktap import Suite, ensure, equal, same_bytes

MIB = 1 << 20
suite = Suite()


def on_ext4(t):
    """A file without blocks on ext4, and the device under that."""
    path = os.path.join(t.ext4(96), "a")
    return blockio.make_sparse(path, 32 * MIB), "/dev/ram0"


def drop_cache(path):
    """Writes a file back and drops it from the page cache."""
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def file_memory(group):
    """Mebibytes of page cache charged to a group, rounded."""
    return round(int(group.memory("file")) / MIB)


@suite.test
def written_page_cache_is_charged_to_the_writer(t):
    path, _ = on_ext4(t)
    loop = t.attach(path)
    group, other = cgroup.Group(t, "writer"), cgroup.Group(t, "other")
    group.do_io(loop.path, "write", 0, 16 * MIB)
    other.do_io(loop.path, "read", 0, MIB)
    equal((file_memory(group), file_memory(other)), (16, 0), "page cache of writer and reader, MiB")


@suite.test
def read_page_cache_is_charged_to_the_reader(t):
    path, _ = on_ext4(t)
    blockio.make_file(path, 16 * MIB)
    loop = t.attach(path)
    drop_cache(path)
    group = cgroup.Group(t, "reader")
    group.do_io(loop.path, "read", 0, 8 * MIB)
    ensure(8 <= file_memory(group) <= 9, f"{file_memory(group)} MiB are charged for 8 MiB read")


@suite.test
def the_root_group_is_charged_nothing(t):
    path, _ = on_ext4(t)
    loop = t.attach(path)
    group = cgroup.Group(t, "idle")
    blockio.direct_write(loop.path, 0, blockio.pattern(4 * MIB))
    equal((file_memory(group), group.io(loop.path)["wbytes"]), (0, 0), "page cache, bytes written")


@suite.test
def without_the_io_controller_memory_goes_to_the_root(t):
    path, _ = on_ext4(t)
    loop = t.attach(path)
    group = cgroup.Group(t, "memory-only", controllers=("memory",))
    group.do_io(loop.path, "write", 0, 4 * MIB)
    t.record("page cache of the writer, MiB", file_memory(group))


@suite.cases(one_by_one=65536, large=cgroup.PIECE)
def direct_writes_reach_the_disk_in_the_writers_name(t, piece):
    path, disk = on_ext4(t)
    blockio.make_file(path, 32 * MIB)
    drop_cache(path)
    loop = t.losetup("--direct-io=on", path)
    group = cgroup.Group(t, "writer")
    group.do_io(loop.path, "write", 0, 8 * MIB, piece)
    on_loop, on_disk = group.io(loop.path), group.io(disk)
    equal(on_loop["wbytes"], 8 * MIB, "bytes written to the loop device")
    equal(on_disk["wbytes"], 8 * MIB, "bytes written to the disk")
    for name, numbers in (("loop", on_loop), ("disk", on_disk)):
        t.record(f"io.stat of the writer, {name}", sorted(numbers.items()))


@suite.test
def direct_reads_reach_the_disk_in_the_readers_name(t):
    path, disk = on_ext4(t)
    blockio.make_file(path, 32 * MIB)
    drop_cache(path)
    loop = t.losetup("--direct-io=on", path)
    group = cgroup.Group(t, "reader")
    group.do_io(loop.path, "read", MIB, 8 * MIB)
    equal(group.io(disk)["rbytes"], 8 * MIB, "bytes read from the disk")
    t.record("io.stat of the reader", sorted(group.io(disk).items()))


@suite.test
def buffered_writes_reach_the_disk_in_the_writers_name(t):
    # Write-back of a file is charged to the group that has created it.
    folder = t.ext4(96)
    path = os.path.join(folder, "a")
    group = cgroup.Group(t, "writer")
    group.run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=16", "conv=fsync")
    before = group.io("/dev/ram0")["wbytes"]
    loop = t.attach(path)
    group.do_io(loop.path, "write_and_flush", 0, 8 * MIB)
    written = group.io("/dev/ram0")["wbytes"] - before
    ensure(8 * MIB <= written <= 9 * MIB, f"{written} bytes were written")


@suite.cases(buffered="off", direct="on")
def a_throttled_group_does_not_hold_up_others(t, direct):
    path, disk = on_ext4(t)
    blockio.make_file(path, 32 * MIB)
    drop_cache(path)
    loop = t.losetup(f"--direct-io={direct}", path)
    slow, fast = cgroup.Group(t, "slow"), cgroup.Group(t, "fast")
    number = os.stat(disk).st_rdev
    limit = f"{os.major(number)}:{os.minor(number)}"
    slow.set("io.max", f"{limit} rbps=65536")
    process = slow.start_io(loop.path, "read", 0, 8 * MIB)
    fast.do_io(loop.path, "read", 16 * MIB, 8 * MIB)
    equal(process.poll(), None, "exit status of the throttled reader")
    slow.set("io.max", f"{limit} rbps=max")
    cgroup.finish(process)
    ensure(slow.io(disk)["rbytes"] >= 8 * MIB, "the throttled reader was charged too little")


@suite.test
def many_groups(t):
    path, disk = on_ext4(t)
    blockio.make_file(path, 32 * MIB)
    drop_cache(path)
    loop = t.losetup("--direct-io=on", path)
    groups = [cgroup.Group(t, f"group{number}") for number in range(8)]
    jobs = [group.start_io(loop.path, "write", number * MIB, MIB, 65536)
            for number, group in enumerate(groups)]
    for job in jobs:
        cgroup.finish(job)
    written = [group.io(disk)["wbytes"] for group in groups]
    equal(written, [MIB] * 8, "bytes written, group by group")
    expected = b"".join(blockio.pattern(65536, at) for at in range(0, 8 * MIB, 65536))
    same_bytes(blockio.content(path)[:8 * MIB], expected, "file")


if __name__ == "__main__":
    suite.main()
