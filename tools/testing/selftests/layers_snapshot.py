#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Live snapshots: LOOP_CHANGE_FD puts a child on top of the file that a device is on, while it is
being written. Whoever uses the device does not notice; the file below is not written any more."""

import errno
import os
import subprocess

from lib import blockio, images, layers, loopdev, system, uevents, vhd, vhd_child
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import run

MIB = vhd.MIB
SIZE = 8 * MIB
BLOCK = 64 << 10
BLKPG_TABLE = "label: dos\nsize=4MiB,type=83\nsize=2MiB,type=83\n"
# tmpfs does not offer to write zeros.
suite = Suite(allow=[r"operation not supported error, dev loop\d+, .*"])


class Device:
    """A device on which snapshots are taken, and the chain of its files."""

    def __init__(self, t, chain, attach, **kwargs):
        self.t = t
        self.chain = chain
        self.loop = attach(t, chain.paths[0], **kwargs)
        self.unchanged = []

    @classmethod
    def on(cls, t, kind, size=SIZE, folder=None, **kwargs):
        """A device on a file without a parent."""
        chain = vhd_child.base(folder or t.dir, kind, size)
        return cls(t, chain, layers.attach_auto, **kwargs)

    def child(self, **options):
        """Writes an empty child of the file that the device is on; returns its path."""
        path = vhd_child.child_path(self.chain)
        options = {"block_size": BLOCK, **options}
        return vhd_child.child_of(self.chain, len(self.chain.guest), **options).write(path)

    def put_on_top(self, path=None):
        """A snapshot, with an empty child, or with one that was made already."""
        path = path or self.child()
        change(self.loop, path)
        self.chain.paths.insert(0, path)
        return path

    def switch(self):
        """A snapshot; the file that is below afterwards is not to be written any more."""
        path = self.put_on_top()
        self.unchanged.append(images.Unchanged(self.chain.paths[1]))
        return path

    def judge(self, expected):
        """Detaches; fails unless the chain holds `expected`, and files below are as they were."""
        same_bytes(images.whole(self.loop), expected, "device")
        self.loop.detach()
        for file in self.unchanged:
            file.check()
        self.chain.judge(expected)


def change(loop, path, flags=os.O_RDWR, mode=os.O_RDWR):
    """LOOP_CHANGE_FD with a descriptor of `path`."""
    fd = os.open(path, flags)
    try:
        loop.change_fd(fd, mode)
    finally:
        os.close(fd)


def state(loop):
    """What a change that was refused must not change."""
    status = loop.status()
    return (layers.lines(loop) if loop.attr("loop/parser") != "raw" else None,
            loop.attr("loop/backing_file"), loop.attr("loop/parser"), loop.size(),
            (status.inode, status.flags, status.offset, status.sizelimit),
            uevents.sequence(loop), layers.references())


# Which files may be put on top


@suite.cases(raw="raw", dynamic="dynamic", fixed="fixed")
def snapshots_of(t, kind):
    device = Device.on(t, kind)
    shadow = bytearray(device.chain.guest)
    with blockio.Direct(device.loop.path) as direct:
        for turn in range(5):
            images.scribble(direct, shadow, turn, count=15)
            device.switch()
            same_bytes(images.whole(device.loop), bytes(shadow), f"device, turn {turn}")
        images.scribble(direct, shadow, 9, count=15)
        direct.flush()
    equal(layers.paths(device.loop), device.chain.paths, "layers")
    device.judge(bytes(shadow))


@suite.test
def what_is_shown_afterwards(t):
    device = Device.on(t, "raw")
    path = device.switch()
    loop = device.loop
    equal((loop.attr("loop/parser"), loop.attr("loop/variant")), ("vhd", "differencing"),
          "parser, variant")
    equal((loop.attr("loop/backing_file"), loop.status().inode), (path, os.stat(path).st_ino),
          "file")
    equal((loop.attr("ro"), loop.size()), ("0", SIZE), "ro, size")
    loop.detach()
    equal(loop.attr("loop/parser"), "auto", "parser afterwards")
    ensure(not os.path.exists(f"{loop.sysfs}/loop/layers"), "there are layers")


@suite.test
def snapshot_of_a_chain(t):
    """The device is on a differencing disk already."""
    chain = vhd_child.build(t.dir, "fixed", [vhd_child.Level(SIZE, BLOCK)] * 2)
    device = Device(t, chain, layers.attach_named)
    shadow = bytearray(chain.guest)
    for turn in range(3):
        device.switch()
        with blockio.Direct(device.loop.path) as direct:
            images.scribble(direct, shadow, turn, count=10)
    device.judge(bytes(shadow))


@suite.test
def child_that_has_data(t):
    """A child may hide what is below: the guest sees it from the change on."""
    device = Device.on(t, "raw")
    image = vhd_child.child_of(device.chain, SIZE, block_size=BLOCK)
    data = blockio.pattern(3 * BLOCK, 4)
    image.put(MIB + 512, data)
    path = image.write(t.path("child.vhd"))
    device.put_on_top(path)
    device.judge(image.guest(device.chain.guest))


@suite.test
def attached_again_and_taken_again(t):
    """The chain that snapshots have made is one like any other."""
    device = Device.on(t, "raw")
    for turn in range(3):
        device.switch()
        blockio.direct_write(device.loop.path, turn * MIB, b"%d" % turn * 4096)
    expected = images.whole(device.loop)
    device.loop.detach()
    device.loop = layers.attach_named(t, device.chain.paths[0])
    same_bytes(images.whole(device.loop), expected, "device, attached again")
    device.switch()
    device.judge(expected)


@suite.test
def below_is_written_no_more(t):
    """Not by the guest, not when the device is synced, not when it is detached."""
    device = Device.on(t, "dynamic")
    loop = device.loop
    blockio.direct_write(loop.path, 0, b"a" * MIB)
    device.switch()
    before = images.Unchanged(device.chain.paths[1])
    data = blockio.pattern(SIZE, 3)
    blockio.direct_write(loop.path, 0, data)
    before.check()
    device.judge(data)
    before.check()


@suite.test
def below_is_complete_after_the_change(t):
    """What was written before, and not flushed, is in the file below: it is a backup."""
    device = Device.on(t, "dynamic", folder=t.ext4(64))
    shadow = bytearray(device.chain.guest)
    with blockio.Direct(device.loop.path) as direct:
        images.scribble(direct, shadow)
        device.switch()
        vhd_child.Chain(device.chain.paths[1:], b"").judge(bytes(shadow))
        direct.write(0, bytes(4096))
    vhd_child.Chain(device.chain.paths[1:], b"").judge(bytes(shadow))


@suite.test
def below_can_be_read_by_others(t):
    """As a parent it may be attached read-only, and not read-write."""
    device = Device.on(t, "raw")
    below = device.chain.paths[0]
    t.allow_log(r"loop\d+: refused: .*")
    device.switch()
    blockio.direct_write(device.loop.path, 0, bytes(SIZE))
    fails_with(errno.EBUSY, t.attach, below)
    reader = loopdev.attach_read_only(below)
    t.defer(reader.detach_if_bound)
    same_bytes(images.whole(reader), device.chain.guest, "file below")


@suite.cases(direct=loopdev.DIRECT_IO, partscan=loopdev.PARTSCAN, autoclear=0)
def flags_stay(t, flags):
    device = Device.on(t, "raw", folder=t.ext4(64), flags=flags)
    before = device.loop.status().flags
    device.switch()
    equal(device.loop.status().flags, before, "flags")
    blockio.direct_write(device.loop.path, 0, b"f" * MIB)
    device.judge(b"f" * MIB + device.chain.guest[MIB:])


@suite.test
def sectors_of_4096(t):
    device = Device.on(t, "raw", block_size=4096)
    shadow = bytearray(device.chain.guest)
    device.switch()
    equal(device.loop.attr("queue/logical_block_size"), "4096", "sector size")
    for pos in (0, 3 * MIB + 4096):
        blockio.direct_write(device.loop.path, pos, b"4" * 8192)
        shadow[pos:pos + 8192] = b"4" * 8192
    device.judge(bytes(shadow))


@suite.test
def data_in_the_cache_of_the_device(t):
    """Pages that are dirty when the file changes go to the one or the other; none is lost."""
    device = Device.on(t, "raw")
    shadow = bytearray(device.chain.guest)
    with device.loop.opened(os.O_RDWR) as fd:
        for turn in range(4):
            pos = turn * MIB + 512
            os.pwrite(fd, b"d" * MIB, pos)
            shadow[pos:pos + MIB] = b"d" * MIB
            device.put_on_top()
        os.fsync(fd)
    device.loop.drop_cache()
    device.judge(bytes(shadow))


# What is no child of the device's file


def with_fields(**options):
    """A child that differs from the right one."""
    return lambda device: device.child(**options)


def sound_dynamic(device):
    """A VHD of the same size that has no parent."""
    return vhd.Dynamic(SIZE).write(device.t.path("other.vhd"))


def of_another_file(device):
    """The child of a file that is just like the device's."""
    copy = device.t.path("copy")
    with open(copy, "wb") as file:
        file.write(blockio.content(device.chain.paths[0]))
    return device.child(locators=[vhd_child.relative("copy")], header_name="copy")


