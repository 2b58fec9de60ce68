#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Which parser a file gets: detection, the sysfs attribute, the parameters, loading, refusals."""

import errno
import os

from lib import blockio, images, loopdev, system, vhd
from lib.images import attach_with
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.modules import PARSERS, hidden, parameter
from lib.system import attempt, run

MIB = vhd.MIB
SIZE = 8 * MIB
REFUSED = r"loop\d+: refused: .{10,}"
suite = Suite()


def vhd_file(t, name="a.vhd"):
    """A dynamic VHD with some data."""
    image = vhd.Dynamic(SIZE)
    image.put(MIB, blockio.pattern(8192))
    return image.write(t.path(name)), image.guest()


# The attribute


@suite.test
def parser_of_a_free_device_is_auto(t):
    equal(loopdev.free().attr("loop/parser"), "auto", "parser")


@suite.test
def parser_is_that_in_use_while_bound(t):
    path, _ = vhd_file(t)
    loop = t.attach(path)
    equal(loop.attr("loop/parser"), "vhd", "parser")
    loop.detach()
    blockio.make_sparse(t.path("raw"), SIZE)
    t.attach(t.path("raw"), loop=loop)
    equal(loop.attr("loop/parser"), "raw", "parser")


@suite.cases(**{choice.replace(",", "_").replace("=", "_"): choice
                for choice in ("auto", "raw", "vhd", "vhd,size=chs", "vhd,size=current")})
def parser_reads_back_what_was_set(t, choice):
    loop = loopdev.free()
    loop.set_attr("loop/parser", choice)
    t.defer(loop.set_attr, "loop/parser", "auto")
    equal(loop.attr("loop/parser"), choice, "parser")


@suite.test
def parser_returns_to_the_default(t):
    path, data = vhd_file(t)
    loop = attach_with(t, path, "raw")
    equal(loop.attr("loop/parser"), "raw", "parser while bound")
    loop.detach()
    equal(loop.attr("loop/parser"), "auto", "parser after detaching")
    t.attach(path, loop=loop)
    same_bytes(images.whole(loop), data, "device")


@suite.test
def parser_stays_after_an_attach_that_failed(t):
    """losetup tries once more: that must not be with another parser."""
    path, _ = vhd_file(t)
    loop = loopdev.free()
    loop.set_attr("loop/parser", "raw")
    t.defer(loop.set_attr, "loop/parser", "auto")
    t.allow_log(r"Invalid logical block size \(3000\)")
    fails_with(errno.EINVAL, t.attach, path, loop=loop, block_size=3000)
    equal(loop.attr("loop/parser"), "raw", "parser")


@suite.test
def parser_cannot_be_set_while_bound(t):
    path, _ = vhd_file(t)
    loop = t.attach(path)
    fails_with(errno.EBUSY, loop.set_attr, "loop/parser", "raw")
    equal(loop.attr("loop/parser"), "vhd", "parser")


@suite.cases(unknown="xyz", empty_options="nothing,size=chs", long="x" * 200, near="vhdx",
             upper="VHD", binary="\x01\x02")
def parser_refuses(t, choice):
    loop = loopdev.free()
    fails_with(errno.EINVAL, loop.set_attr, "loop/parser", choice)
    equal(loop.attr("loop/parser"), "auto", "parser")


@suite.test
def unknown_option_of_a_parser(t):
    """Refused when it is written, or when it is used; never ignored."""
    path, _ = vhd_file(t)
    t.expect_log(r"loop\d+: refused: vhd: .*option.*")
    fails_with(errno.EINVAL, attach_with, t, path, "vhd,size=bogus")


@suite.test
def parser_attribute_modes(t):
    loop = loopdev.free()
    equal(oct(os.stat(f"{loop.sysfs}/loop/parser").st_mode & 0o777), "0o644", "mode of parser")
    path, _ = vhd_file(t)
    t.attach(path, loop=loop)
    for name in ("variant", "size_source"):
        equal(oct(os.stat(f"{loop.sysfs}/loop/{name}").st_mode & 0o777), "0o444", name)


