#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Differencing VHDs: what the guest sees of a chain, and what becomes of it when it writes.

Judged by vhd_chain.py, which reads sector by sector, and by 7-Zip: qemu-img ignores parents. The
files below the first are never written.
"""

import os
import random

from lib import blockio, images, layers, loopdev, vhd, vhd_child, vhd_reader
from lib.ktap import Suite, ensure, equal, same_bytes
from lib.system import run
from lib.vhd_child import Level

KIB = vhd.KIB
MIB = vhd.MIB
SIZE = 8 * MIB
suite = Suite()


def live(t, chain, attach=layers.attach_named, count=20):
    """The life of a chain: read, read-only first, written, read again, judged."""
    unchanged = [images.Unchanged(path) for path in chain.paths]
    for how in (layers.attach_read_only, attach):
        loop = how(t, chain.paths[0])
        equal(loop.size(), len(chain.guest), "size")
        same_bytes(images.whole(loop), chain.guest, f"device, {how.__name__}")
        loop.detach()
        for file in unchanged:
            file.check()
    shadow = bytearray(chain.guest)
    loop = attach(t, chain.paths[0])
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=count)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device after writing")
    loop.detach()
    for file in unchanged[1:]:
        file.check()
    chain.judge(bytes(shadow))


# Images of other programs

SAMPLES = {
    "on_a_dynamic_disk": (["xs-snap1.vhd", "xs-dyn-64M.vhd"], False),
    "depth_3": (["xs-snap2.vhd", "xs-snap1.vhd", "xs-dyn-64M.vhd"], False),
    "on_a_raw_file": (["xs-rawchild.vhd", "xs-rawparent.raw"], True),
}


@suite.cases(**SAMPLES)
def by_libvhd(t, case):
    names, raw = case
    sample = images.sample(names[0])
    paths = [images.Sample(name, 0, "").unpack(t) for name in names]
    unchanged = [images.Unchanged(path) for path in paths]
    loop = layers.attach_named(t, paths[0])
    equal((loop.size(), loop.attr("loop/variant")), (sample.size, "differencing"), "size, variant")
    equal(blockio.digest(loop.path), sample.sha256, "sha256 of the guest disk")
    equal(layers.paths(loop), paths, "layers")
    for file in unchanged:
        file.check()
    shadow = bytearray(images.whole(loop))
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=20)
        device.flush()
    loop.detach()
    for file in unchanged[1:]:
        file.check()
    vhd_child.Chain(paths, b"", raw).judge(bytes(shadow))


@suite.cases(**SAMPLES)
def by_libvhd_autodetected(t, case):
    names, _ = case
    layers.allow_parents(t, "beneath")
    paths = [images.Sample(name, 0, "").unpack(t) for name in names]
    equal(blockio.digest(t.attach(paths[0]).path), images.sample(names[0]).sha256, "sha256")


# How the parent is named

NAME = "the parent.vhd"
FOREIGN = "C:\\disks\\" + NAME
WRONG = "elsewhere.vhd"


def one(locator, name=None):
    """A locator, and the name in the header: "" for none."""
    return lambda _: ([locator], "" if name is None else name)


def sectors(locator):
    """The space of a locator in sectors, as the specification has it."""
    locator.space = 2
    return locator


NAMES = {
    "windows": lambda _: (vhd_child.by_windows(NAME), FOREIGN),
    "windows_base_name": lambda _: (vhd_child.by_windows(NAME), NAME),
    "tapdisk": lambda _: (vhd_child.by_tapdisk(NAME), NAME),
    "w2ru": one(vhd_child.relative(NAME)),
    "w2ru_without_a_dot": one(vhd_child.Locator(b"W2ru", vhd_child.utf16(NAME))),
    "w2ru_space_in_sectors": one(sectors(vhd_child.relative(NAME))),
    "w2ru_space_of_64k": one(vhd_child.relative(NAME, space=64 * KIB)),
    "w2ku_by_tapdisk": one(vhd_child.windows(".\\" + NAME)),
    "w2ku_from_windows_and_header": one(vhd_child.windows(FOREIGN), NAME),
    "w2ku_from_windows_first": lambda _: (
        [vhd_child.windows(FOREIGN), vhd_child.relative(NAME)], NAME),
    "macx_by_tapdisk": one(vhd_child.mac(f"file://./{NAME}")),
    "macx_escaped": one(vhd_child.mac("file://localhost/disks/the%20parent%2evhd")),
    "header_only": lambda _: ([], NAME),
    "header_with_a_folder_of_windows": lambda _: ([], FOREIGN),
    "old_codes_and_header": lambda _: (
        [vhd_child.Locator(b"Wi2r", b".\\x.vhd"), vhd_child.Locator(b"Wi2k", b"C:\\x.vhd"),
         vhd_child.Locator(b"Mac ", b"alias")], NAME),
    "unknown_code_and_header": one(vhd_child.Locator(b"what", b"\xff" * 40), NAME),
    "w2ru_that_is_gone_and_header": one(vhd_child.relative(WRONG), NAME),
    "eight": lambda _: ([vhd_child.relative(WRONG) for _ in range(7)]
                        + [vhd_child.relative(NAME)], WRONG),
    "odd_length_and_header": one(vhd_child.relative(NAME, length=11), NAME),
    "space_0_and_header": one(vhd_child.relative(NAME, space=0), NAME),
    "empty_and_header": one(vhd_child.relative(NAME, length=0), NAME),
    "longer_than_its_space_and_header": one(vhd_child.relative(NAME, length=1 << 31), NAME),
}


@suite.cases(**NAMES)
def named_by(t, names):
    """A folder that has the parent, and nothing under the other names."""
    locators, header_name = names(t)
    named(t, NAME, locators, header_name)


def named(t, parent, locators, header_name):
    """The child of a parent in the test's folder, with these names for it; read."""
    below = vhd.Dynamic(SIZE)
    vhd_child.put_runs(below, random.Random(5))
    os.makedirs(os.path.dirname(t.path(parent)), exist_ok=True)
    below.write(t.path(parent))
    image = vhd_child.Differencing(SIZE, parent, locators=locators, header_name=header_name)
    vhd_child.put_runs(image, random.Random(6))
    loop = layers.attach_named(t, image.write(t.path("child.vhd")))
    equal(layers.paths(loop)[1], os.path.realpath(t.path(parent)), "the parent's path")
    same_bytes(images.whole(loop), image.guest(below.guest()), "device")


