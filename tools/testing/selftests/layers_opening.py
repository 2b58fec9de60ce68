#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Which files an image may name as its parent, and who has to be allowed to read them.

A guest can write a header into its own disk, so naming a file is a privilege. What is refused is
refused with a precise errno, with one line in the kernel log, and without a trace; the files, the
device and the modules are as they were before.
"""

import errno
import os
import random
import socket
import stat

from lib import blockio, images, layers, loopdev, modules, system, users, vhd, vhd_child
from lib.ktap import Suite, ensure, equal, fails_with, same_bytes
from lib.layers import attach_auto, attach_named, attach_read_only, refused
from lib.system import attempt, run
from lib.users import ALICE, BOB, STAFF

MIB = vhd.MIB
SIZE = 4 * MIB
BLOCK = 64 << 10
# All files of a chain.
MOST_FILES = 32
ANY = "any"
BENEATH = "beneath"
suite = Suite()


def make_parent(path, number=0x11):
    """A dynamic VHD with something in it; returns its guest disk."""
    image = vhd.Dynamic(SIZE, BLOCK, footer={"unique_id": vhd_child.identity(number)})
    vhd_child.put_runs(image, random.Random(number))
    image.write(path)
    return image.guest()


def make_child(path, locator, number=0x11, **options):
    """An empty child with a single name for its parent."""
    options = {"parent_id": vhd_child.identity(number), "header_name": "", **options}
    return vhd_child.Differencing(SIZE, "", BLOCK, locators=[locator], **options).write(path)


def naming(name):
    """A locator for a name: a URL if it is absolute, because Windows has other absolute names."""
    if name.startswith("/"):
        return vhd_child.mac(f"file://{name}")
    return vhd_child.Locator(b"W2ru", vhd_child.utf16(name.replace("/", "\\")))


class Pair:
    """A child in a folder of its own, and its parent, wherever that is.

    `name`: what the child says; `place`: where the parent really lies. Both relative to the child's
    folder, `name` may also be absolute.
    """

    def __init__(self, t, name="parent.vhd", place=None):
        self.folder = t.path("disks")
        os.makedirs(self.folder, exist_ok=True)
        self.parent = os.path.normpath(os.path.join(self.folder, place or name))
        os.makedirs(os.path.dirname(self.parent), exist_ok=True)
        self.guest = make_parent(self.parent)
        self.child = make_child(self.path("child.vhd"), naming(name))

    def path(self, name):
        """A path in the child's folder."""
        return os.path.join(self.folder, name)

    def served(self, t, attach=attach_named):
        """The attach works and shows the parent's disk."""
        loop = attach(t, self.child)
        same_bytes(images.whole(loop), self.guest, "device")
        equal(layers.paths(loop), [self.child, os.path.realpath(self.parent)], "layers")
        loop.detach()

    def refused(self, t, number, says="", attach=attach_named):
        """The attach fails; nothing has changed."""
        refused(t, number, self.child, self.parent, says=says, attach=attach)


# Permission to name a file


NOT_ALLOWED = r"vhd: the file names another one, .*parent\.vhd.*\bparser\b.*\bparents\b.*"


@suite.cases(read_write=attach_auto, read_only=lambda t, path, **kwargs: attach_auto(
    t, path, file_flags=os.O_RDONLY, flags=loopdev.READ_ONLY, mode=os.O_RDONLY, **kwargs))
def not_allowed_by_default(t, attach):
    equal(blockio.content("/sys/module/loop/parameters/parents"), b"none\n", "parents")
    Pair(t).refused(t, errno.EPERM, NOT_ALLOWED, attach)


@suite.test
def losetup_says_that_it_is_not_allowed(t):
    pair = Pair(t)
    with layers.one_line(t, rf"loop\d+: refused: {NOT_ALLOWED}"):
        done = attempt("losetup", "-f", "--show", pair.child)
    ensure(done.returncode and "Operation not permitted" in done.stderr, done.stderr)


@suite.test
def allowed_by_the_device(t):
    Pair(t).served(t)


@suite.cases(with_size="vhd,size=current", with_chs="vhd,size=chs")
def allowed_by_the_device_with_options(t, option):
    pair = Pair(t)
    loop = images.attach_with(t, pair.child, option)
    content = images.whole(loop)
    same_bytes(content, pair.guest[:len(content)], "device")
    ensure(content, "the device is empty")


@suite.cases(beneath=BENEATH, any=ANY)
def allowed_by_the_parameter(t, value):
    layers.allow_parents(t, value)
    Pair(t).served(t, attach_auto)


@suite.test
def raw_names_nobody(t):
    """Forced raw, the file shows its own bytes."""
    pair = Pair(t)
    loop = images.attach_with(t, pair.child, "raw")
    same_bytes(images.whole(loop), blockio.content(pair.child), "device")


