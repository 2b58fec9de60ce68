# SPDX-License-Identifier: GPL-2.0
"""Disks of every shape, children and chains of them (see vmdk.py), and what judges them."""

import dataclasses
import os
import random

from lib import blockio, images, loopdev, vmdk, vmdk_esx, vmdk_reader, vmdk_stream
from lib.ktap import Failure, ensure, equal, same_bytes
from lib.system import attempt
from lib.vmdk import KIB, MIB, SECTOR, Descriptor

BASE_CID = 0x0B0B0B0B
# How many files a disk in several files has.
PARTS = 3


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a disk is to be like.

    `kind`: one of KINDS. `base`: that of its parent. `base_size`: the parent's size, as a share of the
    disk's.
    """

    kind: str = "sparse"
    grain: int = 64 * KIB
    size: int = 4 * MIB
    redundant: bool = True
    zero_grains: bool = False
    all_tables: bool = True
    primary_first: bool = False
    entries: int = 512
    base: str = ""
    base_size: float = 1.0
    empty: bool = False

    @property
    def name(self):
        """A name for a test."""
        grain = f"{self.grain // KIB}k" if self.grain >= KIB else str(self.grain)
        grain = "" if self.kind in FLAT else grain
        words = [(self.kind, True), (grain, grain), ("plain", not self.redundant),
                 ("zero_grains", self.zero_grains), ("few_tables", not self.all_tables),
                 ("primary_first", self.primary_first), (f"{self.entries}_entries", self.entries != 512),
                 (f"{self.size % self.grain // SECTOR}_over", self.size % self.grain),
                 (f"{self.size // MIB}m", self.size // MIB != 4), (f"on_{self.base}", self.base),
                 ("smaller", self.base_size < 1), ("larger", self.base_size > 1), ("empty", self.empty)]
        return "_".join(word for word, is_set in words if is_set)

    def options(self):
        """Options of hosted sparse extents."""
        return {"redundant": self.redundant, "zero_grains": self.zero_grains,
                "all_tables": self.all_tables, "primary_first": self.primary_first,
                "entries": self.entries}

    def qemu_reads(self):
        """Whether qemu-img reads it, and is right: it takes the last grain of an extent for whole, though
        the next extent begins within it."""
        return self.entries <= 512 and self.kind not in ("mixed", "split", "split_vmfs_sparse", "cowd")


@dataclasses.dataclass
class Disk:
    """A disk that was built. `paths`: its file, and those of the disks below; `files`: those of extents,
    too; `own`: what of these belongs to itself."""

    paths: list
    guest: bytes
    cid: int
    files: list
    own: list

    @property
    def path(self):
        """The file that is attached."""
        return self.paths[0]

    def extents(self):
        """The files of its extents, if they are others."""
        return [path for path in self.own if path != self.path]

    def below(self):
        """Files that must not change when the disk is written."""
        return [path for path in self.files if path not in self.own]


def build(folder, shape, seed=1, name="disk"):
    """Builds a disk, and its parent."""
    fields, parent = {}, None
    if shape.base:
        size = int(shape.size * shape.base_size) // SECTOR * SECTOR
        parent = build(folder, Shape(shape.base, size=size, grain=64 * KIB), seed + 50, "base")
        fields = {"parent_cid": parent.cid, "hint": os.path.basename(parent.path)}
    rng = random.Random(seed)
    cid = BASE_CID if name == "base" else vmdk.CID
    before = set(os.listdir(folder))
    path, builder = KINDS[shape.kind](folder, shape, rng, name, {"cid": cid, **fields})
    own = [os.path.join(folder, each) for each in sorted(set(os.listdir(folder)) - before)]
    guest = builder.guest(parent.guest if parent else b"")
    paths, files = [path], list(own)
    if parent:
        paths += parent.paths
        files += parent.files
    return Disk(paths, guest, cid, files, own)


def child_of(folder, parent, name="child", *, size=None, seed=9, hint=None, fields=None, **options):
    """A child of a disk, in one file; what it has itself is at random grains."""
    size = len(parent.guest) if size is None else size
    descriptor = Descriptor(cid=vmdk.CID + len(parent.paths), parent_cid=parent.cid,
                            hint=hint or os.path.relpath(parent.path, folder), **(fields or {}))
    image = vmdk.fill(vmdk.Sparse(size, descriptor=descriptor, **options), random.Random(seed), 0.3,
                      zeros=0.1 if options.get("zero_grains") else 0)
    path = image.write(os.path.join(folder, f"{name}.vmdk"))
    return Disk([path, *parent.paths], image.guest(parent.guest), descriptor.cid,
                [path, *parent.files], [path])


def fill_as(shape, image, rng):
    """Fills an extent as the shape says."""
    if shape.empty:
        return image
    return vmdk.fill(image, rng, zeros=0.15 if shape.zero_grains else 0)


def in_one_file(folder, shape, rng, name, fields):
    """A monolithic sparse disk."""
    image = vmdk.Sparse(shape.size, shape.grain, descriptor=Descriptor(**fields), **shape.options())
    fill_as(shape, image, rng)
    return image.write(os.path.join(folder, f"{name}.vmdk")), image


def odd_parts(shape):
    """The sizes of extents that end anywhere."""
    return vmdk.shares(shape.size, PARTS)


def whole_grains(shape):
    """The sizes of extents that end with a grain, but for the last."""
    return vmdk.even_shares(shape.size, PARTS, shape.grain)


def in_parts(kinds, create_type, parts=lambda shape: [shape.size]):
    """A disk whose extents are of these kinds in turn."""
    def make(folder, shape, rng, name, fields):
        disk = vmdk.Set(folder, f"{name}.vmdk", create_type, **fields)
        for number, size in enumerate(parts(shape), 1):
            add_part(disk, kinds[(number - 1) % len(kinds)], f"{name}-{number:03}.vmdk", size, shape, rng)
        return disk.write(), disk
    return make


def add_part(disk, kind, name, size, shape, rng):
    """An extent of a kind."""
    if kind in ("FLAT", "VMFS"):
        disk.flat(name, bytes(size) if shape.empty else rng.randbytes(size), kind=kind)
    elif kind == "SPARSE":
        disk.image(name, fill_as(shape, vmdk.Sparse(size, shape.grain, **shape.options()), rng))
    elif kind == "VMFSSPARSE":
        disk.image(name, fill_as(shape, vmdk_esx.Cowd(size, shape.grain), rng), kind=kind)
    else:
        disk.image(name, fill_as(shape, vmdk_esx.SeSparse(size), rng), kind=kind)


def cowd(folder, shape, rng, name, _):
    """A COWD file by itself."""
    image = fill_as(shape, vmdk_esx.Cowd(shape.size, shape.grain), rng)
    return image.write(os.path.join(folder, f"{name}.vmdk")), image


def stream(folder, shape, rng, name, fields):
    """A stream."""
    image = vmdk_stream.Stream(shape.size, shape.grain,
                               descriptor=Descriptor("streamOptimized", **fields))
    fill_as(shape, image, rng)
    return image.write(os.path.join(folder, f"{name}.vmdk")), image


# "descriptor": a sparse extent whose descriptor is a file of its own; "mixed": extents of several kinds.
KINDS = {
    "sparse": in_one_file,
    "descriptor": in_parts(["SPARSE"], "twoGbMaxExtentSparse"),
    "split": in_parts(["SPARSE"], "twoGbMaxExtentSparse", odd_parts),
    "split_evenly": in_parts(["SPARSE"], "twoGbMaxExtentSparse", whole_grains),
    "flat": in_parts(["FLAT"], "monolithicFlat"),
    "split_flat": in_parts(["FLAT"], "twoGbMaxExtentFlat", odd_parts),
    "vmfs": in_parts(["VMFS"], "vmfs"),
    "cowd": cowd,
    "vmfs_sparse": in_parts(["VMFSSPARSE"], "vmfsSparse"),
    "split_vmfs_sparse": in_parts(["VMFSSPARSE"], "vmfsSparse", odd_parts),
    "mixed": in_parts(["FLAT", "SPARSE", "VMFSSPARSE"], "custom", odd_parts),
    "stream": stream,
    "se_sparse": in_parts(["SESPARSE"], "seSparse"),
}
FLAT = ("flat", "split_flat", "vmfs")
READ_ONLY = ("stream", "se_sparse")


# Judging


def attach(t, path, **kwargs):
    """Attaches with the parser named: the file may name others."""
    return images.attach_with(t, path, "vmdk", **kwargs)


def attach_read_only(t, path, **kwargs):
    """The same, as `losetup -r` does."""
    return attach(t, path, file_flags=os.O_RDONLY, flags=loopdev.READ_ONLY, mode=os.O_RDONLY, **kwargs)


def qemu_guest(t, path):
    """The guest disk, by qemu-img."""
    raw = images.convert(path, t.path("guest.raw"), "vmdk")
    data = blockio.content(raw)
    os.unlink(raw)
    return data


def qemu_check(path):
    """Fails unless qemu-img check finds nothing. It checks only sparse extents; 63: the disk has none."""
    done = attempt("qemu-img", "check", "-f", "vmdk", path)
    ensure(done.returncode in (0, 63), f"qemu-img check {os.path.basename(path)}: {done.stdout}{done.stderr}")


def judge(t, path, expected, qemu=True):
    """Fails unless a detached disk is sound and holds `expected`, by our reader and by qemu-img."""
    try:
        found = vmdk_reader.guest_of(path)
    except vmdk_reader.Broken as error:
        raise Failure(f"image, by the specification: {error}") from error
    same_bytes(found, expected, "image, by the specification")
    if qemu:
        qemu_check(path)
        same_bytes(qemu_guest(t, path), expected, "image, by qemu-img")


def cid_of(path):
    """The content id, by our reader."""
    with vmdk_reader.Disk(path) as disk:
        return disk.cid()


def cid_digits(path):
    """The content id as it is written in the descriptor, wherever that is."""
    raw = blockio.content(path)[:MIB]
    lines = [line.strip() for line in raw.replace(b"\r", b"").split(b"\n")]
    found = [line for line in lines if line.lower().startswith(b"cid")]
    equal(len(found), 1, "lines with a CID")
    return found[0].partition(b"=")[2].strip().decode("ascii")
