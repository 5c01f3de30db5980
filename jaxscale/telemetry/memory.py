"""Memory in use, on this host and on its devices."""

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

_STATM = Path("/proc/self/statm")


def memory_metrics(devices: Sequence[jax.Device]) -> dict[str, int]:
    """Bytes in use: `host_memory_bytes`, and of the fullest device `device_memory_bytes` and its peak.

    Devices that do not count (CPUs) give no device entries.
    """
    stats = [stat for stat in (device.memory_stats() for device in devices) if stat]
    metrics = {"host_memory_bytes": host_memory_bytes()}
    if stats:
        metrics["device_memory_bytes"] = max(int(stat["bytes_in_use"]) for stat in stats)
        metrics["device_memory_peak_bytes"] = max(int(s.get("peak_bytes_in_use", 0)) for s in stats)
    return metrics


def host_memory_bytes() -> int:
    """Resident memory of this process; its highest so far where the system tells no more (macOS)."""
    if _STATM.exists():
        resident_pages = int(_STATM.read_text().split()[1])
        return resident_pages * os.sysconf("SC_PAGE_SIZE")
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024
