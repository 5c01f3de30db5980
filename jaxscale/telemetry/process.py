"""Processes as the operating system knows them: how old this one is, and whether another one still lives."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True)
class Identity:
    """A process. machine: random at each boot, with the namespace that `pid` counts in. started: ticks since boot."""

    pid: int
    machine: str | None
    started: int | None


def seconds_since_process_start() -> float | None:
    """Wall seconds since the operating system started this process; None where it does not say (not Linux)."""
    ticks = _started_at(os.getpid())
    if ticks is None:
        return None
    started = ticks / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def identity() -> Identity:
    """Who we are."""
    return Identity(os.getpid(), _machine(), _started_at(os.getpid()))


def lives(process: Identity) -> bool | None:
    """Whether a process is still there; None where only another machine (or container) could tell."""
    if process.machine is None or process.machine != _machine():
        return None
    return _started_at(process.pid) == process.started


def _machine() -> str | None:
    if not (_BOOT.exists() and _NAMESPACE.exists()):
        return None
    return f"{_BOOT.read_text().strip()}/{_NAMESPACE.stat().st_ino}"


def _started_at(pid: int) -> int | None:
    """Clock ticks between boot and the start of a process; None where there is none, or only its exit status."""
    try:
        # Fields count from behind the parenthesized command: 3 is the state, 22 the start (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])
