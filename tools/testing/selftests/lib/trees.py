# SPDX-License-Identifier: GPL-2.0
"""Trees of files: what is put into a file system, and whether it is still there."""

import os

from lib import blockio
from lib.ktap import Failure
from lib.system import run

KIB = 1 << 10
SIZES = (0, 1, 511, 512, 4095, 4096, 4097, 65536, 300 * KIB + 7)


def make(top, seed=1, links=True):
    """Folders and files of many sizes, symbolic links unless told not to; returns listing()."""
    for number, size in enumerate(SIZES):
        folder = os.path.join(top, f"folder {number % 3}", "below")
        os.makedirs(folder, exist_ok=True)
        blockio.make_file(os.path.join(folder, f"file {size}"), size, seed * 100 + number)
    if links:
        os.symlink("folder 1/below/file 65536", os.path.join(top, "link"))
    return listing(top)


def made_on(t, device, *mkfs):
    """Makes a file system on a device, fills it with make(), unmounts it; returns listing()."""
    run(*mkfs, device)
    point = t.mount(device)
    found = make(point)
    run("umount", point)
    return found


def listing(top):
    """What is below `top`: name to digest of a file, target of a link, or None for a folder."""
    found = {}
    for folder, folders, names in os.walk(top):
        for name in folders + names:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, top)] = describe(path)
    return found


def describe(path):
    """What one entry of a listing says."""
    if os.path.islink(path):
        return os.readlink(path)
    return None if os.path.isdir(path) else blockio.digest(path)


def same(top, expected, what):
    """Fails unless `expected` is what is below `top`, but for what mkfs has put there."""
    actual = {name: value for name, value in listing(top).items() if name != "lost+found"}
    wanted = {name: value for name, value in expected.items() if name != "lost+found"}
    missing = sorted(wanted.keys() - actual.keys())
    extra = sorted(actual.keys() - wanted.keys())
    changed = sorted(name for name in wanted.keys() & actual.keys()
                     if wanted[name] != actual[name])
    if missing or extra or changed:
        raise Failure(f"{what}: missing {missing}, not expected {extra}, changed {changed}")
