# SPDX-License-Identifier: GPL-2.0
"""Memory that nothing points to any more, as kmemleak finds it. Without it, nothing is found."""

import os
import re
import time

KNOB = "/sys/kernel/debug/kmemleak"
# Younger objects are not reported: their address may be in a register only.
AGE = 6
# Functions of the driver; or ones that have no name any more, as their module is gone.
OURS = re.compile(r"\[(loop_parser|loop_images|qcowloop|vhdloop|vmdkloop)\]|\] 0xffffffff", re.I)


def command(text):
    """Gives kmemleak a command."""
    with open(KNOB, "w", encoding="ascii") as file:
        file.write(text)


def forget():
    """What was lost so far is not looked at again."""
    if os.path.exists(KNOB):
        command("scan")
        command("clear")


def lost():
    """What the driver, or somebody it called, has allocated and lost: one text per object."""
    if not os.path.exists(KNOB):
        return []
    time.sleep(AGE)
    try:
        command("scan")
        command("scan")
        with open(KNOB, encoding="utf-8", errors="replace") as file:
            objects = re.split(r"^(?=unreferenced object)", file.read(), flags=re.M)[1:]
        command("clear")
    except OSError as error:
        return [f"kmemleak has given up: {error}"]
    return ["lost: " + " | ".join(text.split("\n")) for text in objects if OURS.search(text)]