@suite.test
def permission_ends_with_the_attach(t):
    pair = Pair(t)
    pair.served(t)
    pair.refused(t, errno.EPERM, NOT_ALLOWED, attach_auto)
    with modules.parameter("parents", BENEATH):
        pair.served(t, attach_auto)
    pair.refused(t, errno.EPERM, NOT_ALLOWED, attach_auto)


@suite.test
def attached_device_outlives_the_permission(t):
    pair = Pair(t)
    with modules.parameter("parents", BENEATH):
        loop = t.attach(pair.child)
    same_bytes(images.whole(loop), pair.guest, "device")


@suite.test
def a_guest_cannot_make_itself_a_parent(t):
    """It writes a differencing header over its own raw disk; root attaches that again."""
    make_parent(t.path("parent.vhd"))
    disk = blockio.make_sparse(t.path("disk.raw"), SIZE)
    header = blockio.content(make_child(t.path("child.vhd"), naming("parent.vhd")))
    loop = t.attach(disk)
    blockio.direct_write(loop.path, 0, header[:-512])
    blockio.direct_write(loop.path, SIZE - 512, header[-512:])
    loop.detach()
    refused(t, errno.EPERM, disk, t.path("parent.vhd"), says=NOT_ALLOWED, attach=attach_auto)


@suite.cases(none="none", beneath=BENEATH, any=ANY)
def parameter_reads_back(_, value):
    with modules.parameter("parents", value):
        equal(blockio.content("/sys/module/loop/parameters/parents").decode(), value + "\n",
              "parents")


@suite.cases(empty="", unknown="all", upper="ANY", long="x" * 100, number="1", two="any beneath")
def parameter_refuses(_, value):
    def write():
        with modules.parameter("parents", value or "\n"):
            pass
    fails_with(errno.EINVAL, write)
    equal(blockio.content("/sys/module/loop/parameters/parents"), b"none\n", "parents")


@suite.test
def parameter_at_load(t):
    pair = Pair(t)
    system.unload_loop()
    system.load_loop("ours", "parents=beneath")
    try:
        pair.served(t, attach_auto)
    finally:
        system.unload_loop()
        system.load_loop("ours")


# Names and where they lead

WAYS = {"named": (None, attach_named), "beneath": (BENEATH, attach_auto),
        "named_and_beneath": (BENEATH, attach_named)}


def each_way(function):
    """One test per way to be allowed to name files in the child's folder."""
    def under(t, value, attach):
        if value:
            layers.allow_parents(t, value)
        function(t, attach)
    for name, (value, attach) in WAYS.items():
        suite.add(f"{function.__name__}_{name}",
                  lambda t, value=value, attach=attach: under(t, value, attach))
    return function


@each_way
def below_the_folder(t, attach):
    Pair(t, "a/b/parent.vhd").served(t, attach)


@each_way
def parent_is_missing(t, attach):
    pair = Pair(t)
    os.unlink(pair.parent)
    pair.refused(t, errno.ENOENT, r"parent\.vhd", attach)


@each_way
def folder_is_missing(t, attach):
    pair = Pair(t, "a/parent.vhd", "parent.vhd")
    pair.refused(t, errno.ENOENT, r"parent\.vhd", attach)


@each_way
def folder_is_a_file(t, attach):
    pair = Pair(t, "child.vhd/parent.vhd", "parent.vhd")
    pair.refused(t, errno.ENOTDIR, r"parent\.vhd", attach)


@each_way
def above_the_folder(t, attach):
    Pair(t, "../parent.vhd").refused(t, errno.EXDEV, r"parent\.vhd", attach)


@each_way
def far_above_the_folder(t, attach):
    Pair(t, "../" * 40 + "etc/passwd", "parent.vhd").refused(t, errno.EXDEV, "passwd", attach)


@each_way
def out_and_in_again(t, attach):
    Pair(t, "../disks/parent.vhd", "parent.vhd").refused(t, errno.EXDEV, r"parent\.vhd", attach)


@each_way
def absolute(t, attach):
    Pair(t, t.path("outside.vhd")).refused(t, errno.EXDEV, r"outside\.vhd", attach)


@each_way
def absolute_but_it_lies_beside(t, attach):
    """The last part of a foreign path is tried in the folder: images are moved with their parents."""
    Pair(t, "/disks/of/another/machine/parent.vhd", "parent.vhd").served(t, attach)


@each_way
def link_that_stays(t, attach):
    pair = Pair(t, "link/parent.vhd", "real/parent.vhd")
    os.symlink("real", pair.path("link"))
    pair.served(t, attach)


@each_way
def link_to_the_parent(t, attach):
    pair = Pair(t, "link.vhd", "a/parent.vhd")
    os.symlink("a/parent.vhd", pair.path("link.vhd"))
    pair.served(t, attach)


LINKS = {"link_above": "../outside.vhd", "link_that_is_absolute": "/etc/passwd",
         "link_to_the_folder_itself": None}