@suite.cases(accents="Gr\u00f6\u00dfe.vhd", asian="\u4ee3\u66ff.vhd",
             beyond_16_bits="disk \U0001f4be.vhd", folder="a folder/below/parent.vhd",
             percent="50%25.vhd", long="n" * 240 + ".vhd", dots="...vhd", leading_dash="-f.vhd")
def odd_name(t, name):
    named(t, name, [vhd_child.relative(name)], "")


@suite.test
def odd_name_by_tapdisk(t):
    """tapdisk does not escape its URLs, which begin with file://./"""
    named(t, "50%25 of it.vhd", [vhd_child.mac("file://./50%25 of it.vhd")], "")


@suite.cases(backslashes=("a\\b.vhd", "a/b.vhd"), inner_dot=("a/./b.vhd", "a/b.vhd"),
             doubled=("a//b.vhd", "a/b.vhd"))
def spelled_otherwise(t, names):
    written, meant = names
    named(t, meant, [vhd_child.relative(written)], "")


@suite.test
def locator_inside_of_reserved_space(t):
    """The data of a locator may lie anywhere in the file, also behind the blocks."""
    base = vhd_child.base(t.dir, "dynamic", SIZE)
    image = vhd_child.child_of(base, SIZE, footer_gap=4 * KIB)
    path = image.write(t.path("child.vhd"))
    far = os.path.getsize(path) - 2 * KIB
    vhd.patch(path, far, image.locators[0].text)
    vhd.patch(path, image.locators[0].place, bytes(len(image.locators[0].text)))
    vhd.patch(path, 512 + 576 + 16, far.to_bytes(8, "big"))
    vhd.reseal(path, 512, 1024, 36)
    vhd.patch(path, 512 + 64, bytes(512))
    vhd.reseal(path, 512, 1024, 36)
    live(t, vhd_child.Chain([path, *base.paths], base.guest))


