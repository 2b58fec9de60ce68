#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""qcow and qcow2 images with one thing wrong.

What shows at attach is refused with the right errno and one log line, and nothing is changed. What
shows in a table entry fails the I/O that meets it with EIO, is logged once, and everything else can
still be read.
"""

import errno
import os
import struct

from lib import blockio, images, malformed, qcow
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.malformed import EITHER, MALFORMED, READ_ONLY, UNSUPPORTED
from lib.qcow import KIB, MIB
from lib.system import run

SIZE = 8 * MIB
CLUSTER = 64 * KIB
FULL = (1 << 64) - 1
IO_ERROR = r"loop\d+: qcow2: .* at byte \d+: I/O error"
suite = Suite(allow=[r"Buffer I/O error on dev loop\d+, .*", r"I/O error, dev loop\d+, .*"])


def sound(path, kind="qcow2", size=SIZE, **options):
    """An image with the first MiB and a cluster at 4 MiB written."""
    images.create(path, size, kind, **options)
    run("qemu-io", "-f", kind, "-c", "write -q -P 17 0 1M", "-c", "write -q -P 34 4M 64k", path)
    return path


def v3(**fields):
    """A sound image with other header fields."""
    return lambda path: qcow.patch(sound(path), **fields)


def v2(**fields):
    """The same, version 2."""
    return lambda path: qcow.patch(sound(path, compat="0.10"), **fields)


def v1(at, layout, value):
    """A sound version 1 image with something else in its header."""
    return lambda path: qcow.poke(sound(path, "qcow"), at, struct.pack(layout, value))


def cut(length, kind="qcow2"):
    """Only the first bytes of a sound image."""
    return lambda path: os.truncate(sound(path, kind), length)


def extension(kind, data, declared=None):
    """A header extension in front of all others."""
    def make(path):
        sound(path)
        length = len(data) if declared is None else declared
        blob = struct.pack(">II", kind, length) + data + bytes(-len(data) % 8)
        qcow.poke(path, qcow.field(path, "header_length"), blob + bytes(8))
    return make


def tables_share(name, other):
    """One table lies where another one does."""
    def make(path):
        sound(path)
        qcow.patch(path, **{name: qcow.field(path, other)})
    return make


def luks(path):
    """An encrypted image."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, str(SIZE))


