#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Live snapshots: LOOP_CHANGE_FD puts a child on top of the file that a device is on, while it is
being written. Whoever uses the device does not notice; the file below is not written any more."""

import contextlib
import errno
import os
import subprocess

from lib import blockio, images, layers, loopdev, mapper, needs, system, uevents
from lib import vhd, vhd_chain, vhd_child
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.system import run
from lib.tasks import Task

MIB = vhd.MIB
SIZE = 8 * MIB
BLOCK = 64 << 10
NOT_A_CHILD = r"vhd: not a child of the device's file"
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

    def child_in(self, folder):
        """Writes one that names the file that the device is on by its whole path."""
        url = f"file://{self.chain.paths[0]}"
        image = vhd_child.child_of(self.chain, len(self.chain.guest), block_size=BLOCK, header_name="",
                                   locators=[vhd_child.mac(url)])
        return image.write(os.path.join(folder, "child.vhd"))

    def put_on_top(self, path=None):
        """A snapshot, with an empty child, or with one that was made already."""
        path = path or self.child()
        self.loop.change_file(path)
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


@suite.cases(raw="raw", dynamic="dynamic")
def below_cannot_be_made_durable(t, kind):
    """No backup: the change fails, and the device keeps the file that it has."""
    t.allow_log(r"EXT4-fs .*|JBD2: .*|Aborting journal .*|.*dm-\d+.*|loop\d+: vhd: syncing failed .*")
    t.allow_log(r"(Buffer )?I/O error.*|.*lost async page write|.*callbacks suppressed")
    t.ram_disk(64)
    disk = mapper.create(t, (64 * 2048, "linear"))
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", disk)
    device = Device.on(t, kind, folder=t.mount(disk))
    child = images.Unchanged(device.child_in(t.dir))
    system.attempt("modprobe", "vhdloop")
    # Not written back by itself before the change.
    with blockio.Direct(device.loop.path) as direct:
        direct.write(MIB, b"d" * MIB)
    before = layers.state(device.loop)[1:]
    mapper.switch((64 * 2048, "error"))
    fails_with(errno.EIO, device.loop.change_file, child.path)
    mapper.switch((64 * 2048, "linear"))
    system.wait_until(lambda: layers.state(device.loop)[1:] == before,
                      lambda: f"{before}, {layers.state(device.loop)[1:]}")
    if kind == "dynamic":
        equal([layer["state"] for layer in layers.of(device.loop)], ["failed"], "states")
    child.check()
    device.loop.detach()


@suite.test
def flush_meanwhile_covers_the_file_below(t):
    """The files are switched before what was written in the meantime is durable in the old one."""
    needs.module("dm-delay")
    t.ram_disk(SIZE // MIB)
    disk = mapper.create(t, (SIZE // 512, "slow"))
    chain = vhd_child.Chain([disk], bytes(SIZE), raw=True)
    device = Device(t, chain, layers.attach_auto)
    child = device.child_in(t.dir)
    with blockio.Direct(device.loop.path) as direct:
        direct.write(0, blockio.pattern(BLOCK))
        task = Task(lambda: device.loop.change_file(child))
        t.defer(task.outcome)
        # The old file is being written back; what comes now is not part of that. On a machine that
        # stood still it may be over already.
        system.wait_until(lambda: task.ended() or task.hangs(), "LOOP_CHANGE_FD hangs")
        data = blockio.pattern(MIB, 7)
        direct.write(MIB, data)
        system.wait_until(lambda: device.loop.attr("loop/backing_file") == child, "the files are switched")
        direct.flush()
        durable = blockio.direct_read(system.RAM_DISK, 0, SIZE)
    equal(task.outcome(), "done", "LOOP_CHANGE_FD")
    with open(t.path("durable"), "wb") as file:
        file.write(durable)
    with vhd_chain.Chain([child, file.name], raw=True) as files:
        same_bytes(files.read(MIB, MIB), data, "what was flushed")
    device.loop.detach()


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


def stays(device, path, number, says, **how):
    """The change fails with a log line that says why, if it `says` anything; nothing has changed."""
    files = [images.Unchanged(name) for name in {path, device.chain.paths[0]}]
    before = layers.state(device.loop)
    line = layers.one_line(device.t, rf"{device.loop.name}: refused: {says}")
    with line if says else contextlib.nullcontext():
        fails_with(number, device.loop.change_file, path, **how)
    for file in files:
        file.check()
    system.wait_until(lambda: layers.state(device.loop) == before,
                      lambda: f"{before}, {layers.state(device.loop)}")


def refused(device, path, number=errno.EINVAL, says=NOT_A_CHILD, **how):
    """The change fails, and the device goes on as before."""
    stays(device, path, number, says, **how)
    blockio.direct_write(device.loop.path, 0, b"o" * 4096)
    device.judge(b"o" * 4096 + device.chain.guest[4096:])


def not_its_child(device, path):
    """As above. What is no image at all is refused without a word, as ever."""
    is_image = blockio.content(path).startswith(b"conectix")
    refused(device, path, says=NOT_A_CHILD if is_image else None)


@suite.cases(**WRONG)
def is_refused_on_a_dynamic_disk(t, make):
    device = Device.on(t, "dynamic")
    not_its_child(device, make(device))


@suite.cases(**WRONG)
def is_refused_on_a_raw_disk(t, make):
    device = Device.on(t, "raw")
    not_its_child(device, make(device))


@suite.test
def damaged_child_is_refused(t):
    """As at an attach."""
    device = Device.on(t, "raw")
    refused(device, damaged(device), errno.EUCLEAN, r"vhd: .* at byte \d+")


@suite.cases(raw=("raw", vhd_child.identity(0x66)), dynamic=("dynamic", vhd_child.NULL_ID))
def id_of_another_kind_is_refused(t, case):
    """A null id is that of a raw parent, and of no other."""
    kind, identity = case
    device = Device.on(t, kind)
    refused(device, device.child(parent_id=identity))


@suite.test
def child_opened_read_only_is_refused(t):
    device = Device.on(t, "raw")
    refused(device, device.child(), says=None, flags=os.O_RDONLY)


@suite.test
def child_opened_write_only_is_refused(t):
    device = Device.on(t, "raw")
    t.allow_log(r"loop\d+: .*")
    path = device.child()
    before = layers.state(device.loop)
    try:
        device.loop.change_file(path, flags=os.O_WRONLY)
    except OSError as error:
        ensure(error.errno in (errno.EINVAL, errno.EBADF), str(error))
    equal(layers.state(device.loop), before, "device")


@suite.test
def caller_must_be_able_to_write(t):
    device = Device.on(t, "raw")
    refused(device, device.child(), errno.EPERM, says=None, mode=os.O_RDONLY)


@suite.cases(raw="raw", dynamic="dynamic")
def child_of_the_grandparent_is_refused(t, kind):
    """It would leave out what the device's own file has."""
    base = vhd_child.base(t.dir, kind, SIZE)
    device = Device(t, vhd_child.grow(base, vhd_child.Level(SIZE, BLOCK)), layers.attach_named)
    sibling = vhd_child.child_of(base, SIZE, block_size=BLOCK, unique_id=vhd_child.identity(0x44))
    refused(device, sibling.write(t.path("sibling.vhd")))