# Shapes of chains

SHAPES = {
    "same_size": [Level(SIZE)],
    "partly_set_bitmaps": [Level(SIZE, 64 * KIB)],
    "stale_data_under_clear_bits": [Level(SIZE, stale=True), Level(SIZE, 64 * KIB, stale=True)],
    "child_of_a_larger_one": [Level(SIZE), Level(5 * MIB)],
    "child_of_a_smaller_one": [Level(11 * MIB + 512)],
    "smaller_in_the_middle": [Level(SIZE), Level(3 * MIB + 512, 512 * KIB), Level(9 * MIB)],
    "blocks_of_512": [Level(MIB, 512)],
    "blocks_of_4k": [Level(SIZE, 4 * KIB)],
    "blocks_of_16m": [Level(20 * MIB, 16 * MIB)],
    "larger_blocks_above": [Level(SIZE, 4 * KIB), Level(SIZE, 64 * KIB), Level(SIZE, 4 * MIB)],
    "smaller_blocks_above": [Level(SIZE, 4 * MIB), Level(SIZE, 64 * KIB), Level(SIZE, 4 * KIB)],
    "tapdisk": [Level(SIZE, options={"batmap": True, "align": 8, "footer": vhd.tapdisk()})] * 2,
    "windows": [Level(SIZE, options={"align": 8, "footer_gap": 7 * 512})] * 2,
    "one_sector": [Level(512)],
}


def shape(t, kind, levels):
    """A chain on a base of `kind`, which is no larger than it needs to be."""
    live(t, vhd_child.build(t.dir, kind, levels, min(SIZE, max(MIB, levels[0].size))))


# A fixed disk at the end of a chain matters where sizes differ.
ON_FIXED = {"same_size", "child_of_a_larger_one", "child_of_a_smaller_one", "one_sector"}

for shape_name, shape_levels in SHAPES.items():
    for base_kind in ("dynamic", "raw", *(["fixed"] if shape_name in ON_FIXED else [])):
        suite.add(f"{shape_name}_on_{base_kind}", lambda t, kind=base_kind, levels=shape_levels:
                  shape(t, kind, levels))


@suite.test
def chain_of_16(t):
    sizes = (2 * MIB, 64 * KIB, 512 * KIB, 4 * KIB)
    chain = vhd_child.build(t.dir, "dynamic", [Level(SIZE, sizes[n % 4]) for n in range(15)])
    live(t, chain)


@suite.test
def chain_of_16_on_a_raw_file(t):
    live(t, vhd_child.build(t.dir, "raw", [Level(SIZE, 64 * KIB) for _ in range(15)]))


@suite.test
def raw_parent_of_odd_length(t):
    """Its last sector is completed with zeros, and behind it there are zeros."""
    chain = vhd_child.base(t.dir, "raw", 3 * MIB + 100)
    live(t, vhd_child.grow(chain, Level(5 * MIB, 64 * KIB)))


@suite.test
def empty_raw_parent(t):
    chain = vhd_child.base(t.dir, "raw", 0)
    live(t, vhd_child.grow(chain, Level(5 * MIB, 64 * KIB)))


@suite.test
def raw_parent_that_looks_like_a_vhd(t):
    """A null id says that the parent is raw: its format is not guessed."""
    chain = vhd_child.base(t.dir, "dynamic", SIZE)
    data = blockio.content(chain.paths[0])
    chain = vhd_child.Chain(chain.paths, data, raw=True)
    live(t, vhd_child.grow(chain, Level(SIZE, 64 * KIB)))


