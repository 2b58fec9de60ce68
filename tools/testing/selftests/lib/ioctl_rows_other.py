# SPDX-License-Identifier: GPL-2.0
"""The ioctl table, third part: the control node, calls that belong to the block layer, and calls
that are nobody's."""

import os
import struct

from lib import loopdev
from lib.ioctl_steps import (
    EXCL, MIB, PARTSCAN, READ_ONLY, RO, RW, attached, attribute, content, control, do, given_fd,
    held, idle_other, mounted, opened, other, partition_call, partitioned, reading, released,
    reopened, reopened_part, unmounted, value_of, with_file_system, writing, written)

INT_MAX = (1 << 31) - 1


def span(start, length):
    """What BLKDISCARD and its kin take."""
    return struct.pack("=2Q", start, length)


def adding(number, **how):
    """LOOP_CTL_ADD; what it added is removed again when the row ends."""
    def step(bench):
        there = set(os.listdir("/sys/block"))
        said = control("CTL_ADD", number, **how)(bench)
        new = [name for name in os.listdir("/sys/block") if name not in there]
        bench.undo += [(remove_if_there, (name,)) for name in new]
        # Which number is free depends on what was done before.
        return f"{said} new={len(new)}" if number >= 0 else f"CTL_ADD of any new={len(new)}"
    return step


def remove_if_there(name):
    """LOOP_CTL_REMOVE."""
    if os.path.exists(f"/sys/block/{name}"):
        loopdev.remove(int(name.removeprefix("loop")))


def opened_anew():
    """The caller closes the device and opens it again."""
    def step(bench):
        bench.close_device()
        bench.open_device()
    return step


def with_open(kind, flags=RO):
    """Somebody has a device open."""
    return lambda bench: bench.fd(kind, flags) and None


def with_open_part():
    """Somebody has the device's first partition open."""
    return lambda bench: bench.fds.append(os.open(bench.loop.part(1), RO))


CONTROL = [
    *((f"add {number:#x}", (adding(number),))
      for number in (1, 98, 1 << 20, (1 << 20) - 1, (1 << 20) + 1, INT_MAX, INT_MAX - 1)),
    ("add a negative number", (adding(-1), adding(-2), adding(-1 << 31))),
    ("add with high bits", (adding(98 | 1 << 32),)),
    ("add twice", (adding(98), adding(98))),
    ("add without privileges", (adding(98, nobody=True),)),
    ("add, the node opened read-only", (adding(98, flags=RO),)),
    ("remove what is not there", (control("CTL_REMOVE", 98), control("CTL_REMOVE", INT_MAX))),
    ("remove a negative number", (control("CTL_REMOVE", -1), control("CTL_REMOVE", -1 << 31))),
    ("remove with high bits", (adding(98),
                               control("CTL_REMOVE", 98 | 1 << 32))),
    ("remove what is bound", (other(), control("CTL_REMOVE", 100))),
    ("remove what is open", (idle_other(), with_open("other"), control("CTL_REMOVE", 100))),
    ("remove what was open", (idle_other(), with_open("other"), released(),
                              control("CTL_REMOVE", 100), control("CTL_ADD", 100))),
    ("remove what is open exclusively",
     (idle_other(), with_open("other", RW | EXCL),
      control("CTL_REMOVE", 100))),
    ("remove twice", (adding(98), control("CTL_REMOVE", 98),
                      control("CTL_REMOVE", 98))),
    ("remove what is to be detached",
     (other(), with_open("other"), do("CLR_FD", on="other"),
      control("CTL_REMOVE", 100))),
    ("remove without privileges", (adding(98),
                                   control("CTL_REMOVE", 98, nobody=True))),
    ("get a free one", (control("CTL_GET_FREE"), control("CTL_GET_FREE", 77))),
    ("get a free one, the first is open", (opened(EXCL), control("CTL_GET_FREE"))),
    ("get a free one, the first is bound", (attached(), control("CTL_GET_FREE"))),
    ("get a free one, the first is to be detached",
     (attached(), do("CLR_FD"), control("CTL_GET_FREE"))),
    ("unknown calls", tuple(control(name) for name in (
        "UNKNOWN", "SET_FD", "GET_STATUS64", "CLR_FD", "LAST_PLUS_1", "BLKGETSIZE64", "TCGETS"))),
    ("control calls on the device", (attached(), do("CTL_ADD", 98), do("CTL_REMOVE", 98),
                                     do("CTL_GET_FREE"))),
]