def link_case(name, target):
    """A symlink in the child's folder that leaves it."""
    def test(t, attach):
        pair = Pair(t, "link.vhd", "../outside.vhd")
        # Even if it comes back: an absolute one begins at the root.
        os.symlink(target or pair.path("child.vhd"), pair.path("link.vhd"))
        pair.refused(t, errno.EXDEV, r"link\.vhd", attach)
    test.__name__ = name
    each_way(test)


for link_name, link_target in LINKS.items():
    link_case(link_name, link_target)


@each_way
def link_in_a_circle(t, attach):
    pair = Pair(t, "link.vhd", "parent.vhd")
    os.symlink("link.vhd", pair.path("link.vhd"))
    pair.refused(t, errno.ELOOP, r"link\.vhd", attach)


@each_way
def mount_in_between(t, attach):
    pair = Pair(t, "mnt/parent.vhd", "parent.vhd")
    t.mount("tmpfs", "-t", "tmpfs", where="disks/mnt")
    make_parent(pair.path("mnt/parent.vhd"))
    pair.refused(t, errno.EXDEV, r"parent\.vhd", attach)


def bind(t, source, point, *options):
    """Mounts a file or a folder in another place."""
    run("mount", "--bind", *options, source, point)
    t.defer(run, "umount", point)


@each_way
def mounted_file(t, attach):
    pair = Pair(t)
    blockio.make_sparse(t.path("other"), 512)
    bind(t, t.path("other"), pair.parent)
    pair.refused(t, errno.EXDEV, r"parent\.vhd", attach)


@suite.cases(beneath=(BENEATH, errno.EXDEV), any=(ANY, errno.ELOOP))
def magic_link(t, case):
    """/proc/PID/fd leads to files that have no name, or that others have opened."""
    value, number = case
    layers.allow_parents(t, value)
    fd = os.open("/etc/passwd", os.O_RDONLY)
    t.defer(os.close, fd)
    pair = Pair(t, f"/proc/{os.getpid()}/fd/{fd}", "parent.vhd")
    pair.refused(t, number, f"fd/{fd}", attach_auto)


@suite.test
def magic_link_behind_a_link(t):
    layers.allow_parents(t, ANY)
    fd = os.open("/etc/passwd", os.O_RDONLY)
    t.defer(os.close, fd)
    pair = Pair(t, "link.vhd", "parent.vhd")
    os.symlink(f"/proc/{os.getpid()}/fd/{fd}", pair.path("link.vhd"))
    pair.refused(t, errno.ELOOP, r"link\.vhd", attach_auto)


@suite.cases(named=attach_named, auto=attach_auto)
def anywhere_if_any(t, attach):
    layers.allow_parents(t, ANY)
    outside = t.path("outside.vhd")
    for name in ("../outside.vhd", outside):
        Pair(t, name, "../outside.vhd").served(t, attach)
    pair = Pair(t, "link.vhd", "../outside.vhd")
    for target in ("../outside.vhd", outside):
        os.symlink(target, pair.path("link.vhd"))
        pair.served(t, attach)
        os.unlink(pair.path("link.vhd"))


@suite.test
def on_another_mount_if_any(t):
    layers.allow_parents(t, ANY)
    t.mount("tmpfs", "-t", "tmpfs", where="disks/mnt")
    Pair(t, "mnt/parent.vhd").served(t, attach_auto)


@suite.test
def grandparents_are_named_from_their_childs_folder(t):
    """Each name counts from the folder of the image that has it."""
    guest = make_parent(t.path("grandparent.vhd"))
    os.mkdir(t.path("a"))
    os.mkdir(t.path("b"))
    make_child(t.path("a/parent.vhd"), naming("../grandparent.vhd"),
               unique_id=vhd_child.identity(0x22))
    make_child(t.path("b/child.vhd"), naming("../a/parent.vhd"), 0x22)
    refused(t, errno.EXDEV, t.path("b/child.vhd"), t.path("a/parent.vhd"),
            says=r"parent\.vhd")
    refused(t, errno.EXDEV, t.path("a/parent.vhd"), t.path("grandparent.vhd"),
            says=r"grandparent\.vhd")
    layers.allow_parents(t, ANY)
    loop = t.attach(t.path("b/child.vhd"))
    equal(layers.paths(loop), [t.path("b/child.vhd"), t.path("a/parent.vhd"),
                               t.path("grandparent.vhd")], "layers")
    same_bytes(images.whole(loop), guest, "device")


@suite.test
def grandparent_that_leaves_the_folder(t):
    """A permission for the first name is none for the next."""
    make_parent(t.path("outside.vhd"))
    os.mkdir(t.path("disks"))
    make_child(t.path("disks/parent.vhd"), naming("../outside.vhd"),
               unique_id=vhd_child.identity(0x22))
    make_child(t.path("disks/child.vhd"), naming("parent.vhd"), 0x22)
    for value in ("none", BENEATH):
        with modules.parameter("parents", value):
            refused(t, errno.EXDEV, t.path("disks/child.vhd"), t.path("disks/parent.vhd"),
                    t.path("outside.vhd"), says=r"outside\.vhd")


