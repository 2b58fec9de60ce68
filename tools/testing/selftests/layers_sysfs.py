#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""/sys/block/loopN/loop/layers: one line for each file of a device, the guest's first."""

import os
import re

from lib import blockio, images, layers, loopdev, vhd, vhd_child
from lib.ktap import Suite, ensure, equal, same_bytes

MIB = vhd.MIB
SIZE = 8 * MIB
suite = Suite()


def expected(number, path, **fields):
    """What a layer's line says, its path apart."""
    return {"layer": str(number), "parser": "vhd", "creator": layers.escaped(b"win "),
            "block_size": str(2 * MIB), "size": str(SIZE), "state": "clean", "error": "none",
            "allocated": str(blockio.allocated(path)), **fields}


def compare(layer, number, path, **fields):
    """Fails unless a line says this, and nothing else."""
    equal((layer.shown_path, layer.path), (layers.escaped(os.fsencode(path)), path),
          f"path of layer {number}")
    equal(layer.fields, expected(number, path, **fields), f"layer {number}")


@suite.test
def one_dynamic_image(t):
    image = vhd.Dynamic(SIZE)
    image.put(3 * MIB, blockio.pattern(MIB))
    path = image.write(t.path("a.vhd"))
    found = layers.of(t.attach(path))
    equal(len(found), 1, "layers")
    compare(found[0], 0, path, variant="dynamic")


@suite.test
def one_fixed_image(t):
    path = vhd.write_fixed(t.path("a.vhd"), blockio.pattern(SIZE))
    found = layers.of(t.attach(path))
    equal(len(found), 1, "layers")
    compare(found[0], 0, path, variant="fixed", block_size="0")


@suite.test
def a_chain(t):
    """Each layer has its own block size, creator and size."""
    base = vhd_child.base(t.dir, "dynamic", SIZE, 512 << 10)
    chain = vhd_child.grow(base, vhd_child.Level(SIZE - 512, 4096, options={
        "footer": vhd.tapdisk()}))
    chain = vhd_child.grow(chain, vhd_child.Level(SIZE + 512, options={
        "footer": {"creator": b"vbox"}}))
    found = layers.of(layers.attach_named(t, chain.paths[0]))
    equal(len(found), 3, "layers")
    compare(found[0], 0, chain.paths[0], variant="differencing", creator="vbox",
            size=str(SIZE + 512))
    compare(found[1], 1, chain.paths[1], variant="differencing", creator="tap\\x00",
            size=str(SIZE - 512), block_size="4096")
    compare(found[2], 2, chain.paths[2], variant="dynamic", block_size=str(512 << 10))


@suite.test
def raw_parent(t):
    chain = vhd_child.build(t.dir, "raw", [vhd_child.Level(SIZE)])
    found = layers.of(layers.attach_named(t, chain.paths[0]))
    equal([layer["parser"] for layer in found], ["vhd", "raw"], "parsers")
    equal((found[1]["size"], found[1]["block_size"], found[1].path),
          (str(SIZE), "0", chain.paths[1]), "size, block size, path of the parent")
    equal(found[1]["allocated"], str(blockio.allocated(chain.paths[1])), "allocated")


@suite.test
def allocated_follows_the_file(t):
    path = vhd.Dynamic(SIZE).write(t.path("a.vhd"))
    loop = t.attach(path)
    before = layers.of(loop)[0].number("allocated")
    blockio.direct_write(loop.path, 3 * MIB, blockio.pattern(MIB))
    after = layers.of(loop)[0].number("allocated")
    ensure(after >= before + MIB, f"{before} bytes before writing a mebibyte, {after} after")
    equal(after, blockio.allocated(path), "allocated")


@suite.cases(vbox=b"vbox", nul=b"d2v\0", backslash=b"a\\b\x7f", spaces=b"    ",
             high=b"\x80\xff\x1f\x20", equals=b"a=b\n")
def creator(t, code):
    path = vhd.Dynamic(SIZE, footer={"creator": code}).write(t.path("a.vhd"))
    compare(layers.of(t.attach(path))[0], 0, path, variant="dynamic", creator=layers.escaped(code))


@suite.cases(spaces="a  b .vhd", quote="a\"b.vhd", newline="a\nb.vhd", backslash="a\\x20b.vhd",
             utf_8="Gr\u00fc\u00df.vhd", not_utf_8="a\udcff\udc80.vhd", equals="path=x.vhd", deleted="a (deleted)")
def path_of_a_layer(t, name):
    path = vhd.Dynamic(SIZE).write(t.path(name))
    compare(layers.of(t.attach(path))[0], 0, path, variant="dynamic")


@suite.test
def path_of_a_parent(t):
    """Its own path, whatever the child calls it."""
    base = vhd.Dynamic(SIZE).write(t.path("a \"b.vhd"))
    os.symlink("a \"b.vhd", t.path("link.vhd"))
    child = vhd_child.Differencing(SIZE, "link.vhd").write(t.path("child.vhd"))
    found = layers.of(layers.attach_named(t, child))
    compare(found[1], 1, base, variant="dynamic")


