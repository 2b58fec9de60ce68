#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Every file below /sys/block/loopN: on all kinds of files and devices as with the stock driver."""

import errno
import os

from lib import backings, loopdev
from lib.ktap import Suite, ensure, equal, fails_with
from lib.system import attempt, run

MIB = 1 << 20
INVALID_BLOCK_SIZE = r"Invalid logical block size \(\d+\)"
NOT_SUPPORTED = r"operation not supported error, dev loop\d+, .*"
# scsi_debug, when it is loaded.
SCSI = r"scsi_debug:.*|scsi \d+:.*|sd \d+:.*"
suite = Suite(allow=[INVALID_BLOCK_SIZE, SCSI])

# What differs from attach to attach, tells the time, or cannot be read.
VOLATILE = {"uevent", "diskseq", "stat", "dev", "inflight", "power", "bdi", "subsystem", "trace",
            "holders", "slaves", "mq", "iosched", "backing_file",
            # The kernel warns of whoever reads it.
            "capability"}
# What only our driver has, because it knows more formats than one.
OURS_ONLY = {"parser", "variant", "size_source"}

RO = {"file_flags": os.O_RDONLY, "flags": loopdev.READ_ONLY, "mode": os.O_RDONLY}
DIRECT = {"flags": loopdev.DIRECT_IO}
ATTACHES = {
    "default": {},
    "read-only": RO,
    "4096": {"block_size": 4096},
    "direct": DIRECT,
    "direct 4096": {**DIRECT, "block_size": 4096},
}
# What does not depend on the file system.
MORE_ATTACHES = {
    "default": {},
    "512": {"block_size": 512},
    "1024": {"block_size": 1024},
    "direct 512": {**DIRECT, "block_size": 512},
    "O_DIRECT": {"file_flags": os.O_RDWR | os.O_DIRECT},
    "direct, offset 512": {**DIRECT, "offset": 512},
    "offset 100": {"offset": 100},
}


def files(loop, folder=""):
    """All files of a loop device in sysfs, by name; "-" is what cannot be read."""
    found = {}
    for name in sorted(os.listdir(os.path.join(loop.sysfs, folder))):
        path = os.path.join(folder, name)
        if name in VOLATILE or name in OURS_ONLY or name.startswith("loop") and name != "loop":
            continue
        if os.path.isdir(os.path.join(loop.sysfs, path)):
            found.update(files(loop, path))
        else:
            found[path] = content(loop, path)
    return found


def content(loop, path):
    """What a file of sysfs says."""
    try:
        return loop.attr(path)
    except OSError as error:
        return f"- ({error.strerror})"


def record_changes(t, what, before, after):
    """Records which files say something else than before."""
    names = sorted(set(before) | set(after))
    t.record(what, [f"{name}: {after.get(name)}" for name in names
                    if before.get(name) != after.get(name)])


def record_attaches(t, path, attaches):
    """Records what each way to attach a file changes, and what is left of it in the end."""
    loop = loopdev.free()
    t.defer(loop.detach_if_bound)
    bound = None
    for name, arguments in attaches.items():
        try:
            loopdev.attach(path, loop=loop, **arguments)
        except OSError as error:
            t.record(name, error.strerror)
            continue
        now = files(loop)
        record_changes(t, name, bound or {}, now)
        bound = bound or now
        loop.detach()
    ensure(bound is not None, "the file was never attached")
    record_changes(t, "detached", bound, files(loop))


@suite.cases(**backings.ALL)
def limits(t, backing):
    record_attaches(t, backing(t), ATTACHES)


@suite.cases(ext4=backings.ALL["ext4_4k"], scsi_4k=backings.scsi_4k)
def limits_otherwise_attached(t, backing):
    record_attaches(t, backing(t), MORE_ATTACHES)