@suite.cases(no_names=lambda: vhd_child.Locator(b"what", b"x"),
             empty=lambda: vhd_child.Locator(b"W2ru", b""),
             only_a_dot=lambda: vhd_child.Locator(b"W2ru", vhd_child.utf16(".\\")),
             nul=lambda: vhd_child.Locator(b"W2ru", vhd_child.utf16("par\0ent.vhd")),
             behind_the_end=lambda: vhd_child.relative("parent.vhd", length=1 << 20),
             url=lambda: vhd_child.mac("http://example.invalid/parent.vhd"),
             json=lambda: vhd_child.mac('json:{"driver":"raw"}'),
             lone_surrogate=lambda: vhd_child.Locator(b"W2ru", vhd_child.utf16("par\ud800.vhd")))
def no_name_that_could_be_followed(t, locator):
    """Whatever is wrong with the name, it is no way to another file, and no crash."""
    path = make_child(t.path("child.vhd"), locator())
    make_parent(t.path("parent.vhd"))
    before = images.Unchanged(path)
    loop = loopdev.free()
    t.allow_log(rf"{loop.name}: refused: .{{10,}}")
    try:
        attach_named(t, path, loop=loop)
    except OSError as error:
        ensure(error.errno in (errno.EUCLEAN, errno.ENOENT, errno.EOPNOTSUPP, errno.EACCES),
               f"refused with {error}")
    ensure(not loop.is_bound(), "bound")
    equal(len(t.log.matching(rf"{loop.name}: refused: .{{10,}}")), 1, "log lines")
    before.check()


@each_way
def name_that_is_too_long(t, attach):
    pair = Pair(t, "n" * 256, "parent.vhd")
    pair.refused(t, errno.ENAMETOOLONG, "nnn", attach)


# What is found there


def fifo(path):
    """A pipe with a name: opening one waits for somebody to write."""
    os.mkfifo(path)


