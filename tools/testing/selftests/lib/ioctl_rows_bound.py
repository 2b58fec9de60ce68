# SPDX-License-Identifier: GPL-2.0
"""The ioctl table, second part: what can be asked of, and done to, a device with a file."""

from lib.ioctl_abi import info64, old_info
from lib.ioctl_steps import (
    AUTOCLEAR, DIRECT_IO, EXCL, MIB, PARTSCAN, READ_ONLY, RO, RW, after_close, attached, content,
    do, fetch, fetch_old, given_fd, held, mounted, opened, other, partition_call, partitioned,
    reading, released, reopened, reopened_part, resized, state, unmounted, with_file_system, writing,
    written)

MAX = (1 << 63) - 1


def set_status(name, /, *before, **values):
    """A row: LOOP_SET_STATUS64 of a device with file `a`."""
    return name, (*(before or (attached(),)), do("SET_STATUS64", info64(**values)))


def set_old(name, /, *before, **values):
    """A row: LOOP_SET_STATUS of a device with file `a`."""
    return name, (*(before or (attached(),)), do("SET_STATUS", old_info(**values)))


SET_STATUS64 = [set_status(f"flags {flags:#x}", flags=flags) for flags in
                (*(1 << bit for bit in range(8)), 0x1d, 0xffffffff)] + [
    set_status(f"flags {flags:#x}, all set before",
               attached(file_flags=RO, flags=0x1d & ~DIRECT_IO, offset=512),
               flags=flags, offset=512)
    for flags in (0, 1, 4, 5, 8, 12, 16, 0x1d)] + [
    set_status(f"offset {offset:#x}", offset=offset) for offset in
    (1, 512, 1000, MIB, 2 * MIB, 1 << 32, MAX, 1 << 63, (1 << 64) - 1)] + [
    set_status(f"size limit {limit:#x}", sizelimit=limit) for limit in
    (1, 512, 1000, MIB, 2 * MIB, MAX, 1 << 63)] + [
    set_status(f"encryption {kind}", encrypt=kind) for kind in (1, 5, 18, 0xffffffff)] + [
    set_status(f"key of {size} bytes", key_size=size) for size in (32, 33, 0xffffffff)] + [
    set_status("window removed", attached(offset=512, sizelimit=4096)),
    set_status("same window", attached(offset=512, sizelimit=4096), offset=512, sizelimit=4096),
    set_status("window moved, bad encryption", attached(offset=512), offset=1024, encrypt=1),
    set_status("a name", name=b"renamed"),
    set_status("a name of 64 bytes", name=b"n" * 64),
    set_status("name removed", attached(name=b"before")),
    set_status("number, device, inode and initial vectors", number=77, device=1, inode=2, rdevice=3,
               init0=4, init1=5, crypt_name=b"cipher", key=b"key"),
    set_status("unbound", opened()),
    set_status("opened read-only", attached(mode=RO), name=b"x"),
    set_status("somebody else has it exclusively", attached(), held(EXCL), name=b"x", offset=512),
    set_status("block size 4096, offset 512", attached(block_size=4096), offset=512),
    ("unbound, a bad pointer", (opened(), do("SET_STATUS64", 4096))),
    ("a bad pointer", (attached(), do("SET_STATUS64", 4096), do("SET_STATUS64", 0))),
    ("opened read-only, without privileges",
     (attached(), reopened(RO), do("SET_STATUS64", info64(name=b"x"), nobody=True))),
    ("opened read-only, without privileges, a bad pointer",
     (attached(), reopened(RO), do("SET_STATUS64", 0, nobody=True))),
    ("opened read-write, without privileges",
     (attached(), do("SET_STATUS64", info64(name=b"x"), nobody=True))),
    ("offset moved with dirty pages",
     (attached(), written(0, 8192), do("SET_STATUS64", info64(offset=4096)), written(0, 4096),
      after_close(), content())),
    ("mounted, a name", (with_file_system(), attached(), mounted(),
                         do("SET_STATUS64", info64(name=b"x")), unmounted())),
    ("mounted, autoclear", (with_file_system(), attached(), mounted(),
                            do("SET_STATUS64", info64(flags=AUTOCLEAR)), after_close(),
                            unmounted())),
    ("partitions looked for later",
     (partitioned(), attached(), do("SET_STATUS64", info64(flags=PARTSCAN)))),
    ("partitions looked for, not any more",
     (partitioned(), attached(flags=PARTSCAN), do("SET_STATUS64", info64()))),
    ("partitions looked for, window moved off them",
     (partitioned(), attached(flags=PARTSCAN),
      do("SET_STATUS64", info64(flags=PARTSCAN, offset=4096)))),
    ("partitions looked for later, one of them open",
     (attached(), do("BLKPG", partition_call(1, 1, 65536, 65536)), reopened_part(),
      do("SET_STATUS64", info64(flags=PARTSCAN)))),
    ("through a partition", (partitioned(), attached(flags=PARTSCAN), reopened_part(),
                             do("SET_STATUS64", info64(name=b"x")))),
    ("to be detached, autoclear taken back",
     (attached(), held(), do("CLR_FD"), do("SET_STATUS64", info64()), released(), after_close())),
    ("autoclear set, then closed", (attached(), do("SET_STATUS64", info64(flags=AUTOCLEAR)),
                                    after_close())),
]

