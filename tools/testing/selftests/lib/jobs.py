# SPDX-License-Identifier: GPL-2.0
"""Processes that do random things at the same time until their time is up."""

import errno
import os
import random
import signal
import time

from lib.ktap import Failure, name_of
from lib.system import PATIENCE

# How long a suite that does random things takes. `make check-long` sets it.
SECONDS = float(os.environ.get("LP_STRESS_SECONDS", "60"))
SEED = int(os.environ.get("LP_STRESS_SEED", "1"))


class Job:
    """A process that calls functions in a loop.

    `actions` take a random.Random; each may fail with an errno of `fine`: what it works on may have
    been taken away a moment before. Anything else it raises ends the job, and fails the test. It fails, too,
    if not `at_least` so many actions have worked.
    """

    def __init__(self, t, number, actions, seconds, fine=(), at_least=1):
        self.number = number
        self.at_least = at_least
        self.actions = actions
        self.end = time.monotonic() + seconds
        self.fine = set(fine)
        reader, writer = os.pipe()
        self.reader = os.fdopen(reader, encoding="ascii")
        self.child = os.fork()
        if not self.child:
            self.run(writer)
        os.close(writer)
        t.defer(self.stop)

    def run(self, writer):
        """The child: never returns."""
        status = 1
        try:
            os.write(writer, self.loop().encode())
            status = 0
        except BaseException as error:  # pylint: disable=broad-except
            print(f"# job {self.number}: {type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)

    def loop(self):
        """Acts until the time is up, and for a while longer if that was not often enough, as on a busy
        machine, where one action may take all of a short time. Returns how often it did."""
        rng = random.Random(SEED * 1000 + self.number)
        done = 0
        late = self.end + 600 * PATIENCE
        while (now := time.monotonic()) < self.end or (done < self.at_least and now < late):
            action = rng.choice(self.actions)
            try:
                action(rng)
                done += 1
            except OSError as error:
                if error.errno not in self.fine:
                    raise Failure(f"{action.__name__}: {name_of(error.errno)}") from error
        return str(done)

    def kill(self):
        """SIGKILL."""
        os.kill(self.child, signal.SIGKILL)

    def result(self):
        """Waits; returns the exit status (negative: the signal) and how many actions worked."""
        with self.reader:
            done = self.reader.read()
        child, self.child = self.child, None
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(done or 0)

    def stop(self):
        """Ends it, if nobody has waited for it: the test has failed."""
        if self.child:
            self.kill()
            self.result()


def finish(jobs):
    """Waits for all jobs; fails if one has, or did not do enough. Returns how much they did."""
    return sum(finish_each(jobs))


def finish_each(jobs):
    """The same, job by job."""
    results = [job.result() for job in jobs]
    bad = [number for number, (status, done) in enumerate(results)
           if status or done < jobs[number].at_least]
    if bad:
        raise Failure(f"jobs {bad} failed or did too little: {results}")
    return [done for _, done in results]


def share(parts):
    """A part of the suite's time, in seconds."""
    return SECONDS / parts


# A device that another process detaches, removes, or holds.
TAKEN_AWAY = (errno.ENXIO, errno.EBUSY, errno.ENODEV, errno.ENOENT, errno.EIO, errno.EINVAL)
