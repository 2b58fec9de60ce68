# SPDX-License-Identifier: GPL-2.0
"""What the suites in the folder above share. Python's standard library only."""