@suite.test
def parent_of_another_program(t):
    """A dynamic disk whose size goes by its geometry, under a child of the same size."""
    below = vhd.Dynamic(SIZE, footer={"creator": b"vpc ", "geometry": (100, 4, 17)})
    vhd_child.put_runs(below, random.Random(1))
    chs = vhd.geometry_size((100, 4, 17))
    chain = vhd_child.Chain([below.write(t.path("base.vhd"))], below.guest()[:chs])
    live(t, vhd_child.grow(chain, Level(SIZE)))


# Batmaps


def with_batmap(t, right):
    """A child whose block is full by its batmap, but empty by its bitmap."""
    base = vhd_child.base(t.dir, "fixed", MIB)
    image = vhd_child.child_of(base, MIB, block_size=64 * KIB, batmap=True,
                               footer=vhd.tapdisk())
    image.put(128 * KIB, b"c" * 64 * KIB)
    path = image.write(t.path("child.vhd"))
    vhd.patch(path, image.places[2], bytes(512))
    if not right:
        with vhd_reader.Reader(path) as reader:
            vhd.patch(path, reader.batmap_at() + 24, bytes(4))
    guest = image.guest(base.guest) if right else base.guest
    return vhd_child.Chain([path, *base.paths], guest)


@suite.cases(right=True, wrong=False)
def batmap_counts_if_its_checksum_is(t, right):
    chain = with_batmap(t, right)
    loop = layers.attach_named(t, chain.paths[0])
    same_bytes(images.whole(loop), chain.guest, "device")


@suite.test
def batmap_is_never_written(t):
    base = vhd_child.base(t.dir, "raw", SIZE)
    image = vhd_child.child_of(base, SIZE, batmap=True, align=8, footer=vhd.tapdisk())
    image.put(2 * MIB, blockio.pattern(2 * MIB))
    path = image.write(t.path("child.vhd"))
    with vhd_reader.Reader(path) as reader:
        start = reader.batmap_at()
    length = vhd.SECTOR + image.map_size()
    before = blockio.content(path)[start:start + length]
    loop = layers.attach_named(t, path)
    data = blockio.pattern(SIZE, 8)
    blockio.direct_write(loop.path, 0, data)
    loop.detach()
    same_bytes(blockio.content(path)[start:start + length], before, "batmap")
    vhd_child.Chain([path, *base.paths], b"", raw=True).judge(data)


# What a write changes


def bits(path, block):
    """The bitmap of a block of an image."""
    with vhd_reader.Reader(path) as reader:
        return reader.stored(block)[0]


@suite.test
def only_written_sectors_are_the_childs(t):
    """A new block has the bits of what was written, and no others."""
    chain = vhd_child.build(t.dir, "fixed", [Level(SIZE)])
    path = vhd_child.child_of(chain, SIZE).write(t.path("top.vhd"))
    loop = layers.attach_named(t, path)
    blockio.direct_write(loop.path, 2 * MIB + 3 * 512, b"x" * 512)
    blockio.direct_write(loop.path, 2 * MIB + 16 * 512, b"y" * 9 * 512)
    loop.detach()
    expected = bytearray(512)
    expected[0:4] = b"\x10\x00\xff\x80"
    same_bytes(bits(path, 1), bytes(expected), "bitmap")
    equal(bits(path, 0), b"", "bitmap of a block that nobody wrote to")


@suite.test
def zeros_written_hide_the_parent(t):
    chain = vhd_child.build(t.dir, "fixed", [Level(SIZE)])
    loop = layers.attach_named(t, chain.paths[0])
    shadow = bytearray(chain.guest)
    with blockio.Direct(loop.path) as device:
        for pos, length in ((0, 512), (2 * MIB - 512, 1024), (4 * MIB, 2 * MIB)):
            device.write(pos, bytes(length))
            shadow[pos:pos + length] = bytes(length)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    chain.judge(bytes(shadow))


