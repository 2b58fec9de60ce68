#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""loop_images.ko: image support beside a stock loop driver that is in use, and beside our own."""

import contextlib
import errno
import fcntl
import os
import re
import stat

from lib import blockio, images, loopdev, system, vhd
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import attempt, run

MIB = vhd.MIB
SIZE = 8 * MIB
FIRST = 2000000
CONTROL = "/dev/loop-images-control"
suite = Suite(allow=[r"loop_images: devices from /dev/loop\d+ on, major \d+",
                     r"loop_images: (loading out-of-tree|module verification).*"])


def load(t, *params):
    """Loads loop_images; its first device."""
    run("modprobe", "loop_images", *params)
    t.defer(unload)
    system.wait_until(lambda: os.path.exists(CONTROL), f"{CONTROL} is there")
    return loopdev.Loop(FIRST)


def unload():
    """Unloads loop_images, if it is there, with its devices unbound."""
    for loop in loopdev.bound():
        if loop.number >= FIRST:
            loop.detach()
    if system.loaded("loop_images"):
        run("rmmod", "loop_images")


def beside_stock(t, *params):
    """The stock driver in the place of ours, and loop_images beside it."""
    t.defer(back_to_ours)
    system.unload_loop()
    system.load_loop("stock")
    return load(t, *params)


def back_to_ours():
    """What every suite starts with."""
    unload()
    system.unload_loop()
    system.load_loop("ours")


class Busy:
    """A device of the stock driver with a mounted file system, and a file that is open in it."""

    def __init__(self, t):
        image = blockio.make_sparse(t.path("busy.img"), 16 * MIB)
        run("mkfs.ext4", "-q", "-F", image)
        self.point = t.mount(image, "-o", "loop", where="busy")
        self.data = blockio.make_file(os.path.join(self.point, "file"), MIB)
        self.fd = os.open(os.path.join(self.point, "file"), os.O_RDWR | os.O_DIRECT)
        t.defer(os.close, self.fd)
        ensure(os.major(os.stat(self.point).st_dev) == 7, "the mount is not on a stock device")

    def check(self):
        """Fails if the device is gone or has other content."""
        os.fsync(self.fd)
        found = blockio.direct_read(os.path.join(self.point, "file"), 0, MIB)
        same_bytes(found, self.data, "busy file")


def vhd_file(t, name="a.vhd"):
    """A dynamic VHD with some data, and the guest disk as it should be."""
    image = vhd.Dynamic(SIZE)
    image.put(MIB, blockio.pattern(8192))
    return image.write(t.path(name)), bytearray(image.guest())


def control(request, arg=0):
    """An ioctl of the control node of loop_images."""
    fd = os.open(CONTROL, os.O_RDWR)
    try:
        return fcntl.ioctl(fd, request, arg)
    finally:
        os.close(fd)


def attached(t, path, loop):
    """Attaches by unmodified losetup to a device by its name."""
    run("losetup", loop.path, path)
    t.defer(loop.detach_if_bound)
    return loop


# Beside the stock driver


@suite.test
def stock_driver_cannot_be_replaced(t):
    """The premise: with a stock device in use there is no way to load our loop.ko."""
    beside_stock(t)
    Busy(t)
    ensure(attempt("rmmod", "loop").returncode != 0, "the stock driver was unloaded")
    equal(system.driver_in_use(), "stock", "driver")


@suite.test
def vhd_is_served_beside_a_busy_stock_driver(t):
    loop = beside_stock(t)
    busy = Busy(t)
    path, shadow = vhd_file(t)
    attached(t, path, loop)
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with blockio.Direct(loop.path) as device:
        images.scribble(device, shadow)
    same_bytes(images.whole(loop), bytes(shadow), "device after writes")
    busy.check()
    run("losetup", "-d", loop.path)
    images.judge(t, path, bytes(shadow))
    busy.check()


@suite.test
def image_of_another_tool(t):
    """The bytes are those that its maker promises."""
    image = images.sample("ext2.vhd")
    loop = beside_stock(t)
    path = image.unpack(t)
    run("losetup", "-P", loop.path, path)
    t.defer(loop.detach_if_bound)
    equal(loop.size(), image.size, "size")
    equal(blockio.digest(loop.path), image.sha256, "content")


@suite.test
def partitions_appear(t):
    loop = beside_stock(t)
    path, _ = vhd_file(t)
    attached(t, path, loop)
    run("sfdisk", "-q", "--no-reread", loop.path, text="2048,4096\n,4096\n")
    run("losetup", "-d", loop.path)
    run("losetup", "-P", loop.path, path)
    ensure(os.path.exists(loop.part(1)) and os.path.exists(loop.part(2)), "two partitions")
    equal(run("blockdev", "--getsz", loop.part(2)).strip(), "4096", "sectors of the second")