@suite.test
def child_in_use_is_refused(t):
    """Another device writes to it, as to any file."""
    device = Device.on(t, "raw")
    path = device.child()
    other = images.attach_with(t, path, "raw")
    stays(device, path, errno.EBUSY, "vhd: EBUSY")
    other.detach()
    device.put_on_top(path)
    device.judge(device.chain.guest)


@suite.test
def child_on_the_devices_own_file_system_is_refused(t):
    """To write to the device would be to write to the child, and so to the device."""
    device = Device.on(t, "raw")
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", device.loop.path)
    point = t.mount(device.loop.path, "-o", "noatime")
    path = device.child_in(point)
    run("sync", "-f", point)
    stays(device, path, errno.ELOOP, "vhd: ELOOP")
    run("umount", point)
    run("e2fsck", "-fn", device.loop.path)
    device.judge(images.whole(device.loop))


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
    loop.change_file(path)
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
    fails_with(errno.EMLINK, device.loop.change_file, device.child())
    found, more = layers.lines(device.loop)
    equal(len(found) + more, 32, "layers")
    device.judge(b"t" * 4096 + device.chain.guest[4096:])


@suite.test
def two_devices_on_one_file(t):
    """The other one still writes to the file that would be below."""
    device = Device.on(t, "dynamic")
    other = t.attach(device.chain.paths[0])
    t.allow_log(r"loop\d+: .*")
    before = layers.state(device.loop)
    fails_with(errno.EBUSY, device.loop.change_file, device.child())
    equal(layers.state(device.loop), before, "device")
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
        loop.change_file_read_only(path)
        ensure(listener.events(), "udev was not told")
    ensure(uevents.sequence(loop) > sequence, "the sequence number has not changed")
    same_bytes(images.whole(loop), other.guest(), "device")
    blockio.make_sparse(t.path("small"), MIB)
    fails_with(errno.EINVAL, loop.change_file_read_only, t.path("small"))


