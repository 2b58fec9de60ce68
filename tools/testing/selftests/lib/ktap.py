# SPDX-License-Identifier: GPL-2.0
"""A suite: test functions, run one after the other, reported as KTAP.

A test function takes one argument, a `Context`. It fails by raising anything. It also fails if it
leaves a loop device bound that was free before, or if the kernel logged something that neither the
test nor kmsg.py expected.
"""

import contextlib
import errno
import os
import re
import shutil
import sys
import time
import traceback

from lib import deadline, kmsg, loopdev, needs, system
from lib.needs import Skip

# What mount(8) says if it has recognised a file system that the kernel does not know.
UNKNOWN_FILE_SYSTEM = re.compile(r"unknown filesystem type '(\w+)'")


class Failure(Exception):
    """An assertion that does not hold."""


def ensure(condition, what):
    """Fails with `what` unless `condition` holds."""
    if not condition:
        raise Failure(what)


def equal(actual, expected, what):
    """Fails unless `actual` is `expected`. Long values are not printed in full."""
    if actual != expected:
        raise Failure(f"{what}: {brief(actual)}, expected {brief(expected)}")


def same_bytes(actual, expected, what):
    """Fails unless two byte strings are equal, saying where they part."""
    if actual == expected:
        return
    if len(actual) != len(expected):
        raise Failure(f"{what}: {len(actual)} bytes, expected {len(expected)}")
    first = next(i for i, pair in enumerate(zip(actual, expected)) if pair[0] != pair[1])
    raise Failure(f"{what}: differs first at byte {first} ({actual[first]:#x}, "
                  f"expected {expected[first]:#x})")


def fails_with(number, function, *args, **kwargs):
    """Fails unless `function` raises OSError with errno `number`."""
    try:
        function(*args, **kwargs)
    except OSError as error:
        if error.errno != number:
            raise Failure(f"{function.__name__}: {name_of(error.errno)}, "
                          f"expected {name_of(number)}") from error
        return
    raise Failure(f"{function.__name__}: succeeded, expected {name_of(number)}")


def name_of(number):
    """The name of an errno."""
    return errno.errorcode.get(number, str(number))


def brief(value):
    """A value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:200]} … {text[-100:]}"


class Context:
    """What a test may use. Everything it makes is undone when the test ends, last made first."""

    def __init__(self, name, udev, allow):
        self.stack = contextlib.ExitStack()
        self.udev = udev
        self.log = kmsg.Log()
        for pattern in allow:
            self.allow_log(pattern)
        self.dir = os.path.join(system.scratch(), name)
        os.mkdir(self.dir)
        self.defer(shutil.rmtree, self.dir)

    def defer(self, function, *args):
        """Calls `function` when the test ends, however it ends."""
        self.stack.callback(function, *args)

    def path(self, name):
        """A path in the test's own folder, which is on a tmpfs."""
        return os.path.join(self.dir, name)

    def expect_log(self, pattern, count=1):
        """Exactly `count` new kernel log lines will match `pattern` by the end of the test."""
        self.log.expect(pattern, count)

    def allow_log(self, pattern):
        """Any number of kernel log lines may match `pattern`."""
        self.log.allow(pattern)

    @staticmethod
    def record(name, value):
        """Prints something that has to be the same with the stock driver (see run_in_vm)."""
        print(f"# {name}: {value}")

    def with_udev(self):
        """udevd runs from now on, until the end of the test."""
        self.defer(system.stop_udev)
        system.start_udev()

    def attach(self, path, **kwargs):
        """Attaches `path` with LOOP_CONFIGURE (see loopdev.attach)."""
        loop = loopdev.attach(path, **kwargs)
        self.defer(loop.detach_if_bound)
        return loop

    def losetup(self, *args):
        """Runs `losetup -f --show ARGS` and returns the device."""
        name = system.run("losetup", "-f", "--show", *args).strip()
        loop = loopdev.Loop.by_path(name)
        self.defer(loop.detach_if_bound)
        return loop

    def mount(self, source, *options, where="mnt"):
        """Mounts `source` in the test's folder and returns the mount point. If the kernel does not have
        its file system, the test is skipped."""
        point = self.path(where)
        os.makedirs(point, exist_ok=True)
        try:
            system.run("mount", *options, source, point)
        except system.CommandError as error:
            if kind := UNKNOWN_FILE_SYSTEM.search(error.output):
                needs.file_system(kind[1])
            raise
        self.defer(system.unmount_if_mounted, point)
        return point

    def ram_disk(self, mebibytes=128):
        """An empty block device that keeps its data in memory."""
        disk = system.ram_disk(mebibytes)
        self.defer(system.remove_ram_disk)
        return disk

    def ext4(self, mebibytes=128, where="ext4"):
        """A new ext4 on a device in memory; returns where it is mounted."""
        disk = self.ram_disk(mebibytes)
        system.run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", disk)
        return self.mount(disk, where=where)

    def close(self):
        """Undoes everything, then judges the kernel log and the loop devices."""
        self.stack.close()
        left = loopdev.bound()
        if left and self.udev:
            # A device that udevd is looking at is detached when it has done so.
            system.settle()
            left = loopdev.bound()
        for loop in left:
            loop.detach_if_bound()
        problems = self.log.problems()
        if left:
            problems.append("left bound: " + ", ".join(loop.path for loop in left))
        if problems:
            raise Failure("\n".join(problems))


