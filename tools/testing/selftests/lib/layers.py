# SPDX-License-Identifier: GPL-2.0
"""Layers of a device: who may name a parent, what a refusal must leave alone, what sysfs tells."""

import contextlib
import errno
import fcntl
import os
import re

from lib import images, loopdev, modules, system, uevents
from lib.ktap import ensure, equal, fails_with

# What a line of the sysfs file has, in this order; the path of a data file, or how many extents there
# are, may follow.
KEYS = ["layer", "parser", "variant", "creator", "block_size", "size", "allocated", "state",
        "error", "path"]
MODULES = ("loop", "qcowloop", "vhdloop", "vmdkloop", "loop_parser")


def allow_parents(t, value):
    """Sets the parameter `parents` until the test ends."""
    t.stack.enter_context(modules.parameter("parents", value))


def attach_named(t, path, **kwargs):
    """Attaches with the parser named: the file may name its parent."""
    return images.attach_with(t, path, "vhd", **kwargs)


def attach_read_only(t, path, **kwargs):
    """As attach_named(), but as `losetup -r` does."""
    return attach_named(t, path, file_flags=os.O_RDONLY, flags=loopdev.READ_ONLY,
                        mode=os.O_RDONLY, **kwargs)


def attach_auto(t, path, **kwargs):
    """Attaches without any permission but that of the parameter."""
    return t.attach(path, **kwargs)


def attach_fd(t, fd, loop=None):
    """Attaches an open file, with the parser named, and closes the descriptor."""
    loop = loop or loopdev.free()
    loop.set_attr("loop/parser", "vhd")
    try:
        loop.configure(fd)
    except OSError:
        loop.set_attr("loop/parser", "auto")
        raise
    finally:
        os.close(fd)
    t.defer(loop.detach_if_bound)
    return loop


class Layer:
    """A line of the sysfs file `layers`: words without blanks, as they are escaped."""

    def __init__(self, line):
        self.fields = dict(word.split("=", 1) for word in line.split(" "))
        data = self.fields.pop("data", None)
        extents = self.fields.pop("extents", None)
        equal(list(self.fields), KEYS, f"keys of {line!r}")
        if data is not None:
            self.fields["data"] = unescaped(data)
        if extents is not None:
            self.fields["extents"] = extents
        self.shown_path = self.fields.pop("path")
        self.path = unescaped(self.shown_path)

    def __getitem__(self, key):
        return self.fields[key]

    def number(self, key):
        """A field that is a number."""
        return int(self.fields[key])


def escaped(data):
    """Bytes as the file shows them: what is no plain character as \\xNN."""
    return "".join(chr(byte) if 0x20 < byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}"
                   for byte in data)


def unescaped(text):
    """The path that was escaped."""
    return os.fsdecode(re.sub(rb"\\x(..)", lambda match: bytes.fromhex(match.group(1).decode()),
                              text.encode()))


def lines(loop):
    """The lines about layers, and how many more there are that had no room."""
    found = loop.attr("loop/layers").splitlines()
    if found and (match := re.fullmatch(r"more=(\d+)", found[-1])):
        return found[:-1], int(match.group(1))
    return found, 0


def of(loop):
    """The layers of a device, top first. All of them must have room."""
    found, more = lines(loop)
    equal(more, 0, "layers that are not shown")
    return [Layer(line) for line in found]


def paths(loop):
    """The files of a device, top first."""
    return [layer.path for layer in of(loop)]


def references():
    """The references to every module that may hold some."""
    return {name: system.references(name) for name in MODULES if system.loaded(name)}


def state(loop):
    """What a change of the file that was refused must not change."""
    status = loop.status()
    return (lines(loop) if loop.attr("loop/parser") != "raw" else None,
            loop.attr("loop/backing_file"), loop.attr("loop/parser"), loop.size(),
            (status.inode, status.flags, status.offset, status.sizelimit),
            uevents.sequence(loop), references())


def is_open(path):
    """Whether anybody but us has a file open: then it cannot be leased for writing."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return True
        raise
    finally:
        os.close(fd)
    return False


class Untouched:
    """Files, a free device and the modules, before something that must leave them as they are."""

    def __init__(self, loop, files):
        self.loop = loop
        self.files = [images.Unchanged(path) for path in files]
        self.open = {path: is_open(path) for path in files}
        for parser in modules.PARSERS:
            system.attempt("modprobe", parser)
        self.references = references()

    def check(self):
        """Fails if anything has changed. What was closed may take a moment to be so."""
        ensure(not self.loop.is_bound(), "bound")
        equal(self.loop.attr("size"), "0", "size")
        equal(self.loop.attr("loop/parser"), "auto", "parser")
        ensure(not os.path.exists(f"{self.loop.sysfs}/loop/layers"), "there are layers")
        for file in self.files:
            file.check()
        for path, was in self.open.items():
            system.wait_until(lambda path=path, was=was: is_open(path) == was,
                              f"{path} is {'open' if was else 'closed'} as it was before")
        system.wait_until(lambda: references() == self.references,
                          f"there are references {self.references} as before: {references()}")


def refused(t, number, path, *others, says="", attach=attach_named):
    """An attach of `path` fails with errno `number`, a log line that `says` why, and no trace.

    `others`: more files that must stay as they are. The line also tells the device.
    """
    loop = loopdev.free()
    before = Untouched(loop, [name for name in (path, *others) if os.path.isfile(name)])
    with one_line(t, rf"{loop.name}: refused: .*{says}.*"):
        fails_with(number, attach, t, path, loop=loop)
    before.check()


@contextlib.contextmanager
def one_line(t, pattern):
    """Meanwhile the kernel logs one line of a pattern, not less and not more."""
    t.allow_log(pattern)
    before = len(t.log.matching(pattern))
    first = len(t.log.lines)
    yield
    found = len(t.log.matching(pattern)) - before
    said = [text for _, text in t.log.lines[first:]]
    equal(found, 1, f"number of log lines like '{pattern}' in {said}")