def of_a_missing_file(device):
    """Its parent's name leads nowhere."""
    return device.child(locators=[vhd_child.relative("missing")], header_name="missing")


def itself(device):
    """The file that the device is on."""
    return device.chain.paths[0]


def raw_file(device):
    """A raw file of the same size."""
    blockio.make_file(device.t.path("other"), SIZE)
    return device.t.path("other")


def sized(size):
    """A child of another size."""
    return lambda device: vhd_child.child_of(device.chain, size, block_size=BLOCK).write(
        vhd_child.child_path(device.chain))


def grandchild(device):
    """A child of a child: it would skip one."""
    first = device.child()
    image = vhd_child.Differencing(SIZE, os.path.basename(first), BLOCK,
                                   parent_id=vhd_child.identity(1))
    return image.write(device.t.path("grandchild.vhd"))


def damaged(device):
    """A child with a broken dynamic header."""
    path = device.child()
    vhd.patch(path, 512, bytes(1024))
    return path


WRONG = {
    "dynamic": sound_dynamic, "raw": raw_file, "the_file_itself": itself,
    "child_of_another": of_another_file, "child_of_nothing": of_a_missing_file,
    "wrong_id": with_fields(parent_id=vhd_child.identity(0x66)),
    "larger": sized(SIZE + 512), "smaller": sized(SIZE - 512), "grandchild": grandchild,
    "no_names": with_fields(locators=[], header_name=""),
}