def unix_socket(path):
    """A socket that somebody listens at."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def character_device(path):
    """/dev/zero by another name."""
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def tape(path):
    """A device without a driver."""
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(9, 0))


@suite.cases(fifo=fifo, folder=os.mkdir, socket=unix_socket, character_device=character_device,
             tape=tape)
def not_a_regular_file(t, make):
    """It is not opened to find that out: that alone may hang, or rewind a tape."""
    pair = Pair(t)
    os.unlink(pair.parent)
    make(pair.parent)
    for value, attach in (("none", attach_named), (BENEATH, attach_auto), (ANY, attach_auto)):
        with modules.parameter("parents", value):
            pair.refused(t, errno.EACCES, r"parent\.vhd", attach)


def to_disk(disk, path):
    """Writes an image to a block device, its footer in the last sector."""
    data = blockio.content(path)
    with open(disk, "r+b", buffering=0) as file:
        file.write(data[:-512])
        file.seek(-512, os.SEEK_END)
        file.write(data[-512:])
        os.fsync(file.fileno())


@suite.test
def block_device(t):
    """Only if anything goes."""
    disk = t.ram_disk(8)
    pair = Pair(t)
    to_disk(disk, pair.parent)
    os.unlink(pair.parent)
    os.mknod(pair.parent, stat.S_IFBLK | 0o600, os.stat(disk).st_rdev)
    refused(t, errno.EACCES, pair.child, says=r"parent\.vhd")
    with modules.parameter("parents", BENEATH):
        refused(t, errno.EACCES, pair.child, says=r"parent\.vhd", attach=attach_auto)
    layers.allow_parents(t, ANY)
    loop = t.attach(pair.child)
    same_bytes(images.whole(loop), pair.guest, "device")
    loop.detach()


@suite.cases(wrong=lambda pair: make_parent(pair.parent, 0x77),
             zero=lambda pair: make_parent(pair.parent, 0))
def wrong_unique_id(t, replace):
    pair = Pair(t)
    replace(pair)
    pair.refused(t, errno.EUCLEAN, r"parent\.vhd")


@suite.cases(empty=0, short=100, long=SIZE)
def parent_that_is_no_vhd(t, length):
    """Only a null id says that the parent is raw."""
    pair = Pair(t)
    blockio.make_file(pair.parent, length)
    pair.refused(t, errno.EUCLEAN, r"parent\.vhd")


@suite.test
def parent_that_is_damaged(t):
    pair = Pair(t)
    vhd.patch(pair.parent, 512, bytes(1024))
    pair.refused(t, errno.EUCLEAN, r"parent\.vhd")


@suite.test
def parent_with_a_damaged_footer(t):
    """One of the two is enough, here as anywhere."""
    pair = Pair(t)
    vhd.patch(pair.parent, -512, bytes(512))
    t.allow_log(r"loop\d+: .*footer.*")
    pair.served(t)


@suite.test
def read_only_parent(t):
    pair = Pair(t)
    os.chmod(pair.parent, 0o400)
    pair.served(t)


@suite.test
def parent_on_a_read_only_file_system(t):
    """The whole folder is: the child can be read."""
    pair = Pair(t)
    bind(t, pair.folder, pair.folder, "-o", "ro")
    pair.served(t, attach_read_only)


# Circles


@each_way
def the_child_itself(t, attach):
    path = make_child(t.path("child.vhd"), naming("child.vhd"))
    refused(t, errno.ELOOP, path, says=r"child\.vhd", attach=attach)


@suite.test
def the_childs_own_id(t):
    """The image contradicts itself."""
    path = make_child(t.path("child.vhd"), naming("child.vhd"), unique_id=vhd_child.identity(0x11))
    refused(t, errno.EUCLEAN, path, says="own parent")


@suite.test
def the_child_itself_by_another_name(t):
    path = make_child(t.path("child.vhd"), naming("hard.vhd"))
    os.link(path, t.path("hard.vhd"))
    refused(t, errno.ELOOP, path, says=r"hard\.vhd")


@suite.cases(two=2, three=3, seven=7)
def circle(t, length):
    for number in range(length):
        following = (number + 1) % length
        make_child(t.path(f"{number}.vhd"), naming(f"{following}.vhd"), following + 1,
                   unique_id=vhd_child.identity(number + 1))
    refused(t, errno.ELOOP, t.path("0.vhd"), says=r"\.vhd")


@suite.test
def circle_below(t):
    """The child is not in it."""
    make_child(t.path("a.vhd"), naming("b.vhd"), 2, unique_id=vhd_child.identity(1))
    make_child(t.path("b.vhd"), naming("a.vhd"), 1, unique_id=vhd_child.identity(2))
    refused(t, errno.ELOOP, make_child(t.path("child.vhd"), naming("a.vhd"), 1), says=r"\.vhd")


@suite.test
def circle_through_a_loop_device(t):
    """The parent is a loop device on the child."""
    layers.allow_parents(t, ANY)
    child = t.path("child.vhd")
    make_child(child, naming(loopdev.free().path))
    below = read_only_raw(t, child)
    refused(t, errno.ELOOP, child, says=below.path, attach=attach_auto)


@suite.test
def circle_through_two_loop_devices(t):
    layers.allow_parents(t, ANY)
    child = make_child(t.path("child.vhd"), naming("/dev/loop0"))
    lower = read_only_raw(t, child)
    upper = read_only_raw(t, lower.path)
    make_child(child, naming(upper.path))
    refused(t, errno.ELOOP, child, says=upper.path, attach=attach_auto)
    upper.detach()


def read_only_raw(t, path):
    """A read-only loop device that shows a file's own bytes."""
    return images.attach_with(t, path, "raw", file_flags=os.O_RDONLY, flags=loopdev.READ_ONLY,
                              mode=os.O_RDONLY)


@suite.test
def the_device_that_is_attached(t):
    """A child that names the device it is being attached to, which has no file yet."""
    layers.allow_parents(t, ANY)
    loop = loopdev.free()
    child = make_child(t.path("child.vhd"), naming(loop.path))
    before = images.Unchanged(child)
    with layers.one_line(t, rf"{loop.name}: refused: .*{loop.path}.*"):
        fails_with(errno.ELOOP, t.attach, child, loop=loop)
    ensure(not loop.is_bound(), "bound")
    before.check()


@suite.test
def a_device_on_its_own_child(t):
    """The parent's file lies on a file system that lies on a device with that child: no circle."""
    t.allow_log(r"operation not supported error, dev loop\d+, .*")
    outer = t.attach(blockio.make_sparse(t.path("disk"), 32 * MIB))
    run("mkfs.ext4", "-q", outer.path)
    point = t.mount(outer.path, where="mnt")
    guest = make_parent(os.path.join(point, "parent.vhd"))
    loop = attach_named(t, make_child(os.path.join(point, "child.vhd"), naming("parent.vhd")))
    same_bytes(images.whole(loop), guest, "device")
    loop.detach()
    run("umount", point)


# How many


def chain_of(t, files):
    """A chain of so many files; returns their paths, top first."""
    guest = make_parent(t.path("0.vhd"), 1)
    paths = [t.path("0.vhd")]
    for number in range(1, files):
        path = make_child(t.path(f"{number}.vhd"), naming(f"{number - 1}.vhd"), number,
                          unique_id=vhd_child.identity(number + 1))
        paths.insert(0, path)
    return paths, guest


