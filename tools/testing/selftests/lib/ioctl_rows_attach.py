# SPDX-License-Identifier: GPL-2.0
"""The ioctl table, first part: attaching and detaching.

Group → rows; a row is a name and its steps (lib/ioctl_steps.py), the last of which is what the row
is about.
"""

import os

from lib.ioctl_steps import (
    AUTOCLEAR, DIRECT_IO, EXCL, MIB, PARTSCAN, READ_ONLY, RO, RW, WO, after_close, attached,
    changed_attributes, content, do, fetch, given_config, given_fd, held, idle_other, mounted,
    opened, other, partition_call, partitioned, read_only_mount, reading, released, reopened,
    reopened_part, resized, state, swapping, unmounted, with_file_system, writing)

MAX = (1 << 63) - 1
BLOCK_SIZES = (0, 1, 256, 511, 512, 513, 1000, 1024, 2048, 3072, 4096, 8192, 16384, 65536,
               131072, 1 << 20, 1 << 31, (1 << 32) - 1)


def configure(name, /, **config):
    """A row: LOOP_CONFIGURE of an unbound device with file `a`."""
    return name, (opened(), do("CONFIGURE", given_config(**config)))


SET_FD = [
    ("a file", (opened(), do("SET_FD", given_fd("a")))),
    ("a file, and I/O", (opened(), do("SET_FD", given_fd("a")), writing(4096, 8192),
                         reading(0, 2 * MIB), content())),
    ("a read-only descriptor", (opened(), do("SET_FD", given_fd("a", RO)), writing(0, 512))),
    ("a write-only descriptor", (opened(), do("SET_FD", given_fd("a", WO)), reading(0, MIB),
                                 writing(512, 512), content())),
    ("a descriptor that appends", (opened(), do("SET_FD", given_fd("a", RW | os.O_APPEND)),
                                   writing(512, 512), content())),
    ("a descriptor with O_SYNC", (opened(), do("SET_FD", given_fd("a", RW | os.O_SYNC)))),
    ("a descriptor with O_DIRECT", (opened(), do("SET_FD", given_fd("a", RW | os.O_DIRECT)))),
    ("a descriptor with O_NONBLOCK", (opened(), do("SET_FD", given_fd("a", RW | os.O_NONBLOCK)))),
    ("an O_PATH descriptor", (opened(), do("SET_FD", given_fd("a", os.O_PATH)))),
    ("a closed descriptor", (opened(), do("SET_FD", given_fd("closed")), do("SET_FD", 901))),
    ("descriptor -1", (opened(), do("SET_FD", -1))),
    ("descriptor with high bits", (opened(), do("SET_FD", lambda b: b.fd("a") | 1 << 32))),
    ("the device opened read-only", (opened(RO), do("SET_FD", given_fd("a")))),
    ("the device opened write-only", (opened(WO), do("SET_FD", given_fd("a")))),
    ("the device opened exclusively", (opened(RW | EXCL), do("SET_FD", given_fd("a")))),
    ("somebody else has it exclusively", (opened(), held(RW | EXCL), do("SET_FD", given_fd("a")))),
    ("somebody else has it open", (opened(), held(), do("SET_FD", given_fd("a")))),
    ("without privileges", (opened(), do("SET_FD", given_fd("a"), nobody=True))),
    ("without privileges, opened read-only",
     (opened(RO), do("SET_FD", given_fd("a", RO), nobody=True))),
    ("an empty file", (opened(), do("SET_FD", given_fd("empty")))),
    ("a file of 100 bytes", (opened(), do("SET_FD", given_fd("tiny")))),
    ("a bound device", (attached(), do("SET_FD", given_fd("b")))),
    ("a bound device, a bad descriptor", (attached(), do("SET_FD", -1))),
    ("a bound device, a directory", (attached(), do("SET_FD", given_fd("directory", RO)))),
    ("the same file as another device", (other(file="a"), opened(), do("SET_FD", given_fd("a")))),
    ("a file, detached, and again", (opened(), do("SET_FD", given_fd("a")), do("CLR_FD"),
                                     do("SET_FD", given_fd("b")))),
    ("a file that is mounted read-only",
     (opened(), read_only_mount(), do("SET_FD", given_fd("a")), do("SET_FD", given_fd("a", RO)))),
]

