# SPDX-License-Identifier: GPL-2.0
"""What the programs of this folder share, with what the selftests share."""

import os

__path__.append(os.path.join(os.path.dirname(__file__), "../../selftests/lib"))
