#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Compressed qcow images that qemu-img makes, and units that no tool makes: what the device reads is
what qemu-img reads."""

import errno
import hashlib
import os
import random
import struct
import zlib

from lib import blockio, images, layers, loopdev, memory, qcow, trace
from lib.ktap import Failure, Skip, Suite, ensure, equal, fails_with, same_bytes
from lib.system import attempt, run

MIB = 1 << 20
SIZE = 4 * MIB
# Image by image: the compression, and the size of a cluster.
KINDS = {"deflate_64k": ("zlib", 65536), "zstd_64k": ("zstd", 65536),
         "deflate_2m": ("zlib", 2 * MIB), "zstd_2m": ("zstd", 2 * MIB),
         "deflate_4k": ("zlib", 4096), "zstd_512": ("zstd", 512)}
COMPRESSED = 1 << 62
DAMAGED = r"loop\d+: qcow2?: compressed unit that cannot be decompressed at byte {}: I/O error"
PAST_END = r"loop\d+: qcow2: .*compressed .* past the end of the file at byte \d+: I/O error"
suite = Suite()


def content(size=SIZE, seed=1):
    """Bytes that compress to about half; some clusters are zero, some do not compress at all."""
    rng = random.Random(seed)
    alphabet = rng.randbytes(16)
    parts = []
    for _ in range(size // 65536):
        kind = rng.randrange(8)
        if kind == 0:
            parts.append(bytes(65536))
        elif kind == 1:
            parts.append(rng.randbytes(65536))
        else:
            parts.append(rng.randbytes(65536).translate(alphabet * 16))
    return b"".join(parts)


def image_of(t, data, kind, name="a.qcow2", base=None):
    """A compressed image with these bytes, by qemu-img; over `base`, if there is one."""
    compression, cluster = kind
    raw, path = t.path(f"{name}.raw"), t.path(name)
    with open(raw, "wb") as file:
        file.write(data)
    # As seen from the image.
    over = ["-B", os.path.basename(base), "-F", "qcow2"] if base else []
    run("qemu-img", "convert", "-c", "-O", "qcow2", "-o",
        f"compression_type={compression},cluster_size={cluster}", *over, raw, path)
    os.unlink(raw)
    return path


def attach(t, path, kind="qcow2"):
    """Attaches read-only, with the parser named: the image may name its parent."""
    return images.attach_with(t, path, kind, file_flags=os.O_RDONLY, flags=loopdev.READ_ONLY,
                              mode=os.O_RDONLY)


def by_qemu(t, path):
    """The guest disk as qemu-img sees it."""
    raw = images.convert(path, t.path("converted.raw"), "qcow2")
    data = blockio.content(raw)
    os.unlink(raw)
    return data


def entries(path):
    """Host offsets of the L2 entries, and what is in them."""
    with open(path, "rb") as file:
        image = file.read()
    bits, _, _, l1_size, l1_offset = struct.unpack_from(">IQIIQ", image, 20)
    for index in range(l1_size):
        table = struct.unpack_from(">Q", image, l1_offset + 8 * index)[0] & 0x00fffffffffffe00
        for at in range(table, table + (1 << bits), 8) if table else ():
            yield at, struct.unpack_from(">Q", image, at)[0]


def compressed(path):
    """Guest cluster by guest cluster: where the compressed data begins, or None."""
    with open(path, "rb") as file:
        bits = struct.unpack_from(">I", file.read(24), 20)[0]
    mask = (1 << (70 - bits)) - 1
    return [entry & mask if entry & COMPRESSED else None for _, entry in entries(path)]


def first(path):
    """The first guest cluster that is compressed."""
    return next(index for index, unit in enumerate(compressed(path)) if unit is not None)


@suite.cases(**KINDS)
def sequential(t, kind):
    data = content()
    path = image_of(t, data, kind)
    before = images.Unchanged(path)
    ensure(kind[1] == 512 or any(compressed(path)), "nothing is compressed")
    same_bytes(by_qemu(t, path), data, "by qemu-img")
    loop = attach(t, path)
    equal(loop.size(), SIZE, "size")
    for step, end in ((MIB, SIZE), (4096, 256 << 10)):
        for pos in range(0, end, step):
            same_bytes(blockio.direct_read(loop.path, pos, step), data[pos:pos + step],
                       f"{step} at {pos}")
    equal(blockio.digest(loop.path), hashlib.sha256(data).hexdigest(), "sha256, page cache")
    loop.detach()
    before.check()


def look(loop, data, seed, count=30):
    """Reads at random places."""
    rng = random.Random(seed)
    with blockio.Direct(loop.path, os.O_RDONLY) as device:
        for _ in range(count):
            length = rng.choice((1, 7, 8, 64, 300, 5000)) * 512
            pos = rng.randrange((len(data) - length) // 512 + 1) * 512
            same_bytes(device.read(pos, length), data[pos:pos + length], f"{length} at {pos}")


@suite.cases(**KINDS)
def random_places(t, kind):
    data = content()
    loop = attach(t, image_of(t, data, kind))
    look(loop, data, 1)


def in_processes(number, work):
    """Calls `work` in so many processes at the same time."""
    children = []
    for index in range(number):
        child = os.fork()
        if not child:
            status = 1
            try:
                work(index)
                status = 0
            except BaseException as error:  # pylint: disable=broad-except
                print(f"# process {index}: {error}", flush=True)
            finally:
                os._exit(status)
        children.append(child)
    found = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    equal(found, [0] * number, "exit statuses")


@suite.cases(**{name: KINDS[name] for name in ("deflate_64k", "zstd_64k", "zstd_2m")})
def four_at_a_time(t, kind):
    """At random, and all of them through the same clusters."""
    data = content()
    loop = attach(t, image_of(t, data, kind))

    def work(index):
        look(loop, data, index, 10)
        for pos in range(0, MIB, 32768):
            same_bytes(blockio.direct_read(loop.path, pos, 32768), data[pos:pos + 32768],
                       f"at {pos}")

    in_processes(4, work)


@suite.cases(zstd_over_deflate=("zstd_64k", "deflate_2m"),
             deflate_over_zstd=("deflate_2m", "zstd_64k"))
def through_a_parent(t, kinds):
    """Where the child has nothing of its own the parent's units are read."""
    upper, lower = kinds
    data = content()
    base = image_of(t, data, KINDS[lower], "base.qcow2")
    other = content(seed=2)
    changed = data[:MIB] + other[MIB:3 * MIB] + data[3 * MIB:]
    path = image_of(t, changed, KINDS[upper], base=base)
    same_bytes(by_qemu(t, path), changed, "by qemu-img")
    loop = attach(t, path)
    equal(len(layers.lines(loop)), 2, "layers")
    same_bytes(images.whole(loop), changed, "device")
    in_processes(4, lambda index: look(loop, changed, index, 10))