@suite.cases(ext4=backings.ALL["ext4_4k"], tmpfs=backings.on_tmpfs, ram_disk=backings.ram_disk)
def changed_while_bound(t, backing):
    loop = t.attach(backing(t))
    before = files(loop)
    for name, request, value in (("direct on", loopdev.SET_DIRECT_IO, 1),
                                 ("4096", loopdev.SET_BLOCK_SIZE, 4096),
                                 ("direct off", loopdev.SET_DIRECT_IO, 0),
                                 ("1024", loopdev.SET_BLOCK_SIZE, 1024),
                                 ("8192", loopdev.SET_BLOCK_SIZE, 8192),
                                 ("direct on again", loopdev.SET_DIRECT_IO, 1),
                                 ("512", loopdev.SET_BLOCK_SIZE, 512),
                                 ("100", loopdev.SET_BLOCK_SIZE, 100)):
        try:
            loop.ioctl(request, value, os.O_RDWR)
            outcome = "done"
        except OSError as error:
            outcome = error.strerror
        after = files(loop)
        t.record(name, outcome)
        record_changes(t, "and then", before, after)
        before = after


WRITES = (
    ("max_sectors_kb", "64"), ("max_sectors_kb", "4"), ("max_sectors_kb", "1280"),
    ("max_sectors_kb", "100000"), ("max_sectors_kb", "0"),
    ("nr_requests", "4"), ("nr_requests", "64"), ("nr_requests", "128"), ("nr_requests", "256"),
    ("scheduler", "mq-deadline"), ("nr_requests", "256"), ("nr_requests", "8"),
    ("scheduler", "kyber"), ("scheduler", "bfq"), ("scheduler", "none"), ("scheduler", "nonsense"),
    ("read_ahead_kb", "0"), ("read_ahead_kb", "1024"), ("read_ahead_kb", "128"),
    ("rotational", "1"), ("rotational", "0"), ("iostats", "0"), ("iostats", "1"),
    ("nomerges", "2"), ("nomerges", "0"), ("rq_affinity", "2"), ("rq_affinity", "1"),
    ("add_random", "1"), ("io_poll", "1"),
    ("wbt_lat_usec", "2000"), ("wbt_lat_usec", "0"), ("wbt_lat_usec", "-1"),
    ("write_cache", "write through"), ("write_cache", "write back"), ("write_cache", "other"),
    ("discard_max_bytes", "65536"), ("discard_max_bytes", "100"), ("discard_max_bytes", "0"),
    ("stable_writes", "1"), ("stable_writes", "0"), ("io_timeout", "1000"),
    ("iostats_passthrough", "1"), ("iostats_passthrough", "0"),
)


# What a setting may change.
SETTINGS = sorted({name for name, _ in WRITES} | {"async_depth", "fua", "max_hw_sectors_kb"})


def settings(loop):
    """The files of the queue that settings may change."""
    return {name: content(loop, f"queue/{name}") for name in SETTINGS}


def write(loop, name, value):
    """Writes to a file of the queue; says what came of it."""
    try:
        loop.set_attr(f"queue/{name}", value)
    except OSError as error:
        return error.strerror
    return "done"


def own_device(t):
    """A device that goes away with the test: settings outlive an attach."""
    loop = loopdev.add(200)
    t.defer(loopdev.remove, loop.number)
    return loop


@suite.test
def settings_of_the_queue(t):
    loop = t.attach(backings.on_file_system(t, "ext4_4k"), loop=own_device(t))
    before = settings(loop)
    for name, value in WRITES:
        outcome = write(loop, name, value)
        after = settings(loop)
        record_changes(t, f"{name} = {value}: {outcome}", before, after)
        before = after
    loop.detach()
    t.attach(backings.on_tmpfs(t), loop=loop)
    record_changes(t, "after another attach", before, settings(loop))


@suite.test
def settings_last_until_they_are_changed(t):
    loop = t.attach(backings.on_tmpfs(t), loop=own_device(t))
    for name, value in (("max_sectors_kb", "64"), ("nr_requests", "16"), ("read_ahead_kb", "64"),
                        ("scheduler", "mq-deadline"), ("discard_max_bytes", "65536"),
                        ("write_cache", "write through")):
        write(loop, name, value)
    before = files(loop)
    loop.detach()
    record_changes(t, "detached", before, files(loop))
    t.attach(backings.on_root(t), loop=loop)
    record_changes(t, "attached", before, files(loop))


