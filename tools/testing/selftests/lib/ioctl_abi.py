# SPDX-License-Identifier: GPL-2.0
"""The ioctls of loop devices as C sees them: numbers, structures in the layout of this very
process, be it a 64-bit or a 32-bit one, and the system call."""

import ctypes
import errno
import struct

LOOP = {
    "SET_FD": 0x4C00, "CLR_FD": 0x4C01, "SET_STATUS": 0x4C02, "GET_STATUS": 0x4C03,
    "SET_STATUS64": 0x4C04, "GET_STATUS64": 0x4C05, "CHANGE_FD": 0x4C06, "SET_CAPACITY": 0x4C07,
    "SET_DIRECT_IO": 0x4C08, "SET_BLOCK_SIZE": 0x4C09, "CONFIGURE": 0x4C0A,
    "CTL_ADD": 0x4C80, "CTL_REMOVE": 0x4C81, "CTL_GET_FREE": 0x4C82,
}
LONG = struct.calcsize("l")
BLOCK = {
    "BLKROSET": 0x125D, "BLKROGET": 0x125E, "BLKRRPART": 0x125F, "BLKGETSIZE": 0x1260,
    "BLKFLSBUF": 0x1261, "BLKRASET": 0x1262, "BLKRAGET": 0x1263, "BLKSECTGET": 0x1267,
    "BLKSSZGET": 0x1268, "BLKPG": 0x1269, "BLKBSZGET": 0x80001270 | LONG << 16,
    "BLKBSZSET": 0x40001271 | LONG << 16, "BLKGETSIZE64": 0x80001272 | LONG << 16,
    "BLKDISCARD": 0x1277, "BLKIOMIN": 0x1278, "BLKIOOPT": 0x1279, "BLKALIGNOFF": 0x127A,
    "BLKPBSZGET": 0x127B, "BLKDISCARDZEROES": 0x127C, "BLKSECDISCARD": 0x127D,
    "BLKROTATIONAL": 0x127E, "BLKZEROOUT": 0x127F, "BLKGETDISKSEQ": 0x80081280,
    "BLKREPORTZONE": 0xC0101282, "BLKGETZONESZ": 0x80041284,
    "HDIO_GETGEO": 0x0301, "HDIO_GET_IDENTITY": 0x030D, "CDROMEJECT": 0x5309,
    "CDROM_GET_CAPABILITY": 0x5331, "FDFLUSH": 0x024B, "SG_IO": 0x2285, "FIGETBSZ": 2,
    "FIBMAP": 1, "TCGETS": 0x5401, "UNKNOWN": 0x4C55, "LAST_PLUS_1": 0x4C0B, "MINUS_1": 0x4BFF,
}
NUMBERS = {**LOOP, **BLOCK}

# struct loop_info: an `unsigned long` and the old `dev_t` are not of one size everywhere.
OLD_INFO = struct.Struct("iLLLiiii64s32s2L4s0L" if LONG == 8 else "iHLHiiii64s32s2L4s0L")
OLD_FIELDS = ("number", "device", "inode", "rdevice", "offset", "encrypt", "key_size", "flags",
              "name", "key", "init0", "init1", "reserved")
INFO64 = struct.Struct("=5Q4I64s64s32s2Q")
FIELDS64 = ("device", "inode", "rdevice", "offset", "sizelimit", "number", "encrypt", "key_size",
            "flags", "name", "crypt_name", "key", "init0", "init1")
CONFIG = struct.Struct("=2I232s8Q")
PARTITION = struct.Struct("qqi64s64s0q")
PARTITION_CALL = struct.Struct("iiiP")

# Beyond what a structure fills.
CANARY = b"\xa5" * 24

libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)


def ioctl(fd, request, arg):
    """The system call: its result, or an OSError. `arg` is a number or a ctypes buffer."""
    value = arg if isinstance(arg, int) else ctypes.addressof(arg)
    mask = (1 << 8 * LONG) - 1
    result = libc.ioctl(fd, request, value & mask)
    if result < 0:
        raise OSError(ctypes.get_errno(), "ioctl")
    return result


def outcome(function):
    """What a call returns as text: a number or the name of an errno."""
    try:
        return str(function())
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))


def fill(layout, names, values):
    """A structure as a buffer; what `values` does not have is 0."""
    empty = {"name": b"", "crypt_name": b"", "key": b"", "reserved": b""}
    return layout.pack(*(values.get(name, empty.get(name, 0)) for name in names))


def info64(**values):
    """A struct loop_info64."""
    return fill(INFO64, FIELDS64, values)


def old_info(**values):
    """A struct loop_info."""
    return fill(OLD_INFO, OLD_FIELDS, values)


def config(fd, block_size=0, reserved=(0,) * 8, **info):
    """A struct loop_config."""
    return CONFIG.pack(fd & 0xffffffff, block_size, info64(**info), *reserved)


def room(size):
    """A buffer for a structure of `size` bytes with a canary behind it."""
    return ctypes.create_string_buffer(b"\x5a" * size + CANARY, size + len(CANARY))


def unpack(layout, names, buffer):
    """The fields of a filled room(); also whether all of it was filled, and no more."""
    raw = buffer.raw
    fields = dict(zip(names, layout.unpack(raw[:layout.size])))
    fields["exact"] = (raw[layout.size:] == CANARY
                       and layout.pack(*(fields[name] for name in names)) == raw[:layout.size])
    return fields
