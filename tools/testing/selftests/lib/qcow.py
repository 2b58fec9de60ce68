# SPDX-License-Identifier: GPL-2.0
"""qcow and qcow2 images that qemu-img makes, in every shape it offers, and judges."""

import dataclasses
import json
import os
import random
import struct

from lib import blockio, images
from lib.ktap import Failure, equal, same_bytes
from lib.system import attempt, run

KIB = 1 << 10
MIB = 1 << 20

# Fields of the header: offset and struct format.
FIELDS = {
    "magic": (0, ">4s"), "version": (4, ">I"), "backing_offset": (8, ">Q"),
    "backing_size": (16, ">I"), "cluster_bits": (20, ">I"), "size": (24, ">Q"),
    "crypt_method": (32, ">I"), "l1_size": (36, ">I"), "l1_offset": (40, ">Q"),
    "reftable_offset": (48, ">Q"), "reftable_clusters": (56, ">I"), "nb_snapshots": (60, ">I"),
    "snapshots_offset": (64, ">Q"), "incompatible": (72, ">Q"), "compatible": (80, ">Q"),
    "autoclear": (88, ">Q"), "refcount_order": (96, ">I"), "header_length": (100, ">I"),
    "compression_type": (104, ">B"),
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What an image is to be like. `base`: format of the file below, or none; `base_size`: its size,
    as a share of the image's; `packed`: its data are compressed. `content`: what it is filled with
    before the test: nothing, data written by qemu-io, or compressed data."""
    version: int = 3
    cluster: int = 64 * KIB
    refcount_bits: int = 16
    extended: bool = False
    lazy: bool = False
    zstd: bool = False
    preallocation: str = "off"
    base: str = ""
    base_size: float = 1.0
    packed: bool = False
    content: str = "written"
    snapshot: bool = False
    size: int = 8 * MIB

    @property
    def kind(self):
        """The format in qemu's words."""
        return "qcow" if self.version == 1 else "qcow2"

    @property
    def name(self):
        """A name for a test."""
        parts = [f"v{self.version}"]
        if self.version > 1:
            parts += [f"{self.cluster >> 10}k" if self.cluster >= KIB else "512",
                      f"rc{self.refcount_bits}"]
        parts += [word for word, is_set in (
            ("subclusters", self.extended), ("lazy", self.lazy), ("zstd", self.zstd),
            (self.preallocation, self.preallocation != "off"), (f"on_{self.base}", self.base),
            ("smaller", self.base and self.base_size < 1),
            ("larger", self.base and self.base_size > 1), ("packed", self.packed),
            (self.content, self.content != "written"), ("snapshot", self.snapshot),
            (f"{self.size}_bytes", self.size != 8 * MIB)) if is_set]
        return "_".join(parts)

    def options(self):
        """Options for qemu-img create and convert."""
        if self.version == 1:
            return {}
        options = {"compat": "0.10" if self.version == 2 else "1.1", "cluster_size": self.cluster}
        if self.version == 3:
            options |= {"refcount_bits": self.refcount_bits,
                        "extended_l2": "on" if self.extended else "off",
                        "lazy_refcounts": "on" if self.lazy else "off",
                        "compression_type": "zstd" if self.zstd else "zlib"}
        if self.preallocation != "off":
            options["preallocation"] = self.preallocation
        return options


def make(folder, shape, seed=1):
    """Makes an image in `folder`; returns its path."""
    path = os.path.join(folder, f"a.{shape.kind}")
    options = shape.options()
    if shape.base:
        base = make_base(folder, shape, seed)
        options |= {"backing_file": os.path.basename(base), "backing_fmt": shape.base}
    if shape.content == "compressed" and not shape.base:
        make_compressed(path, shape, options, seed)
    else:
        images.create(path, shape.size, shape.kind, **options)
    if shape.content == "written":
        fill(path, shape.kind, shape.size, seed)
    if shape.content == "compressed" and shape.base:
        fill_compressed(path, shape, seed)
    if shape.snapshot:
        run("qemu-img", "snapshot", "-c", "before", path)
        fill(path, shape.kind, shape.size, seed + 1, count=3)
    return path


def make_base(folder, shape, seed):
    """The file below, full of data."""
    path = os.path.join(folder, f"base.{shape.base}")
    size = int(shape.size * shape.base_size) // 512 * 512
    raw = path if shape.base == "raw" else os.path.join(folder, "base.tmp")
    if shape.packed:
        with open(raw, "wb") as file:
            file.write(compressible(size, seed + 100))
    else:
        blockio.make_file(raw, size, seed + 100)
    if raw != path:
        options = ["-c"] if shape.packed else []
        options += base_options(shape)
        # As in make_compressed().
        convert = attempt if shape.base == "qcow" else run
        convert("qemu-img", "convert", "-O", shape.base, *options, raw, path)
        run("qemu-img", "compare", "-f", "raw", "-F", shape.base, raw, path)
        os.unlink(raw)
    return path


def base_options(shape):
    """What qemu-img convert has to be told for the file below."""
    if shape.base == "vpc":
        return ["-o", "force_size=on"]
    if shape.base == "vmdk" and shape.packed:
        return ["-o", "subformat=streamOptimized"]
    return []


def make_compressed(path, shape, options, seed):
    """An image whose data are compressed: words, noise and nothing."""
    raw = f"{path}.raw"
    with open(raw, "wb") as file:
        file.write(compressible(shape.size, seed))
    args = ",".join(f"{name}={value}" for name, value in options.items())
    # For version 1, qemu-img 10.0 says that it has failed when it has done everything.
    convert = run if shape.version > 1 else attempt
    convert("qemu-img", "convert", "-c", "-O", shape.kind, *(["-o", args] if args else []), raw,
            path)
    run("qemu-img", "compare", "-f", "raw", "-F", shape.kind, raw, path)
    os.unlink(raw)


def compressible(size, seed):
    """Bytes that compress by pieces: some well, some not at all, some are zeros."""
    rng = random.Random(seed)
    parts, left = [], size
    while left:
        length = min(left, rng.randrange(1, 400) * 512)
        parts.append(rng.choice((bytes, rng.randbytes, lambda n: (b"loop-parser %d " % rng.randrange(
            1000) * (n // 12 + 1))[:n]))(length))
        left -= length
    return b"".join(parts)


def fill(path, kind, size, seed, count=12):
    """Writes patterns, and zeros, at random places with qemu-io."""
    rng = random.Random(seed)
    commands = []
    for _ in range(count):
        length = rng.randrange(1, min(size // 512, 1200) + 1) * 512
        pos = rng.randrange((size - length) // 512 + 1) * 512
        what = "-z" if kind == "qcow2" and rng.random() < 0.2 else f"-P {rng.randrange(1, 256)}"
        commands += ["-c", f"write -q {what} {pos} {length}"]
    run("qemu-io", "-f", kind, *commands, path)


def fill_compressed(path, shape, seed):
    """Writes compressed clusters at random places with qemu-io; the others are the file below's."""
    rng = random.Random(seed)
    # Version 1 has clusters of 512 bytes if there is a file below, and takes one at a time.
    cluster, most = (512, 1) if shape.version == 1 else (shape.cluster, 2)
    places = range(0, shape.size, most * cluster)
    commands = []
    for pos in rng.sample(places, max(min(len(places) // 4, 200), 1)):
        length = rng.randrange(1, most + 1) * cluster
        commands += ["-c", f"write -q -c -P {rng.randrange(1, 256)} {pos} {length}"]
    run("qemu-io", "-f", shape.kind, *commands, path)


def guest(t, path, kind="qcow2"):
    """The guest disk, by qemu-img."""
    raw = images.convert(path, t.path("guest.raw"), kind)
    data = blockio.content(raw)
    os.unlink(raw)
    return data


def findings(path):
    """What qemu-img check finds, by kind."""
    done = attempt("qemu-img", "check", "-f", "qcow2", "--output=json", path)
    try:
        found = json.loads(done.stdout)
    except ValueError as error:
        raise Failure(f"qemu-img check: {done.stderr or done.stdout}") from error
    return {name: found.get(name, 0) for name in ("check-errors", "corruptions", "leaks")}


def check(path):
    """Fails unless qemu-img check finds nothing at all."""
    counts = findings(path)
    equal(counts, dict.fromkeys(counts, 0), f"qemu-img check {os.path.basename(path)}")


def keeps_a_file_system(t, path, attach):
    """Makes ext4 on what `attach` attaches, with a file that is there when it is attached again."""
    loop = attach()
    run("mkfs.ext4", "-q", loop.path)
    point = t.mount(loop.path)
    data = blockio.make_file(os.path.join(point, "file"), 20 * MIB)
    run("umount", point)
    run("e2fsck", "-fn", loop.path)
    loop.detach()
    check(path)
    point = t.mount(attach().path)
    same_bytes(blockio.content(os.path.join(point, "file")), data, "file")
    run("umount", point)


def judge(t, path, expected, kind="qcow2"):
    """Fails unless a detached image is sound and holds `expected`, by qemu-img."""
    if kind == "qcow2":
        check(path)
    same_bytes(guest(t, path, kind), expected, "image, by qemu-img")


def field(path, name):
    """A field of the header."""
    at, layout = FIELDS[name]
    with open(path, "rb") as file:
        file.seek(at)
        return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def patch(path, **fields):
    """Overwrites fields of the header."""
    with open(path, "r+b") as file:
        for name, value in fields.items():
            at, layout = FIELDS[name]
            file.seek(at)
            file.write(struct.pack(layout, value))


def poke(path, at, data):
    """Overwrites bytes; a negative offset counts from the end."""
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        file.write(data)


def overwrite(path, old, new):
    """Overwrites the first such bytes of the header and its extensions."""
    with open(path, "rb") as file:
        at = file.read(4096).index(old)
    poke(path, at, new)


def be64(path, at):
    """A big-endian number of the file."""
    with open(path, "rb") as file:
        file.seek(at)
        return struct.unpack(">Q", file.read(8))[0]


OFFSET = (1 << 56) - 512


def l1_entry(path, index=0):
    """Where an L1 entry lies, and what it says."""
    at = field(path, "l1_offset") + 8 * index
    return at, be64(path, at)


def l2_entry(path, pos=0):
    """Where the L2 entry of a guest position lies, and what its first word says."""
    cluster = 1 << field(path, "cluster_bits")
    length = 16 if has_subclusters(path) else 8
    count = cluster // length
    _, l1 = l1_entry(path, pos // cluster // count)
    at = (l1 & OFFSET) + length * (pos // cluster % count)
    return at, be64(path, at)


def has_subclusters(path):
    """Whether L2 entries have a second word: a bit each for what is allocated, and for what is zero."""
    return field(path, "version") > 2 and bool(field(path, "incompatible") & 1 << 4)
