# SPDX-License-Identifier: GPL-2.0
"""The machine around the loop driver: programs, mounts, modules, a block device in memory."""

import contextlib
import glob
import os
import subprocess
import time

SCRATCH = "/run/loop-selftests"
RAM_DISK = "/dev/ram0"
# How much slower than usual this machine may be.
PATIENCE = int(os.environ.get("LP_PATIENCE", "1"))


class CommandError(Exception):
    """A program failed."""

    def __init__(self, done):
        self.status = done.returncode
        self.output = done.stdout + done.stderr
        super().__init__(f"{' '.join(done.args)}: exit status {self.status}: {self.output.strip()}")


def run(*args, text=None, env=None):
    """Runs a program and returns what it printed; raises CommandError if it failed."""
    done = attempt(*args, text=text, env=env)
    if done.returncode:
        raise CommandError(done)
    return done.stdout


def attempt(*args, text=None, env=None):
    """Runs a program and returns the CompletedProcess, whatever its status."""
    full_env = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
    return subprocess.run(args, input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          encoding="utf-8", errors="replace", env=full_env, check=False)


def scratch():
    """The folder that tests make their own folders in."""
    return SCRATCH


@contextlib.contextmanager
def scratch_mounted():
    """A fresh tmpfs at SCRATCH while the suite runs.

    The guest's root is an overlay, on which the driver never takes its fast path.
    """
    os.makedirs(SCRATCH, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=90%", "tmpfs", SCRATCH)
    try:
        yield
    finally:
        run("umount", SCRATCH)


def unmap_partitions(path):
    """kpartx -d, until it succeeds: it does not try again itself if udevd is looking at a map."""
    wait_until(lambda: not attempt("kpartx", "-d", "-s", path).returncode, f"kpartx -d {path} succeeds")


def unmount_if_mounted(point):
    """Unmounts all that is mounted at `point`.

    A loop device that udevd is looking at keeps its file open until udevd has done so.
    """
    while os.path.ismount(point):
        wait_until(lambda: attempt("umount", point).returncode == 0, f"{point} is not in use")


def wait_until(condition, what, seconds=120):
    """Waits for something that happens soon but not at once; `what` may be a function that says.

    The limit is for what never happens: a guest that shares its processors may stand still for long.
    """
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"gave up waiting until {what() if callable(what) else what}")
        time.sleep(0.02)


def ram_disk(mebibytes):
    """An empty block device in memory (brd)."""
    run("modprobe", "brd", "rd_nr=1", f"rd_size={mebibytes << 10}")
    wait_until(lambda: os.path.exists(RAM_DISK), f"{RAM_DISK} is there")
    return RAM_DISK


def remove_ram_disk():
    """Frees the memory of ram_disk()."""
    wait_until(lambda: attempt("rmmod", "brd").returncode == 0, "brd is not in use")


def has_file_system(name):
    """Whether the kernel has a file system; the debug kernel has few."""
    attempt("modprobe", name)
    with open("/proc/filesystems", encoding="ascii") as file:
        return any(line.split()[-1] == name for line in file)


def loaded(module):
    """Whether a module is loaded."""
    return os.path.isdir(f"/sys/module/{module}")


def references(module):
    """How many references keep a module from being unloaded."""
    with open(f"/sys/module/{module}/refcnt", encoding="ascii") as file:
        return int(file.read())


def stock_loop():
    """The distribution's loop.ko."""
    return module_file("kernel", "loop")


def our_loop():
    """Our loop.ko, where `make modules_install` has put it."""
    return module_file("updates", "loop")


def module_file(folder, name):
    """The file of a module that is installed in a folder like kernel or updates."""
    found = glob.glob(f"/lib/modules/{os.uname().release}/{folder}/drivers/block/{name}.ko*")
    if len(found) != 1:
        raise FileNotFoundError(f"{name}.ko in {folder}")
    return found[0]


def unload_loop():
    """Unloads the loop driver, whichever it is, its parsers, and what they are based on."""
    for module in ("loop_images", "loop", "qcowloop", "vhdloop", "vmdkloop", "loop_parser"):
        if loaded(module):
            run("rmmod", module)


def load_loop(driver="ours", *params):
    """Loads the loop driver: "ours", as a user does, or "stock"."""
    if driver == "ours":
        run("modprobe", "loop", *params)
        if not os.path.exists("/sys/module/loop/parameters/autodetect"):
            raise FileNotFoundError("modprobe loop did not load our loop.ko")
    else:
        run("insmod", stock_loop(), *params)
    wait_until(lambda: os.path.exists("/dev/loop-control"), "/dev/loop-control is there")


def driver_in_use():
    """ "ours", "stock", or None if there is no loop driver."""
    if not loaded("loop"):
        return None
    ours = os.path.exists("/sys/module/loop/parameters/autodetect")
    return "ours" if ours else "stock"


@contextlib.contextmanager
def udev_running():
    """udevd as on any machine: it looks at every device that appears or changes."""
    start_udev()
    yield
    settle()


@contextlib.contextmanager
def udev_stopped():
    """No udevd: nobody but the test opens a device, and nothing has to be waited for."""
    stop_udev()
    yield


def start_udev():
    """Starts udevd unless it runs."""
    if not udev_runs():
        run("/usr/lib/systemd/systemd-udevd", "--daemon")


def stop_udev():
    """Ends udevd once it has done what it was told to."""
    if udev_runs():
        settle()
        # It waits for its workers, which may be looking at a device yet.
        wait_until(udev_has_ended, "udevd has ended", seconds=600)


def udev_has_ended():
    """Whether udevd is no longer there. If it is, tells it once more to go: on a busy machine it may have
    missed that."""
    if not udev_runs():
        return True
    ask_udev("control", "--exit")
    return False


def udev_runs():
    """Whether udevd is there and answers."""
    return ask_udev("control", "--ping", "--timeout=600").returncode == 0


def settle():
    """Waits until udevd has done what it was told to."""
    done = ask_udev("settle", "--timeout=600")
    if done.returncode:
        raise CommandError(done)


def ask_udev(*args):
    """Runs udevadm. On a busy machine udevd may hang up on a client before it has answered: then once
    more."""
    for _ in range(10):
        done = attempt("udevadm", *args)
        if not done.returncode or "Broken pipe" not in done.stderr:
            break
        time.sleep(1)
    return done
