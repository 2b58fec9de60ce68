#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A tool makes the disk of an attached VHD larger: LOOP_SET_CAPACITY, and the device has it.

As far as the block allocation table reaches that the image had when it was attached. A size that
cannot be is refused, and the device goes on with the one it has.
"""

import errno
import os

from lib import blockio, images, layers, loopdev, system, uevents, vhd, vhd_child, vhd_reader
from lib.blockio import Direct
from lib.ktap import Suite, equal, fails_with, same_bytes
from lib.system import run

MIB = vhd.MIB
SIZE = 7 * MIB
LARGER = 21 * MIB + 512
MOST = 32 * MIB
ENTRIES = {"max_entries": MOST // (2 * MIB)}
CURRENT_SIZE, GEOMETRY = 48, 56
suite = Suite()


def image_with_room(t, name="a.vhd", **options):
    """A dynamic image whose table has room for MOST bytes; some data up to its end."""
    image = vhd.Dynamic(SIZE, header=ENTRIES, **options)
    image.put(MIB, blockio.pattern(MIB))
    image.put(SIZE - 4096, blockio.pattern(4096, 2))
    return image.write(t.path(name)), image.guest()


def patch_footers(path, at, data):
    """What a tool does to both footers."""
    for place in (0, -512):
        vhd.patch(path, place + at, data)
        vhd.reseal(path, place, 512, vhd.Footer.CHECKSUM_AT)


def set_size(path, size):
    """Another size in both footers."""
    patch_footers(path, CURRENT_SIZE, size.to_bytes(8, "big"))


@suite.test
def grows(t):
    path, guest = image_with_room(t)
    loop = t.attach(path)
    set_size(path, LARGER)
    equal(loop.size(), SIZE, "size before LOOP_SET_CAPACITY")
    loop.set_capacity()
    equal(loop.size(), LARGER, "size")
    shadow = bytearray(guest.ljust(LARGER, b"\0"))
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with Direct(loop.path) as device:
        device.write(LARGER - 1024, b"e" * 1024)
        shadow[-1024:] = b"e" * 1024
        images.scribble(device, shadow)
        device.flush()
    equal(loop.size(), LARGER, "size after writing")
    loop.detach()
    images.judge(t, path, bytes(shadow))
    equal(t.attach(path).size(), LARGER, "size, attached again")


@suite.test
def grows_by_losetup(t):
    path, _ = image_with_room(t)
    loop = t.losetup(path)
    set_size(path, LARGER)
    run("losetup", "-c", loop.path)
    equal(loop.size(), LARGER, "size")


@suite.test
def grows_as_far_as_the_table_reaches(t):
    path, guest = image_with_room(t)
    loop = t.attach(path)
    set_size(path, MOST)
    loop.set_capacity()
    equal(loop.size(), MOST, "size")
    blockio.direct_write(loop.path, MOST - 512, b"e" * 512)
    loop.detach()
    images.judge(t, path, guest.ljust(MOST - 512, b"\0") + b"e" * 512)


@suite.test
def grows_step_by_step(t):
    """With writes in between, for which the driver moves the footer."""
    path, guest = image_with_room(t)
    shadow = bytearray(guest)
    loop = t.attach(path)
    for number, size in enumerate((SIZE + 512, 9 * MIB, 16 * MIB, 30 * MIB)):
        set_size(path, size)
        loop.set_capacity()
        equal(loop.size(), size, "size")
        shadow.extend(bytes(size - len(shadow)))
        with Direct(loop.path) as device:
            device.write(size - 512, b"%d" % number * 512)
            shadow[-512:] = b"%d" % number * 512
            images.scribble(device, shadow, number, count=10)
            device.flush()
        same_bytes(images.whole(loop), bytes(shadow), f"device of {size} bytes")
    loop.detach()
    images.judge(t, path, bytes(shadow))


@suite.test
def the_tools_size_survives_writes(t):
    """The driver copies the footer; it does not write one from memory."""
    path, _ = image_with_room(t)
    loop = t.attach(path)
    set_size(path, LARGER)
    blockio.direct_write(loop.path, 4 * MIB, blockio.pattern(4096))
    loop.detach()
    with vhd_reader.Reader(path) as reader:
        reader.check()
        equal(reader.size, LARGER, "size in the footers")


@suite.test
def udev_gets_to_know(t):
    path, _ = image_with_room(t)
    loop = t.attach(path)
    set_size(path, LARGER)
    with uevents.Listener() as listener:
        loop.set_capacity()
        resized = [event for event in listener.events() if event.env.get("RESIZE") == "1"]
    equal(len(resized), 1, "events that tell of another size")


@suite.test
def nothing_has_changed(t):
    path, guest = image_with_room(t)
    before = images.Unchanged(path)
    loop = t.attach(path)
    loop.set_capacity()
    equal(loop.size(), SIZE, "size")
    same_bytes(images.whole(loop), guest, "device")
    loop.detach()
    before.check()


@suite.test
def read_only_device(t):
    path, guest = image_with_room(t)
    loop = loopdev.attach_read_only(path)
    t.defer(loop.detach_if_bound)
    set_size(path, LARGER)
    loop.set_capacity()
    same_bytes(images.whole(loop), guest.ljust(LARGER, b"\0"), "device")


@suite.test
def all_devices_on_an_image(t):
    path, guest = image_with_room(t)
    loops = [t.attach(path) for _ in range(2)]
    set_size(path, LARGER)
    loops[0].set_capacity()
    equal(loops[0].size(), LARGER, "size of the first")
    blockio.direct_write(loops[0].path, LARGER - 512, b"e" * 512)
    same_bytes(blockio.direct_read(loops[1].path, 0, SIZE), guest, "second device")
    loops[1].set_capacity()
    equal(loops[1].size(), LARGER, "size of the second")
    same_bytes(blockio.direct_read(loops[1].path, LARGER - 512, 512), b"e" * 512, "the new end")


@suite.test
def window_without_an_end(t):
    path, guest = image_with_room(t)
    whole, part = t.attach(path, offset=MIB), t.attach(path, offset=MIB, sizelimit=MIB)
    set_size(path, LARGER)
    for loop in (whole, part):
        loop.set_capacity()
    equal((whole.size(), part.size()), (LARGER - MIB, MIB), "sizes")
    same_bytes(images.whole(part), guest[MIB:2 * MIB], "window")


@suite.test
def file_system_grows_while_mounted(t):
    image = vhd.Dynamic(16 * MIB, header={"max_entries": 32})
    path = image.write(t.path("a.vhd"))
    loop = t.attach(path)
    run("mkfs.ext4", "-q", loop.path)
    t.allow_log(r"EXT4-fs \(loop\d+\): resiz.*")
    point = t.mount(loop.path)
    data = blockio.make_file(os.path.join(point, "before"), 6 * MIB)
    set_size(path, 64 * MIB)
    loop.set_capacity()
    run("resize2fs", loop.path)
    more = blockio.make_file(os.path.join(point, "after"), 30 * MIB, 2)
    same_bytes(blockio.content(os.path.join(point, "before")), data, "file from before")
    run("umount", point)
    run("e2fsck", "-fn", loop.path)
    content = images.whole(loop)
    loop.detach()
    images.judge(t, path, content)
    point = t.mount(t.attach(path).path)
    same_bytes(blockio.content(os.path.join(point, "after")), more, "file from after")
    run("umount", point)


@suite.test
def by_its_geometry(t):
    """Of a creator whose geometry counts."""
    small, large = (100, 4, 17), (200, 4, 17)
    image = vhd.Dynamic(SIZE, header=ENTRIES, footer={"creator": b"vpc ", "geometry": small})
    path = image.write(t.path("a.vhd"))
    loop = t.attach(path)
    equal(loop.size(), vhd.geometry_size(small), "size before")
    patch_footers(path, GEOMETRY, large[0].to_bytes(2, "big") + bytes(large[1:]))
    loop.set_capacity()
    equal(loop.size(), vhd.geometry_size(large), "size")


@suite.test
def by_what_the_device_was_told(t):
    """size=current: of the same creator."""
    image = vhd.Dynamic(SIZE, header=ENTRIES, footer={"creator": b"vpc ", "geometry": (100, 4, 17)})
    path = image.write(t.path("a.vhd"))
    loop = images.attach_with(t, path, "vhd,size=current")
    set_size(path, LARGER)
    loop.set_capacity()
    equal(loop.size(), LARGER, "size")


# Differencing images


@suite.cases(dynamic="dynamic", raw="raw")
def child_grows_past_its_parent(t, kind):
    base = vhd_child.base(t.dir, kind, SIZE)
    image = vhd_child.child_of(base, SIZE, header=ENTRIES)
    path = image.write(t.path("child.vhd"))
    parent = images.Unchanged(base.paths[0])
    shadow = bytearray(base.guest.ljust(LARGER, b"\0"))
    loop = layers.attach_named(t, path)
    set_size(path, LARGER)
    loop.set_capacity()
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with Direct(loop.path) as device:
        images.scribble(device, shadow)
    equal(layers.of(loop)[0]["size"], str(LARGER), "size of the layer")
    loop.detach()
    parent.check()
    vhd_child.Chain([path, *base.paths], b"", base.raw).judge(bytes(shadow))


# Sizes that cannot be


def both_checksums(path):
    """Neither footer is right any more."""
    for place in (0, -512):
        vhd.patch(path, place + vhd.Footer.CHECKSUM_AT, bytes(4))


def footers_gone(path):
    """Neither footer is there any more."""
    for place in (0, -512):
        vhd.patch(path, place, bytes(512))


@suite.cases(more_than_the_table=lambda path: set_size(path, MOST + 512),
             huge=lambda path: set_size(path, 1 << 62),
             negative=lambda path: set_size(path, (1 << 64) - 512),
             zero=lambda path: set_size(path, 0),
             checksums=both_checksums, gone=footers_gone,
             another_type=lambda path: patch_footers(path, 60, (2).to_bytes(4, "big")))
def size_that_cannot_be(t, damage):
    path, guest = image_with_room(t)
    sound = blockio.content(path)
    t.allow_log(r"loop\d+: .*")
    loop = t.attach(path)
    damage(path)
    fails_with(errno.EUCLEAN, loop.set_capacity)
    equal(loop.size(), SIZE, "size")
    same_bytes(images.whole(loop), guest, "device")
    vhd.patch(path, 0, sound[:512])
    vhd.patch(path, -512, sound[-512:])
    loop.set_capacity()
    blockio.direct_write(loop.path, 0, bytes(512))


@suite.test
def disk_that_became_smaller(t):
    """Refused until it is attached again: somebody may be using the end."""
    path, guest = image_with_room(t)
    loop = t.attach(path)
    # It is said once.
    t.expect_log(rf"{loop.name}: vhd: the disk has become smaller .*")
    for size in (SIZE - 512, 512):
        set_size(path, size)
        fails_with(errno.EOPNOTSUPP, loop.set_capacity)
        equal(loop.size(), SIZE, "size")
        same_bytes(images.whole(loop), guest, "device")
    loop.detach()
    loop = t.attach(path)
    same_bytes(images.whole(loop), guest[:512], "device, attached again")


@suite.test
def one_footer_is_enough(t):
    """As at an attach: the copy at 0 counts, if it is right."""
    path, _ = image_with_room(t)
    t.allow_log(r"loop\d+: .*footer.*")
    loop = t.attach(path)
    set_size(path, LARGER)
    vhd.patch(path, -512, bytes(512))
    loop.set_capacity()
    equal(loop.size(), LARGER, "size")


@suite.test
def table_that_has_grown(t):
    """The table is not read again: more entries than at the attach do not count until the next."""
    path, _ = image_with_room(t)
    t.allow_log(r"loop\d+: .*")
    loop = t.attach(path)
    # There is room in the sector for more than the 16 entries.
    vhd.patch(path, 512 + 28, (64).to_bytes(4, "big"))
    vhd.reseal(path, 512, 1024, vhd.Header.CHECKSUM_AT)
    set_size(path, MOST + 2 * MIB)
    fails_with(errno.EUCLEAN, loop.set_capacity)
    equal(loop.size(), SIZE, "size")
    loop.detach()
    equal(t.attach(path).size(), MOST + 2 * MIB, "size, attached again")


@suite.test
def not_bound(_):
    loop = loopdev.free()
    fails_with(errno.ENXIO, loop.set_capacity)


@suite.test
def under_load(t):
    """The disk grows while it is written; every write before and after is there."""
    path, guest = image_with_room(t)
    shadow = bytearray(guest.ljust(MOST, b"\0"))
    loop = t.attach(path)
    with Direct(loop.path) as device:
        for number in range(1, 26):
            images.scribble(device, part := shadow[:loop.size()], number, count=4)
            shadow[:len(part)] = part
            set_size(path, SIZE + number * MIB)
            loop.set_capacity()
            system.wait_until(lambda size=SIZE + number * MIB: loop.size() == size, "it has grown")
    same_bytes(images.whole(loop), bytes(shadow), "device")
    loop.detach()
    images.judge(t, path, bytes(shadow))


if __name__ == "__main__":
    suite.main()