def refused(device, path, number=errno.EINVAL, **how):
    """The change fails, and the device goes on as before."""
    t = device.t
    t.allow_log(rf"{device.loop.name}: .*")
    files = [images.Unchanged(name) for name in {path, device.chain.paths[0]}]
    before = state(device.loop)
    fails_with(number, change, device.loop, path, **how)
    for file in files:
        file.check()
    system.wait_until(lambda: state(device.loop) == before, f"{before}, {state(device.loop)}")
    blockio.direct_write(device.loop.path, 0, b"o" * 4096)
    device.judge(b"o" * 4096 + device.chain.guest[4096:])


@suite.cases(**WRONG)
def is_refused_on_a_dynamic_disk(t, make):
    device = Device.on(t, "dynamic")
    refused(device, make(device))


@suite.cases(**WRONG)
def is_refused_on_a_raw_disk(t, make):
    device = Device.on(t, "raw")
    refused(device, make(device))


@suite.test
def damaged_child_is_refused(t):
    """As at an attach."""
    device = Device.on(t, "raw")
    refused(device, damaged(device), errno.EUCLEAN)


@suite.cases(raw=("raw", vhd_child.identity(0x66)), dynamic=("dynamic", vhd_child.NULL_ID))
def id_of_another_kind_is_refused(t, case):
    """A null id is that of a raw parent, and of no other."""
    kind, identity = case
    device = Device.on(t, kind)
    refused(device, device.child(parent_id=identity))


@suite.test
def child_opened_read_only_is_refused(t):
    device = Device.on(t, "raw")
    refused(device, device.child(), flags=os.O_RDONLY)


@suite.test
def child_opened_write_only_is_refused(t):
    device = Device.on(t, "raw")
    t.allow_log(r"loop\d+: .*")
    path = device.child()
    before = state(device.loop)
    try:
        change(device.loop, path, flags=os.O_WRONLY)
    except OSError as error:
        ensure(error.errno in (errno.EINVAL, errno.EBADF), str(error))
    equal(state(device.loop), before, "device")