FILE_TYPES = [
    (f"{kind}, {text}", (opened(), do("SET_FD", given_fd(kind, flags))))
    for kind, flags, text in (
        ("directory", RO, "read-only"), ("null", RW, "read-write"), ("zero", RO, "read-only"),
        ("pipe", RO, "read-only"), ("fifo", RW, "read-write"), ("fifo", RO, "read-only"),
        ("socket", RW, "read-write"), ("epoll", RW, "read-write"), ("memfd", RW, "read-write"),
        ("sealed", RW, "read-write"), ("control", RW, "read-write"), ("proc", RO, "read-only"),
        ("sysfs", RO, "read-only"), ("sysfs", RW, "read-write"), ("self", RW, "read-write"),
        ("self", RO, "read-only"))
] + [
    ("a sealed memfd is written", (opened(), do("SET_FD", given_fd("sealed")), writing(0, 512))),
    ("a file of procfs is read", (opened(), do("SET_FD", given_fd("proc", RO)), reading(0, 512))),
    ("a file of sysfs is read", (opened(), do("SET_FD", given_fd("sysfs", RO)), reading(0, 512))),
]

ON_LOOP = [
    ("another loop device", (other(), opened(), do("SET_FD", given_fd("other")))),
    ("another loop device, read-only", (other(), opened(), do("SET_FD", given_fd("other", RO)))),
    ("another loop device that is unbound",
     (opened(), idle_other(), do("SET_FD", given_fd("other")))),
    ("another loop device that is to be detached",
     (other(), opened(),
      do("CLR_FD", on="other"),
      do("SET_FD", lambda bench: bench.fds[-1]))),
    ("the fifth of a chain",
     (other("one", "b"), other("two", "one"), other("three", "two"), other("four", "three"),
      opened(), do("SET_FD", given_fd("four")), reading(0, 2 * MIB), writing(4096, 4096),
      content("b"))),
    ("itself, bound", (attached(), do("SET_FD", given_fd("self")))),
    ("itself in place of its file", (attached("a", flags=READ_ONLY),
                                     do("CHANGE_FD", given_fd("self")))),
    ("what is on it in place of its file",
     (attached("a", flags=READ_ONLY), other("above", "self"),
      do("CHANGE_FD", given_fd("above")))),
    ("what is two above it in place of its file",
     (attached("a", flags=READ_ONLY), other("above", "self"),
      other("top", "above"), do("CHANGE_FD", given_fd("top")))),
    ("another device in place of its file",
     (other("other", "b"), attached("a", flags=READ_ONLY), do("CHANGE_FD", given_fd("other")))),
    ("the one below is detached meanwhile",
     (other("below", "b"), attached("below"),
      do("CLR_FD", on="below"), released(),
      state(), reading(0, 4096), after_close())),
]


CONFIGURE = [configure(f"flags {flags:#x}", flags=flags) for flags in
             (*(1 << bit for bit in range(32)), 0x1d, 0x1f, 0xffffffff)] + [
    configure(f"block size {size}", block_size=size) for size in BLOCK_SIZES] + [
    configure(f"block size {size}, read-only", block_size=size, flags=READ_ONLY)
    for size in (511, 512, 4096)] + [
    configure(f"offset {offset:#x}", offset=offset) for offset in
    (1, 511, 512, 1000, 4096, MIB - 512, MIB - 1, MIB, MIB + 1, 2 * MIB, 1 << 31, 1 << 32,
     MAX, MAX - 511, 1 << 63, (1 << 64) - 1, (1 << 64) - 512)] + [
    configure(f"size limit {limit:#x}", sizelimit=limit) for limit in
    (1, 511, 512, 513, 1000, 4096, MIB - 1, MIB, MIB + 512, 1 << 32, MAX, 1 << 63,
     (1 << 64) - 1)] + [
    configure(f"offset {offset:#x}, size limit {limit:#x}", offset=offset, sizelimit=limit)
    for offset, limit in ((512, 512), (1000, 2000), (MIB - 512, MIB), (MIB, 512), (MAX, MAX),
                          (MAX, 1 << 63), (4096, MIB))] + [
    configure(f"encryption {kind}", encrypt=kind) for kind in
    (0, 1, 2, 3, 4, 9, 10, 17, 18, 19, 20, 0xffffffff)] + [
    configure(f"key of {size} bytes", key_size=size, key=b"k" * 32)
    for size in (1, 32, 33, 0x7fffffff, 0x80000000, 0xffffffff)] + [
    configure(f"block size {size}, unaligned offset", block_size=size, offset=1000)
    for size in (512, 4096)] + [
    ("after a refused block size", (opened(), do("CONFIGURE", given_config(block_size=511)),
                                    do("CONFIGURE", given_config("b")))),
]

