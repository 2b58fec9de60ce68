#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""VHDs built from the specification, one per peculiarity: read, written, and judged afterwards."""

import os
import random

from lib import blockio, images, loopdev, vhd, vhd_reader
from lib.ktap import Suite, ensure, equal, same_bytes

KIB = vhd.KIB
MIB = vhd.MIB
suite = Suite()


def filled(size, block_size, seed=1, **options):
    """A dynamic image with some runs of data, and free blocks between them."""
    image = vhd.Dynamic(size, block_size, **options)
    rng = random.Random(seed)
    for _ in range(8):
        length = min(rng.randrange(1, 300), size // vhd.SECTOR) * vhd.SECTOR
        pos = rng.randrange((size - length) // vhd.SECTOR + 1) * vhd.SECTOR
        image.put(pos, rng.randbytes(length))
    return image


def with_stale_data(size, block_size, **options):
    """An image in which sectors with a clear bit hold bytes: they are not the guest's."""
    image = filled(size, block_size, **options)
    for number in list(image.blocks):
        block = image.blocks[number]
        for sector in range(block_size // vhd.SECTOR):
            if not block.has(sector):
                start = sector * vhd.SECTOR
                block.data[start:start + vhd.SECTOR] = b"\xee" * vhd.SECTOR
    return image


def in_reverse(size, block_size, **options):
    """Blocks lie in the file in the opposite order."""
    image = vhd.Dynamic(size, block_size, **options)
    for number in reversed(range(size // block_size)):
        image.put(number * block_size, blockio.pattern(block_size, number))
    return image


def tapdisk(block_size=2 * MIB, **options):
    """As libvhd makes it: data aligned to 4 KiB, a batmap."""
    return filled(7 * MIB, block_size, align=8, batmap=True, footer=vhd.tapdisk(), **options)


def bat_behind_the_blocks():
    """The BAT lies behind all data; free space begins behind the BAT."""
    image = filled(7 * MIB, 2 * MIB, header={"table_offset": 20 * MIB})
    # The blocks fit in front of it.
    image.map_end = lambda: 0x2000
    original = image.write_blocks
    image.write_blocks = lambda file, end: max(original(file, end), 20 * MIB + vhd.SECTOR)
    return image


def header_elsewhere():
    """The dynamic header does not follow the footer copy."""
    return filled(7 * MIB, 2 * MIB, head={"data_offset": 0x4000}, tail={"data_offset": 0x4000},
                  header={"table_offset": 0x600})


def behind_header(image):
    """Lets the blocks begin behind a dynamic header that lies behind the BAT."""
    image.map_end = lambda: 0x4000 + 1024
    return image


# (the image, whether qemu-img reads it right once the driver has written to it)
BUILDS = {
    "block_512": (lambda: filled(300 * KIB, 512), False),
    "block_4k": (lambda: filled(MIB, 4 * KIB), True),
    "block_64k": (lambda: filled(3 * MIB, 64 * KIB), True),
    "block_512k": (lambda: filled(9 * MIB, 512 * KIB), True),
    "block_2m": (lambda: filled(7 * MIB, 2 * MIB), True),
    "block_4m": (lambda: filled(12 * MIB, 4 * MIB), True),
    "block_16m": (lambda: filled(20 * MIB, 16 * MIB), True),
    "partial_last_block": (lambda: filled(5 * MIB + 512, 2 * MIB), True),
    "smaller_than_a_block": (lambda: filled(3 * 512, 2 * MIB), True),
    "one_sector": (lambda: filled(512, 2 * MIB), True),
    "stale_data_block_2m": (lambda: with_stale_data(7 * MIB, 2 * MIB), False),
    "stale_data_block_4k": (lambda: with_stale_data(MIB, 4 * KIB), False),
    "reverse_order": (lambda: in_reverse(8 * MIB, 2 * MIB), True),
    "tapdisk": (tapdisk, True),
    "tapdisk_block_512k": (lambda: tapdisk(512 * KIB), True),
    "windows_10": (lambda: filled(7 * MIB, 2 * MIB, align=8, footer_gap=7 * 512), True),
    "gap_in_front_of_footer": (lambda: filled(7 * MIB, 2 * MIB, footer_gap=MIB), True),
    "footer_511": (lambda: filled(7 * MIB, 2 * MIB, footer_length=511), True),
    "tail_damaged": (lambda: filled(7 * MIB, 2 * MIB, tail={"checksum": 1}), True),
    "tail_zeroed": (lambda: filled(7 * MIB, 2 * MIB, tail={"cookie": bytes(8)}), True),
    "tail_missing": (lambda: filled(7 * MIB, 2 * MIB, footer_length=0), True),
    "head_damaged": (lambda: filled(7 * MIB, 2 * MIB, head={"cookie": b"garbage!"}), True),
    "head_checksum": (lambda: filled(7 * MIB, 2 * MIB, head={"checksum": 1}), True),
    "bat_oversized": (lambda: filled(7 * MIB, 2 * MIB, header={"max_entries": 512}), True),
    "bat_very_large": (lambda: filled(7 * MIB, 2 * MIB, header={"max_entries": 300000}), True),
    "bat_at_8k": (lambda: filled(7 * MIB, 2 * MIB, header={"table_offset": 0x2000}), True),
    "bat_behind_the_blocks": (bat_behind_the_blocks, True),
    "header_elsewhere": (lambda: behind_header(header_elsewhere()), True),
    "header_data_offset_odd": (lambda: filled(7 * MIB, 2 * MIB, header={"data_offset": 5}), True),
    "creator_unknown": (lambda: filled(7 * MIB, 2 * MIB, footer={"creator": b"abcd"}), True),
    "hidden_not_summed": (lambda: hidden(), True),
    "saved_state": (lambda: filled(7 * MIB, 2 * MIB, footer={"saved_state": 1}), True),
    "temporary": (lambda: filled(7 * MIB, 2 * MIB, footer={"features": 3}), True),
}


def hidden():
    """Early tapdisk tools set `hidden` without computing the checksum anew."""
    fields = vhd.tapdisk(creator_version=0x00010001)
    plain = filled(7 * MIB, 2 * MIB, footer=fields)
    right = int.from_bytes(plain.head.pack()[64:68], "big")
    return filled(7 * MIB, 2 * MIB, footer={**fields, "hidden": 1, "checksum": right})


def sum_anew(path):
    """Fails unless both footers are as hidden() has made them; then makes their checksums right."""
    expected = hidden().head.pack()
    for place in (0, -512):
        equal(blockio.content(path)[place:][:512], expected, f"footer at {place}")
        vhd.reseal(path, place, 512, vhd.Footer.CHECKSUM_AT)


def warns(name):
    """Whether the kernel may say that something is wrong with the image."""
    return name.startswith(("tail_", "head_"))


def read_write_judge(t, name, build, qemu):
    """The life of an image."""
    image = build()
    path = image.write(t.path("a.vhd"))
    shadow = bytearray(image.guest())
    if warns(name):
        t.expect_log(r"loop\d+: .*footer.*", 3)
    before = images.Unchanged(path)
    for attach in (loopdev.attach_read_only, t.attach):
        loop = attach(path)
        t.defer(loop.detach_if_bound)
        equal(loop.size(), image.size, "size")
        same_bytes(images.whole(loop), bytes(shadow), f"device, {attach.__name__}")
        loop.detach()
        before.check()
    loop = t.attach(path)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=30)
        device.flush()
    same_bytes(images.whole(loop), bytes(shadow), "device after writing")
    loop.detach()
    if name == "hidden_not_summed":
        sum_anew(path)
    images.judge(t, path, bytes(shadow), qemu)


for build_name, (builder, by_qemu) in BUILDS.items():
    suite.add(build_name, lambda t, name=build_name, build=builder, qemu=by_qemu:
              read_write_judge(t, name, build, qemu))


@suite.cases(plain={}, footer_511={"footer_length": 511}, chs={"creator": b"vpc "},
             offset_32_bits={"data_offset": 0xFFFFFFFF})
def fixed(t, options):
    chs = vhd.geometry(9 * MIB)
    size = vhd.geometry_size(chs) if options.get("creator") else 5 * MIB + 512
    data = blockio.pattern(size)
    path = vhd.write_fixed(t.path("a.vhd"), data, **options)
    footer = blockio.content(path)[size:]
    shadow = bytearray(data)
    loop = t.attach(path)
    equal((loop.size(), loop.attr("loop/variant")), (size, "fixed"), "size, variant")
    same_bytes(images.whole(loop), data, "device")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
        device.flush()
    loop.detach()
    same_bytes(blockio.content(path), bytes(shadow) + footer, "file")


def sized(t, creator, chs, current, option="auto", entries=None):
    """Attaches a disk whose geometry and current_size differ; returns (size, source)."""
    fields = {"creator": creator, "geometry": chs}
    header = {"max_entries": entries} if entries else {}
    image = vhd.Dynamic(current, footer=fields, header=header)
    image.put(0, b"x" * 512)
    path = image.write(t.path(f"{creator.hex()}.vhd"))
    loop = images.attach_with(t, path, option)
    found = loop.size(), loop.attr("loop/size_source")
    loop.detach()
    with vhd_reader.Reader(path) as reader:
        if option == "auto":
            equal(found[0], reader.size, "size, by the specification")
    return found


SMALL = (100, 4, 17)
CHS_SIZE = vhd.geometry_size(SMALL)


@suite.cases(**{"vpc": b"vpc ", "qemu": b"qemu"})
def size_by_geometry(t, creator):
    equal(sized(t, creator, SMALL, 4 * MIB), (CHS_SIZE, "chs"), "size, source")


@suite.cases(win=b"win ", qem2=b"qem2", d2v=b"d2v\0", tap=b"tap\0", ctxs=b"CTXS", wa=b"wa\0\0",
             vbox=b"vbox", img=b"*img", bxic=b"bxic", vpc_nul=b"vpc\0", unknown=b"\xff\0\x01 ")
def size_by_current_size(t, creator):
    equal(sized(t, creator, SMALL, 4 * MIB), (4 * MIB, "current_size"), "size, source")


@suite.cases(maximum=(65535, 16, 255), zero=(0, 0, 0), zero_heads=(100, 0, 17),
             more_than_the_bat=(5000, 16, 63))
def geometry_that_does_not_count(t, chs):
    equal(sized(t, b"vpc ", chs, 4 * MIB), (4 * MIB, "current_size"), "size, source")


@suite.test
def geometry_larger_than_current_size(t):
    """The geometry counts as long as the BAT covers it."""
    chs = (200, 4, 17)
    found = sized(t, b"vpc ", chs, 4 * MIB, entries=8)
    equal(found, (vhd.geometry_size(chs), "chs"), "size, source")


@suite.cases(chs=("vhd,size=chs", b"win ", (CHS_SIZE, "chs")),
             current=("vhd,size=current", b"vpc ", (4 * MIB, "current_size")))
def size_overridden(t, case):
    option, creator, expected = case
    equal(sized(t, creator, SMALL, 4 * MIB, option), expected, "size, source")


@suite.test
def largest_disk(t):
    size = vhd.MAX_SIZE
    image = vhd.Dynamic(size, footer={"geometry": vhd.MAX_GEOMETRY})
    path = image.write(t.path("a.vhd"))
    loop = t.attach(path)
    equal(loop.size(), size, "size")
    first, last = blockio.pattern(512, 1), blockio.pattern(512, 2)
    blockio.direct_write(loop.path, size - 512, last)
    blockio.direct_write(loop.path, 0, first)
    same_bytes(blockio.direct_read(loop.path, size - MIB, MIB), bytes(MIB - 512) + last, "the end")
    loop.detach()
    equal(t.attach(path).size(), size, "size at the second attach")
    with vhd_reader.Reader(path) as reader:
        reader.check()
        same_bytes(reader.read(size - MIB, MIB), bytes(MIB - 512) + last, "the end in the file")
        same_bytes(reader.read(0, 512), first, "the start in the file")


@suite.test
def largest_fixed_disk(t):
    path = t.path("a.vhd")
    with open(path, "wb") as file:
        vhd.put_at(file, vhd.MAX_SIZE,
                   vhd.fixed_footer(vhd.MAX_SIZE, geometry=vhd.MAX_GEOMETRY).pack())
    loop = t.attach(path)
    equal(loop.size(), vhd.MAX_SIZE, "size")
    last = blockio.pattern(512, 2)
    blockio.direct_write(loop.path, vhd.MAX_SIZE - 512, last)
    same_bytes(blockio.direct_read(loop.path, vhd.MAX_SIZE - 512, 512), last, "last sector")


@suite.test
def host_offsets_past_4_gib(t):
    """Sector numbers in the BAT are 32 bits wide; shifted left by 9 they are not."""
    size = 24 * MIB
    image = filled(size, 2 * MIB)
    image.map_end = lambda: 5 << 30
    path = image.write(t.path("a.vhd"))
    ensure(all(place >= 5 << 30 for place in image.places.values()), "a block lies too low")
    shadow = bytearray(image.guest())
    loop = t.attach(path)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
        device.flush()
    loop.detach()
    ensure(blockio.allocated(path) < 64 * MIB, "the file is not sparse any more")
    images.judge(t, path, bytes(shadow))


@suite.test
def host_offsets_past_1_tib(t):
    image = filled(8 * MIB, 2 * MIB)
    image.map_end = lambda: 1 << 40
    path = image.write(t.path("a.vhd"))
    shadow = bytearray(image.guest())
    loop = t.attach(path)
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
    loop.detach()
    images.judge(t, path, bytes(shadow))


@suite.test
def new_data_is_aligned_in_tapdisk_images(t):
    image = tapdisk()
    path = image.write(t.path("a.vhd"))
    loop = t.attach(path)
    blockio.direct_write(loop.path, 0, blockio.pattern(image.size))
    loop.detach()
    with vhd_reader.Reader(path) as reader:
        head = vhd.bitmap_sectors(image.block_size) * vhd.SECTOR
        for number, place in reader.blocks():
            equal((place + head) % 4096, 0, f"alignment of the data of block {number}")


@suite.test
def tapdisk_fill_at_the_end(t):
    """tapdisk fills the last 512 bytes with 0xC7 while it has the file open."""
    image = tapdisk()
    path = image.write(t.path("a.vhd"))
    vhd.patch(path, -512, b"\xc7" * 512)
    t.expect_log(r"loop\d+: .*footer.*")
    shadow = bytearray(image.guest())
    loop = t.attach(path)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, count=10)
        device.flush()
    loop.detach()
    images.judge(t, path, bytes(shadow))


@suite.test
def zero_writes_need_no_more_than_a_block(t):
    """A small write makes the file grow by a few blocks at most."""
    path = vhd.Dynamic(64 * MIB).write(t.path("a.vhd"))
    loop = t.attach(path)
    blockio.direct_write(loop.path, 33 * MIB, b"x" * 512)
    loop.detach()
    ensure(os.path.getsize(path) <= 4 * MIB, f"{os.path.getsize(path)} bytes after one sector")
    images.judge(t, path, (bytes(33 * MIB) + b"x" * 512).ljust(64 * MIB, b"\0"))


@suite.test
def both_footers_hold_at_any_time(t):
    """Without a flush or detach, the file as others see it is a sound VHD."""
    path = vhd.Dynamic(32 * MIB).write(t.path("a.vhd"))
    loop = t.attach(path)
    shadow = bytearray(32 * MIB)
    with blockio.Direct(loop.path) as device:
        for turn in range(4):
            images.scribble(device, shadow, seed=turn, count=5)
            copy = t.path("copy.vhd")
            with open(copy, "wb") as file:
                file.write(blockio.content(path))
            images.judge(t, copy, bytes(shadow))


if __name__ == "__main__":
    suite.main()