@suite.test
def caller_must_be_able_to_write(t):
    device = Device.on(t, "raw")
    refused(device, device.child(), errno.EPERM, mode=os.O_RDONLY)


@suite.test
def child_of_a_forced_raw_vhd(t):
    """The device serves the VHD's own bytes: a child with a null id is its child."""
    base = vhd_child.base(t.dir, "dynamic", SIZE)
    length = os.path.getsize(base.paths[0]) // 512 * 512
    loop = images.attach_with(t, base.paths[0], "raw")
    equal(loop.size(), length, "size")
    child = vhd_child.Differencing(length, "base.vhd", BLOCK, parent_id=vhd_child.NULL_ID)
    path = child.write(t.path("child.vhd"))
    raw = blockio.content(base.paths[0])
    change(loop, path)
    same_bytes(images.whole(loop), raw, "device")
    blockio.direct_write(loop.path, 0, bytes(512))
    loop.detach()
    same_bytes(blockio.content(base.paths[0]), raw, "file below")


@suite.test
def file_that_was_moved(t):
    """The name in the child must lead to the device's file, which must still be there."""
    device = Device.on(t, "raw")
    path = device.child()
    os.rename(device.chain.paths[0], t.path("moved"))
    device.chain.paths[0] = t.path("moved")
    refused(device, path)


@suite.test
def file_by_another_link(t):
    """It is the same file, whatever its name."""
    device = Device.on(t, "raw")
    os.link(device.chain.paths[0], t.path("hard.raw"))
    path = device.child(locators=[vhd_child.relative("hard.raw")], header_name="")
    device.put_on_top(path)
    device.judge(device.chain.guest)


@suite.test
def no_more_files_than_there_may_be(t):
    device = Device.on(t, "raw", MIB)
    for _ in range(31):
        device.switch()
    found, more = layers.lines(device.loop)
    equal(len(found) + more, 32, "layers")
    blockio.direct_write(device.loop.path, 0, b"t" * 4096)
    t.allow_log(r"loop\d+: .*")
    fails_with(errno.EMLINK, change, device.loop, device.child())
    found, more = layers.lines(device.loop)
    equal(len(found) + more, 32, "layers")
    device.judge(b"t" * 4096 + device.chain.guest[4096:])


@suite.test
def two_devices_on_one_file(t):
    """The other one still writes to the file that would be below."""
    device = Device.on(t, "dynamic")
    other = t.attach(device.chain.paths[0])
    t.allow_log(r"loop\d+: .*")
    before = state(device.loop)
    fails_with(errno.EBUSY, change, device.loop, device.child())
    equal(state(device.loop), before, "device")
    other.detach()
    device.switch()
    device.judge(device.chain.guest)


# Read-only devices: as with the stock driver


@suite.test
def read_only_device_takes_any_file_of_its_size(t):
    first = vhd_child.base(t.dir, "dynamic", SIZE)
    other = vhd.Dynamic(SIZE, BLOCK)
    other.put(0, b"o" * BLOCK)
    path = other.write(t.path("other.vhd"))
    loop = loopdev.attach_read_only(first.paths[0])
    t.defer(loop.detach_if_bound)
    sequence = uevents.sequence(loop)
    with uevents.Listener() as listener:
        change(loop, path, os.O_RDONLY, os.O_RDONLY)
        ensure(listener.events(), "udev was not told")
    ensure(uevents.sequence(loop) > sequence, "the sequence number has not changed")
    same_bytes(images.whole(loop), other.guest(), "device")
    blockio.make_sparse(t.path("small"), MIB)
    fails_with(errno.EINVAL, change, loop, t.path("small"), os.O_RDONLY, os.O_RDONLY)


@suite.test
def read_write_device_takes_no_other_file(t):
    """As ever."""
    loop = t.attach(blockio.make_sparse(t.path("a"), SIZE))
    blockio.make_sparse(t.path("b"), SIZE)
    t.allow_log(r"loop\d+: .*")
    fails_with(errno.EINVAL, change, loop, t.path("b"))


# Nobody notices


def identity_of(loop):
    """What a change of the medium, or a look for partitions, would change."""
    parts = {name: os.stat(f"/dev/{name}").st_rdev for name in sorted(os.listdir(loop.sysfs))
             if name.startswith(loop.name)}
    return uevents.sequence(loop), loop.size(), loop.attr("events_poll_msecs"), parts