@suite.test
def numbers_are_apart(t):
    loop = beside_stock(t)
    with open("/proc/devices", encoding="ascii") as file:
        majors = dict(reversed(line.split()) for line in file if len(line.split()) == 2)
    major = os.major(os.stat(loop.path).st_rdev)
    equal(majors["loop_images"], str(major), "major of loop_images")
    equal((majors["loop"], os.major(os.stat("/dev/loop0").st_rdev)), ("7", 7), "stock major")
    ensure(major != 7, "both have the same major")
    stock = t.losetup(blockio.make_sparse(t.path("raw"), MIB))
    ensure(stock.number < FIRST, f"losetup -f chose {stock.path}")
    path, _ = vhd_file(t)
    attached(t, path, loop)
    listed = run("losetup", "-l", "-n", "-O", "NAME").split()
    equal(sorted(listed), sorted([stock.path, loop.path]), "losetup -l")


@suite.test
def control_node(t):
    loop = beside_stock(t)
    equal(control(loopdev.CTL_GET_FREE), FIRST, "free device")
    path, _ = vhd_file(t)
    attached(t, path, loop)
    equal(control(loopdev.CTL_GET_FREE), FIRST + 1, "free device")
    equal(control(loopdev.CTL_ADD, FIRST + 100), FIRST + 100, "added device")
    ensure(stat.S_ISBLK(os.stat(f"/dev/loop{FIRST + 100}").st_mode), "added node")
    fails_with(errno.EEXIST, control, loopdev.CTL_ADD, FIRST + 100)
    fails_with(errno.EINVAL, control, loopdev.CTL_ADD, FIRST - 1)
    fails_with(errno.EBUSY, control, loopdev.CTL_REMOVE, FIRST)
    fails_with(errno.ENODEV, control, loopdev.CTL_REMOVE, 0)
    control(loopdev.CTL_REMOVE, FIRST + 100)
    ensure(not os.path.exists(f"/dev/loop{FIRST + 100}"), "the node is still there")


@suite.test
def losetup_finds_devices_through_the_other_control_node(t):
    beside_stock(t)
    path, shadow = vhd_file(t)
    name = run("unshare", "-m", "sh", "-c", f"mount --bind {CONTROL} /dev/loop-control && "
               f"losetup -f --show {path}").strip()
    loop = loopdev.Loop.by_path(name)
    equal(loop.number, FIRST, "number")
    same_bytes(images.whole(loop), bytes(shadow), "device")


@suite.test
def node_without_a_device_makes_one(t):
    loop = beside_stock(t)
    node = t.path("node")
    major = os.major(os.stat(loop.path).st_rdev)
    os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(major, 200))
    os.close(os.open(node, os.O_RDONLY))
    ensure(os.path.exists(f"/sys/block/loop{FIRST + 200}"), f"loop{FIRST + 200} is there")


@suite.test
def parameters(t):
    beside_stock(t, "first=5000", "max_loop=3", "max_part=7")
    names = sorted(name for name in os.listdir("/sys/block") if re.match(r"loop5\d\d\d$", name))
    equal(names, ["loop5000", "loop5001", "loop5002"], "devices")
    equal(blockio.content("/sys/block/loop5001/ext_range"), b"256\n", "ext_range")
    first, second = (os.stat(f"/dev/loop500{i}").st_rdev for i in (0, 1))
    equal(os.minor(second) - os.minor(first), 8, "minors of a device")


@suite.cases(negative=("first=-1",), max_loop=("max_loop=1048577",), depth=("hw_queue_depth=0",))
def refused_parameters(t, params):
    t.allow_log(r"loop_images: `.*' invalid for parameter `.*'")
    done = attempt("modprobe", "loop_images", *params)
    t.defer(unload)
    ensure(done.returncode != 0 and "Invalid argument" in done.stderr, f"modprobe: {done.stderr}")
    ensure(not system.loaded("loop_images"), "loop_images is loaded")


@suite.test
def unloads_beside_a_busy_stock_driver(t):
    loop = beside_stock(t)
    busy = Busy(t)
    path, _ = vhd_file(t)
    attached(t, path, loop)
    done = attempt("rmmod", "loop_images")
    ensure("in use" in done.stderr, f"rmmod with a bound device: {done.stderr}")
    loop.detach()
    with loop.opened():
        done = attempt("rmmod", "loop_images")
        ensure("in use" in done.stderr, f"rmmod with an open device: {done.stderr}")
    run("rmmod", "loop_images")
    ensure(not os.path.exists(loop.sysfs) and not os.path.exists(CONTROL), "nothing is left")
    busy.check()
    run("modprobe", "loop_images")