@suite.test
def raw_device_has_no_image_attributes(t):
    loop = t.attach(blockio.make_sparse(t.path("raw"), SIZE))
    for name in ("variant", "size_source"):
        ensure(not os.path.exists(f"{loop.sysfs}/loop/{name}"), f"{name} is there")


# Forcing a parser


@suite.test
def forced_raw_shows_the_file(t):
    path, _ = vhd_file(t)
    loop = attach_with(t, path, "raw")
    same_bytes(images.whole(loop), blockio.content(path), "device")


@suite.test
def forced_raw_writes_the_file(t):
    path, _ = vhd_file(t)
    loop = attach_with(t, path, "raw")
    blockio.direct_write(loop.path, 0, b"x" * 512)
    loop.detach()
    equal(blockio.content(path)[:512], b"x" * 512, "first sector of the file")


@suite.test
def forced_vhd_refuses_a_raw_file(t):
    blockio.make_file(t.path("raw"), SIZE)
    t.expect_log(r"loop\d+: refused: vhd: .*")
    fails_with(errno.EUCLEAN, attach_with, t, t.path("raw"), "vhd")


@suite.test
def forced_vhd_refuses_an_empty_file(t):
    blockio.make_file(t.path("raw"), 0)
    t.expect_log(r"loop\d+: refused: vhd: .*")
    fails_with(errno.EUCLEAN, attach_with, t, t.path("raw"), "vhd")


@suite.test
def forced_parser_that_is_not_there(t):
    path, _ = vhd_file(t)
    without_vmdk_parser(t)
    t.expect_log(REFUSED)
    fails_with(errno.ENOPKG, attach_with, t, path, "vmdk")


@suite.test
def default_parser_parameter(t):
    path, data = vhd_file(t)
    loop = loopdev.add(60)
    t.defer(loopdev.remove, 60)
    equal(loop.attr("loop/parser"), "auto", "parser of a new device")
    with parameter("parser", "raw"):
        equal(loop.attr("loop/parser"), "raw", "parser of a free device")
        t.attach(path, loop=loop)
        same_bytes(images.whole(loop), blockio.content(path), "device")
        loop.detach()
        loop.set_attr("loop/parser", "auto")
        t.attach(path, loop=loop)
        same_bytes(images.whole(loop), data, "device with parser auto")
        loop.detach()
        equal(loop.attr("loop/parser"), "raw", "parser after detaching")
    equal(loop.attr("loop/parser"), "auto", "parser without the parameter")


@suite.test
def autodetect_off(t):
    path, data = vhd_file(t)
    with parameter("autodetect", "0"):
        loop = t.attach(path)
        equal(loop.attr("loop/parser"), "raw", "parser")
        same_bytes(images.whole(loop), blockio.content(path), "device")
        loop.detach()
        loop = attach_with(t, path, "vhd")
        same_bytes(images.whole(loop), data, "device with parser vhd")
        loop.detach()
    equal(t.attach(path).attr("loop/parser"), "vhd", "parser afterwards")


@suite.test
def autodetect_off_at_load(t):
    path, _ = vhd_file(t)
    system.unload_loop()
    system.load_loop("ours", "autodetect=0")
    try:
        loop = t.attach(path)
        equal(loop.attr("loop/parser"), "raw", "parser")
        loop.detach()
    finally:
        system.unload_loop()
        system.load_loop("ours")


# Loading and unloading


def without_vhdloop():
    """Unloads the parser."""
    if system.loaded("vhdloop"):
        run("rmmod", "vhdloop")


@suite.test
def parser_module_is_loaded_on_demand(t):
    path, data = vhd_file(t)
    without_vhdloop()
    loop = t.attach(path)
    ensure(system.loaded("vhdloop"), "vhdloop is not loaded")
    same_bytes(images.whole(loop), data, "device")


@suite.test
def forced_parser_is_loaded_on_demand(t):
    path, _ = vhd_file(t)
    without_vhdloop()
    loop = attach_with(t, path, "vhd")
    equal(loop.attr("loop/parser"), "vhd", "parser")