@suite.test
def read_write_device_takes_no_other_file(t):
    """As ever."""
    loop = t.attach(blockio.make_sparse(t.path("a"), SIZE))
    blockio.make_sparse(t.path("b"), SIZE)
    t.allow_log(r"loop\d+: .*")
    fails_with(errno.EINVAL, loop.change_file, t.path("b"))


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


def writes(loop):
    """Writes that a device has completed."""
    return int(loop.attr("stat").split()[4])


class Load:
    """fio on a device's file system, again and again; each run ends by verifying what it has
    written."""

    def __init__(self, t, loop, folder):
        self.loop = loop
        self.folder = folder
        self.runs = 0
        self.seen = writes(loop)
        self.job = self.start()
        t.defer(lambda: self.job.kill())

    def start(self):
        """One run, in the background."""
        self.runs += 1
        return subprocess.Popen(
            ["fio", "--name=x", f"--directory={self.folder}", "--ioengine=libaio", "--direct=1",
             "--rw=randrw", "--bsrange=512-32k", "--iodepth=16", "--size=1m", "--numjobs=2",
             "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--time_based",
             "--runtime=3", "--fsync=20", f"--randseed={self.runs}", "--output=/dev/null"])

    def goes_on(self):
        """Waits until there were more writes since the last time; fio never pauses for long."""
        system.wait_until(self.has_written, "fio has written more")
        self.seen = writes(self.loop)

    def has_written(self):
        """Whether fio runs and has written; the next run starts if one has ended."""
        if self.job.poll() is not None:
            self.finish()
            self.job = self.start()
        return writes(self.loop) >= self.seen + 16

    def finish(self):
        """Waits for the run; it must have found everything as it was written."""
        equal(self.job.wait(), 0, "exit status of fio")


@suite.cases(raw="raw", dynamic="dynamic")
def mounted_file_system_under_load(t, kind):
    """50 switches, 25 in a chain: nothing is lost, and ext4 says nothing."""
    for turn in range(2):
        folder = t.path(f"round{turn}")
        os.mkdir(folder)
        mounted_round(t, kind, folder, turn)


def mounted_round(t, kind, folder, turn):
    """25 snapshots under a file system that fio writes to before, between and after them."""
    device = Device.on(t, kind, SIZE, folder)
    loop = device.loop
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", loop.path)
    point = t.mount(loop.path, where=f"mnt{turn}")
    before = identity_of(loop)
    load = Load(t, loop, point)
    with uevents.Listener(rf".*/{loop.name}(/.*)?") as listener:
        for _ in range(25):
            load.goes_on()
            device.switch()
        load.goes_on()
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
    script = ("import os, sys; sys.path.insert(0, sys.argv[1]); from lib import blockio\n"
              "data = open(sys.argv[2], 'rb').read()\n"
              "with blockio.Direct(sys.argv[3]) as device:\n"
              "    while os.path.exists(sys.argv[4]):\n"
              "        for pos in range(0, len(data), 4096):\n"
              "            device.write(pos, data[pos:pos + 4096])\n")
    blockio.make_file(t.path("data"), SIZE, 5)
    blockio.make_sparse(t.path("go on"), 0)
    here = os.path.dirname(os.path.abspath(__file__))
    job = subprocess.Popen(["python3", "-c", script, here, t.path("data"), device.loop.path,
                            t.path("go on")])
    t.defer(job.kill)
    for _ in range(25):
        seen = writes(device.loop)
        system.wait_until(lambda seen=seen: writes(device.loop) > seen or job.poll() is not None,
                          "there are more writes")
        device.put_on_top()
        equal(job.poll(), None, "exit status of the writer meanwhile")
    os.unlink(t.path("go on"))
    equal(job.wait(), 0, "exit status of the writer")
    device.judge(blockio.content(t.path("data")))


if __name__ == "__main__":
    suite.main()
