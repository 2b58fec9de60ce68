#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Random I/O against a shadow copy (lib/model.py): at the end the device and, after detaching, the
image are compared as a whole. More than 20 000 operations over all."""

import os
import random
import time

from lib import blockio, images, loopdev, vhd
from lib.ktap import Suite, same_bytes
from lib.model import hammer, shared_memory
from lib.system import run

MIB = 1 << 20
SECTOR = 512
suite = Suite()


def model(t, image, folder, count, seed=1, qemu=True, **options):
    """Runs the model test on one image."""
    path = image.write(os.path.join(folder, "a.vhd"))
    shadow = shared_memory(image.guest())
    loop = t.attach(path, **options)
    start = time.monotonic()
    hammer(loop, shadow, count, seed)
    print(f"# {count} operations in {time.monotonic() - start:.0f} seconds")
    same_bytes(images.whole(loop), shadow[:], "device at the end")
    loop.detach()
    images.judge(t, path, shadow[:], qemu)


@suite.test
def empty_image_on_tmpfs(t):
    model(t, vhd.Dynamic(48 * MIB), t.dir, 20000)


@suite.test
def block_512k_on_ext4(t):
    model(t, vhd.Dynamic(24 * MIB, 512 << 10), t.ext4(96), 2400, seed=2)


@suite.test
def direct_io_to_the_file(t):
    image = vhd.Dynamic(24 * MIB, align=8, batmap=True, footer=vhd.tapdisk())
    model(t, image, t.ext4(96), 2400, seed=3, flags=loopdev.DIRECT_IO)


@suite.test
def direct_io_with_blocks_at_odd_sectors(t):
    model(t, vhd.Dynamic(24 * MIB), t.ext4(96), 2400, seed=4, flags=loopdev.DIRECT_IO)


@suite.test
def partly_clear_bitmaps(t):
    image = vhd.Dynamic(16 * MIB)
    rng = random.Random(5)
    for _ in range(200):
        image.put(rng.randrange(16 * MIB // SECTOR) * SECTOR, rng.randbytes(SECTOR))
    for block in image.blocks.values():
        for sector in range(image.block_size // SECTOR):
            if not block.has(sector):
                block.data[sector * SECTOR:(sector + 1) * SECTOR] = b"\xee" * SECTOR
    model(t, image, t.dir, 2400, seed=5, qemu=False)


@suite.test
def small_blocks(t):
    model(t, vhd.Dynamic(8 * MIB, 4096), t.dir, 2400, seed=6)


@suite.test
def fixed_image(t):
    data = blockio.pattern(16 * MIB)
    path = vhd.write_fixed(t.path("a.vhd"), data)
    shadow = shared_memory(data)
    loop = t.attach(path)
    hammer(loop, shadow, 1600, 7)
    loop.detach()
    images.judge(t, path, shadow[:])


@suite.cases(buffered=0, direct_to_file=loopdev.DIRECT_IO)
def deep_queues(t, flags):
    """fio with many requests in flight that meet in the same unallocated blocks."""
    path = vhd.Dynamic(32 * MIB).write(os.path.join(t.ext4(96), "a.vhd"))
    loop = t.attach(path, flags=flags)
    run("fio", "--name=x", f"--filename={loop.path}", "--ioengine=libaio", "--direct=1",
        "--rw=randrw", "--bsrange=512-64k", "--iodepth=32", "--size=32m",
        "--io_size=32m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randseed=5", "--fsync=50")
    content = images.whole(loop)
    loop.detach()
    images.judge(t, path, content)


if __name__ == "__main__":
    suite.main()
