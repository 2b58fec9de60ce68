# SPDX-License-Identifier: GPL-2.0
"""Images with one thing wrong, whatever their format: refused, or served but for a part of them."""

import contextlib
import errno

from lib import blockio, images, layers, loopdev
from lib.ktap import ensure, fails_with, same_bytes

MALFORMED = errno.EUCLEAN
UNSUPPORTED = errno.EOPNOTSUPP
READ_ONLY = errno.EROFS
EITHER = (MALFORMED, UNSUPPORTED)


def refusal(numbers, how, *args):
    """Fails unless an attach fails with this errno, or one of these."""
    numbers = numbers if isinstance(numbers, tuple) else (numbers,)
    try:
        how(*args)
    except OSError as error:
        ensure(error.errno in numbers, f"refused with {error}")
        return
    ensure(False, f"{how.__name__}: attached")


def refused(t, path, numbers, line):
    """An image is refused read-write and read-only, with a log line each, and nothing is changed."""
    before = layers.Untouched(loopdev.free(), [path])
    layers.allow_parents(t, "any")
    t.expect_log(line, 2)
    refusal(numbers, t.attach, path)
    refusal(numbers, loopdev.attach_read_only, path)
    before.check()


@contextlib.contextmanager
def read_only(t, path):
    """A read-only device. The file stays as it is."""
    before = images.Unchanged(path)
    loop = loopdev.attach_read_only(path)
    t.defer(loop.detach_if_bound)
    yield loop
    loop.detach()
    before.check()


def only_read_only(t, path, expected, line):
    """An image is refused with a log line if it is to be written, and holds `expected`."""
    before = images.Unchanged(path)
    t.expect_log(line)
    fails_with(READ_ONLY, t.attach, path)
    before.check()
    with read_only(t, path) as loop:
        same_bytes(images.whole(loop), expected, "device")


def entry_is_an_io_error(t, path, line):
    """The first entry of a table is wrong: reads fail, and there is one log line, however many."""
    t.expect_log(line)
    with read_only(t, path) as loop:
        fails_with(errno.EIO, blockio.direct_read, loop.path, 0, 4096)
        fails_with(errno.EIO, blockio.direct_read, loop.path, 4096, 4096)