@suite.test
def raw_file_loads_no_parser(t):
    without_vhdloop()
    t.attach(blockio.make_file(t.path("raw"), SIZE) and t.path("raw"))
    ensure(not system.loaded("vhdloop"), "vhdloop is loaded")


@suite.test
def parser_module_missing(t):
    """Refused, not attached as raw; forced raw still works."""
    path, _ = vhd_file(t)
    t.stack.enter_context(hidden("vhdloop"))
    t.expect_log(r"loop\d+: refused: .*vhd.*")
    fails_with(errno.ENOPKG, t.attach, path)
    loop = attach_with(t, path, "raw")
    same_bytes(images.whole(loop), blockio.content(path), "device")


@suite.test
def module_alias(t):
    aliases = run("modinfo", "-F", "alias", "vhdloop").split()
    ensure("loop-parser-vhd" in aliases, f"aliases of vhdloop: {aliases}")


@suite.test
def modules_in_use_stay(t):
    path, _ = vhd_file(t)
    run("modprobe", "vhdloop")
    base = system.references("loop")
    loop = t.attach(path)
    equal(system.references("vhdloop"), 1, "references to vhdloop")
    for module in ("vhdloop", "loop"):
        done = attempt("rmmod", module)
        ensure(done.returncode != 0 and "in use" in done.stderr, f"rmmod {module}: {done.stderr}")
    loop.detach()
    equal((system.references("vhdloop"), system.references("loop")), (0, base), "references")


@suite.test
def raw_device_keeps_the_driver(t):
    loop = t.attach(blockio.make_sparse(t.path("raw"), SIZE))
    without_vhdloop()
    done = attempt("rmmod", "loop")
    ensure(done.returncode != 0 and "in use" in done.stderr, f"rmmod loop: {done.stderr}")
    loop.detach()
    equal(system.references("loop"), 0, "references to loop")


@suite.test
def driver_unloads_with_idle_parsers(t):
    """As the stock driver does: nothing but devices in use keeps it."""
    path, data = vhd_file(t)
    t.attach(path).detach()
    ensure(system.loaded("vhdloop"), "vhdloop is not loaded")
    t.defer(system.load_loop, "ours")
    run("modprobe", "-r", "loop")
    ensure(system.loaded("vhdloop"), "vhdloop was unloaded, too")
    ensure(not os.path.exists("/sys/class/misc/loop-control"), "loop-control is there")
    ensure(not os.path.exists("/sys/block/loop0"), "loop0 is there")
    run("modprobe", "loop")
    same_bytes(images.whole(t.attach(path)), data, "device")


@suite.test
def driver_is_removed_with_what_it_is_based_on(t):
    """modprobe -r, when no parser is loaded."""
    for parser in filter(system.loaded, PARSERS):
        run("rmmod", parser)
    t.defer(system.load_loop, "ours")
    run("modprobe", "-r", "loop")
    left = [module for module in ("loop", "loop_parser") if system.loaded(module)]
    equal(left, [], "modules that are loaded")


@suite.test
def modules_come_and_go(t):
    path, data = vhd_file(t)
    for turn in range(5):
        system.unload_loop()
        system.load_loop("ours")
        loop = t.attach(path)
        same_bytes(images.whole(loop), data, f"device, turn {turn}")
        loop.detach()


# Formats without a parser, and doubtful files


def without_vmdk_parser(t):
    """VMDK is a format that has no parser, until the test ends."""
    t.stack.enter_context(hidden("vmdkloop"))


FOREIGN = {
    "vmdk_sparse": ("vmdk", {}), "vmdk_flat": ("vmdk", {"subformat": "monolithicFlat"}),
    "vmdk_two_gb": ("vmdk", {"subformat": "twoGbMaxExtentSparse"}),
    "vmdk_two_gb_flat": ("vmdk", {"subformat": "twoGbMaxExtentFlat"}),
    "vmdk_stream": ("vmdk", {"subformat": "streamOptimized"}),
}