@suite.test
def parts_of_sectors_through_the_page_cache(t):
    """What is written of a page that is not cached is completed with the parent's bytes."""
    chain = vhd_child.build(t.dir, "fixed", [Level(SIZE, 64 * KIB)])
    shadow = bytearray(chain.guest)
    loop = layers.attach_named(t, chain.paths[0])
    rng = random.Random(3)
    for _ in range(40):
        pos = rng.randrange(SIZE - 3000)
        data = rng.randbytes(rng.randrange(1, 3000))
        loop.write(pos, data)
        shadow[pos:pos + len(data)] = data
    loop.drop_cache()
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    chain.judge(bytes(shadow))


@suite.cases(direct=("--direct-io=on",), sectors_of_4096=("-b", "4096"))
def on_ext4(t, options):
    chain = vhd_child.build(t.ext4(96), "raw", [Level(SIZE), Level(SIZE, 64 * KIB)])
    layers.allow_parents(t, "beneath")
    shadow = bytearray(chain.guest)
    loop = t.losetup(*options, chain.paths[0])
    rng = random.Random(4)
    with blockio.Direct(loop.path) as device:
        for _ in range(40):
            length = rng.randrange(1, 40) * 4096
            pos = rng.randrange((SIZE - length) // 4096) * 4096
            data = rng.randbytes(length)
            device.write(pos, data)
            shadow[pos:pos + length] = data
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    chain.judge(bytes(shadow))


@suite.test
def file_system_in_two_generations(t):
    """What the child's guest deletes and writes, its parent keeps as it was."""
    parent = vhd.Dynamic(48 * MIB).write(t.path("base.vhd"))
    loop = t.losetup(parent)
    run("mkfs.ext4", "-q", loop.path)
    point = t.mount(loop.path)
    old = blockio.make_file(os.path.join(point, "old"), 6 * MIB)
    run("umount", point)
    loop.detach()
    before = images.Unchanged(parent)
    child = vhd_child.Differencing(48 * MIB, "base.vhd").write(t.path("child.vhd"))
    loop = layers.attach_named(t, child)
    point = t.mount(loop.path)
    same_bytes(blockio.content(os.path.join(point, "old")), old, "file of the parent")
    os.unlink(os.path.join(point, "old"))
    new = blockio.make_file(os.path.join(point, "new"), 9 * MIB, 2)
    run("umount", point)
    run("e2fsck", "-fn", loop.path)
    content = images.whole(loop)
    loop.detach()
    before.check()
    vhd_child.Chain([child, parent], b"").judge(content)
    loop = layers.attach_named(t, child)
    point = t.mount(loop.path)
    same_bytes(blockio.content(os.path.join(point, "new")), new, "file of the child")
    run("umount", point)


# Shared images


@suite.test
def two_children_of_one_parent(t):
    base = vhd_child.base(t.dir, "dynamic", SIZE)
    unchanged = images.Unchanged(base.paths[0])
    paths = [vhd_child.child_of(base, SIZE).write(t.path(name)) for name in ("a.vhd", "b.vhd")]
    loops = [layers.attach_named(t, path) for path in paths]
    shadows = [bytearray(base.guest) for _ in loops]
    for seed, (loop, shadow) in enumerate(zip(loops, shadows)):
        with blockio.Direct(loop.path) as device:
            images.scribble(device, shadow, seed)
    for loop, path, shadow in zip(loops, paths, shadows):
        same_bytes(images.whole(loop), bytes(shadow), loop.path)
        loop.detach()
        vhd_child.Chain([path, *base.paths], b"").judge(bytes(shadow))
    unchanged.check()


@suite.test
def one_child_on_two_devices(t):
    chain = vhd_child.build(t.dir, "fixed", [Level(SIZE, 64 * KIB)])
    shadow = bytearray(chain.guest)
    first, second = (layers.attach_named(t, chain.paths[0]) for _ in range(2))
    with blockio.Direct(first.path) as one_way, blockio.Direct(second.path) as other:
        for turn in range(4):
            images.scribble((one_way, other)[turn % 2], shadow, turn, count=8)
            same_bytes(images.whole((second, first)[turn % 2]), bytes(shadow), f"turn {turn}")
    first.detach()
    same_bytes(images.whole(second), bytes(shadow), "second device, without the first")
    second.detach()
    chain.judge(bytes(shadow))


@suite.test
def parent_attached_read_only_beside_its_child(t):
    chain = vhd_child.build(t.dir, "dynamic", [Level(SIZE)])
    below = loopdev.attach_read_only(chain.paths[1])
    t.defer(below.detach_if_bound)
    parent = images.whole(below)
    loop = layers.attach_named(t, chain.paths[0])
    blockio.direct_write(loop.path, 0, b"n" * SIZE)
    same_bytes(images.whole(below), parent, "parent")
    below.detach()
    same_bytes(images.whole(loop), b"n" * SIZE, "child, without its parent's device")


@suite.test
def window_of_a_differencing_disk(t):
    chain = vhd_child.build(t.dir, "fixed", [Level(SIZE, 64 * KIB)])
    shadow = bytearray(chain.guest)
    start, length = 3 * MIB + 512, 2 * MIB + 1024
    loop = layers.attach_named(t, chain.paths[0], offset=start, sizelimit=length)
    part = bytearray(shadow[start:start + length])
    same_bytes(images.whole(loop), bytes(part), "window")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, part)
    loop.detach()
    shadow[start:start + length] = part
    chain.judge(bytes(shadow))