# name: (how to make the file, errno of any attach)
CASES = {
    "version_0": (v3(version=0), EITHER),
    "version_4": (v3(version=4), UNSUPPORTED),
    "version_huge": (v3(version=0xFFFFFFFF), UNSUPPORTED),
    "cluster_bits_0": (v3(cluster_bits=0), EITHER),
    "cluster_bits_8": (v3(cluster_bits=8), EITHER),
    "cluster_bits_22": (v3(cluster_bits=22), EITHER),
    "cluster_bits_63": (v3(cluster_bits=63), EITHER),
    "cluster_bits_64": (v3(cluster_bits=64), EITHER),
    "cluster_bits_huge": (v3(cluster_bits=0xFFFFFFFF), EITHER),
    "size_huge": (v3(size=FULL), EITHER),
    "size_beyond_l1": (v3(size=1 << 40), EITHER),
    "size_close_to_2_to_63": (v3(size=(1 << 63) - 512), EITHER),
    "aes": (v3(crypt_method=1), UNSUPPORTED),
    "luks": (luks, UNSUPPORTED),
    "crypt_method_unknown": (v3(crypt_method=7), EITHER),
    "l1_size_0": (v3(l1_size=0), EITHER),
    "l1_size_huge": (v3(l1_size=0xFFFFFFFF), EITHER),
    "l1_size_above_32_mib": (v3(l1_size=(4 << 20) + 1), EITHER),
    "l1_unaligned": (v3(l1_offset=512), MALFORMED),
    "l1_offset_0": (v3(l1_offset=0), MALFORMED),
    "l1_past_end": (v3(l1_offset=1 << 40), MALFORMED),
    "l1_offset_overflows": (v3(l1_offset=FULL - CLUSTER + 1), MALFORMED),
    "reftable_unaligned": (v3(reftable_offset=CLUSTER + 8), MALFORMED),
    "reftable_past_end": (v3(reftable_offset=1 << 50), MALFORMED),
    "reftable_offset_0": (v3(reftable_offset=0), MALFORMED),
    "reftable_clusters_0": (v3(reftable_clusters=0), EITHER),
    "reftable_clusters_huge": (v3(reftable_clusters=0xFFFFFFFF), EITHER),
    "reftable_is_l1": (tables_share("reftable_offset", "l1_offset"), MALFORMED),
    "l1_is_reftable": (tables_share("l1_offset", "reftable_offset"), MALFORMED),
    "refcount_order_7": (v3(refcount_order=7), EITHER),
    "refcount_order_huge": (v3(refcount_order=0xFFFFFFFF), EITHER),
    "header_length_0": (v3(header_length=0), MALFORMED),
    "header_length_103": (v3(header_length=103), MALFORMED),
    "header_length_odd": (v3(header_length=105), MALFORMED),
    "header_length_above_cluster": (v3(header_length=CLUSTER + 8), MALFORMED),
    "header_length_huge": (v3(header_length=0xFFFFFFF8), MALFORMED),
    "unknown_incompatible_bit_5": (v3(incompatible=1 << 5), UNSUPPORTED),
    "unknown_incompatible_bit_63": (v3(incompatible=1 << 63), UNSUPPORTED),
    "compression_bit_without_type": (v3(incompatible=1 << 3), EITHER),
    "compression_type_without_bit": (v3(compression_type=1), EITHER),
    "compression_type_unknown": (v3(compression_type=9, incompatible=1 << 3), EITHER),
    "extended_l2_small_clusters": (
        lambda path: qcow.patch(sound(path, cluster_size=4096), incompatible=1 << 4), EITHER),
    "backing_name_too_long": (v3(backing_offset=512, backing_size=1024), EITHER),
    "backing_name_past_cluster": (v3(backing_offset=CLUSTER - 8, backing_size=100), EITHER),
    "backing_name_overflows": (v3(backing_offset=FULL - 3, backing_size=100), EITHER),
    "backing_name_in_header": (v3(backing_offset=8, backing_size=100), EITHER),
    "snapshots_past_end": (v3(nb_snapshots=1, snapshots_offset=1 << 44), EITHER),
    "snapshots_unaligned": (v3(nb_snapshots=1, snapshots_offset=CLUSTER + 1), EITHER),
    "snapshots_too_many": (v3(nb_snapshots=0xFFFFFFFF, snapshots_offset=CLUSTER), EITHER),
    "extension_past_cluster": (extension(0x12345678, b"", declared=CLUSTER), EITHER),
    "extension_length_overflows": (extension(0x12345678, b"", declared=0xFFFFFFFF), EITHER),
    "data_file_bit_without_name": (v3(incompatible=1 << 2), EITHER),
    "v2_size_beyond_l1": (v2(size=1 << 44), EITHER),
    "v2_cluster_bits_31": (v2(cluster_bits=31), EITHER),
    "v2_reftable_clusters_0": (v2(reftable_clusters=0), EITHER),
    "cut_after_version": (cut(8), MALFORMED),
    "cut_in_header": (cut(60), MALFORMED),
    "cut_in_v3_header": (cut(90), MALFORMED),
    "cut_before_tables": (cut(512), MALFORMED),
    "v1_cluster_bits_8": (v1(32, ">B", 8), EITHER),
    "v1_cluster_bits_17": (v1(32, ">B", 17), EITHER),
    "v1_cluster_bits_255": (v1(32, ">B", 255), EITHER),
    "v1_l2_bits_5": (v1(33, ">B", 5), EITHER),
    "v1_l2_bits_14": (v1(33, ">B", 14), EITHER),
    "v1_l2_bits_255": (v1(33, ">B", 255), EITHER),
    "v1_size_0": (v1(24, ">Q", 0), EITHER),
    "v1_size_1": (v1(24, ">Q", 1), EITHER),
    "v1_size_huge": (v1(24, ">Q", FULL), EITHER),
    "v1_aes": (v1(36, ">I", 1), UNSUPPORTED),
    "v1_crypt_unknown": (v1(36, ">I", 2), EITHER),
    "v1_l1_past_end": (v1(40, ">Q", 1 << 50), MALFORMED),
    "v1_l1_overflows": (v1(40, ">Q", FULL - 7), MALFORMED),
    "v1_backing_name_too_long": (
        lambda path: qcow.poke(sound(path, "qcow"), 8, struct.pack(">QI", 48, 1024)), EITHER),
    "v1_cut_in_header": (cut(40, "qcow"), MALFORMED),
    "v1_cut_in_l1": (cut(50, "qcow"), MALFORMED),
}


