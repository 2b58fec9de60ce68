# SPDX-License-Identifier: GPL-2.0
"""When no test is started any more: at LP_DEADLINE, in seconds since the epoch.

Whoever ends the machine at some time sets it to an earlier one. On a slow machine fewer tests are
done then, each of the others is reported as skipped, and only what hangs meets the machine's end.
"""

import os
import time

# What the skipped tests say; tools/testing/check looks for it.
REASON = "no time left"
END = float(os.environ.get("LP_DEADLINE", "inf"))


def passed():
    """Whether it is that late."""
    return time.time() >= END