@suite.test
def as_many_files_as_there_may_be(t):
    paths, guest = chain_of(t, MOST_FILES)
    loop = attach_named(t, paths[0])
    same_bytes(images.whole(loop), guest, "device")
    found, more = layers.lines(loop)
    equal(len(found) + more, MOST_FILES, "layers")
    blockio.direct_write(loop.path, 0, b"n" * 4096)
    loop.detach()
    vhd_child.Chain(paths, b"").judge(b"n" * 4096 + guest[4096:])


@suite.cases(one=1, many=30)
def more_files_than_there_may_be(t, more):
    paths, _ = chain_of(t, MOST_FILES + more)
    refused(t, errno.EMLINK, *paths)


# Files that are in use


@suite.test
def parent_written_on_another_device(t):
    pair = Pair(t)
    other = t.attach(pair.parent)
    with layers.one_line(t, r"loop\d+: refused: .*parent\.vhd.*"):
        fails_with(errno.EBUSY, attach_named, t, pair.child)
    other.detach()
    pair.served(t)


@suite.test
def parent_written_as_raw_on_another_device(t):
    pair = Pair(t)
    images.attach_with(t, pair.parent, "raw")
    with layers.one_line(t, r"loop\d+: refused: .*parent\.vhd.*"):
        fails_with(errno.EBUSY, attach_named, t, pair.child)


@suite.cases(vhd="vhd", raw="raw")
def parent_in_use_to_be_written(t, parser):
    pair = Pair(t)
    loop = attach_named(t, pair.child)
    refused(t, errno.EBUSY, pair.parent, attach=lambda t, path, loop:
            images.attach_with(t, path, parser, loop=loop))
    same_bytes(images.whole(loop), pair.guest, "device")
    loop.detach()
    t.attach(pair.parent)


@suite.test
def grandparent_in_use_to_be_written(t):
    paths, _ = chain_of(t, 4)
    attach_named(t, paths[0])
    for path in paths[1:]:
        refused(t, errno.EBUSY, path)


@suite.test
def parent_in_use_to_be_read(t):
    pair = Pair(t)
    loop = attach_named(t, pair.child)
    other = loopdev.attach_read_only(pair.parent)
    t.defer(other.detach_if_bound)
    same_bytes(images.whole(other), pair.guest, "parent")
    loop.detach()
    same_bytes(images.whole(other), pair.guest, "parent, without its child")


@suite.test
def parent_in_use_is_not_removed_from_under_its_child(t):
    """A name that goes away, or leads elsewhere, changes nothing for an attached device."""
    pair = Pair(t)
    loop = attach_named(t, pair.child)
    os.unlink(pair.parent)
    make_parent(pair.parent, 0x55)
    same_bytes(images.whole(loop), pair.guest, "device")


@suite.test
def detached_chain_is_closed(t):
    """The parent's file, its file system and the modules are free again."""
    folder = t.ext4(32)
    make_parent(os.path.join(folder, "parent.vhd"))
    child = make_child(os.path.join(folder, "child.vhd"), naming("parent.vhd"))
    attach_named(t, child).detach()
    run("umount", folder)
    equal((system.references("loop"), system.references("vhdloop")), (0, 0), "references")


# Another file for a read-only device


class Changed:
    """A read-only device on a file without a parent, which is to get a child that has one."""

    def __init__(self, t, attach):
        self.t = t
        self.pair = Pair(t)
        self.first = t.path("first.vhd")
        self.guest = make_parent(self.first, 0x55)
        self.loop = attach(t, self.first, file_flags=os.O_RDONLY, flags=loopdev.READ_ONLY,
                           mode=os.O_RDONLY)

    def change(self):
        """LOOP_CHANGE_FD to the child."""
        self.loop.change_file_read_only(self.pair.child)

    def refused(self, number, says):
        """The change fails, with a log line, and the device goes on with its file."""
        files = [images.Unchanged(path)
                 for path in (self.first, self.pair.child, self.pair.parent)]
        before = self.state()
        with layers.one_line(self.t, rf"{self.loop.name}: refused: .*{says}.*"):
            fails_with(number, self.change)
        system.wait_until(lambda: self.state() == before, f"{self.state()} is {before}")
        same_bytes(images.whole(self.loop), self.guest, "device")
        for file in files:
            file.check()

    def state(self):
        """What stays as it is."""
        opened = [layers.is_open(path) for path in (self.pair.child, self.pair.parent)]
        return layers.state(self.loop), opened

    def served(self):
        """The change works; the device shows the parent's disk."""
        self.change()
        same_bytes(images.whole(self.loop), self.pair.guest, "device")
        equal(layers.paths(self.loop), [self.pair.child, self.pair.parent], "layers")


@suite.test
def change_to_a_child_is_not_allowed_by_default(t):
    """An attach is not the only way in."""
    Changed(t, attach_auto).refused(errno.EPERM, NOT_ALLOWED)