CONFIGURE_REST = [
    configure("a name", name=b"/some/where"),
    configure("a name of 63 bytes", name=b"n" * 63),
    configure("a name of 64 bytes, no NUL", name=b"n" * 64),
    configure("a name with a NUL inside", name=b"one\0two" + b"x" * 57),
    configure("a name with a newline", name=b"one\ntwo\xff"),
    configure("the name of a cipher", crypt_name=b"c" * 64),
    configure("initial vectors", init0=1, init1=(1 << 64) - 1),
    configure("device, inode, rdevice and number", device=1, inode=2, rdevice=3, number=77),
    configure("reserved words", reserved=(1, 2, 3, 4, 5, 6, 7, (1 << 64) - 1)),
    ("a descriptor without write access", (opened(), do("CONFIGURE", given_config("a", RO)))),
    ("an O_DIRECT descriptor", (opened(), do("CONFIGURE", given_config("a", RW | os.O_DIRECT)))),
    ("an O_DIRECT descriptor, block size 1024",
     (opened(), do("CONFIGURE", given_config("a", RW | os.O_DIRECT, block_size=1024)))),
    ("an O_DIRECT descriptor, unaligned offset",
     (opened(), do("CONFIGURE", given_config("a", RW | os.O_DIRECT, offset=1000)))),
    ("direct I/O, unaligned offset",
     (opened(), do("CONFIGURE", given_config(flags=DIRECT_IO, offset=1000)))),
    ("direct I/O, block size 4096",
     (opened(), do("CONFIGURE", given_config(flags=DIRECT_IO, block_size=4096)))),
    ("a bad descriptor",
     (opened(), do("CONFIGURE", lambda bench: b"\xff" * 4 + given_config()(bench)[4:]))),
    ("a bad descriptor and bad flags",
     (opened(), do("CONFIGURE", lambda bench: b"\xff" * 4 + given_config(flags=2)(bench)[4:]))),
    ("a directory and bad flags",
     (opened(), do("CONFIGURE", given_config("directory", RO, flags=2)))),
    ("bad flags, bad encryption, bad offset",
     (opened(), do("CONFIGURE", given_config(flags=2, encrypt=1, offset=1 << 63)))),
    ("bad offset, bad block size",
     (opened(), do("CONFIGURE", given_config(offset=1 << 63, block_size=511)))),
    ("bound, bad flags", (attached(), do("CONFIGURE", given_config("b", flags=2)))),
    ("bound, a directory", (attached(), do("CONFIGURE", given_config("directory", RO)))),
    ("no structure", (opened(), do("CONFIGURE", 0))),
    ("a bad pointer", (opened(), do("CONFIGURE", 4096))),
    ("bound, a bad pointer", (attached(), do("CONFIGURE", 4096))),
    ("bound", (attached(), do("CONFIGURE", given_config("b")))),
    ("the device opened read-only", (opened(RO), do("CONFIGURE", given_config()))),
    ("the device opened write-only", (opened(WO), do("CONFIGURE", given_config()))),
    ("the device opened exclusively", (opened(RW | EXCL), do("CONFIGURE", given_config()))),
    ("somebody else has it exclusively", (opened(), held(EXCL), do("CONFIGURE", given_config()))),
    ("somebody else has it exclusively, a bad descriptor",
     (opened(), held(EXCL), do("CONFIGURE", lambda _: b"\xff" * 304))),
    ("without privileges", (opened(), do("CONFIGURE", given_config(), nobody=True))),
    ("without privileges, opened read-only",
     (opened(RO), do("CONFIGURE", given_config("a", RO), nobody=True))),
    ("partitions are looked for",
     (partitioned(), opened(), do("CONFIGURE", given_config(flags=PARTSCAN)))),
    ("partitions are not looked for", (partitioned(), opened(), do("CONFIGURE", given_config()))),
    ("partitions, read-only",
     (partitioned(), opened(RO), do("CONFIGURE", given_config("a", RO, flags=PARTSCAN)))),
    ("autoclear, closed", (opened(), do("CONFIGURE", given_config(flags=AUTOCLEAR)),
                           after_close())),
    ("after a refused flag", (opened(), do("CONFIGURE", given_config(flags=2)),
                              do("CONFIGURE", given_config("b")))),
    ("a file with a file system, mounted",
     (with_file_system(), opened(), do("CONFIGURE", given_config()), mounted(), state(),
      unmounted())),
]