@suite.cases(short=("d", 32), long=("d" * 200, 32))
def more_than_a_page(t, case):
    """What does not fit is left out by whole lines, and counted."""
    folder, count = case
    os.mkdir(t.path(folder))
    chain = vhd_child.build(t.path(folder), "raw", [vhd_child.Level(MIB, 65536)] * (count - 1))
    loop = layers.attach_named(t, chain.paths[0])
    found, more = layers.lines(loop)
    equal(len(found) + more, count, "layers")
    equal([layers.Layer(line).path for line in found], chain.paths[:len(found)], "paths")
    ensure(len(found) >= 8, f"only {len(found)} layers are shown")
    same_bytes(images.whole(loop), chain.guest, "device")


STATES = {
    "sound": ("clean", lambda path: None),
    "first_footer_damaged": ("recovered", lambda path: vhd.patch(path, 0, b"x")),
    "last_footer_damaged": ("recovered", lambda path: vhd.patch(path, -512, b"x")),
    "open_by_tapdisk": ("dirty", lambda path: vhd.patch(path, -512, b"\xc7" * 512)),
}


@suite.cases(**STATES)
def state(t, case):
    name, damage = case
    path = vhd.Dynamic(SIZE).write(t.path("a.vhd"))
    damage(path)
    t.allow_log(r"loop\d+: .*footer.*")
    compare(layers.of(t.attach(path))[0], 0, path, variant="dynamic", state=name)


@suite.test
def state_of_a_parent(t):
    chain = vhd_child.build(t.dir, "dynamic", [vhd_child.Level(SIZE)])
    vhd.patch(chain.paths[1], -512, bytes(512))
    t.allow_log(r"loop\d+: .*footer.*")
    found = layers.of(layers.attach_named(t, chain.paths[0]))
    equal([layer["state"] for layer in found], ["clean", "recovered"], "states")


ERROR = re.compile(r'"([^"]+)"@(\d+)')


def fails_to_read(loop, pos):
    """A read that meets something wrong in the image."""
    try:
        blockio.direct_read(loop.path, pos, 4096)
    except OSError:
        return
    raise AssertionError("the read succeeded")


@suite.test
def last_error(t):
    """The fault, and where it is; it stays until the device is detached."""
    image = vhd.Dynamic(SIZE)
    path = image.write(t.path("a.vhd"))
    entry = image.header.table_offset + 4
    vhd.patch(path, entry, (0x7FFFFFFF).to_bytes(4, "big"))
    t.allow_log(r"loop\d+: vhd: .*|I/O error, dev loop\d+.*")
    loop = t.attach(path)
    equal(layers.of(loop)[0]["error"], "none", "error before")
    fails_to_read(loop, 2 * MIB)
    match = ERROR.fullmatch(layers.of(loop)[0]["error"])
    ensure(match, f"error={layers.of(loop)[0]['error']}")
    equal(int(match.group(2)), entry, "place of the error")
    blockio.direct_read(loop.path, 0, 4096)
    equal(layers.of(loop)[0]["error"], match.group(0), "error, after a read that succeeded")
    loop.detach()
    equal(layers.of(t.attach(path, loop=loop))[0]["error"], "none", "error, attached again")


@suite.test
def error_of_a_parent(t):
    """The line of the layer that it is in."""
    image = vhd.Dynamic(SIZE)
    base = image.write(t.path("base.vhd"))
    vhd.patch(base, image.header.table_offset, (0x7FFFFFFF).to_bytes(4, "big"))
    child = vhd_child.Differencing(SIZE, "base.vhd").write(t.path("child.vhd"))
    t.allow_log(r"loop\d+: vhd: .*|I/O error, dev loop\d+.*")
    loop = layers.attach_named(t, child)
    fails_to_read(loop, 0)
    errors = [layer["error"] for layer in layers.of(loop)]
    equal(errors[0], "none", "error of the child")
    ensure(ERROR.fullmatch(errors[1]), f"error of the parent: {errors[1]}")


@suite.test
def comes_and_goes_with_the_file(t):
    path = vhd.Dynamic(SIZE).write(t.path("a.vhd"))
    loop = loopdev.free()
    name = f"{loop.sysfs}/loop/layers"
    ensure(not os.path.exists(name), "there are layers before the attach")
    t.attach(path, loop=loop)
    equal(oct(os.stat(name).st_mode & 0o777), "0o444", "mode")
    loop.detach()
    ensure(not os.path.exists(name), "there are layers after the detach")


@suite.test
def size_follows_the_image_and_not_the_window(t):
    path = vhd.Dynamic(SIZE).write(t.path("a.vhd"))
    loop = t.attach(path, offset=MIB, sizelimit=MIB)
    equal(layers.of(loop)[0]["size"], str(SIZE), "size")


if __name__ == "__main__":
    suite.main()