class Suite:
    """A list of tests and how to run them.

    `udev`: udevd runs meanwhile, as on any machine. Without it nobody but the test opens a device,
    and nothing has to be waited for. `allow`: kernel log lines that may appear in any test.
    """

    def __init__(self, udev=False, allow=()):
        self.tests = []
        self.udev = udev
        self.allow = allow

    def test(self, function):
        """Decorator: adds `function` as a test of the same name."""
        self.add(function.__name__, function)
        return function

    def cases(self, **table):
        """Decorator: one test per entry, called with the context and the entry's value."""
        def add_all(function):
            for name, value in table.items():
                self.add(f"{function.__name__}_{name}", lambda t, value=value: function(t, value))
            return function
        return add_all

    def add(self, name, function):
        """Adds a test by name."""
        self.tests.append((name, function))

    def main(self):
        """Runs the tests named on the command line, or all; exits with 1 if one failed."""
        chosen = sys.argv[1:]
        tests = [test for test in self.tests if not chosen or test[0] in chosen]
        print("KTAP version 1")
        print(f"1..{len(tests)}", flush=True)
        failed = 0
        with contextlib.ExitStack() as around:
            if not deadline.passed():
                around.enter_context(system.scratch_mounted())
                udev = system.udev_running if self.udev else system.udev_stopped
                around.enter_context(udev())
            for number, (name, function) in enumerate(tests, 1):
                failed += not self.run_one(number, name, function)
        sys.exit(1 if failed or not tests else 0)

    def run_one(self, number, name, function):
        """Runs one test, unless it is too late, and prints its line; True unless it failed."""
        start = time.monotonic()
        outcome, remark = "ok", ""
        try:
            if deadline.passed():
                raise Skip(deadline.REASON)
            run_in_context(Context(name, self.udev, self.allow), function)
        except Skip as reason:
            remark = f" # SKIP {reason}"
        except Exception as error:  # pylint: disable=broad-except
            outcome = "not ok"
            print_diagnostics(error)
        if os.environ.get("LP_TIMES"):
            print(f"# {name}: {time.monotonic() - start:.1f} s")
        print(f"{outcome} {number} {name}{remark}", flush=True)
        return outcome == "ok"


def run_in_context(context, function):
    """Runs a test; what it raises wins over what its undoing raises."""
    try:
        function(context)
    except Skip:
        context.close()
        raise
    except Exception as error:
        with contextlib.suppress(Exception):
            try:
                context.close()
            except Failure as more:
                error.add_note(f"and: {more}")
        raise
    context.close()


def print_diagnostics(error):
    """Prints an exception as KTAP diagnostic lines."""
    if isinstance(error, Failure):
        place = traceback.extract_tb(error.__traceback__)
        lines = [str(error)] + getattr(error, "__notes__", [])
        lines += [f"at {os.path.basename(frame.filename)}:{frame.lineno}" for frame in place
                  if frame.filename != __file__]
    else:
        lines = traceback.format_exception(error)
    for line in "".join(f"{line}\n" for line in lines).splitlines():
        print(f"# {line.rstrip()}")