# One on the other


@suite.test
def ours_on_a_stock_device_and_back(t):
    """Chains without a cycle work: image, stock device on it, another of ours on that."""
    loop = beside_stock(t)
    path, shadow = vhd_file(t)
    attached(t, path, loop)
    middle = t.losetup(loop.path)
    top = attached(t, middle.path, loopdev.Loop(FIRST + 1))
    same_bytes(images.whole(top), bytes(shadow), "top of the chain")
    data = blockio.pattern(MIB, seed=2)
    shadow[2 * MIB:3 * MIB] = data
    blockio.direct_write(top.path, 2 * MIB, data)
    middle.drop_cache()
    same_bytes(loop.read(2 * MIB, MIB), data, "bottom of the chain")
    for device in (top, middle, loop):
        device.detach()
    images.judge(t, path, bytes(shadow))


REFUSED = r"loop\d+: refused: below it a device of the stock driver .*"


@suite.test
def no_cycle_through_an_unbound_device_of_ours(t):
    """Stock device on an unbound one of ours: that one must not be attached to it."""
    loop = beside_stock(t)
    stock = t.losetup("-r", loop.path)
    t.expect_log(REFUSED)
    fails_with(errno.EINVAL, loopdev.attach, stock.path, loop=loop)
    ensure(not loop.is_bound(), "the device is bound")


@suite.test
def no_cycle_by_changing_ours(t):
    """Ours read-only, a stock device on it: ours must not be changed to that."""
    loop = beside_stock(t)
    blockio.make_file(t.path("raw"), MIB)
    loopdev.attach_read_only(t.path("raw"), loop=loop)
    t.defer(loop.detach_if_bound)
    stock = loopdev.attach_read_only(loop.path)
    t.defer(stock.detach_if_bound)
    t.expect_log(REFUSED)
    fails_with(errno.EINVAL, loop.change_file_read_only, stock.path)
    same_bytes(images.whole(stock), blockio.content(t.path("raw")), "stock device")
    stock.detach()


@suite.test
def no_cycle_by_changing_stock(t):
    """Ours on a read-only stock device, which could be changed to ours: refused from the start."""
    loop = beside_stock(t)
    stock = loopdev.attach_read_only(blockio.make_sparse(t.path("raw"), MIB))
    t.defer(stock.detach_if_bound)
    t.expect_log(REFUSED)
    fails_with(errno.EINVAL, loopdev.attach_read_only, stock.path, loop=loop)
    ensure(not loop.is_bound(), "the device is bound")


# Beside our own driver


@suite.test
def both_of_ours_share_an_image(t):
    loop = load(t)
    path, shadow = vhd_file(t)
    attached(t, path, loop)
    other = t.losetup(path)
    equal(other.attr("loop/parser"), "vhd", "parser")
    for device, pos, seed in ((loop, 3 * MIB, 3), (other, 5 * MIB, 5)):
        data = blockio.pattern(MIB, seed)
        shadow[pos:pos + MIB] = data
        blockio.direct_write(device.path, pos, data)
    same_bytes(images.whole(loop), bytes(shadow), "device of loop_images")
    same_bytes(images.whole(other), bytes(shadow), "device of loop")
    other.detach()
    loop.detach()
    images.judge(t, path, bytes(shadow))


@suite.test
def no_cycle_through_both_of_ours(t):
    loop = load(t)
    loopdev.attach_read_only(blockio.make_sparse(t.path("raw"), MIB), loop=loop)
    other = loopdev.attach_read_only(loop.path)
    t.defer(other.detach_if_bound)
    fails_with(errno.EBADF, loop.change_file_read_only, other.path)
    other.detach()


@suite.test
def drop_in_unloads_while_the_other_is_busy(t):
    loop = load(t)
    path, shadow = vhd_file(t)
    attached(t, path, loop)
    t.defer(system.load_loop, "ours")
    run("rmmod", "loop")
    ensure(not os.path.exists("/dev/loop0"), "/dev/loop0 is there")
    same_bytes(images.whole(loop), bytes(shadow), "device")
    with contextlib.closing(blockio.Direct(loop.path)) as device:
        images.scribble(device, shadow, count=10)
    loop.detach()
    images.judge(t, path, bytes(shadow))


if __name__ == "__main__":
    suite.main()