SET_STATUS = [set_old(f"flags {flags:#x}", flags=flags) for flags in (1, 4, 8, 16, 0x1d, -1)] + [
    set_old(f"offset {offset:#x}", offset=offset) for offset in
    (1, 512, 1000, MIB, 0x7fffffff, -1, -512, -0x80000000)] + [
    set_old("window and name removed", attached(offset=512, sizelimit=4096, name=b"name")),
    set_old("encryption is ignored", encrypt=1, key_size=33, key=b"key", init0=1, init1=2),
    set_old("a name of 64 bytes", name=b"n" * 64),
    set_old("autoclear removed", attached(flags=AUTOCLEAR)),
    set_old("number, device, inode", number=-1, device=1, inode=2, rdevice=3, reserved=b"\xff" * 4),
    set_old("unbound", opened()),
    ("a bad pointer", (attached(), do("SET_STATUS", 4096), do("SET_STATUS", 0))),
    ("unbound, a bad pointer", (opened(), do("SET_STATUS", 4096))),
    ("opened read-only", (attached(mode=RO), do("SET_STATUS", old_info(name=b"x")))),
    ("opened read-only, without privileges",
     (attached(), reopened(RO), do("SET_STATUS", old_info(name=b"x"), nobody=True))),
]

GET_STATUS = [
    ("unbound", (opened(), fetch("GET_STATUS64"), fetch_old())),
    ("unbound, no structure", (opened(), do("GET_STATUS64", 0), do("GET_STATUS", 0))),
    ("unbound, a bad pointer", (opened(), do("GET_STATUS64", 4096), do("GET_STATUS", 4096))),
    ("bound", (attached(), fetch("GET_STATUS64"), fetch_old())),
    ("no structure", (attached(), do("GET_STATUS64", 0), do("GET_STATUS", 0))),
    ("a bad pointer", (attached(), do("GET_STATUS64", 4096), do("GET_STATUS", 4096))),
    ("everything set", (attached(flags=PARTSCAN | AUTOCLEAR | READ_ONLY, offset=512,
                                 sizelimit=4096, name=b"a name", encrypt=0, key_size=32,
                                 key=b"key", crypt_name=b"cipher", init0=1, init1=2),
                        fetch("GET_STATUS64"), fetch_old())),
    ("opened read-only, without privileges",
     (attached(), reopened(RO), do("GET_STATUS64", bytes(232), nobody=True))),
    ("through a partition", (partitioned(), attached(flags=PARTSCAN), reopened_part(),
                             fetch("GET_STATUS64"))),
    ("a file without a device", (attached("memfd"), fetch("GET_STATUS64"), fetch_old())),
    ("a block device with a large number",
     (partitioned(), other(file="a", flags=PARTSCAN), attached("part"), fetch("GET_STATUS64"),
      fetch_old())),
    ("a block device with a large minor number",
     (other(number=300), attached("other"), fetch("GET_STATUS64"), fetch_old())),
] + [
    (f"offset {offset:#x}, the old form", (attached(offset=offset), fetch_old()))
    for offset in (0x7fffffff, 0x80000000, 0xffffffff, 1 << 32, (1 << 32) + 512, MAX)] + [
    (f"size limit {limit:#x}, the old form", (attached(sizelimit=limit), fetch_old()))
    for limit in (512, MAX)]