UNKNOWN = ("UNKNOWN", "LAST_PLUS_1", "MINUS_1", "HDIO_GETGEO", "HDIO_GET_IDENTITY", "CDROMEJECT",
           "CDROM_GET_CAPABILITY", "FDFLUSH", "SG_IO", "FIBMAP", "FIGETBSZ", "TCGETS",
           "BLKREPORTZONE", "BLKGETZONESZ", "BLKDISCARDZEROES")
UNKNOWN_CALLS = [
    (f"{state_name}, {name}", (state, do(name, bytes(256))))
    for state_name, state in (("unbound", opened()), ("bound", attached()))
    for name in UNKNOWN] + [
    ("nobody's, without privileges", (attached(), reopened(RO), do("UNKNOWN", nobody=True))),
    ("nobody's, somebody else has it exclusively", (attached(), held(EXCL), do("UNKNOWN"))),
]

NUMBERS = ("BLKROGET", "BLKGETSIZE", "BLKGETSIZE64", "BLKRAGET", "BLKSECTGET", "BLKSSZGET",
           "BLKBSZGET", "BLKIOMIN", "BLKIOOPT", "BLKALIGNOFF", "BLKPBSZGET", "BLKROTATIONAL")
ANSWERS = tuple(value_of(name) for name in NUMBERS)
QUESTIONS = [
    ("unbound", (opened(), *ANSWERS)),
    ("bound", (attached(), *ANSWERS)),
    ("block size 4096", (attached(block_size=4096), *ANSWERS)),
    ("read-only, a window", (attached(flags=READ_ONLY, offset=512, sizelimit=4096), *ANSWERS)),
    ("without privileges", (attached(), *(do(name, bytes(8), nobody=True) for name in NUMBERS))),
    ("after a detach", (attached(block_size=4096, flags=READ_ONLY), do("CLR_FD"), opened_anew(),
                        *ANSWERS)),
]

RANGES = ((0, 4096), (512, 512), (0, MIB), (1, 512), (512, 1), (0, 0), (MIB, 512),
          (MIB - 512, 1024), ((1 << 64) - 512, 512), ((1 << 64) - 512, 1024))
DISCARDS = [
    (f"{name} {start:#x}+{length:#x}", (attached(), written(0, 8192), do(name, span(start, length)),
                                        content()))
    for name in ("BLKDISCARD", "BLKZEROOUT") for start, length in RANGES] + [
    (f"{name}, {text}", (*steps, do(name, span(0, 4096))))
    for name in ("BLKDISCARD", "BLKSECDISCARD", "BLKZEROOUT")
    for text, steps in (("unbound", (opened(),)), ("secure", (attached(),)),
                        ("read-only", (attached(flags=READ_ONLY),)),
                        ("opened read-only", (attached(), reopened(RO))),
                        ("block size 4096", (attached(block_size=4096),)),
                        ("exclusively elsewhere", (attached(), held(EXCL))))] + [
    ("a bad pointer", (attached(), do("BLKDISCARD", 4096), do("BLKZEROOUT", 4096),
                       do("BLKSECDISCARD", 4096))),
    ("block size 4096, a range of 512",
     (attached(block_size=4096), do("BLKDISCARD", span(512, 512)),
      do("BLKZEROOUT", span(512, 512)))),
]