@suite.test
def no_events(t):
    disk = blockio.make_sparse(t.path("base.raw"), SIZE)
    run("sfdisk", "-q", disk, text=BLKPG_TABLE)
    chain = vhd_child.Chain([disk], blockio.content(disk), raw=True)
    device = Device(t, chain, layers.attach_auto, flags=loopdev.PARTSCAN)
    before = identity_of(device.loop)
    equal(len(before[-1]), 2, "partitions")
    with uevents.Listener() as listener, open(device.loop.part(1), "rb"):
        for _ in range(3):
            device.switch()
            blockio.direct_write(device.loop.part(2), 0, b"p" * 512)
        equal([str(event) for event in listener.events()], [], "events")
    equal(identity_of(device.loop), before, "sequence number, size, partitions")
    device.loop.detach()


class Load:
    """fio on a file system, again and again; each run ends by verifying what it has written."""

    def __init__(self, t, folder):
        self.folder = folder
        self.runs = 0
        self.job = self.start()
        t.defer(lambda: self.job.kill())

    def start(self):
        """One run, in the background."""
        self.runs += 1
        return subprocess.Popen(
            ["fio", "--name=x", f"--directory={self.folder}", "--ioengine=libaio", "--direct=1",
             "--rw=randrw", "--bsrange=512-32k", "--iodepth=16", "--size=3m", "--numjobs=2",
             "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--time_based",
             "--runtime=3", "--fsync=20", f"--randseed={self.runs}", "--output=/dev/null"])

    def keep_up(self):
        """Starts the next run if one has ended."""
        if self.job.poll() is not None:
            self.finish()
            self.job = self.start()

    def finish(self):
        """Waits for the run; it must have found everything as it was written."""
        equal(self.job.wait(), 0, "exit status of fio")


@suite.cases(raw="raw", dynamic="dynamic")
def mounted_file_system_under_load(t, kind):
    """50 switches, ten in a chain: nothing is lost, and ext4 says nothing."""
    for turn in range(5):
        folder = t.path(f"round{turn}")
        os.mkdir(folder)
        mounted_round(t, kind, folder, turn)


def mounted_round(t, kind, folder, turn):
    """Ten snapshots under a file system that fio uses."""
    device = Device.on(t, kind, 24 * MIB, folder)
    loop = device.loop
    run("mkfs.ext4", "-q", "-F", loop.path)
    point = t.mount(loop.path, where=f"mnt{turn}")
    before = identity_of(loop)
    load = Load(t, point)
    with uevents.Listener(rf".*/{loop.name}(/.*)?") as listener:
        for _ in range(10):
            load.keep_up()
            device.switch()
        kept = blockio.make_file(os.path.join(point, "kept"), MIB, turn)
        equal([str(event) for event in listener.events()], [], "events")
    equal(identity_of(loop), before, "sequence number, size")
    load.finish()
    same_bytes(blockio.content(os.path.join(point, "kept")), kept, "a file")
    run("umount", point)
    run("e2fsck", "-fn", loop.path)
    device.judge(images.whole(loop))


@suite.test
def writer_that_never_stops(t):
    """Every sector is what was written last, whichever file it went to."""
    device = Device.on(t, "raw")
    script = ("import sys; sys.path.insert(0, sys.argv[1]); from lib import blockio\n"
              "data = open(sys.argv[2], 'rb').read()\n"
              "with blockio.Direct(sys.argv[3]) as device:\n"
              "    for turn in range(3):\n"
              "        for pos in range(0, len(data), 4096):\n"
              "            device.write(pos, data[pos:pos + 4096])\n")
    blockio.make_file(t.path("data"), SIZE, 5)
    here = os.path.dirname(os.path.abspath(__file__))
    job = subprocess.Popen(["python3", "-c", script, here, t.path("data"), device.loop.path])
    switches = 0
    while job.poll() is None and switches < 25:
        device.put_on_top()
        switches += 1
    equal(job.wait(), 0, "exit status of the writer")
    ensure(switches >= 5, f"only {switches} switches")
    device.judge(blockio.content(t.path("data")))


if __name__ == "__main__":
    suite.main()