@suite.cases(**{name: backings.ALL[name] for name in ("vfat", "ext2", "tmpfs")})
def what_the_file_system_cannot_do_is_withdrawn(t, backing):
    t.allow_log(NOT_SUPPORTED)
    loop = t.attach(backing(t))
    before = files(loop)
    for arguments in (("-o", "0", "-l", str(MIB)), ("-z", "-o", "0", "-l", str(MIB)),
                      ("-s", "-o", "0", "-l", str(MIB))):
        done = attempt("blkdiscard", "-f", *arguments, loop.path)
        said = done.stderr.strip().rpartition(": ")[2]
        record_changes(t, f"blkdiscard {arguments[0]}: {done.returncode} {said}", before,
                       files(loop))
    loop.detach()
    t.attach(backings.on_tmpfs(t), loop=loop)
    t.record("the next file", (loop.attr("queue/discard_max_bytes"),
                               loop.attr("queue/write_zeroes_max_bytes")))


@suite.test
def files_and_their_modes(t):
    loop = t.attach(backings.on_tmpfs(t))
    for folder in ("", "queue", "loop", "power", "mq", "mq/0", "integrity"):
        where = os.path.join(loop.sysfs, folder)
        if not os.path.isdir(where):
            t.record(folder, "is not there")
            continue
        modes = {name: oct(os.lstat(os.path.join(where, name)).st_mode)
                 for name in sorted(os.listdir(where)) if name not in OURS_ONLY}
        t.record(folder or ".", modes)


@suite.test
def attributes_are_there_while_a_file_is(t):
    loop = loopdev.free()
    names = {"autoclear", "backing_file", "dio", "offset", "partscan", "sizelimit"}
    equal(attributes(loop), set(), "files in loop/ of an unbound device")
    t.attach(backings.on_tmpfs(t), loop=loop)
    equal(attributes(loop), names, "files in loop/ of a bound device")
    for name in names:
        fails_with(errno.EACCES, loop.set_attr, f"loop/{name}", "1")
    held = os.open(f"{loop.sysfs}/loop/offset", os.O_RDONLY)
    loop.detach()
    equal(attributes(loop), set(), "files in loop/ of a device that was detached")
    fails_with(errno.ENODEV, os.pread, held, 100, 0)
    os.close(held)


def attributes(loop):
    """The files in loop/, but for what only our driver has."""
    folder = f"{loop.sysfs}/loop"
    return set(os.listdir(folder)) - OURS_ONLY if os.path.isdir(folder) else set()


@suite.test
def lsblk_and_blockdev_say_the_same(t):
    loop = t.attach(backings.on_file_system(t, "ext4_4k"))
    columns = "RO,RM,HOTPLUG,SIZE,PHY-SEC,LOG-SEC,MIN-IO,OPT-IO,ROTA,SCHED,RQ-SIZE,RA,WSAME," \
              "DISC-ALN,DISC-GRAN,DISC-MAX,DISC-ZERO,ZONED,DAX,TYPE,TRAN,FSTYPE"
    t.record("lsblk", run("lsblk", "--nodeps", "--json", "--bytes", "-o", columns,
                          loop.path).split())
    for option in ("--getalignoff", "--getbsz", "--getdiscardzeroes", "--getdiskseq", "--getfra",
                   "--getiomin", "--getioopt", "--getmaxsect", "--getpbsz", "--getra", "--getro",
                   "--getss", "--getsize64", "--getzonesz"):
        done = attempt("blockdev", option, loop.path)
        if option != "--getdiskseq":
            t.record(option, (done.returncode, done.stdout.strip()))


if __name__ == "__main__":
    # All that this kernel has to choose from is listed from the start.
    attempt("modprobe", "-a", "kyber-iosched", "bfq")
    suite.main()