BLOCK = [
    ("BLKROSET 1", (attached(), do("BLKROSET", struct.pack("i", 1)), reading(0, 512))),
    ("BLKROSET 1, unbound", (opened(), do("BLKROSET", struct.pack("i", 1)), attribute("ro"),
                             do("BLKROSET", struct.pack("i", 0)))),
    ("BLKROSET 0 of a read-only device",
     (attached(flags=READ_ONLY), do("BLKROSET", struct.pack("i", 0)))),
    ("BLKROSET 0, and a write", (attached(file_flags=RO), do("BLKROSET", struct.pack("i", 0)),
                                 reopened(RW), writing(0, 512), content())),
    ("BLKROSET, bad pointer", (attached(), do("BLKROSET", 4096))),
    ("BLKROSET without privileges", (attached(), do("BLKROSET", struct.pack("i", 1), nobody=True))),
    ("BLKROSET 1, detached, attached again",
     (attached(), do("BLKROSET", struct.pack("i", 1)), do("CLR_FD"),
      opened_anew(), attribute("ro"),
      do("SET_FD", given_fd("b")))),
    ("BLKFLSBUF", (attached(), written(0, 4096), do("BLKFLSBUF"), content())),
    ("BLKFLSBUF without privileges", (attached(), do("BLKFLSBUF", nobody=True))),
    ("BLKRRPART", (partitioned(), attached(), do("BLKRRPART"))),
    ("BLKRRPART, partitions looked for", (attached(flags=PARTSCAN), partitioned(),
                                          do("BLKRRPART"))),
    ("BLKRRPART, unbound", (opened(), do("BLKRRPART"))),
    ("BLKRRPART without privileges", (attached(), do("BLKRRPART", nobody=True))),
    ("BLKRRPART, a partition is open",
     (partitioned(), attached(flags=PARTSCAN), with_open_part(), do("BLKRRPART"))),
    ("BLKRRPART of a partition", (partitioned(), attached(flags=PARTSCAN), reopened_part(),
                                  do("BLKRRPART"))),
    ("BLKRRPART, exclusively elsewhere", (attached(flags=PARTSCAN), held(EXCL), do("BLKRRPART"))),
    ("BLKPG add", (attached(), do("BLKPG", partition_call(1, 1, 4096, 8192)))),
    ("BLKPG add, unbound", (opened(), do("BLKPG", partition_call(1, 1, 4096, 8192)))),
    ("BLKPG add, past the end", (attached(), do("BLKPG", partition_call(1, 1, MIB, 8192)))),
    ("BLKPG add, unaligned", (attached(), do("BLKPG", partition_call(1, 1, 100, 8192)))),
    ("BLKPG add, number 0", (attached(), do("BLKPG", partition_call(1, 0, 4096, 8192)))),
    ("BLKPG add, negative", (attached(), do("BLKPG", partition_call(1, 1, -4096, 8192)))),
    ("BLKPG add, overlapping", (attached(), do("BLKPG", partition_call(1, 1, 4096, 8192)),
                                do("BLKPG", partition_call(1, 2, 8192, 8192)))),
    ("BLKPG add, twice", (attached(), do("BLKPG", partition_call(1, 1, 4096, 4096)),
                          do("BLKPG", partition_call(1, 1, 65536, 4096)))),
    ("BLKPG add, partition 300", (attached(), do("BLKPG", partition_call(1, 300, 4096, 4096)))),
    ("BLKPG delete", (partitioned(), attached(flags=PARTSCAN), do("BLKPG", partition_call(2, 1)))),
    ("BLKPG delete, not there", (attached(), do("BLKPG", partition_call(2, 1)))),
    ("BLKPG delete, open", (partitioned(), attached(flags=PARTSCAN), with_open_part(),
                            do("BLKPG", partition_call(2, 1)))),
    ("BLKPG resize", (partitioned(), attached(flags=PARTSCAN),
                      do("BLKPG", partition_call(3, 1, 65536, 8192)), attribute("size"))),
    ("BLKPG unknown", (attached(), do("BLKPG", partition_call(9, 1, 65536, 8192)))),
    ("BLKPG bad pointer", (attached(), do("BLKPG", 4096))),
    ("BLKPG without privileges",
     (attached(), do("BLKPG", partition_call(1, 1, 4096, 8192), nobody=True))),
    ("BLKBSZSET", (attached(), do("BLKBSZSET", struct.pack("i", 4096)), value_of("BLKBSZGET"),
                   do("BLKBSZSET", struct.pack("i", 100)),
                   do("BLKBSZSET", struct.pack("i", 256)))),
    ("BLKRASET", (attached(), do("BLKRASET", 64), value_of("BLKRAGET"))),
    ("BLKBSZSET of a mounted device",
     (with_file_system(), attached(), mounted(), do("BLKBSZSET", struct.pack("i", 4096)),
      unmounted())),
]

GROUPS = {"control": CONTROL, "unknown_calls": UNKNOWN_CALLS, "questions": QUESTIONS,
          "discards": DISCARDS, "block_layer": BLOCK}
EXT4_GROUPS = {"discards": DISCARDS[:2 * len(RANGES)]}