@suite.cases(named=("none", attach_named), beneath=(BENEATH, attach_auto), any=(ANY, attach_auto))
def change_to_a_child_is_allowed(t, case):
    value, attach = case
    layers.allow_parents(t, value)
    Changed(t, attach).served()


@suite.test
def change_to_a_child_whose_owner_may_not_read_the_parent(t):
    changed = Changed(t, attach_named)
    os.chown(changed.pair.child, ALICE, 0)
    os.chmod(changed.pair.parent, 0o600)
    changed.refused(errno.EACCES, r"parent\.vhd")


# Children without a folder


def no_folder(t, fd, values=("none", BENEATH, ANY)):
    """An open child that has no folder to look for its parent in."""
    for value in values:
        with modules.parameter("parents", value):
            with layers.one_line(t, r"loop\d+: refused: .*parent\.vhd.*"):
                fails_with(errno.EXDEV, layers.attach_fd, t, os.dup(fd))
    equal(system.references("vhdloop"), 0, "references to vhdloop")


@suite.test
def child_in_memory(t):
    pair = Pair(t)
    fd = os.memfd_create("child.vhd")
    t.defer(os.close, fd)
    os.write(fd, blockio.content(pair.child))
    no_folder(t, fd)


@suite.test
def child_that_was_removed(t):
    pair = Pair(t)
    fd = os.open(pair.child, os.O_RDWR)
    t.defer(os.close, fd)
    os.unlink(pair.child)
    no_folder(t, fd)


@suite.test
def child_without_a_name(t):
    pair = Pair(t)
    fd = os.open(pair.folder, os.O_RDWR | os.O_TMPFILE)
    t.defer(os.close, fd)
    os.write(fd, blockio.content(pair.child))
    no_folder(t, fd)


@suite.test
def child_whose_folder_was_removed(t):
    pair = Pair(t)
    fd = os.open(pair.child, os.O_RDWR)
    t.defer(os.close, fd)
    for name in os.listdir(pair.folder):
        os.unlink(pair.path(name))
    os.rmdir(pair.folder)
    no_folder(t, fd)


@suite.test
def child_that_is_mounted_alone(t):
    """What lies beside it is not what lies beside the mount point."""
    pair = Pair(t)
    point = blockio.make_sparse(t.path("point.vhd"), 0)
    make_parent(t.path("parent.vhd"))
    bind(t, pair.child, point)
    fd = os.open(point, os.O_RDWR)
    try:
        no_folder(t, fd)
    finally:
        os.close(fd)


@suite.test
def child_on_a_block_device(t):
    """/dev is no folder for disks, unless anything goes."""
    disk = t.ram_disk(8)
    pair = Pair(t)
    to_disk(disk, pair.child)
    fd = os.open(disk, os.O_RDWR)
    t.defer(os.close, fd)
    no_folder(t, fd, ("none", BENEATH))
    layers.allow_parents(t, ANY)
    with layers.one_line(t, r"loop\d+: refused: .*parent\.vhd.*"):
        fails_with(errno.ENOENT, layers.attach_fd, t, os.dup(fd))
    os.symlink(pair.parent, "/dev/parent.vhd")
    t.defer(os.unlink, "/dev/parent.vhd")
    same_bytes(images.whole(layers.attach_fd(t, os.dup(fd))), pair.guest, "device")


# Whose file it is


class Owned:
    """A child and its parent, with owners and modes; and a folder that all may search."""

    def __init__(self, t, child, parent):
        self.pair = Pair(t)
        for path, (owner, group, mode) in ((self.pair.child, child), (self.pair.parent, parent)):
            os.chown(path, owner, group)
            os.chmod(path, mode)

    def attach(self, t, opener, groups=()):
        """Attaches what a user has opened; root does the ioctl."""
        fd = users.opened_by(opener, self.pair.child, groups=groups)
        loop = layers.attach_fd(t, fd)
        same_bytes(images.whole(loop), self.pair.guest, "device")
        return loop

    def refused(self, t, opener, groups=()):
        """The parent is nothing that this attach may read."""
        loop = loopdev.free()
        before = layers.Untouched(loop, [self.pair.child, self.pair.parent])
        fd = users.opened_by(opener, self.pair.child, groups=groups)
        with layers.one_line(t, rf"{loop.name}: refused: .*parent\.vhd.*"):
            fails_with(errno.EACCES, layers.attach_fd, t, fd, loop)
        before.check()


