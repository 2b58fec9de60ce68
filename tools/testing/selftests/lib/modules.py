# SPDX-License-Identifier: GPL-2.0
"""Kernel modules by their system calls, which tell the errno."""

import contextlib
import ctypes
import os

from lib import loopdev, system

FINIT_MODULE = 313
DELETE_MODULE = 176
COMPRESSED_FILE = 4
PARSERS = ("qcowloop", "vhdloop", "vmdkloop")
LIBC = ctypes.CDLL(None, use_errno=True)


def call(number, *args):
    """A system call; raises OSError."""
    result = LIBC.syscall(number, *args)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def insert(path, params=""):
    """Loads a module from a file, without those it needs."""
    flags = 0 if path.endswith(".ko") else COMPRESSED_FILE
    with loopdev.opened(path) as fd:
        call(FINIT_MODULE, fd, params.encode(), flags)


def delete(name):
    """Unloads a module; EAGAIN if it is in use, EBUSY or EWOULDBLOCK for other reasons."""
    call(DELETE_MODULE, name.encode(), os.O_NONBLOCK)


def loop_file(driver):
    """The file of a loop driver."""
    return system.stock_loop() if driver == "stock" else system.our_loop()


@contextlib.contextmanager
def parsers_unloaded():
    """The loop driver without parsers: all references to it are those of users of devices.

    Afterwards it is loaded as a user loads it.
    """
    driver = system.driver_in_use()
    for name in PARSERS:
        if system.loaded(name):
            delete(name)
    try:
        yield
    finally:
        detach_all()
        system.unload_loop()
        system.load_loop(driver)


@contextlib.contextmanager
def hidden(name):
    """A module that cannot be loaded for a while, as if it were not installed."""
    path = f"/run/modprobe.d/hidden-{name}.conf"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        file.write(f"install {name} /bin/false\n")
    try:
        if system.loaded(name):
            delete(name)
        yield
    finally:
        os.unlink(path)


def detach_all():
    """Detaches what is bound, so that the driver can be unloaded."""
    for loop in loopdev.bound():
        loop.detach()


@contextlib.contextmanager
def loaded_with(params):
    """The loop driver in use, loaded anew with parameters, and afterwards without.

    What it needs stays loaded. Raises OSError if it does not load. Within parsers_unloaded().
    """
    path = loop_file(system.driver_in_use())
    delete("loop")
    try:
        insert(path, params)
        yield
    finally:
        if system.loaded("loop"):
            detach_all()
            delete("loop")
        insert(path)


@contextlib.contextmanager
def parameter(name, value):
    """A parameter of the loop driver, set for a while."""
    path = f"/sys/module/loop/parameters/{name}"
    with open(path, encoding="ascii") as file:
        before = file.read().strip()
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
    try:
        yield
    finally:
        with open(path, "w", encoding="ascii") as file:
            file.write(before)
