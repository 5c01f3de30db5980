"""The age of this process: what a user waits before the first step is done."""

import os
import time
from pathlib import Path


def seconds_since_process_start() -> float | None:
    """Wall seconds since the operating system started this process; None where it does not say (not Linux)."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return None
    # Fields count from behind the parenthesized command; field 22 is the start, in clock ticks since boot (proc(5)).
    ticks = int(stat.read_text().rsplit(")", 1)[1].split()[19])
    started = ticks / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
