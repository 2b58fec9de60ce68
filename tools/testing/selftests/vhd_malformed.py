#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""VHDs with one thing wrong: refused with the right errno and one log line that says where.

MALFORMED: contradicts the specification or itself. UNSUPPORTED: valid, but not served. Each entry
also has the host offsets of which the log line may name one. The file is never changed, the device
stays unbound, and nothing holds on to the parser's module.
"""

import errno
import os
import random
import struct

from lib import blockio, images, loopdev, malformed, system, vhd
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.malformed import MALFORMED, UNSUPPORTED
from lib.system import attempt

MIB = vhd.MIB
SIZE = 8 * MIB
HEADER = 512
suite = Suite()

# Host offsets of fields, for the log line.
VERSION, DATA_OFFSET, CREATOR, CREATOR_VERSION, CURRENT_SIZE, GEOMETRY, KIND, CHECKSUM = (
    12, 16, 28, 32, 48, 56, 60, 64)
H_COOKIE, H_TABLE, H_VERSION, H_ENTRIES, H_BLOCK, H_CHECKSUM = (
    HEADER, HEADER + 16, HEADER + 24, HEADER + 28, HEADER + 32, HEADER + 36)

# Where the footer at the end of dynamic() lies: behind footer copy, header, BAT, one block.
END = 512 + 1024 + 512 + 512 + 2 * MIB


def dynamic(**options):
    """A small dynamic image with one block."""
    image = vhd.Dynamic(SIZE, **options)
    image.put(0, blockio.pattern(4096))
    return image


def footers(**fields):
    """Both footers have these fields."""
    return lambda path: dynamic(head=fields, tail=fields).write(path)


def header(**fields):
    """The dynamic header has these fields."""
    return lambda path: patched_header(path, fields)


def patched_header(path, fields):
    """Writes a sound image, then another dynamic header over its own."""
    image = dynamic()
    image.write(path)
    for name, value in fields.items():
        setattr(image.header, name, value)
    vhd.patch(path, HEADER, image.header.pack())


def both_footers(path, **fields):
    """Writes other footers into a sound image."""
    image = dynamic()
    image.write(path)
    for name, value in fields.items():
        setattr(image.head, name, value)
    vhd.patch(path, 0, image.head.pack())
    vhd.patch(path, -512, image.head.pack())


def patched_footers(**fields):
    """As footers(), but with everything else where a sound image has it."""
    return lambda path: both_footers(path, **fields)


def cut(length):
    """Only the first `length` bytes of a sound image."""
    def make(path):
        dynamic().write(path)
        os.truncate(path, length)
    return make


def cut_inside_bat(path):
    """A BAT that the file does not hold as a whole."""
    vhd.Dynamic(SIZE, header={"max_entries": 100000}).write(path)
    os.truncate(path, 0x600 + 4096)


def encrypted(path):
    """The batmap header says that the data is encrypted."""
    image = dynamic(batmap=True, footer=vhd.tapdisk())
    image.write(path)
    at = vhd.round_up(image.header.table_offset + image.header.max_entries * 4, 512)
    vhd.patch(path, at + 29, b"\1")


def poisoned(path):
    """tapdisk has disabled the image."""
    dynamic(footer=vhd.tapdisk()).write(path)
    for place in (0, -512):
        vhd.patch(path, place, b"v_poison")


def fixed(size=SIZE, **fields):
    """A fixed image with these footer fields."""
    def make(path):
        blockio.make_sparse(path, SIZE)
        with open(path, "ab") as file:
            file.write(vhd.fixed_footer(size, **fields).pack())
    return make


# name: (how to make the file, errno, host offsets that the log line may name)
CASES = {
    "footers_with_wrong_checksum": (footers(checksum=0x12345678), MALFORMED, [CHECKSUM]),
    "footer_checksum_not_complemented": (footers(checksum=0), MALFORMED, [CHECKSUM]),
    "footer_version_2": (footers(version=0x00020000), UNSUPPORTED, [VERSION]),
    "footer_version_0": (footers(version=0), UNSUPPORTED, [VERSION]),
    "type_0": (footers(kind=0), UNSUPPORTED, [KIND, END + KIND]),
    "type_1": (footers(kind=1), UNSUPPORTED, [KIND, END + KIND]),
    "type_5": (footers(kind=5), UNSUPPORTED, [KIND, END + KIND]),
    "type_6": (footers(kind=6), UNSUPPORTED, [KIND, END + KIND]),
    "type_unknown": (footers(kind=0xFFFFFFFF), UNSUPPORTED, [KIND, END + KIND]),
    "type_fixed_in_the_copy_only": (
        lambda path: (dynamic().write(path), vhd.patch(path, -512, bytes(512)), vhd.patch(
            path, 0, vhd.fixed_footer(SIZE).pack())), MALFORMED, None),
    "poisoned_by_tapdisk": (poisoned, UNSUPPORTED, [0]),
    "tapdisk_0_1": (footers(**vhd.tapdisk(creator_version=1)), UNSUPPORTED, [CREATOR_VERSION]),
    "encrypted": (encrypted, UNSUPPORTED, None),
    "data_offset_all_ones": (patched_footers(data_offset=vhd.ALL_ONES), MALFORMED, [DATA_OFFSET]),
    "data_offset_0": (patched_footers(data_offset=0), MALFORMED, [DATA_OFFSET, 0]),
    "data_offset_inside_the_copy": (patched_footers(data_offset=256), MALFORMED, None),
    "data_offset_past_the_end": (patched_footers(data_offset=1 << 30), MALFORMED, None),
    "data_offset_overflows": (patched_footers(data_offset=(1 << 64) - 512), MALFORMED, None),
    "data_offset_negative": (patched_footers(data_offset=(1 << 63) + 512), MALFORMED, None),
    "data_offset_without_a_header": (patched_footers(data_offset=0x100000), MALFORMED, None),
    "current_size_0": (patched_footers(current_size=0, geometry=(0, 0, 0)), MALFORMED, None),
    "current_size_more_than_bat": (
        patched_footers(current_size=SIZE + 512, geometry=(1, 1, 1)), MALFORMED, None),
    "current_size_huge": (
        patched_footers(current_size=1 << 62, geometry=(1, 1, 1)), MALFORMED, None),
    "current_size_negative": (
        patched_footers(current_size=(1 << 64) - 512, geometry=(1, 1, 1)), MALFORMED, None),
    "header_cookie": (header(cookie=b"cxsparsf"), MALFORMED, [H_COOKIE]),
    "header_zeroed": (
        lambda path: (dynamic().write(path), vhd.patch(path, HEADER, bytes(1024))),
        MALFORMED, [H_COOKIE]),
    "header_version_2": (header(version=0x00020000), UNSUPPORTED, [H_VERSION]),
    "block_size_0": (header(block_size=0), MALFORMED, [H_BLOCK]),
    "block_size_256": (header(block_size=256), MALFORMED, [H_BLOCK]),
    "block_size_no_power_of_two": (header(block_size=3 * MIB), MALFORMED, [H_BLOCK]),
    "block_size_odd": (header(block_size=0x200001), MALFORMED, [H_BLOCK]),
    "block_size_all_ones": (header(block_size=0xFFFFFFFF), MALFORMED, [H_BLOCK]),
    "entries_0": (header(max_entries=0), MALFORMED, None),
    "entries_too_few": (header(max_entries=3), MALFORMED, None),
    "entries_past_the_end": (header(max_entries=0x00F00000), MALFORMED, None),
    "entries_all_ones": (header(max_entries=0xFFFFFFFF), UNSUPPORTED, [H_ENTRIES]),
    "table_offset_0": (header(table_offset=0), MALFORMED, None),
    "table_offset_not_aligned": (header(table_offset=0x601), MALFORMED, [H_TABLE]),
    "table_offset_in_the_header": (header(table_offset=1024), MALFORMED, None),
    "table_offset_in_the_footer": (
        lambda path: table_over_footer(path), MALFORMED, None),
    "table_offset_past_the_end": (header(table_offset=1 << 30), MALFORMED, None),
    "table_offset_overflows": (header(table_offset=(1 << 64) - 512), MALFORMED, None),
    "table_offset_all_ones": (header(table_offset=vhd.ALL_ONES), MALFORMED, None),
    "cut_after_the_footer_copy": (cut(512), MALFORMED, None),
    "cut_inside_the_header": (cut(1024), MALFORMED, None),
    "cut_inside_the_bat": (cut_inside_bat, MALFORMED, None),
    "cut_inside_the_footer_copy": (cut(100), MALFORMED, None),
    "only_a_cookie": (cut(8), MALFORMED, None),
    "fixed_type_1": (fixed(kind=1), UNSUPPORTED, [SIZE + KIND]),
    "fixed_size_0": (fixed(size=0, geometry=(0, 0, 0)), MALFORMED, None),
}


def table_over_footer(path):
    """The BAT lies where the footer is."""
    image = dynamic()
    image.write(path)
    image.header.table_offset = os.path.getsize(path) - 512
    vhd.patch(path, HEADER, image.header.pack())


def refused(t, case):
    """One malformed image: refused read-write and read-only."""
    make, number, places = case
    path = t.path("a.vhd")
    make(path)
    before = images.Unchanged(path)
    t.expect_log(r"loop\d+: refused: vhd: .{10,}", 2)
    loop = loopdev.free()
    fails_with(number, t.attach, path, loop=loop)
    fails_with(number, loopdev.attach_read_only, path, loop=loop)
    ensure(not loop.is_bound(), "bound")
    equal(loop.attr("size"), "0", "size")
    equal(system.references("vhdloop"), 0, "references to vhdloop")
    if places:
        said = t.log.matching(r"loop\d+: refused: .* at byte (\d+)( .*)?")
        at = {int(line.rpartition(" at byte ")[2].split()[0]) for line in said}
        ensure(at and at <= set(places), f"the log says byte {at}, expected one of {places}")
    before.check()


for case_name, values in CASES.items():
    suite.add(case_name, lambda t, case=values: refused(t, case))


@suite.test
def header_checksum_wrong(t):
    """Refused read-write; served read-only, with a warning."""
    path = t.path("a.vhd")
    image = dynamic(header={"checksum": 1})
    image.write(path)
    t.expect_log(rf"loop\d+: (?!refused).*checksum.* at byte {H_CHECKSUM}.*")
    malformed.only_read_only(t, path, image.guest(),
                             rf"loop\d+: refused: vhd: .*checksum.* at byte {H_CHECKSUM}.*")


@suite.cases(dynamic=patched_footers(current_size=SIZE - 100, geometry=(1, 1, 1)),
             fixed=fixed(size=SIZE - 100, geometry=(1, 1, 1)))
def size_not_in_sectors_is_rounded_down(t, make):
    make(t.path("a.vhd"))
    equal(t.attach(t.path("a.vhd")).size(), SIZE - 512, "size")


@suite.test
def losetup_tries_once(t):
    """For EINVAL, util-linux would try a second time, and there would be two lines."""
    path = t.path("a.vhd")
    header(block_size=0)(path)
    t.expect_log(r"loop\d+: refused: vhd: .*")
    done = attempt("losetup", "-f", "--show", path)
    ensure(done.returncode != 0, "losetup succeeded")
    ensure("Structure needs cleaning" in done.stderr, f"losetup says: {done.stderr}")


@suite.test
def device_can_be_used_after_a_refusal(t):
    header(block_size=0)(t.path("bad.vhd"))
    dynamic().write(t.path("good.vhd"))
    t.expect_log(r"loop\d+: refused: vhd: .*")
    loop = loopdev.free()
    fails_with(MALFORMED, t.attach, t.path("bad.vhd"), loop=loop)
    t.attach(t.path("good.vhd"), loop=loop)
    equal(loop.size(), SIZE, "size")


def spoof(change):
    """The end of a raw disk that looks like a footer, but is none."""
    raw = bytearray(vhd.fixed_footer(SIZE).pack())
    change(raw)
    return bytes(raw)


def only_cookie(raw):
    """Nothing but the cookie."""
    raw[8:] = bytes(504)


def reseal(raw):
    """The checksum fits what is there."""
    raw[:] = vhd.seal(raw, 64, None)


def set_field(at, layout, value, seal=True):
    """Changes one field."""
    def change(raw):
        struct.pack_into(layout, raw, at, value)
        if seal:
            reseal(raw)
    return change


@suite.cases(
    cookie_only=only_cookie,
    cookie_and_noise=lambda raw: raw.__setitem__(slice(8, 512), blockio.pattern(504)),
    size_larger_than_the_file=set_field(48, ">Q", 1 << 40),
    type_0_wrong_checksum=set_field(60, ">I", 0, False),
    version_0_wrong_checksum=set_field(12, ">I", 0, False))
def raw_disk_that_ends_like_a_vhd(t, change):
    """A guest wrote "conectix" into the last sector of its raw disk: it stays raw."""
    data = blockio.pattern(SIZE) + spoof(change)
    with open(t.path("a"), "wb") as file:
        file.write(data)
    loop = t.attach(t.path("a"))
    equal(loop.attr("loop/parser"), "raw", "parser")
    same_bytes(images.whole(loop), data, "device")


@suite.cases(empty=0, bytes_1=1, bytes_8=8, bytes_300=300, bytes_511=511)
def files_shorter_than_a_footer(t, length):
    """No read at a negative offset: such a file is raw, unless it begins like a VHD."""
    blockio.make_file(t.path("a"), length)
    loop = t.attach(t.path("a"))
    equal((loop.size(), loop.attr("loop/parser")), (0, "raw"), "size and parser")


@suite.test
def noise_over_the_headers(t):
    """Any bytes at all in footers, header and BAT: refused or served, and no more than that."""
    path = t.path("a.vhd")
    image = dynamic(batmap=True, footer=vhd.tapdisk())
    image.write(path)
    sound = blockio.content(path)
    t.allow_log(r"loop\d+: .*")
    t.allow_log(r"loop\d+: vhd: .*|I/O error, dev loop.*")
    rng = random.Random(11)
    outcomes = {}
    for _ in range(300):
        raw = mutated(bytearray(sound), rng)
        with open(path, "r+b", buffering=0) as file:
            file.truncate(0)
            file.write(raw)
        outcome = try_it(path)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print(f"# {outcomes}")
    # EPERM: it has become a differencing image.
    allowed = {"served", "EUCLEAN", errno.errorcode[errno.EOPNOTSUPP], "EROFS", "EPERM"}
    ensure(set(outcomes) <= allowed, f"{set(outcomes) - allowed}")
    ensure(len(outcomes) >= 3, "the noise has not reached much")


def mutated(raw, rng):
    """Some fields set to interesting values, with checksums that fit."""
    for _ in range(rng.randrange(1, 4)):
        at = rng.choice((rng.randrange(80), HEADER + rng.randrange(48), 0x600 + rng.randrange(16)))
        value = rng.choice((0, 1, 0xFF, 0x80, 0x7F, rng.randrange(256)))
        for offset in range(rng.choice((1, 4, 8))):
            raw[at + offset] = value
    if rng.random() < 0.9:
        raw[:512] = vhd.seal(raw[:512], 64, None)
        raw[512:1536] = vhd.seal(raw[512:1536], 36, None)
        raw[-512:] = raw[:512]
    return raw if rng.random() < 0.8 else raw[:rng.randrange(len(raw))]


def try_it(path):
    """Attaches, reads and writes a little if that works, detaches; says what happened."""
    try:
        loop = loopdev.attach(path)
    except OSError as error:
        return errno.errorcode[error.errno]
    try:
        with blockio.Direct(loop.path) as device:
            for pos in (0, 2 * MIB):
                for action in (lambda: device.read(pos, 4096), lambda: device.write(pos, b"x" * 512)):
                    try:
                        action()
                    except OSError:
                        pass
    finally:
        loop.detach()
    return "served"


if __name__ == "__main__":
    suite.main()
