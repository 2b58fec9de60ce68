# SPDX-License-Identifier: GPL-2.0
"""Events that the kernel sends to user space about devices, as udev gets them."""

import os
import re
import socket

NETLINK_KOBJECT_UEVENT = 15
KERNEL_GROUP = 1
BUFFER = 64 << 20
SO_RCVBUFFORCE = 33
# Different with every event, or with every run.
COUNTERS = {"SEQNUM"}


class Event:
    """One event: what was done to what, and its environment."""

    def __init__(self, raw):
        head, *pairs = raw.decode().rstrip("\0").split("\0")
        self.action, _, self.path = head.partition("@")
        self.env = dict(pair.split("=", 1) for pair in pairs)

    def __str__(self):
        """All of it, the counters apart, in the order the kernel gave it."""
        env = (f"{key}={value}" for key, value in self.env.items() if key not in COUNTERS)
        return f"{self.action}@{self.path} " + " ".join(env)


class Listener:
    """Events that came after this object was made, about paths that match `pattern`.

    An event has arrived when the system call that caused it returns, unless a task of the kernel
    caused it.
    """

    def __init__(self, pattern=r".*/loop\d+(/.*)?"):
        self.pattern = re.compile(pattern)
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self.socket.bind((0, KERNEL_GROUP))
        self.socket.setblocking(False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def events(self):
        """The events since the last call."""
        found = []
        while True:
            try:
                raw = self.socket.recv(1 << 16)
            except BlockingIOError:
                return [event for event in found if self.pattern.fullmatch(event.path)]
            found.append(Event(raw))


def sequence(loop):
    """The disk sequence number of a device."""
    with open(os.path.join(loop.sysfs, "diskseq"), encoding="ascii") as file:
        return int(file.read())
