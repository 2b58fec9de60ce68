#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""util-linux's own tests of what goes by a loop device, unchanged. The stock driver passes this
suite, too.

They are of the version that this machine has (see tools/testing/vm/stages/util-linux), and test
its programs. Not here: tests that take a helper program that would have to be compiled, and those
that have their disk from scsi_debug and use no loop device.
"""

import functools
import os
import re

from lib import system
from lib.kmsg import NO_ZERO_RANGE
from lib.ktap import Suite, ensure
from lib.needs import Skip

TESTS = """
blkdiscard/offsets blkid/cache blkid/topology fdisk/align-512-512 fdisk/gpt-resize
libmount/loop libmount/loop-overlay losetup/losetup losetup/losetup-blkdev losetup/losetup-loop
mount/complex mount/devname mount/fslists mount/fstab-btrfs mount/fstab-devname
mount/fstab-devname2label mount/fstab-devname2uuid mount/fstab-label mount/fstab-label2devname
mount/fstab-label2uuid mount/fstab-loop mount/fstab-symlink mount/fstab-uuid
mount/fstab-uuid2devname mount/fstab-uuid2label mount/label mount/regfile mount/remount
mount/set_ugid_mode mount/shared-subtree mount/subdir mount/uuid swapon/devname swapon/label
swapon/uuid
""".split()
# What mount tries if no type is given and blkid is not to be asked. Without this list it is all that
# the kernel has by then, which say in the log what they miss.
FILE_SYSTEMS = "/etc/filesystems"
# How a test, or the part of one with a number, ended: "mount: by label ... OK".
RESULT = re.compile(r" *(\S+: .*?) *\.\.\. (OK|SKIPPED|FAILED|KNOWN FAILED)( \(.*\))?")
suite = Suite(udev=True, allow=[
    NO_ZERO_RANGE,
    r"EXT4-fs \(loop\d+\): mounting ext[23] file system using the ext4 subsystem",
    r"EXT4-fs \(loop\d+\): couldn't mount as ext[23] due to feature incompatibilities",
    r"EXT4-fs \(loop\d+\): re-mounted .*",
    r"BTRFS( info \(device loop\d+\))?: .*",
    r"Adding \d+k swap on /dev/loop\d+\. .*",
    r"scsi_debug:.*",
    r"scsi \d+:\d+:\d+:\d+: Power-on or device reset occurred",
])


@functools.cache
def unpacked():
    """The folder with the tests."""
    archive = os.path.join(os.environ.get("LP_UTIL_LINUX", ""), "tests.tar")
    if not os.path.exists(archive):
        raise Skip("there are no tests of util-linux (vm/prepare --tests)")
    folder = os.path.join(system.scratch(), "util-linux")
    os.mkdir(folder)
    system.run("tar", "-xf", archive, "-C", folder)
    return folder


def results(report):
    """What the lines of a report say: the result of the whole, and those of its parts."""
    found = [match.groups() for match in map(RESULT.fullmatch, report.splitlines()) if match]
    parts = [result for result in found if re.search(r": \[\d+\] ", result[0])]
    whole = [result for result in found if result not in parts]
    ensure(len(whole) == 1, f"no result, or several:\n{report}")
    return whole[0], parts


@suite.cases(**{re.sub(r"\W", "_", name): name for name in TESTS})
def passes(t, name):
    folder = unpacked()
    with open(FILE_SYSTEMS, "x", encoding="ascii") as file:
        t.defer(os.unlink, FILE_SYSTEMS)
        file.write("ext3\next2\next4\n")
    (_, outcome, why), parts = results(system.run(
        "bash", f"{folder}/tests/ts/{name}",
        f"--use-system-commands --parsable --show-diff --srcdir={folder} --builddir={t.dir}"))
    for part, *result in parts:
        t.record(part, result)
    if outcome != "OK":
        raise Skip(f"{outcome}{why or ''}".removeprefix("SKIPPED "))


if __name__ == "__main__":
    suite.main()
