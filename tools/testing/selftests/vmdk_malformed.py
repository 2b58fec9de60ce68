#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""VMDKs with one thing wrong, in a header, a descriptor, or a table entry.

What shows at attach is refused with the right errno and one log line, and nothing is changed. What
shows in a table entry fails the I/O that meets it with EIO, is logged once, and everything else can
still be read.
"""

import errno
import os
import struct
import zlib

from lib import blockio, images, layers, loopdev, malformed, vmdk, vmdk_chain, vmdk_esx, vmdk_stream
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.malformed import EITHER, MALFORMED, UNSUPPORTED, read_only, refusal
from lib.vmdk import ALL_ONES, KIB, MIB, SECTOR
from lib.vmdk_chain import attach, attach_read_only

SIZE = 8 * MIB
GRAIN = 64 * KIB
# To be written, it is not even looked at.
STREAM = (MALFORMED, errno.EROFS)
IO_ERROR = r"loop\d+: vmdk: \S.* at byte \d+: I/O error"
suite = Suite(allow=[r"Buffer I/O error on dev loop\d+, .*", r"I/O error, dev loop\d+, .*"])


def image(**options):
    """A disk with the first MiB and a grain at 4 MiB written."""
    disk = vmdk.monolithic(SIZE, GRAIN, **options)
    disk.put(0, blockio.pattern(MIB, 1))
    disk.put(4 * MIB, blockio.pattern(GRAIN, 2))
    return disk


def sound(path, **options):
    """The file of one."""
    return image(**options).write(path)


def header(**fields):
    """A sound disk with other header fields."""
    return lambda path: vmdk.patch(sound(path), **fields)


def cut(length):
    """Only the first bytes of a sound disk."""
    return lambda path: os.truncate(sound(path), length)


def same_place(name, other, shift=0):
    """One table lies where another one does."""
    def make(path):
        sound(path)
        vmdk.patch(path, **{name: vmdk.field(path, other) + shift})
    return make


def past_end(name):
    """A field that names the first sector behind the file."""
    return lambda path: vmdk.patch(sound(path), **{name: os.path.getsize(path) // SECTOR})


def text(old, new):
    """A disk with something else in the descriptor inside."""
    def make(path):
        disk = image()
        inside = vmdk.Descriptor(lines=[vmdk.Line(SIZE, name="a.vmdk")]).text()
        disk.descriptor = vmdk.replaced(old, new)(inside)
        disk.write(path)
    return make


def descriptor(old, new):
    """A descriptor of a flat extent, beside the file, with something else in it."""
    def make(path):
        flat = f"{path}-flat"
        blockio.make_sparse(flat, MIB)
        good = vmdk.Descriptor("monolithicFlat", [vmdk.Line(MIB, "FLAT", os.path.basename(flat), 0)]).text()
        with open(path, "wb") as file:
            file.write(vmdk.replaced(old, new)(good))
    return make


def extent(line):
    """A descriptor with this line about its extent."""
    return descriptor(b'RW 2048 FLAT "bad.vmdk-flat" 0', line)


def whole_text(data):
    """A file of nothing but this."""
    def make(path):
        with open(path, "wb") as file:
            file.write(data)
    return make


TITLE = b"# Disk DescriptorFile\n"


def cowd(**fields):
    """A COWD file with other fields in its header."""
    def make(path):
        disk = vmdk_esx.Cowd(SIZE)
        disk.put(0, blockio.pattern(MIB))
        vmdk_esx.patch(disk.write(path), vmdk_esx.COWD_FIELDS, **fields)
    return make


def cut_cowd(length):
    """Only the first bytes of one."""
    def make(path):
        cowd()(path)
        os.truncate(path, length)
    return make


def stream(tail="footer", **fields):
    """A stream with other fields in its header, or in its footer if it has one."""
    def make(path):
        disk = vmdk_stream.Stream(SIZE, tail=tail)
        disk.put(0, blockio.pattern(MIB))
        disk.write(path)
        for name, value in fields.items():
            at, layout = vmdk.FIELDS[name]
            base = vmdk_stream.footer_at(path) if tail == "footer" else 0
            vmdk.poke(path, base + at, struct.pack(layout, value))
    return make


# name: (how to make the file, errno of any attach)
CASES = {
    "version_0": (header(version=0), EITHER),
    "version_4": (header(version=4), UNSUPPORTED),
    "version_huge": (header(version=0xFFFFFFFF), UNSUPPORTED),
    "flag_18": (header(flags=3 | 1 << 18), UNSUPPORTED),
    "flag_31": (header(flags=3 | 1 << 31), UNSUPPORTED),
    "compressed_without_markers": (header(flags=3 | 1 << 16, compression=1, version=3), EITHER),
    "markers_without_compression": (header(flags=3 | 1 << 17, version=3), EITHER),
    "compressed_by_nothing": (header(flags=3 | 3 << 16, version=3), EITHER),
    "compression_without_flag": (header(compression=1), EITHER),
    "compression_unknown": (header(compression=2), EITHER),
    "compressed_by_something_unknown": (header(flags=3 | 3 << 16, compression=2, version=3), EITHER),
    "changed_by_a_transfer_as_text": (header(check=b"\n \n\n"), MALFORMED),
    "changed_by_another_transfer": (header(check=b"\r\n \r"), MALFORMED),
    "capacity_0_and_a_descriptor": (header(capacity=0), UNSUPPORTED),
    "capacity_huge": (header(capacity=ALL_ONES), EITHER),
    "capacity_of_2_to_63_bytes": (header(capacity=1 << 54), EITHER),
    "capacity_beyond_the_directory": (header(capacity=1 << 40), MALFORMED),
    "grain_0": (header(grain_size=0), EITHER),
    "grain_3": (header(grain_size=3), EITHER),
    "grain_above_65536": (header(grain_size=1 << 17), EITHER),
    "grain_2_to_63": (header(grain_size=1 << 63), EITHER),
    "grain_huge": (header(grain_size=ALL_ONES), EITHER),
    "entries_0": (header(entries=0), EITHER),
    "entries_huge": (header(entries=0xFFFFFFFF), EITHER),
    "directory_at_0": (header(gd_offset=0), EITHER),
    "directory_past_end": (past_end("gd_offset"), MALFORMED),
    "directory_overflows": (header(gd_offset=1 << 63), MALFORMED),
    "directory_close_to_2_to_64": (header(gd_offset=ALL_ONES - 1), MALFORMED),
    "directory_in_the_descriptor": (header(gd_offset=1), MALFORMED),
    "descriptor_past_end": (past_end("desc_offset"), MALFORMED),
    "descriptor_overflows": (header(desc_offset=ALL_ONES), MALFORMED),
    "descriptor_too_long": (header(desc_size=1 << 40), UNSUPPORTED),
    "descriptor_length_overflows": (header(desc_size=ALL_ONES), MALFORMED),
    "overhead_past_end": (lambda path: vmdk.patch(sound(path), overhead=os.path.getsize(path) // SECTOR + 1),
                          MALFORMED),
    "overhead_huge": (header(overhead=ALL_ONES), MALFORMED),
    "cut_after_the_magic": (cut(4), MALFORMED),
    "cut_in_the_header": (cut(100), MALFORMED),
    "cut_before_the_tables": (cut(SECTOR), MALFORMED),
    "cut_in_the_descriptor": (cut(3 * SECTOR), MALFORMED),
    "cut_in_the_directory": (cut(26 * SECTOR), MALFORMED),
    "cut_in_front_of_the_data": (cut(GRAIN - SECTOR), MALFORMED),
    "inside_no_cid": (text(b"CID=1b2c3d4e", b"CID=none"), MALFORMED),
    "inside_cid_too_long": (text(b"CID=1b2c3d4e", b"CID=01b2c3d4e5"), MALFORMED),
    "inside_parent_without_a_name": (text(b"parentCID=ffffffff", b"parentCID=12345678"), MALFORMED),
    "inside_parent_cid_no_number": (text(b"parentCID=ffffffff", b"parentCID=xyz"), MALFORMED),
    "inside_parent_is_no_file": (
        text(b"parentCID=ffffffff", b'parentCID=12345678\nparentFileNameHint=".."'), MALFORMED),
    "inside_several_extents": (
        text(b'monolithicSparse"', b'twoGbMaxExtentSparse"\nRW 100 SPARSE "b.vmdk"'), UNSUPPORTED),
    "inside_encrypted": (text(b"version=1", b'version=1\nencryption.keySafe = "vmware:key/list/()"'),
                         UNSUPPORTED),
    "text_empty": (whole_text(TITLE), MALFORMED),
    "text_without_extents": (extent(b"# nothing"), MALFORMED),
    "text_garbage": (descriptor(b"version=1", b"version one"), MALFORMED),
    "text_that_ends_in_a_word": (descriptor(b"# The Disk", b"RW"), MALFORMED),
    "text_no_cid": (descriptor(b"CID=1b2c3d4e", b"CID="), MALFORMED),
    "text_cid_too_long": (descriptor(b"CID=1b2c3d4e", b"CID=0000000001b2c3d4e"), MALFORMED),
    "text_parent_without_a_name": (descriptor(b"parentCID=ffffffff", b"parentCID=12345678"), MALFORMED),
    "text_quote_not_closed": (extent(b'RW 2048 FLAT "bad.vmdk-flat'), MALFORMED),
    "text_encrypted": (descriptor(b"version=1", b'version=1\nencryption.data = "AAAA"'), UNSUPPORTED),
    "text_parent_of_virtualbox": (
        lambda path: append(descriptor(b"\n", b"\n"), path,
                            b'ddb.uuid.parent="6a083ab4-4069-45f2-8000-0615e3323d1b"\n'), UNSUPPORTED),
    "text_too_long": (descriptor(b"# The Disk", b"#" * MIB + b"\n# The Disk"), UNSUPPORTED),
    "size_0": (extent(b'RW 0 FLAT "bad.vmdk-flat" 0'), MALFORMED),
    "size_missing": (extent(b'RW FLAT "bad.vmdk-flat" 0'), MALFORMED),
    "size_negative": (extent(b'RW -5 FLAT "bad.vmdk-flat" 0'), MALFORMED),
    "size_of_65_bits": (extent(b'RW 18446744073709551617 FLAT "bad.vmdk-flat" 0'), EITHER),
    "size_overflows_in_bytes": (extent(b'RW 36028797018963968 FLAT "bad.vmdk-flat" 0'), EITHER),
    "sizes_overflow_together": (
        extent(b"RW 9007199254740991 ZERO\nRW 9007199254740991 ZERO"), EITHER),
    "offset_no_number": (extent(b'RW 2048 FLAT "bad.vmdk-flat" x'), MALFORMED),
    "offset_overflows": (extent(b'RW 2048 FLAT "bad.vmdk-flat" 36028797018963968'), EITHER),
    "name_missing": (extent(b"RW 2048 FLAT"), MALFORMED),
    "name_empty": (extent(b'RW 2048 FLAT "" 0'), MALFORMED),
    "sparse_at_an_offset": (extent(b'RW 2048 SPARSE "bad.vmdk-flat" 8'), UNSUPPORTED),
    "type_missing": (extent(b"RW 2048"), EITHER),
    "type_unknown": (extent(b'RW 2048 MAGIC "bad.vmdk-flat"'), UNSUPPORTED),
    "cowd_version_2": (cowd(version=2), UNSUPPORTED),
    "cowd_capacity_beyond_the_directory": (cowd(capacity=0xFFFFFFFF), MALFORMED),
    "cowd_child_alone": (cowd(parent_name=b"base.vmdk"), UNSUPPORTED),
    "cowd_child_of_a_generation": (cowd(parent_generation=7), UNSUPPORTED),
    "cowd_grain_0": (cowd(grain_size=0), EITHER),
    "cowd_grain_3": (cowd(grain_size=3), EITHER),
    "cowd_grain_huge": (cowd(grain_size=1 << 31), EITHER),
    "cowd_directory_past_end": (cowd(gd_offset=1 << 30), MALFORMED),
    "cowd_directory_in_the_header": (cowd(gd_offset=1), MALFORMED),
    "cowd_directory_too_short": (cowd(gd_entries=1), MALFORMED),
    "cowd_cut_in_the_header": (cut_cowd(1000), MALFORMED),
    "cowd_cut_in_the_directory": (cut_cowd(2052), MALFORMED),
    "se_sparse_alone": (lambda path: vmdk_esx.SeSparse(SIZE).write(path), UNSUPPORTED),
    "footer_says_see_the_footer": (stream(gd_offset=ALL_ONES), STREAM),
    "footer_of_another_size": (stream(capacity=1 << 40), STREAM),
    "footer_with_an_unknown_flag": (stream(flags=1 | 3 << 16 | 1 << 20), (*STREAM, UNSUPPORTED)),
    "stream_directory_past_end": (stream("end", gd_offset=1 << 40), STREAM),
}


def append(make, path, data):
    """Makes a file that ends in something more."""
    make(path)
    with open(path, "ab") as file:
        file.write(data)


@suite.cases(**CASES)
def refused(t, case):
    make, numbers = case
    path = t.path("bad.vmdk")
    make(path)
    malformed.refused(t, path, numbers, r"loop\d+: refused: vmdk: \S.* at byte \d+.*")


def se_sparse(volatile=None, **fields):
    """A descriptor whose extent has other fields in its headers."""
    def make(path):
        disk = vmdk.Set(os.path.dirname(path), os.path.basename(path), "seSparse")
        part = vmdk_esx.SeSparse(SIZE)
        part.put(0, blockio.pattern(MIB))
        disk.image("part.vmdk", part, kind="SESPARSE")
        name = disk.where("part.vmdk")
        vmdk_esx.patch(name, vmdk_esx.SESPARSE_FIELDS, **fields)
        vmdk_esx.patch(name, vmdk_esx.VOLATILE_FIELDS, part.regions["volatile"][0] * SECTOR,
                       **(volatile or {}))
        disk.write()
    return make


SE_SPARSE = {
    "version": (se_sparse(version=0x0000000300000001), EITHER),
    "flags": (se_sparse(flags=1), EITHER),
    "grain_size": (se_sparse(grain_size=16), EITHER),
    "table_size": (se_sparse(gt_size=32), EITHER),
    "capacity_0": (se_sparse(capacity=0), EITHER),
    "capacity_huge": (se_sparse(capacity=ALL_ONES), EITHER),
    "volatile_past_end": (se_sparse(volatile_offset=1 << 40), MALFORMED),
    "volatile_magic": (se_sparse({"magic": 0xCAFEBABE}), EITHER),
    "journal_to_be_replayed": (se_sparse({"replay_journal": 1}), UNSUPPORTED),
    "directory_past_end": (se_sparse(gd_offset=1 << 40), MALFORMED),
    "directory_overflows": (se_sparse(gd_offset=ALL_ONES), MALFORMED),
    "directory_too_short": (se_sparse(gd_size=0), EITHER),
    "tables_past_end": (se_sparse(gts_offset=1 << 40), MALFORMED),
}


@suite.cases(**SE_SPARSE)
def se_sparse_is_refused(t, case):
    make, numbers = case
    make(t.path("bad.vmdk"))
    before = layers.Untouched(loopdev.free(), [t.path("bad.vmdk"), t.path("part.vmdk")])
    t.expect_log(r'loop\d+: refused: vmdk: extent "part\.vmdk": \S.* at byte \d+.*')
    refusal(numbers, attach_read_only, t, t.path("bad.vmdk"))
    before.check()


READ_ONLY = {
    "redundant_past_end": past_end("rgd_offset"),
    "redundant_overflows": header(rgd_offset=1 << 63),
    "redundant_in_the_descriptor": header(rgd_offset=20),
    "redundant_in_the_directory": same_place("rgd_offset", "gd_offset"),
    "directory_in_the_redundant_one": same_place("gd_offset", "rgd_offset"),
    "version_3_uncompressed": header(version=3),
    "changes_are_tracked": text(b"version=1", b'version=1\nchangeTrackPath="a-ctk.vmdk"'),
}


@suite.cases(**READ_ONLY)
def only_read_only(t, make):
    path = t.path("a.vmdk")
    make(path)
    malformed.only_read_only(t, path, image().guest(), r"loop\d+: refused: vmdk: \S.* at byte \d+"
                             r" \(attach it read-only: losetup -r\)")


LENIENT = {
    "other_flags_below_16": header(flags=3 | 0xFFF8),
    "no_check_bytes": header(flags=2, check=bytes(4)),
    "no_redundant_directory_but_its_flag": header(rgd_offset=0),
    "redundant_offset_without_its_flag": header(flags=1, rgd_offset=ALL_ONES),
    "redundant_at_the_end": header(rgd_offset=ALL_ONES),
    "descriptor_all_zero": lambda path: vmdk.poke(sound(path), SECTOR, bytes(20 * SECTOR)),
    "descriptor_without_a_place": header(desc_offset=0, desc_size=0),
    "descriptor_of_no_length": header(desc_size=0),
    "bytes_behind_the_descriptor": lambda path: vmdk.poke(sound(path), SECTOR * 3, b"\xff" * SECTOR),
    "bytes_behind_the_last_grain": lambda path: append(sound, path, b"behind" * 1000),
    "inside_garbage": text(b"version=1", b"version one"),
    "capacity_of_the_line_larger": text(b"RW 16384 ", b"RW 16500 "),
}


@suite.cases(**LENIENT)
def served_nevertheless(t, make):
    """It is odd, but nothing contradicts it."""
    path = t.path("a.vmdk")
    make(path)
    shadow = bytearray(image().guest())
    loop = t.attach(path)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=10)
    same_bytes(images.whole(loop), bytes(shadow), "device after writing")
    loop.detach()
    loop = t.attach(path)
    same_bytes(images.whole(loop), bytes(shadow), "device, attached again")


@suite.cases(sparse=header(capacity=0, desc_size=0), cowd=cowd(capacity=0))
def disk_of_no_size(t, make):
    """It is empty, as a raw file can be."""
    path = t.path("a.vmdk")
    make(path)
    before = images.Unchanged(path)
    loop = t.attach(path)
    equal(loop.size(), 0, "size")
    loop.detach()
    before.check()


# Entries

FAR = 1 << 30


def directory_entry(value):
    """Another first entry of both directories."""
    def damage(disk, path):
        for name in disk.directories:
            vmdk.poke(path, disk.directories[name], struct.pack("<I", value(disk)))
    return damage


def table_entry(value):
    """Another first entry of both tables."""
    def damage(disk, path):
        for name in disk.directories:
            vmdk.poke(path, disk.entry_at(0, name), struct.pack("<I", value(disk)))
    return damage


# One of which the file has a part.
CUT = "grain_reaches_past_end"
ENTRIES = {
    "table_past_end": directory_entry(lambda _: FAR),
    "table_at_the_top": directory_entry(lambda _: 0xFFFFFFFF),
    "table_in_the_header": directory_entry(lambda _: 0x1),
    "grain_past_end": table_entry(lambda _: FAR),
    "grain_at_the_top": table_entry(lambda _: 0xFFFFFFFF),
    CUT: table_entry(lambda disk: disk.end // SECTOR - 1),
    "grain_in_the_header": table_entry(lambda _: 1),
    "grain_in_the_descriptor": table_entry(lambda _: 2),
    "grain_in_the_directory": table_entry(lambda disk: disk.directories["primary"] // SECTOR),
    "grain_in_a_table": table_entry(lambda disk: disk.tables["primary"][0] // SECTOR),
}


@suite.cases(**ENTRIES)
def entry_is_an_io_error(t, damage):
    disk = image()
    path = disk.write(t.path("a.vmdk"))
    damage(disk, path)
    malformed.entry_is_an_io_error(t, path, IO_ERROR)


@suite.cases(**{name: damage for name, damage in ENTRIES.items() if name != CUT})
def entry_stops_the_write(t, damage):
    """Nothing is written over something else, least of all tables; the guest gets EIO."""
    disk = image()
    path = disk.write(t.path("a.vmdk"))
    damage(disk, path)
    before = blockio.content(path)
    t.allow_log(r"loop\d+: vmdk: \S.*")
    loop = t.attach(path)
    for pos in range(0, 4 * 4096, 4096):
        fails_with(errno.EIO, blockio.direct_write, loop.path, pos, b"w" * 4096)
    loop.detach()
    after = blockio.content(path)
    changed = {at // SECTOR for at in range(0, len(before), SECTOR)
               if before[at:at + SECTOR] != after[at:at + SECTOR]}
    # The header is marked and cleared, the CID changes.
    ensure(changed <= {0, 1}, f"sectors that have changed: {sorted(changed)[:20]}")


@suite.test
def rest_can_be_read(t):
    disk = image()
    path = disk.write(t.path("a.vmdk"))
    table_entry(lambda _: FAR)(disk, path)
    t.expect_log(IO_ERROR)
    loop = t.attach(path)
    fails_with(errno.EIO, blockio.direct_read, loop.path, 0, 4096)
    same_bytes(images_from(loop, GRAIN), disk.guest()[GRAIN:], "device behind the grain")
    equal(layers.of(loop)[0]["error"].endswith(f"@{disk.entry_at(0)}"), True, "the place in sysfs")


def images_from(loop, pos):
    """All of a device from a position on."""
    return blockio.direct_read(loop.path, pos, loop.size() - pos)


@suite.test
def zero_entry_without_its_flag(t):
    """Entry 1 is a place then, within the descriptor."""
    disk = image()
    path = disk.write(t.path("a.vmdk"))
    table_entry(lambda _: 1)(disk, path)
    t.expect_log(IO_ERROR)
    loop = loopdev.attach_read_only(path)
    t.defer(loop.detach_if_bound)
    fails_with(errno.EIO, blockio.direct_read, loop.path, 0, 4096)
    loop.detach()
    vmdk.patch(path, flags=7, version=2)
    loop = t.attach(path)
    same_bytes(images.whole(loop), bytes(GRAIN) + disk.guest()[GRAIN:], "device, with the flag")


COWD_ENTRIES = {
    "table_past_end": lambda disk: (2048, FAR),
    "table_in_the_header": lambda disk: (2048, 1),
    "grain_past_end": lambda disk: (disk.entry_at(0), FAR),
    "grain_at_the_top": lambda disk: (disk.entry_at(0), 0xFFFFFFFF),
    "grain_in_the_header": lambda disk: (disk.entry_at(0), 3),
}


@suite.cases(**COWD_ENTRIES)
def cowd_entry_is_an_io_error(t, where):
    disk = vmdk_esx.Cowd(SIZE)
    disk.put(0, blockio.pattern(MIB))
    path = disk.write(t.path("a.vmdk"))
    at, value = where(disk)
    vmdk.poke(path, at, struct.pack("<I", value))
    t.expect_log(IO_ERROR)
    with read_only(t, path) as loop:
        fails_with(errno.EIO, blockio.direct_read, loop.path, 0, SECTOR)


SE_SPARSE_ENTRIES = {
    "directory_of_another_kind": lambda disk: (disk.directory_at(), 2 << 60),
    "table_past_end": lambda disk: (disk.directory_at(), 0x10000000 << 32 | 0xFFFFFF),
    "reserved_bits_of_none": lambda disk: (disk.entry_at(0), 5),
    "unknown_kind": lambda disk: (disk.entry_at(0), 4 << 60),
    "all_ones": lambda disk: (disk.entry_at(0), ALL_ONES),
    "grain_past_end": lambda disk: (disk.entry_at(0), 3 << 60 | 1 << 40),
    "grains_past_end": lambda _: (vmdk_esx.SESPARSE_FIELDS["grains_offset"][0], 1 << 40),
}


@suite.cases(**SE_SPARSE_ENTRIES)
def se_sparse_entry_is_an_io_error(t, where):
    disk = vmdk.Set(t.dir, create_type="seSparse")
    part = vmdk_esx.SeSparse(SIZE)
    part.put(0, blockio.pattern(MIB))
    disk.image("part.vmdk", part, kind="SESPARSE")
    at, value = where(part)
    vmdk.poke(disk.where("part.vmdk"), at, struct.pack("<Q", value))
    t.expect_log(r'loop\d+: vmdk: "part\.vmdk": \S.* at byte \d+: I/O error')
    loop = attach_read_only(t, disk.write())
    fails_with(errno.EIO, blockio.direct_read, loop.path, 0, 4096)


# Streams


def grain_at(disk, _):
    """The host offset of the first grain."""
    return disk.places[0]


def lba(disk, path):
    """The grain says that it is another one."""
    vmdk.poke(path, grain_at(disk, path), struct.pack("<Q", 128))


def of_size(size):
    """The grain says that it is as long."""
    return lambda disk, path: vmdk.poke(path, grain_at(disk, path) + 8, struct.pack("<I", size))


def no_zlib(disk, path):
    """The compressed data are garbage."""
    vmdk.poke(path, grain_at(disk, path) + 12, b"\xff" * 100)


def wrong_sum(disk, path):
    """One byte of the data is another one: the sum at the end is wrong."""
    vmdk.poke(path, grain_at(disk, path) + 12 + 20000, b"\xa5")


def at_the_table(disk, path):
    """The entry of the first grain names its table."""
    vmdk.poke(path, disk.tables[0], struct.pack("<I", disk.tables[0] // SECTOR))


def entry_past_end(disk, path):
    """It names a place that is not there."""
    vmdk.poke(path, disk.tables[0], struct.pack("<I", FAR))


def too_little(disk, path):
    """It is shorter, though it is not the last one."""
    del disk
    other = vmdk_stream.Stream(SIZE)
    other.put(0, blockio.pattern(MIB))
    other.stored[0] = zlib.compress(blockio.pattern(SECTOR))
    other.write(path)


@suite.cases(lba=lba, size_0=of_size(0), size_1=of_size(1), size_past_end=of_size(0x7FFFFFFF),
             size_huge=of_size(0xFFFFFFFF), no_zlib=no_zlib, at_the_table=at_the_table,
             entry_past_end=entry_past_end, wrong_sum=wrong_sum, too_little=too_little)
def grain_of_a_stream_is_an_io_error(t, damage):
    disk = vmdk_stream.Stream(SIZE)
    disk.put(0, blockio.pattern(MIB))
    path = disk.write(t.path("a.vmdk"))
    damage(disk, path)
    t.expect_log(IO_ERROR)
    with read_only(t, path) as loop:
        fails_with(errno.EIO, blockio.direct_read, loop.path, 0, 4096)
        same_bytes(blockio.direct_read(loop.path, GRAIN, GRAIN), disk.guest()[GRAIN:2 * GRAIN],
                   "next grain")


# Where a stream is cut off, and how many grains are known then.
CUTS = {"directory": (lambda disk: disk.directory - SECTOR, 61), "table": (lambda disk: disk.tables[0], 61),
        "last_grain": (lambda disk: disk.places[60], 16),
        "within_a_grain": (lambda disk: disk.places[60] + 1000, 16),
        "footer": (lambda disk: disk.end - 1536, None), "end_marker": (lambda disk: disk.end - 512, None)}


@suite.cases(**CUTS)
def cut_stream_is_recovered(t, case):
    """What there is of a stream that was cut off is found by its markers. Of what may have followed
    nobody says that it was zeros."""
    where, known = case
    disk = vmdk_stream.Stream(SIZE)
    disk.put(0, blockio.pattern(MIB))
    disk.put(60 * GRAIN, blockio.pattern(GRAIN))
    path = disk.write(t.path("a.vmdk"))
    os.truncate(path, where(disk))
    t.expect_log(r"loop\d+: vmdk: \S.* at byte \d+; served nevertheless")
    end = known * GRAIN if known else SIZE
    with read_only(t, path) as loop:
        same_bytes(blockio.direct_read(loop.path, 0, end), disk.guest()[:end], "device")
        if known:
            t.expect_log(IO_ERROR)
            fails_with(errno.EIO, blockio.direct_read, loop.path, end, SECTOR)
            fails_with(errno.EIO, blockio.direct_read, loop.path, SIZE - SECTOR, SECTOR)


# Files that change


@suite.test
def truncated_while_attached(t):
    """Without its tables nothing can be read, and nothing is written to what is left."""
    path = sound(t.path("a.vmdk"))
    before = blockio.content(path)
    t.allow_log(r"loop\d+: vmdk: .*")
    loop = t.attach(path)
    os.truncate(path, 21 * SECTOR)
    for pos in (0, 4 * MIB, 6 * MIB):
        fails_with(errno.EIO, blockio.direct_read, loop.path, pos, 4096)
    for pos in range(0, SIZE, MIB):
        fails_with(errno.EIO, blockio.direct_write, loop.path, pos, bytes(GRAIN))
    loop.detach()
    same_bytes(blockio.content(path)[2 * SECTOR:21 * SECTOR], before[2 * SECTOR:21 * SECTOR], "what is left")


@suite.test
def grain_that_is_in_two_places(t):
    """Two entries name one grain. That is not noticed: both show what is written to either."""
    disk = image()
    path = disk.write(t.path("a.vmdk"))
    for name in disk.directories:
        vmdk.poke(path, disk.entry_at(1, name), struct.pack("<I", disk.places[0] // SECTOR))
    expected = bytearray(disk.guest())
    expected[GRAIN:2 * GRAIN] = expected[:GRAIN]
    loop = t.attach(path)
    blockio.direct_write(loop.path, GRAIN + 4096, b"w" * 4096)
    for pos in (4096, GRAIN + 4096):
        expected[pos:pos + 4096] = b"w" * 4096
    same_bytes(images.whole(loop), bytes(expected), "device")


@suite.test
def forced_on_a_raw_file(t):
    blockio.make_file(t.path("raw"), SIZE)
    t.expect_log(r"loop\d+: refused: vmdk: .*")
    fails_with(MALFORMED, attach, t, t.path("raw"))


@suite.cases(empty=0, tiny=3, sector=SECTOR)
def forced_on_nothing(t, length):
    blockio.make_sparse(t.path("raw"), length)
    t.expect_log(r"loop\d+: refused: vmdk: .*")
    fails_with(MALFORMED, attach, t, t.path("raw"))


@suite.cases(grain=lambda disk: disk.places[3], table=lambda disk: disk.tables["primary"][1],
             directory=lambda disk: disk.directories["primary"])
def redundant_entry_names_what_is_in_use(t, where):
    """Nobody who reads would notice; a write to the table's grains must not go there."""
    disk = image(entries=64)
    path = disk.write(t.path("a.vmdk"))
    vmdk.poke(path, disk.directories["redundant"], struct.pack("<I", where(disk) // SECTOR))
    t.expect_log(IO_ERROR)
    loop = t.attach(path)
    same_bytes(images.whole(loop), disk.guest(), "device")
    fails_with(errno.EIO, blockio.direct_write, loop.path, 2 * MIB, b"w" * 4096)
    loop.drop_cache()
    same_bytes(images.whole(loop), disk.guest(), "device after the write")
    loop.detach()
    same_bytes(vmdk_chain.qemu_guest(t, path), disk.guest(), "image, by qemu-img")


@suite.cases(unclean={"unclean": 1}, other_value={"unclean": 0xFF})
def marked_unclean(t, fields):
    """A warning, and nothing more: the user is not locked out."""
    disk = image()
    path = disk.write(t.path("a.vmdk"))
    vmdk.patch(path, **fields)
    t.expect_log(r"loop\d+: vmdk: \S.* at byte 72; served nevertheless", 2)
    with read_only(t, path) as loop:
        same_bytes(images.whole(loop), disk.guest(), "device")
    shadow = bytearray(disk.guest())
    loop = t.attach(path)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
    loop.detach()
    vmdk_chain.judge(t, path, bytes(shadow))


@suite.cases(clean=0, unclean=1)
def tables_that_differ(t, unclean):
    """The primary ones count, and the others are made the same: when they are written, or all of them
    if the image was not closed."""
    disk = image()
    path = disk.write(t.path("a.vmdk"))
    vmdk.patch(path, unclean=unclean)
    for number in (0, 5, 64, 100):
        vmdk.poke(path, disk.entry_at(number, "redundant"), struct.pack("<I", 12345))
    t.expect_log(r"loop\d+: vmdk: .*; served nevertheless", unclean)
    shadow = bytearray(disk.guest())
    loop = t.attach(path)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with blockio.Direct(loop.path) as device:
        # All grains, so that all entries are touched.
        data = blockio.pattern(SIZE, 7)
        device.write(0, data)
        shadow[:] = data
    loop.detach()
    if unclean:
        vmdk_chain.judge(t, path, bytes(shadow))
    # It never looks at the redundant tables.
    same_bytes(vmdk_chain.qemu_guest(t, path), bytes(shadow), "image, by qemu-img")


if __name__ == "__main__":
    suite.main()