CLR_FD = [
    ("unbound", (opened(), do("CLR_FD"))),
    ("bound", (attached(), do("CLR_FD"), fetch("GET_STATUS64"), do("CLR_FD"))),
    ("bound, then closed", (attached(), do("CLR_FD"), after_close())),
    ("bound, opened read-only", (attached(mode=RO), do("CLR_FD"))),
    ("opened read-only, without privileges",
     (attached(), reopened(RO), do("CLR_FD", nobody=True))),
    ("opened elsewhere", (attached(), held(), do("CLR_FD"), do("CLR_FD"), reading(0, 4096),
                          after_close())),
    ("opened elsewhere, closed there first",
     (attached(), held(), do("CLR_FD"), released(), state(), after_close())),
    ("opened exclusively elsewhere", (attached(), held(EXCL), do("CLR_FD"))),
    ("opened elsewhere, then the status is set",
     (attached(), held(), do("CLR_FD"), do("SET_STATUS64", bytes(232)), after_close())),
    ("autoclear", (attached(flags=AUTOCLEAR), do("CLR_FD"))),
    ("mounted", (with_file_system(), attached(), mounted(), do("CLR_FD"), state(), after_close())),
    ("mounted, then unmounted",
     (with_file_system(), attached(), mounted(), do("CLR_FD"), unmounted(), after_close())),
    ("a partition is open",
     (partitioned(), attached(flags=PARTSCAN), reopened_part(), held(), do("CLR_FD"),
      after_close())),
    ("through its partition", (partitioned(), attached(flags=PARTSCAN), reopened_part(),
                               do("CLR_FD"))),
    ("with a partition that was added by hand",
     (attached(), do("BLKPG", partition_call(1, 1, 65536, 65536)), do("CLR_FD"), after_close())),
    ("an argument is ignored", (attached(), do("CLR_FD", 12345))),
    ("in rundown, everything",
     (attached(), do("CLR_FD"), *(do(name) for name in (
         "SET_CAPACITY", "SET_DIRECT_IO", "SET_BLOCK_SIZE", "UNKNOWN")),
      do("SET_STATUS64", bytes(232)), do("CHANGE_FD", given_fd("b", RO)),
      do("SET_FD", given_fd("b")), do("CONFIGURE", given_config("b")), reading(0, 512))),
]

SPECIAL_FILES = [
    ("ext4", (opened(), do("SET_FD", given_fd("a")), writing(512, 512), content())),
    ("ext4, O_DIRECT", (opened(), do("SET_FD", given_fd("a", RW | os.O_DIRECT)))),
    ("ext4, direct I/O and a block size of 512",
     (opened(), do("CONFIGURE", given_config(flags=DIRECT_IO, block_size=512)))),
    ("ext4, direct I/O, offset 512",
     (opened(), do("CONFIGURE", given_config(flags=DIRECT_IO, offset=512)))),
    ("ext4, direct I/O, offset 1000",
     (opened(), do("CONFIGURE", given_config(flags=DIRECT_IO, offset=1000)))),
    ("immutable, read-write", (changed_attributes("i"), opened(), do("SET_FD", given_fd("a")))),
    ("immutable, read-only", (changed_attributes("i"), opened(), do("SET_FD", given_fd("a", RO)))),
    ("append-only", (changed_attributes("a"), opened(), do("SET_FD", given_fd("a")),
                     do("SET_FD", given_fd("a", RW | os.O_APPEND)), writing(512, 512), content())),
    ("immutable later", (attached(), changed_attributes("i"), writing(512, 512), content())),
    ("swap, read-write", (swapping(), opened(), do("SET_FD", given_fd("a")))),
    ("swap, read-only", (swapping(), opened(), do("SET_FD", given_fd("a", RO)), reading(0, 4096))),
    ("block device in use, read-only", (opened(), do("SET_FD", given_fd("ram", RO)))),
    ("block device in use, exclusively", (opened(), do("SET_FD", given_fd("ram", RO | EXCL)))),
    ("on a read-only mount", (opened(), read_only_mount(), do("SET_FD", given_fd("a")),
                              do("SET_FD", given_fd("a", RO)))),
    ("cut after the attach", (attached(), resized("a", 4096), reading(0, 8192),
                              do("SET_CAPACITY"), reading(0, 8192))),
]

GROUPS = {"set_fd": SET_FD, "file_types": FILE_TYPES, "on_loop": ON_LOOP, "configure": CONFIGURE,
          "configure_rest": CONFIGURE_REST,
          "clr_fd": CLR_FD}
# These want files on a disk.
EXT4_GROUPS = {"special_files": SPECIAL_FILES}