@suite.cases(**CASES)
def refused(t, case):
    make, numbers = case
    path = t.path("bad.img")
    make(path)
    malformed.refused(t, path, numbers, r"loop\d+: refused: qcow2?: \S.* at byte \d+.*")


@suite.test
def unknown_feature_is_named(t):
    """The image says what it calls the feature."""
    path = sound(t.path("a.qcow2"))
    names = struct.pack(">BB46s", 0, 40, b"time travel")
    blob = struct.pack(">II", 0x6803F857, len(names)) + names + bytes(8)
    qcow.poke(path, qcow.field(path, "header_length"), blob)
    qcow.patch(path, incompatible=1 << 40)
    t.expect_log(r"loop\d+: refused: qcow2: .*(40|time travel).*")
    fails_with(UNSUPPORTED, t.attach, path)


@suite.cases(dirty=1, corrupt=2)
def only_read_only(t, bit):
    path = sound(t.path("a.qcow2"))
    expected = qcow.guest(t, path)
    qcow.patch(path, incompatible=bit)
    t.allow_log(r"loop\d+: qcow2: .*")
    malformed.only_read_only(t, path, expected, r"loop\d+: refused: qcow2: .*qemu-img check.*")


def entry(level, value):
    """Another L1 entry, or L2 entry of the first cluster."""
    def make(path):
        at, _ = (qcow.l1_entry if level == 1 else qcow.l2_entry)(path)
        qcow.poke(path, at, struct.pack(">Q", value))
    return make


def points_to(level, name, flags=1 << 63):
    """An entry that points into a table of the header."""
    return lambda path: entry(level, qcow.field(path, name) | flags)(path)


def points_to_l2(path):
    """A cluster that is its own L2 table."""
    _, l1 = qcow.l1_entry(path)
    entry(2, (l1 & qcow.OFFSET) | 1 << 63)(path)


COPIED = 1 << 63
ENTRIES = {
    "l2_table_unaligned": entry(1, COPIED | 5 * CLUSTER + 512),
    "l2_table_past_end": entry(1, COPIED | 1 << 45),
    "l2_table_at_the_top": entry(1, COPIED | qcow.OFFSET & -CLUSTER),
    "l2_table_is_header": entry(1, COPIED | 0x200),
    "l2_table_is_l1": points_to(1, "l1_offset"),
    "l2_table_is_reftable": points_to(1, "reftable_offset"),
    "cluster_unaligned": entry(2, COPIED | 5 * CLUSTER + 512),
    "cluster_past_end": entry(2, COPIED | 1 << 45),
    "compressed_past_end": entry(2, 1 << 62 | 1 << 45),
}


@suite.cases(**ENTRIES)
def entry_is_an_io_error(t, damage):
    path = sound(t.path("a.qcow2"))
    damage(path)
    malformed.entry_is_an_io_error(t, path, IO_ERROR)


@suite.cases(**ENTRIES)
def entry_stops_writes(t, damage):
    """Nothing is written over something else; the guest gets EIO and the rest can be read."""
    path = sound(t.path("a.qcow2"))
    damage(path)
    with open(path, "rb") as file:
        before = file.read()
    t.allow_log(r"loop\d+: qcow2: .*")
    loop = t.attach(path)
    fails_with(errno.EIO, blockio.direct_write, loop.path, 0, b"w" * 4096)
    loop.detach()
    after = blockio.content(path)
    changed = [at for at in range(0, len(before), 512) if before[at:at + 512] != after[at:at + 512]]
    # The corrupt bit may be set, and counts may have been changed; guest data and L2 tables not.
    ensure(all(at < 3 * CLUSTER for at in changed), f"changed: {changed[:20]}")


def is_marked_only(path, before, length):
    """The first bytes of the file are as they were, but that it is marked corrupt."""
    expected = bytearray(before[:length])
    expected[79] |= 2
    same_bytes(blockio.content(path)[:length], bytes(expected), "tables")


@suite.cases(points_to_l1=points_to(2, "l1_offset"), points_to_reftable=points_to(2, "reftable_offset"),
             points_to_l2=points_to_l2, points_to_block=entry(2, COPIED | 2 * CLUSTER),
             points_to_header=entry(2, COPIED | 512))