@suite.test
def loop_device_in_the_chain(t):
    """A child on a raw parent that is a file on a VHD on a loop device."""
    outer = t.attach(vhd.Dynamic(32 * MIB).write(t.path("outer.vhd")))
    run("mkfs.ext4", "-q", outer.path)
    point = t.mount(outer.path)
    chain = vhd_child.build(point, "raw", [Level(SIZE, 64 * KIB)])
    live(t, chain)
    run("umount", point)


# Other readers


@suite.cases(libvhd_style=vhd_child.by_tapdisk, windows_style=vhd_child.by_windows)
def seven_zip_agrees(t, locators):
    """What we have written, as 7-Zip sees it, which follows the names itself."""
    base = vhd_child.base(t.dir, "dynamic", SIZE)
    names = locators(os.path.basename(base.paths[0]))
    path = vhd_child.child_of(base, SIZE, locators=names).write(t.path("child.vhd"))
    shadow = bytearray(base.guest)
    loop = layers.attach_named(t, path)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
    loop.detach()
    run("7z", "x", "-y", "-tvhd", f"-o{t.path('out')}", path)
    found = [os.path.join(t.path("out"), name) for name in os.listdir(t.path("out"))]
    equal(len(found), 1, f"files that 7-Zip has found: {found}")
    same_bytes(blockio.content(found[0]), bytes(shadow), "disk, by 7-Zip")


# Damage below


@suite.test
def parent_that_is_cut_while_attached(t):
    """Sectors that the parent has lost fail; those of the child, and of the rest, do not."""
    base = vhd_child.base(t.dir, "fixed", SIZE)
    image = vhd_child.child_of(base, SIZE)
    image.put(6 * MIB, blockio.pattern(MIB, 7))
    t.allow_log(r"I/O error, dev loop\d+.*|loop\d+: .*")
    loop = layers.attach_named(t, image.write(t.path("child.vhd")))
    os.truncate(base.paths[0], 5 * MIB)
    same_bytes(blockio.direct_read(loop.path, 6 * MIB, MIB), blockio.pattern(MIB, 7), "child's")
    same_bytes(blockio.direct_read(loop.path, 3 * MIB, MIB), base.guest[3 * MIB:4 * MIB], "rest")
    try:
        data = blockio.direct_read(loop.path, 7 * MIB, 4096)
    except OSError:
        return
    ensure(data in (bytes(4096), base.guest[7 * MIB:7 * MIB + 4096]), "other bytes are shown")


if __name__ == "__main__":
    suite.main()