def fails_at(t, loop, data, where, cluster):
    """Reads of this guest cluster fail, those of the others do not, and one line is logged."""
    pos = where * cluster
    for _ in range(2):
        fails_with(errno.EIO, blockio.direct_read, loop.path, pos, 512)
    for other in range(0, len(data) // cluster):
        if other != where:
            at = other * cluster
            same_bytes(blockio.direct_read(loop.path, at, 512), data[at:at + 512], f"at {at}")


@suite.cases(deflate=KINDS["deflate_64k"], zstd=KINDS["zstd_64k"])
def truncated(t, kind):
    """The file ends in the data of the last unit, and then before it."""
    t.allow_log(r"I/O error, dev loop\d+, .*")
    data = content(MIB)
    path = image_of(t, data, kind)
    units = compressed(path)
    offset = max(unit for unit in units if unit is not None)
    for end, line in ((offset + 100, DAMAGED.format(offset)), (offset, PAST_END)):
        os.truncate(path, end)
        t.expect_log(line)
        loop = attach(t, path)
        fails_at(t, loop, data, units.index(offset), kind[1])
        loop.detach()


@suite.cases(deflate=KINDS["deflate_64k"], zstd=KINDS["zstd_64k"])
def cut_while_attached(t, kind):
    """What was decompressed before does not hide that the file ends."""
    t.allow_log(r"I/O error, dev loop\d+, .*")
    data = content(MIB)
    path = image_of(t, data, kind)
    units = compressed(path)
    offset = max(unit for unit in units if unit is not None)
    pos = units.index(offset) * kind[1]
    loop = attach(t, path)
    same_bytes(blockio.direct_read(loop.path, pos, 512), data[pos:pos + 512], "before")
    os.truncate(path, offset + 50)
    t.expect_log(DAMAGED.format(offset))
    fails_with(errno.EIO, blockio.direct_read, loop.path, pos, 512)


@suite.cases(deflate=KINDS["deflate_64k"], zstd=KINDS["zstd_64k"])
def damaged(t, kind):
    """Garbage in the place of a unit's data."""
    t.allow_log(r"I/O error, dev loop\d+, .*")
    data = content(MIB)
    path = image_of(t, data, kind)
    units = compressed(path)
    where = next(index for index, unit in enumerate(units) if unit is not None)
    with open(path, "r+b") as file:
        file.seek(units[where])
        file.write(b"\xff" * 64)
    t.expect_log(DAMAGED.format(units[where]))
    loop = attach(t, path)
    fails_at(t, loop, data, where, kind[1])


def put(path, where, stream, claimed=None):
    """Lets the entry of a guest cluster, which is compressed, mean these bytes, put at the end of the
    file; returns where. Or so many bytes from there on as are claimed."""
    at, entry = list(entries(path))[where]
    ensure(entry & COMPRESSED, "entry is compressed")
    offset = os.path.getsize(path) + 77
    bits = struct.unpack(">I", blockio.content(path)[20:24])[0]
    sectors = (offset + (claimed or len(stream)) - 1) // 512 - offset // 512
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(stream)
        file.seek(at)
        file.write(struct.pack(">Q", COMPRESSED | sectors << (70 - bits) | offset))
    return offset


@suite.cases(deflate=KINDS["deflate_64k"], zstd=KINDS["zstd_64k"])
def less_than_a_unit(t, kind):
    """Another entry of the same table, for data that makes less than a cluster: none is short."""
    t.allow_log(r"I/O error, dev loop\d+, .*")
    data = content(MIB)
    path = image_of(t, data, kind)
    small = image_of(t, content(65536, seed=3)[:32768], (kind[0], 32768), "small.qcow2")
    source = next(unit for unit in compressed(small) if unit is not None)
    with open(small, "rb") as file:
        file.seek(source)
        short = file.read(32768)
    where = first(path)
    end = put(path, where, short)
    t.expect_log(DAMAGED.format(end))
    loop = attach(t, path)
    fails_at(t, loop, data, where, kind[1])


def deflated(data, flush=zlib.Z_FINISH):
    """Raw deflate; to be continued, if the flush is not the end."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush(flush)


def deflate_bomb(data):
    """The data, and a GiB of zeros."""
    return deflated(data, zlib.Z_FULL_FLUSH) + 1024 * deflated(bytes(MIB), zlib.Z_FULL_FLUSH)


# A block of deflate that is not the last one, stored, of no bytes.
EMPTY_STORED = bytes.fromhex("000000ffff")
# A zstd frame with a window of 128 KiB, and none of the optional fields.
FRAME = bytes.fromhex("28b52ffd0038")
# Types of blocks.
STORED, REPEATED = 0, 1


def block(kind, length, data, is_last=False):
    """A block of a zstd frame."""
    return (is_last | kind << 1 | length << 3).to_bytes(3, "little") + data


def frame(data):
    """A zstd frame of one stored block."""
    return FRAME + block(STORED, len(data), data, True)


def zstd_bomb(_):
    """A GiB of zeros, in one frame."""
    blocks = 8191 * block(REPEATED, 1 << 17, b"\0") + block(REPEATED, 1 << 17, b"\0", True)
    return FRAME + blocks


def few(size):
    """Bytes that compress well; every part of them is different."""
    return b"".join(b"%07d " % number for number in range(size // 8))


def halves(data):
    """What it says."""
    return data[:len(data) // 2], data[len(data) // 2:]


# Made of the cluster's data: a stream; what is claimed in clusters, if that is more; whether it is read.
DEFLATE = {
    "bomb": (deflate_bomb, 2, True),
    "a_byte_more": (lambda data: deflated(data + b"x"), None, True),
    "most_sectors": (lambda data: deflated(data) + b"\xff" * 4 * len(data), 2, True),
    "claim_past_end": (deflated, 2, True),
    "empty_blocks_first": (lambda data: 500 * EMPTY_STORED + deflated(data), None, True),
    "empty_blocks": (lambda data: len(data) // 5 * 2 * EMPTY_STORED, 2, False),
    "two_streams": (lambda data: b"".join(map(deflated, halves(data))), None, False),
}
ZSTD = {
    "bomb": (zstd_bomb, None, False),
    "a_byte_more": (lambda data: frame(data + b"x"), None, False),
    "most_sectors": (lambda data: frame(data) + b"\xff" * 4 * len(data), 2, True),
    "claim_past_end": (frame, 2, True),
    "empty_blocks_first": (lambda data: FRAME + 500 * block(STORED, 0, b"")
                           + block(STORED, len(data), data, True), None, True),
    "empty_blocks": (lambda data: FRAME + len(data) // 3 * 2 * block(STORED, 0, b""), 2, False),
    "two_frames": (lambda data: b"".join(map(frame, halves(data))), None, True),
    "empty_frames_first": (lambda data: 100 * frame(b"") + frame(data), None, True),
}


def one_by_qemu(t, path, where, cluster, kind="qcow2"):
    """A guest cluster as qemu-img sees it; None if that is an I/O error."""
    out = t.path("one")
    done = attempt("qemu-img", "dd", "-f", kind, "-O", "raw", f"bs={cluster}", f"skip={where}",
                   f"count={where + 1}", f"if={path}", f"of={out}")
    if done.returncode:
        ensure("Input/output error" in done.stderr, done.stderr)
        return None
    return blockio.content(out)


def reads(t, loop, data, where, unit, offset):
    """The device holds these 16 clusters, one of them with other data, from this unit; with None, only
    that one cannot be read."""
    cluster = len(data) // 16
    if unit is None:
        t.allow_log(r"I/O error, dev loop\d+, .*")
        t.expect_log(DAMAGED.format(offset))
        fails_at(t, loop, data, where, cluster)
        return
    pos = where * cluster
    same_bytes(images.whole(loop), data[:pos] + unit + data[pos + cluster:], "device")


def by_hand(t, kind, case):
    """A unit that no tool makes: what qemu-img reads is read, and what it does not read is not."""
    make, claimed, is_read = case
    cluster = kind[1]
    data = content(16 * cluster)
    path = image_of(t, data, kind)
    where = first(path)
    unit = few(cluster)
    offset = put(path, where, make(unit), claimed and claimed * cluster - 512)
    expected = unit if is_read else None
    equal(one_by_qemu(t, path, where, cluster), expected, "by qemu-img")
    reads(t, attach(t, path), data, where, expected, offset)


for one, how in DEFLATE.items():
    suite.add(f"deflate_{one}", lambda t, how=how: by_hand(t, KINDS["deflate_64k"], how))
for one, how in ZSTD.items():
    suite.add(f"zstd_{one}", lambda t, how=how: by_hand(t, KINDS["zstd_64k"], how))


@suite.test
def more_than_any_compressor_makes(t):
    """Not all of it is read from the file, though qemu-img does."""
    data, unit = content(MIB), few(65536)
    path = image_of(t, data, KINDS["deflate_64k"])
    where = first(path)
    offset = put(path, where, (65536 + 1024 + 4096) // 5 * EMPTY_STORED + deflated(unit))
    equal(one_by_qemu(t, path, where, 65536), unit, "by qemu-img")
    reads(t, attach(t, path), data, where, None, offset)


@suite.cases(**{name: DEFLATE[name] for name in
                ("bomb", "most_sectors", "claim_past_end", "empty_blocks")})
def version_1_longest(t, case):
    """The most bytes that an entry can claim: one less than a cluster."""
    make, _, is_read = case
    data, unit = few(65536)[::-1], few(4096)
    with open(t.path("raw"), "wb") as file:
        file.write(data)
    # It says that it has failed when it has done everything.
    path = t.path("a.qcow")
    attempt("qemu-img", "convert", "-c", "-O", "qcow", t.path("raw"), path)
    offset, table = os.path.getsize(path) + 77, qcow.be64(path, qcow.be64(path, 40))
    ensure(qcow.be64(path, table + 8 * 3) >> 63, "entry is compressed")
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(make(unit))
    qcow.poke(path, table + 8 * 3, struct.pack(">Q", 1 << 63 | 4095 << (63 - 12) | offset))
    expected = unit if is_read else None
    equal(one_by_qemu(t, path, 3, 4096, "qcow"), expected, "by qemu-img")
    reads(t, attach(t, path, "qcow"), data, 3, expected, offset)


def calls(traced):
    """How many calls there were, and the most at the same time."""
    now = most = 0
    for event, _ in traced.events:
        now += {"called": 1, "returned": -1}[event]
        most = max(most, now)
    return len(traced.named("called")), most


@suite.cases(deflate_64k=("zlib_inflate", KINDS["deflate_64k"]),
             zstd_64k=("zstd_decompress_dctx", KINDS["zstd_64k"]),
             zstd_2m=("zstd_decompress_dctx", KINDS["zstd_2m"]))
def each_unit_once(t, case):
    """By one who reads one page after the other."""
    function, kind = case
    data = content()
    path = image_of(t, data, kind)
    loop = attach(t, path)
    with trace.calls(function) as events, trace.tracing(*events) as traced:
        with blockio.Direct(loop.path, os.O_RDONLY) as device:
            for pos in range(0, SIZE, 4096):
                same_bytes(device.read(pos, 4096), data[pos:pos + 4096], f"at {pos}")
    units = sum(unit is not None for unit in compressed(path))
    ensure(units > 1, "there are units")
    equal(calls(traced), (units, 1), "calls, and at the same time")


@suite.cases(deflate=("zlib_inflate", KINDS["deflate_2m"]),
             zstd=("zstd_decompress_dctx", KINDS["zstd_2m"]))
def in_parallel(t, case):
    """Different units are decompressed at the same time, sooner or later."""
    if os.cpu_count() < 2:
        raise Skip("there is one processor")
    function, kind = case
    data = content(4 * kind[1])
    loop = attach(t, image_of(t, data, kind))

    def work(index):
        for turn in range(4):
            pos = (index + turn) % 4 * kind[1]
            same_bytes(blockio.direct_read(loop.path, pos, 512), data[pos:pos + 512], f"at {pos}")

    for _ in range(10):
        with trace.calls(function) as events, trace.tracing(*events) as traced:
            in_processes(4, work)
        if calls(traced)[1] > 1:
            return
    raise Failure("never two at the same time")


@suite.test
def memory_comes_back(t):
    """Buffers are made when units are read, a few of them, and go with the image."""
    data = content()
    path = image_of(t, data, KINDS["zstd_2m"])

    def taken():
        return sum(memory.settled().values())

    def once():
        loop = attach(t, path)
        idle = taken()
        in_processes(4, lambda index: look(loop, data, index, 5))
        return loop, taken() - idle

    once()[0].detach()
    before = taken()
    loop, grown = once()
    print(f"# {grown} bytes for buffers of units of 2 MiB")
    ensure(grown >= 2 * MIB, f"no buffers: {grown}")
    # Four of them, and what else comes and goes.
    ensure(grown <= 4 * 5 * MIB + MIB, f"too large: {grown}")
    loop.detach()
    left = taken() - before
    ensure(left < MIB, f"{left} bytes are left")


@suite.cases(deflate_2m=("deflate_2m", DEFLATE["bomb"]), zstd_64k=("zstd_64k", ZSTD["bomb"]))
def memory_of_a_bomb(t, case):
    """What is kept of it is a buffer, as of any other unit."""
    kind, (make, claimed, is_read) = KINDS[case[0]], case[1]
    cluster = kind[1]
    data = content(16 * 65536 if cluster == 65536 else SIZE)
    path = image_of(t, data, kind)
    where = first(path)
    put(path, where, make(few(cluster)), claimed and claimed * cluster - 512)
    t.allow_log(r"I/O error, dev loop\d+, .*")
    t.allow_log(DAMAGED.format(r"\d+"))
    loop = attach(t, path)
    before = sum(memory.settled().values())
    if is_read:
        same_bytes(blockio.direct_read(loop.path, where * cluster, 4096), few(4096), "data")
    else:
        fails_with(errno.EIO, blockio.direct_read, loop.path, where * cluster, 4096)
    grown = sum(memory.settled().values()) - before
    print(f"# {grown} bytes for a unit that would make 1 GiB")
    ensure(grown <= 2 * cluster + 2 * MIB, f"too large: {grown}")


if __name__ == "__main__":
    suite.main()