CHANGE_FD = [
    ("unbound", (opened(), do("CHANGE_FD", given_fd("a")))),
    ("unbound, a bad descriptor", (opened(), do("CHANGE_FD", -1))),
    ("unbound, a directory", (opened(), do("CHANGE_FD", given_fd("directory", RO)))),
    ("read-write", (attached(), do("CHANGE_FD", given_fd("b")))),
    ("read-only flag", (attached(flags=READ_ONLY), do("CHANGE_FD", given_fd("b")))),
    ("read-only descriptors", (attached(file_flags=RO), do("CHANGE_FD", given_fd("b", RO)))),
    ("device opened read-only", (attached(mode=RO), do("CHANGE_FD", given_fd("b")))),
    ("read-only, then reopened read-write",
     (attached(flags=READ_ONLY), reopened(RO), do("CHANGE_FD", given_fd("b")))),
    ("without privileges", (attached(flags=READ_ONLY), reopened(RO),
                            do("CHANGE_FD", given_fd("b"), nobody=True))),
    ("another size", (attached(flags=READ_ONLY), do("CHANGE_FD", given_fd("c")))),
    ("an empty file", (attached(flags=READ_ONLY), do("CHANGE_FD", given_fd("empty")))),
    ("another size, the same window",
     (attached(flags=READ_ONLY, sizelimit=4096), do("CHANGE_FD", given_fd("c")), reading(0, 8192))),
    ("the same file", (attached(flags=READ_ONLY), do("CHANGE_FD", given_fd("a")))),
    ("the same file, grown", (attached(flags=READ_ONLY), resized("a", 2 * MIB),
                              do("CHANGE_FD", given_fd("a")))),
    ("a bad descriptor", (attached(flags=READ_ONLY), do("CHANGE_FD", -1))),
    ("a closed descriptor", (attached(flags=READ_ONLY), do("CHANGE_FD", given_fd("closed")))),
    ("a bad descriptor, read-write", (attached(), do("CHANGE_FD", -1))),
    ("a directory, read-write", (attached(), do("CHANGE_FD", given_fd("directory", RO)))),
    ("a directory", (attached(flags=READ_ONLY), do("CHANGE_FD", given_fd("directory", RO)))),
    ("a character device", (attached(flags=READ_ONLY), do("CHANGE_FD", given_fd("null")))),
    ("a pipe", (attached(flags=READ_ONLY), do("CHANGE_FD", given_fd("pipe")))),
    ("a file without a name", (attached(flags=READ_ONLY), do("CHANGE_FD", given_fd("memfd")))),
    ("somebody else has it exclusively",
     (attached(flags=READ_ONLY), held(EXCL), do("CHANGE_FD", given_fd("b")))),
    ("mounted", (with_file_system(), attached(flags=READ_ONLY), mounted("-o", "ro"),
                 do("CHANGE_FD", given_fd("b")), state(), unmounted())),
    ("partitions come", (attached(flags=READ_ONLY | PARTSCAN), partitioned(),
                         do("CHANGE_FD", given_fd("a")))),
    ("partitions go", (partitioned(), attached(flags=READ_ONLY | PARTSCAN),
                       do("CHANGE_FD", given_fd("b")))),
    ("partitions, one of them open",
     (partitioned(), attached(flags=READ_ONLY | PARTSCAN), held(), reopened_part(), do(
         "CHANGE_FD", given_fd("b")))),
    ("to be detached", (attached(flags=READ_ONLY), held(), do("CLR_FD"),
                        do("CHANGE_FD", given_fd("b")))),
    ("the name stays", (attached(flags=READ_ONLY, name=b"name"), do("CHANGE_FD", given_fd("b")))),
]