@suite.cases(**FOREIGN)
def not_attached_as_raw(t, how):
    kind, options = how
    without_vmdk_parser(t)
    path = images.create(t.path("image"), SIZE, kind, **options)
    before = images.Unchanged(path)
    t.expect_log(rf"loop\d+: refused: .*{kind}.*", 2)
    loop = loopdev.free()
    fails_with(errno.ENOPKG, t.attach, path, loop=loop)
    fails_with(errno.ENOPKG, loopdev.attach_read_only, path, loop=loop)
    ensure(not loop.is_bound(), "bound")
    before.check()


@suite.cases(cowd=b"COWD", sesparse=b"\xbe\xba\xfe\xca\0\0\0\0",
             descriptor=b"# Disk DescriptorFile\nversion=1\n",
             descriptor_lower_case=b"# disk descriptorfile\nversion=1\n")
def not_attached_as_raw_by_signature(t, head):
    with open(t.path("image"), "wb") as file:
        file.write(head.ljust(65536, b"\0"))
    without_vmdk_parser(t)
    t.expect_log(REFUSED)
    fails_with(errno.ENOPKG, t.attach, t.path("image"))


@suite.test
def future_version_is_not_raw(t):
    with open(t.path("image"), "wb") as file:
        file.write(b"QFI\xfb\0\0\0\x09".ljust(65536, b"\0"))
    t.expect_log(r"loop\d+: refused: qcow2: .*version.*")
    fails_with(errno.EOPNOTSUPP, t.attach, t.path("image"))


@suite.cases(qcow2=("qcow2", {}), vmdk_sparse=FOREIGN["vmdk_sparse"],
             vmdk_flat=FOREIGN["vmdk_flat"])
def attached_as_raw_if_forced(t, how):
    kind, options = how
    path = images.create(t.path("image"), SIZE, kind, **options)
    loop = attach_with(t, path, "raw")
    length = os.path.getsize(path) // 512 * 512
    same_bytes(images.whole(loop), blockio.content(path)[:length], "device")


@suite.test
def losetup_says_what_is_wrong(t):
    path = images.create(t.path("image"), SIZE, "vmdk")
    without_vmdk_parser(t)
    t.expect_log(r"loop\d+: refused: .*vmdk.*")
    done = attempt("losetup", "-f", "--show", path)
    equal((done.returncode, done.stdout), (1, ""), "losetup")
    ensure("Package not installed" in done.stderr, f"losetup says: {done.stderr}")


@suite.test
def guest_content_does_not_matter(t):
    """A VHD whose guest disk begins like a qcow2 file is a VHD."""
    image = vhd.Dynamic(SIZE)
    image.put(0, b"QFI\xfb\0\0\0\3".ljust(512, b"\0"))
    loop = t.attach(image.write(t.path("a.vhd")))
    equal(loop.attr("loop/parser"), "vhd", "parser")


@suite.test
def two_formats_claim_a_file(t):
    """A fixed VHD that begins like a qcow2 file: refused until somebody says what it is."""
    data = b"QFI\xfb\0\0\0\3".ljust(SIZE, b"\0")
    path = vhd.write_fixed(t.path("a"), data)
    t.expect_log(REFUSED)
    loop = loopdev.free()
    try:
        t.attach(path, loop=loop)
    except OSError as error:
        ensure(error.errno in (errno.ENOPKG, errno.ENOTUNIQ), f"refused with {error}")
    ensure(not loop.is_bound(), "attached")
    loop = attach_with(t, path, "vhd")
    same_bytes(images.whole(loop), data, "device")


@suite.test
def guest_cannot_turn_its_raw_disk_into_a_vhd_by_a_cookie(t):
    path = blockio.make_sparse(t.path("raw"), SIZE)
    loop = t.attach(path)
    blockio.direct_write(loop.path, SIZE - 512, b"conectix".ljust(512, b"\0"))
    loop.detach()
    equal(t.attach(path, loop=loop).attr("loop/parser"), "raw", "parser")


if __name__ == "__main__":
    suite.main()
