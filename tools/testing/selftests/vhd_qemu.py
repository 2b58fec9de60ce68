#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""VHDs that qemu-img makes and qemu-io fills, in both directions: what it wrote we read, and back."""

import itertools
import os
import random

from lib import blockio, images, vhd_reader
from lib.ktap import Suite, equal, same_bytes
from lib.system import run

MIB = 1 << 20
suite = Suite()

SIZES = {"68k": 68 << 10, "3M": 3 * MIB, "10M_less_a_sector": 10 * MIB - 512, "33M": 33 * MIB}


def options_of(subformat, force_size):
    """Creation options."""
    return {"subformat": subformat, "force_size": force_size}


def fill(path, size, seed):
    """Writes patterns at random places with qemu-io."""
    rng = random.Random(seed)
    commands = []
    for _ in range(12):
        length = rng.randrange(1, min(size // 512, 600)) * 512
        pos = rng.randrange((size - length) // 512 + 1) * 512
        commands += ["-c", f"write -q -P {rng.randrange(1, 256)} {pos} {length}"]
    run("qemu-io", "-f", "vpc", *commands, path)


def qemu_content(t, path):
    """The guest disk by qemu-img."""
    raw = images.convert(path, t.path("before.raw"))
    data = blockio.content(raw)
    os.unlink(raw)
    return data


def both_ways(t, case):
    """Reads what qemu wrote, writes, and lets qemu read that."""
    size, subformat, force_size = case
    path = images.create(t.path("a.vhd"), size, **options_of(subformat, force_size))
    real = images.qemu_size(path)
    fill(path, real, size)
    shadow = bytearray(qemu_content(t, path))
    loop = t.attach(path)
    equal(loop.size(), real, "size")
    equal(loop.attr("loop/variant"), subformat, "variant")
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow, seed=size)
        device.flush()
    loop.detach()
    images.judge(t, path, bytes(shadow))


for (label, length), kind, force in itertools.product(
        SIZES.items(), ("dynamic", "fixed"), ("on", "off")):
    suite.add(f"both_ways_{kind}_{label}_force_size_{force}",
              lambda t, case=(length, kind, force): both_ways(t, case))


@suite.test
def size_source_by_creator(t):
    for force, expected in (("on", "current_size"), ("off", "chs")):
        path = images.create(t.path(f"{force}.vhd"), 10 * MIB, force_size=force)
        loop = t.attach(path)
        equal(loop.attr("loop/size_source"), expected, f"size_source with force_size={force}")


@suite.test
def taken_up_by_qemu_and_back(t):
    path = images.create(t.path("a.vhd"), 16 * MIB, subformat="dynamic", force_size="on")
    shadow = bytearray(16 * MIB)
    for turn in range(3):
        loop = t.attach(path)
        same_bytes(images.whole(loop), bytes(shadow), f"device, turn {turn}")
        with blockio.Direct(loop.path) as device:
            images.scribble(device, shadow, seed=turn, count=10)
        loop.detach()
        fill(path, 16 * MIB, turn)
        images.convert(path, t.path("raw"))
        now = blockio.content(t.path("raw"))
        changed = sum(a != b for a, b in zip(now[::512], shadow[::512]))
        equal(changed > 0, True, "qemu-io changed something")
        shadow = bytearray(now)


@suite.test
def converted_from_raw_compares_equal(t):
    data = blockio.make_file(t.path("raw"), 6 * MIB)
    run("qemu-img", "convert", "-O", "vpc", "-o", "force_size=on", t.path("raw"), t.path("a.vhd"))
    loop = t.attach(t.path("a.vhd"))
    same_bytes(images.whole(loop), data, "device")
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", loop.path, t.path("raw"))


@suite.test
def device_as_source_and_target_of_qemu_img(t):
    data = blockio.make_file(t.path("raw"), 6 * MIB)
    path = images.create(t.path("a.vhd"), 6 * MIB, force_size="on")
    loop = t.attach(path)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", t.path("raw"), loop.path)
    loop.detach()
    run("qemu-img", "compare", "-f", "vpc", "-F", "raw", path, t.path("raw"))
    images.judge(t, path, data)


@suite.test
def largest_disk_qemu_makes(t):
    path = images.create(t.path("a.vhd"), 2040 << 30, subformat="dynamic", force_size="on")
    size = images.qemu_size(path)
    loop = t.attach(path)
    equal(loop.size(), size, "size")
    data = blockio.pattern(3 * MIB)
    blockio.direct_write(loop.path, size - 3 * MIB, data)
    loop.detach()
    with vhd_reader.Reader(path) as reader:
        reader.check()
        same_bytes(reader.read(size - 3 * MIB, 3 * MIB), data, "end of the disk")
    out = run("qemu-io", "-r", "-f", "vpc", "-c", f"read -v {size - 512} 16", path)
    equal(data[-512:-496].hex() in out.replace(" ", ""), True, "qemu-io reads it")


if __name__ == "__main__":
    suite.main()