def cluster_in_a_table_is_not_written(t, damage):
    """A guest write must not overwrite the image's own tables."""
    path = sound(t.path("a.qcow2"))
    damage(path)
    before = blockio.content(path)
    t.expect_log(IO_ERROR)
    loop = t.attach(path)
    for pos in range(0, 4 * 4096, 4096):
        fails_with(errno.EIO, blockio.direct_write, loop.path, pos, bytes(4096))
    loop.detach()
    is_marked_only(path, before, 5 * CLUSTER)


def uncount(path, cluster):
    """Makes the refcount of a cluster 0."""
    block = qcow.be64(path, qcow.field(path, "reftable_offset"))
    qcow.poke(path, block + 2 * cluster, bytes(2))


def uncounted_data(path):
    """The first cluster is not counted."""
    sound(path)
    uncount(path, (qcow.l2_entry(path)[1] & qcow.OFFSET) // CLUSTER)


def uncounted_compressed(path):
    """The same, compressed."""
    sound(path)
    run("qemu-io", "-f", "qcow2", "-c", "discard -q 0 64k", "-c", "write -q -c -P 17 0 64k", path)
    _, value = qcow.l2_entry(path)
    ensure(value & 1 << 62, "not compressed")
    uncount(path, (value & (1 << 54) - 1) // CLUSTER)


def uncounted_shared_table(path):
    """The L2 table is not counted, and not said to be."""
    sound(path)
    at, table = qcow.l1_entry(path)
    qcow.poke(path, at, struct.pack(">Q", table & ~COPIED))
    uncount(path, (table & qcow.OFFSET) // CLUSTER)


@suite.cases(data=uncounted_data, compressed=uncounted_compressed, shared_table=uncounted_shared_table)
def refcount_0_is_not_lowered(t, make):
    """What nothing counts is not given back: the discard ends all writing, and reads go on."""
    path = t.path("a.qcow2")
    make(path)
    expected = qcow.guest(t, path)
    t.expect_log(r"loop\d+: qcow2: .*refcount of 0 at byte \d+: I/O error")
    loop = t.attach(path)
    with blockio.Direct(loop.path) as device:
        try:
            device.discard(0, CLUSTER)
            device.flush()
        except OSError as error:
            equal(error.errno, errno.EIO, "errno")
    fails_with(errno.EIO, blockio.direct_write, loop.path, 4 * MIB, b"w" * 4096)
    same_bytes(images.whole(loop)[CLUSTER:], expected[CLUSTER:], "device")
    loop.detach()
    equal(qcow.field(path, "incompatible") & 2, 2, "corrupt bit")
    same_bytes(qcow.guest(t, path)[CLUSTER:], expected[CLUSTER:], "image, by qemu-img")


@suite.cases(v2={"compat": "0.10"}, v3={}, subclusters={"extended_l2": "on", "cluster_size": 16 * KIB})
def refcount_0_of_a_table_is_not_handed_out(t, options):
    """Space that was freed is used again; the L2 table behind it, which nothing counts, is not."""
    cluster = options.get("cluster_size", 4096)
    covers = cluster // (16 if "extended_l2" in options else 8) * cluster
    size = 2 * covers
    path = images.create(t.path("a.qcow2"), size, "qcow2", **{"cluster_size": cluster} | options)
    writes = ("-c", "write -q -P 17 0 1M", "-c", f"write -q -P 34 {covers} 64k")
    run("qemu-io", "-f", "qcow2", *writes, path)
    expected = qcow.guest(t, path)[covers:]
    table = qcow.l1_entry(path, 1)[1] & qcow.OFFSET
    uncount(path, table // cluster)
    content = blockio.content(path)[table:table + cluster]
    t.expect_log(r"loop\d+: qcow2: qcow2 refcount of an L2 table is 0 at byte \d+: I/O error")
    loop = t.attach(path)
    with blockio.Direct(loop.path) as device:
        device.discard(0, MIB)
        device.flush()
        fails_with(errno.EIO, device.write, 0, b"w" * MIB)
        fails_with(errno.EIO, device.write, covers, b"w" * 4096)
        same_bytes(device.read(covers, covers), expected, "device")
    loop.detach()
    same_bytes(blockio.content(path)[table:table + cluster], content, "L2 table")
    same_bytes(qcow.guest(t, path)[covers:], expected, "image, by qemu-img")
    equal(qcow.field(path, "version") > 2 and qcow.field(path, "incompatible") & 2,
          "compat" not in options and 2, "corrupt bit")


@suite.test
def one_table_of_two_entries(t):
    """Two L1 entries name one L2 table. That is not noticed: both show what is written to either, and the
    rest is left alone."""
    path = sound(t.path("a.qcow2"), cluster_size=4096)
    rest = qcow.guest(t, path)[4 * MIB:]
    _, table = qcow.l1_entry(path)
    at, _ = qcow.l1_entry(path, 1)
    qcow.poke(path, at, struct.pack(">Q", table))
    expected = bytearray(qcow.guest(t, path))
    same_bytes(bytes(expected[2 * MIB:4 * MIB]), bytes(expected[:2 * MIB]), "image, by qemu-img")
    loop = t.attach(path)
    with blockio.Direct(loop.path) as device:
        device.write(2 * MIB, b"w" * 8192)
        device.write(MIB + 4096, b"n" * 4096)
        device.discard(2 * MIB + 8192, 4096)
    for pos in (0, 2 * MIB):
        expected[pos:pos + 8192] = b"w" * 8192
        expected[pos + 8192:pos + 12288] = bytes(4096)
        expected[pos + MIB + 4096:pos + MIB + 8192] = b"n" * 4096
    same_bytes(images.whole(loop), bytes(expected), "device")
    loop.detach()
    same_bytes(bytes(expected[4 * MIB:]), rest, "what is not theirs")
    same_bytes(qcow.guest(t, path), bytes(expected), "image, by qemu-img")


@suite.cases(unaligned=ENTRIES["cluster_unaligned"], past_end=ENTRIES["cluster_past_end"],
             in_l1=points_to(2, "l1_offset"), in_l2=points_to_l2, in_reftable=points_to(2, "reftable_offset"))
def ends_all_writing(t, damage):
    """What is found malformed when it is written ends all writes, in place ones, too; reads go on."""
    path = sound(t.path("a.qcow2"))
    damage(path)
    t.expect_log(IO_ERROR)
    loop = t.attach(path)
    blockio.direct_write(loop.path, 4 * MIB, b"g" * 4096)
    fails_with(errno.EIO, blockio.direct_write, loop.path, 0, b"w" * 4096)
    before = images.Unchanged(path)
    fails_with(errno.EIO, blockio.direct_write, loop.path, 4 * MIB, b"w" * 4096)
    fails_with(errno.EIO, blockio.direct_write, loop.path, 6 * MIB, b"w" * 4096)
    same_bytes(blockio.direct_read(loop.path, 4 * MIB, 4096), b"g" * 4096, "device")
    loop.detach()
    before.check()
    equal(qcow.field(path, "incompatible") & 2, 2, "corrupt bit")
    t.expect_log(r"loop\d+: refused: qcow2: .*qemu-img check.*")
    fails_with(READ_ONLY, t.attach, path)


@suite.test
def truncated_while_attached(t):
    """Without its tables nothing can be read, and nothing is written to what is left."""
    path = sound(t.path("a.qcow2"))
    before = blockio.content(path)
    t.allow_log(r"loop\d+: qcow2: .*")
    loop = t.attach(path)
    os.truncate(path, 3 * CLUSTER)
    for pos in (0, 4 * MIB, 6 * MIB):
        fails_with(errno.EIO, blockio.direct_read, loop.path, pos, 4096)
    for pos in range(0, 40 * CLUSTER, CLUSTER):
        fails_with(errno.EIO, blockio.direct_write, loop.path, pos, bytes(CLUSTER))
    loop.detach()
    same_bytes(blockio.content(path), before[:3 * CLUSTER], "what is left")


@suite.test
def forced_on_a_raw_file(t):
    blockio.make_file(t.path("raw"), SIZE)
    for parser in ("qcow", "qcow2"):
        t.expect_log(rf"loop\d+: refused: {parser}: .*")
        fails_with(MALFORMED, images.attach_with, t, t.path("raw"), parser)


@suite.test
def one_version_by_the_others_parser(t):
    sound(t.path("a"), "qcow")
    sound(t.path("b"), "qcow2")
    t.expect_log(r"loop\d+: refused: qcow2?: .*", 2)
    for name, parser in (("a", "qcow2"), ("b", "qcow")):
        try:
            images.attach_with(t, t.path(name), parser)
        except OSError as error:
            ensure(error.errno in EITHER, f"{error}")
        else:
            equal(parser, None, "attached by")


if __name__ == "__main__":
    suite.main()