SET_CAPACITY = [
    ("unbound", (opened(), do("SET_CAPACITY"))),
    ("nothing changed", (attached(), do("SET_CAPACITY"))),
    ("grown", (attached(), resized("a", 3 * MIB), do("SET_CAPACITY"))),
    ("shrunk", (attached(), resized("a", MIB // 2), do("SET_CAPACITY"))),
    ("shrunk to nothing", (attached(), resized("a", 0), do("SET_CAPACITY"))),
    ("shrunk to part of a sector", (attached(), resized("a", 1000), do("SET_CAPACITY"))),
    ("shrunk below the offset", (attached(offset=4096), resized("a", 512), do("SET_CAPACITY"))),
    ("grown under a limit", (attached(sizelimit=4096), resized("a", 2 * MIB), do("SET_CAPACITY"))),
    ("opened read-only", (attached(), reopened(RO), resized("a", 2 * MIB), do("SET_CAPACITY"))),
    ("opened read-only, without privileges",
     (attached(), reopened(RO), resized("a", 2 * MIB), do("SET_CAPACITY", nobody=True))),
    ("unbound, opened read-only, without privileges",
     (opened(RO), do("SET_CAPACITY", nobody=True))),
    ("opened read-write, without privileges",
     (attached(), resized("a", 2 * MIB), do("SET_CAPACITY", nobody=True))),
    ("somebody else has it exclusively",
     (attached(), held(EXCL), resized("a", 2 * MIB), do("SET_CAPACITY"))),
    ("an argument is ignored", (attached(), do("SET_CAPACITY", 4096))),
    ("mounted", (with_file_system(), attached(), mounted(), resized("a", 2 * MIB),
                 do("SET_CAPACITY"), unmounted())),
]

BLOCK_SIZES = (0, 1, 256, 511, 512, 513, 1024, 2048, 3000, 4096, 8192, 65536, 131072, 1 << 31,
               1 << 32, (1 << 32) + 512, (1 << 32) + 4096, (1 << 64) - 1, -512)
SET_BLOCK_SIZE = [
    (f"size {size}", (attached(), do("SET_BLOCK_SIZE", size))) for size in BLOCK_SIZES] + [
    (f"size {size}, from 4096", (attached(block_size=4096), do("SET_BLOCK_SIZE", size)))
    for size in (0, 511, 512, 4096)] + [
    (f"unbound, size {size}", (opened(), do("SET_BLOCK_SIZE", size))) for size in (0, 512, 4096)
] + [
    ("dirty pages", (attached(), written(512, 1024), do("SET_BLOCK_SIZE", 4096), after_close(),
                     content())),
    ("an unaligned offset", (attached(offset=1000), do("SET_BLOCK_SIZE", 4096))),
    ("opened exclusively", (attached(), reopened(RW | EXCL), do("SET_BLOCK_SIZE", 4096))),
    ("somebody else has it exclusively",
     (attached(), held(EXCL), do("SET_BLOCK_SIZE", 4096), do("SET_BLOCK_SIZE", 512))),
    ("unbound, somebody else has it exclusively",
     (opened(), held(EXCL), do("SET_BLOCK_SIZE", 4096))),
    ("mounted", (with_file_system(), attached(), mounted(), do("SET_BLOCK_SIZE", 4096), state(),
                 unmounted())),
    ("opened read-only", (attached(), reopened(RO), do("SET_BLOCK_SIZE", 4096))),
    ("opened read-only, without privileges",
     (attached(), reopened(RO), do("SET_BLOCK_SIZE", 4096, nobody=True))),
    ("opened read-write, without privileges",
     (attached(), do("SET_BLOCK_SIZE", 4096, nobody=True))),
    ("I/O afterwards", (attached(), do("SET_BLOCK_SIZE", 4096), writing(4096, 4096),
                        reading(0, 2 * MIB), content())),
    ("partitions", (partitioned(), attached(flags=PARTSCAN), do("SET_BLOCK_SIZE", 4096))),
]

SET_DIRECT_IO = [
    (f"argument {arg:#x}", (attached(), do("SET_DIRECT_IO", arg)))
    for arg in (0, 1, 2, 1 << 31, 1 << 32, (1 << 64) - 1)] + [
    (f"unbound, argument {arg}", (opened(), do("SET_DIRECT_IO", arg))) for arg in (0, 1)] + [
    (f"offset {offset}", (attached(offset=offset), do("SET_DIRECT_IO", 1)))
    for offset in (512, 1000, 4096)] + [
    (f"block size {size}", (attached(block_size=size), do("SET_DIRECT_IO", 1)))
    for size in (512, 1024, 4096)] + [
    ("a memfd", (attached("memfd"), do("SET_DIRECT_IO", 1))),
    ("on, and on", (attached(flags=DIRECT_IO), do("SET_DIRECT_IO", 1))),
    ("on, off", (attached(flags=DIRECT_IO), do("SET_DIRECT_IO", 0))),
    ("on, then an offset of 1000", (attached(flags=DIRECT_IO), do("SET_DIRECT_IO", 1),
                                    do("SET_STATUS64", info64(offset=1000)))),
    ("on, then an offset of 4096", (attached(flags=DIRECT_IO), do("SET_DIRECT_IO", 1),
                                    do("SET_STATUS64", info64(offset=4096)))),
    ("on, then a block size of 4096", (attached(), do("SET_DIRECT_IO", 1),
                                       do("SET_BLOCK_SIZE", 4096))),
    ("on, then a block size of 512", (attached(block_size=4096), do("SET_DIRECT_IO", 1),
                                      do("SET_BLOCK_SIZE", 512))),
    ("on with dirty pages", (attached(), written(512, 1024), do("SET_DIRECT_IO", 1),
                             writing(8192, 4096), after_close(), content())),
    ("opened read-only", (attached(), reopened(RO), do("SET_DIRECT_IO", 1))),
    ("opened read-only, without privileges",
     (attached(), reopened(RO), do("SET_DIRECT_IO", 1, nobody=True))),
    ("opened read-write, without privileges", (attached(), do("SET_DIRECT_IO", 1, nobody=True))),
    ("somebody else has it exclusively", (attached(), held(EXCL), do("SET_DIRECT_IO", 1))),
]

GROUPS = {"set_status64": SET_STATUS64, "set_status": SET_STATUS, "get_status": GET_STATUS,
          "change_fd": CHANGE_FD, "set_capacity": SET_CAPACITY, "set_block_size": SET_BLOCK_SIZE,
          "set_direct_io": SET_DIRECT_IO}
EXT4_GROUPS = {"set_direct_io": SET_DIRECT_IO}
