# SPDX-License-Identifier: GPL-2.0
"""The reviewed list of what our driver says otherwise than the stock one (../differences)."""

import os
import re

FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "differences")


class Entry:
    """Lines of reports, by suite and pattern, and why they differ."""

    def __init__(self, suites, pattern):
        self.suites = suites.split()
        self.pattern = re.compile(pattern)
        self.reason = ""
        self.lines = 0

    def explains(self, line):
        """Whether a line of a comparison is one of these; counts it."""
        found = bool(self.pattern.fullmatch(line))
        self.lines += found
        return found


def read():
    """All entries."""
    with open(FILE, encoding="utf-8") as file:
        return parse(file)


def parse(lines):
    """Entries are a line "SUITE…: PATTERN" and indented lines with the reason."""
    entries = []
    for line in map(str.rstrip, lines):
        if not line or line.startswith("#"):
            continue
        if line.startswith(" "):
            entries[-1].reason = f"{entries[-1].reason} {line.strip()}".strip()
        else:
            entries.append(Entry(*line.split(": ", 1)))
    for entry in entries:
        if not entry.reason:
            raise ValueError(f"{FILE}: no reason for {entry.pattern.pattern}")
    return entries


def problems(suite, found):
    """What is wrong with a comparison: lines that no entry for the suite explains, and entries for
    it that explain nothing."""
    entries = [entry for entry in read() if suite in entry.suites]
    wrong = [line for line in found if not any([entry.explains(line) for entry in entries])]
    return wrong + [f"listed as a difference, but there is none: {entry.pattern.pattern}"
                    for entry in entries if not entry.lines]