ROOT = 0
# (opener, its groups, child's and parent's owner, group and mode)
MAY = {
    "root_attaches_its_own": (ROOT, (), (ROOT, 0, 0o600), (ROOT, 0, 0o600)),
    "root_attaches_a_users": (ROOT, (), (ALICE, 0, 0o600), (ALICE, 0, 0o600)),
    "root_attaches_a_users_on_a_public_one": (ROOT, (), (ALICE, 0, 0o600), (ROOT, 0, 0o644)),
    "user_attaches_its_own": (ALICE, (), (ALICE, 0, 0o600), (ALICE, 0, 0o600)),
    "user_may_read_it_by_its_group": (ALICE, (STAFF,), (ALICE, 0, 0o600), (ROOT, STAFF, 0o640)),
    "user_may_only_read_it": (ALICE, (), (ALICE, 0, 0o600), (ALICE, 0, 0o400)),
    "both_may_read_it": (ALICE, (), (BOB, 0, 0o666), (ROOT, 0, 0o644)),
    "child_is_shared_by_a_group": (ALICE, (STAFF,), (BOB, STAFF, 0o660), (ROOT, 0, 0o644)),
}
MAY_NOT = {
    "root_attaches_a_users_on_its_own": (ROOT, (), (ALICE, 0, 0o600), (ROOT, 0, 0o600)),
    "root_attaches_a_users_on_anothers": (ROOT, (), (ALICE, 0, 0o600), (BOB, 0, 0o600)),
    "users_groups_do_not_count_for_root": (ROOT, (), (ALICE, 0, 0o600), (ROOT, STAFF, 0o640)),
    "childs_group_does_not_count": (ROOT, (), (ALICE, STAFF, 0o660), (ROOT, STAFF, 0o640)),
    "root_group_does_not_count": (ROOT, (0,), (ALICE, 0, 0o600), (ROOT, 0, 0o640)),
    "user_attaches_its_own_on_roots": (ALICE, (), (ALICE, 0, 0o600), (ROOT, 0, 0o600)),
    "user_attaches_roots_on_its_own": (ALICE, (), (ROOT, 0, 0o666), (ALICE, 0, 0o600)),
    "only_the_opener_may_read_it": (ALICE, (), (BOB, 0, 0o666), (ALICE, 0, 0o600)),
    "only_the_childs_owner_may_read_it": (ALICE, (), (BOB, 0, 0o666), (BOB, 0, 0o600)),
    "nobody_may_read_it": (ALICE, (), (ALICE, 0, 0o600), (ALICE, 0, 0o200)),
    "group_may_not_read_it": (ALICE, (STAFF,), (ALICE, 0, 0o600), (ROOT, STAFF, 0o604)),
}


@suite.cases(**MAY)
def may(t, case):
    opener, groups, child, parent = case
    Owned(t, child, parent).attach(t, opener, groups)


@suite.cases(**MAY_NOT)
def may_not(t, case):
    opener, groups, child, parent = case
    Owned(t, child, parent).refused(t, opener, groups)


@suite.cases(beneath=BENEATH, any=ANY)
def may_not_whatever_the_parameter_says(t, value):
    layers.allow_parents(t, value)
    Owned(t, (ALICE, 0, 0o600), (ROOT, 0, 0o600)).refused(t, ROOT)


@suite.test
def folder_that_the_owner_may_not_search(t):
    """Permissions of folders count, too; the child was opened before they changed."""
    owned = Owned(t, (ALICE, 0, 0o600), (ALICE, 0, 0o600))
    fd = users.opened_by(ALICE, owned.pair.child)
    os.chmod(owned.pair.folder, 0o700)
    with layers.one_line(t, r"loop\d+: refused: .*parent\.vhd.*"):
        fails_with(errno.EACCES, layers.attach_fd, t, fd)
    os.chmod(owned.pair.folder, 0o711)
    owned.attach(t, ALICE)


@suite.test
def grandparent_that_the_parents_owner_may_not_read(t):
    """Each image's owner answers for what that image names."""
    make_parent(t.path("grandparent.vhd"))
    make_child(t.path("parent.vhd"), naming("grandparent.vhd"), unique_id=vhd_child.identity(0x22))
    make_child(t.path("child.vhd"), naming("parent.vhd"), 0x22)
    os.chmod(t.path("grandparent.vhd"), 0o600)
    os.chown(t.path("parent.vhd"), BOB, BOB)
    os.chmod(t.path("parent.vhd"), 0o644)
    refused(t, errno.EACCES, t.path("child.vhd"), t.path("parent.vhd"), says=r"grandparent\.vhd")
    os.chown(t.path("grandparent.vhd"), BOB, BOB)
    attach_named(t, t.path("child.vhd"))


@suite.test
def no_process_appears_to_be_the_owner(t):
    """Whatever was taken on to look for the parent is put back: the next open is root's."""
    Owned(t, (ALICE, 0, 0o600), (ROOT, 0, 0o600)).refused(t, ROOT)
    blockio.make_file(t.path("roots"), 512)
    os.chmod(t.path("roots"), 0o600)
    equal(len(blockio.content(t.path("roots"))), 512, "bytes that root reads")
    equal((os.geteuid(), os.getgroups()), (0, os.getgroups()), "the test's ids")


if __name__ == "__main__":
    suite.main()
