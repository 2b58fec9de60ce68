# SPDX-License-Identifier: GPL-2.0
"""Judging and making images with tools that are not ours: qemu-img, and the sample images."""

import hashlib
import json
import os
import random

from lib import blockio, loopdev, system, vhd_reader
from lib.ktap import Failure, Skip, equal, same_bytes
from lib.system import run

MIB = 1 << 20
HERE = os.path.dirname(os.path.abspath(__file__))
SAMPLES = os.environ.get(
    "LP_SHARED_IMAGES", os.path.abspath(f"{HERE}/../../../../../shared/images"))


def create(path, size, kind="vpc", **options):
    """qemu-img create; returns the path."""
    args = ["-o", ",".join(f"{name}={value}" for name, value in options.items())]
    run("qemu-img", "create", "-q", "-f", kind, *(args if options else []), path, str(size))
    return path


def convert(path, target, kind="vpc"):
    """The whole guest disk as qemu-img sees it, as the file `target`."""
    run("qemu-img", "convert", "-f", kind, "-O", "raw", path, target)
    return target


def qemu_size(path, kind="vpc"):
    """The size of the guest disk as qemu-img sees it."""
    out = run("qemu-img", "info", "-f", kind, "--output=json", path)
    return json.loads(out)["virtual-size"]


def judge(t, path, expected, qemu=True):
    """Fails unless a detached VHD is sound and holds `expected`, by our reader and by qemu-img."""
    same_bytes(vhd_reader.guest_of(path), expected, "image, by the specification")
    if qemu:
        raw = convert(path, t.path("converted.raw"))
        same_bytes(blockio.content(raw), expected, "image, by qemu-img convert")
        os.unlink(raw)


def scribble(device, shadow, seed=1, count=40, longest=MIB):
    """Writes at random places through a Direct, and into its shadow copy; reads back at once."""
    rng = random.Random(seed)
    sectors = len(shadow) // 512
    for _ in range(count):
        limit = min(longest // 512, sectors)
        length = min(int(limit ** rng.random()) + rng.randrange(2), limit)
        first = rng.randrange(sectors - length + 1)
        data = rng.randbytes(length * 512)
        device.write(first * 512, data)
        shadow[first * 512:(first + length) * 512] = data
        same_bytes(device.read(first * 512, length * 512), data, "read back")


def attach_with(t, path, parser, loop=None, **kwargs):
    """Attaches to a device whose parser was chosen; the choice does not outlive a refusal."""
    loop = loop or loopdev.free()
    loop.set_attr("loop/parser", parser)
    try:
        return t.attach(path, loop=loop, **kwargs)
    except OSError:
        loop.set_attr("loop/parser", "auto")
        raise


def whole(loop):
    """All of a device, past the page cache."""
    return blockio.direct_read(loop.path, 0, loop.size())


class Sample:
    """One of the images that other tools made (see the README.md beside them)."""

    def __init__(self, name, size, sha256):
        self.name = name
        self.size = size
        self.sha256 = sha256

    def unpack(self, t):
        """The unpacked file in the test's folder."""
        path = t.path(self.name)
        packed = os.path.join(SAMPLES, f"{self.name}.xz")
        # xz leaves holes where there are zeros.
        run("sh", "-c", 'xz -dc "$1" >"$2"', "sh", packed, path)
        return path


def samples():
    """The samples by name, as recorded in their README.md; empty if they are not there."""
    found = {}
    try:
        with open(os.path.join(SAMPLES, "README.md"), encoding="utf-8") as file:
            lines = file.readlines()
    except FileNotFoundError:
        return found
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 7 and cells[4].isdigit():
            name = cells[1].split()[0]
            found[name] = Sample(name, int(cells[4]), cells[5])
    return found


def sample(name):
    """A sample by name; the test is skipped if the samples are not there."""
    found = samples()
    if not found:
        raise Skip(f"no sample images in {SAMPLES} (set LP_SHARED_IMAGES)")
    if name not in found:
        raise Failure(f"no sample {name} in {SAMPLES}/README.md")
    return found[name]


class Unchanged:
    """Remembers a file, to prove later that nothing has written to it."""

    def __init__(self, path):
        self.path = path
        self.before = self.look()

    def look(self):
        """Content, size and time of the last change."""
        stat = os.stat(self.path)
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, stat.st_size, stat.st_mtime_ns

    def check(self):
        """Fails if the file has changed."""
        equal(self.look(), self.before, f"{os.path.basename(self.path)} (hash, size, mtime)")


def nothing_is_held(folder, module):
    """Neither the file system nor the modules, when all devices are detached."""
    equal(loopdev.bound(), [], "bound devices")
    run("umount", folder)
    equal((system.references("loop"), system.references(module)), (0, 0), "references")
