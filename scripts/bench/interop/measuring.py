"""Transfers beside a plain copy of what they read: seconds and peak memory of each in a process of its own."""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COPY = "copy"


@dataclass(frozen=True)
class Run:
    """seconds: of the transfer. process_seconds: with the start of Python and its imports. peak: resident megabytes."""

    seconds: float
    process_seconds: float
    peak: float


def compare(
    script: str, source: Path, runs: Mapping[str, Sequence[str]], made: Sequence[Path], repeats: int
) -> dict[str, object]:
    """Each run (arguments of the script's child) in turn, again and again; the fastest of each, over the fastest copy.

    made: what is removed after a run. The source is out of the page cache when each begins.
    """
    bytes_read = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    found: dict[str, list[Run]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, arguments in runs.items():
            drop_cache(source)
            found[name].append(in_child(script, *arguments))
            for path in made:
                shutil.rmtree(path, ignore_errors=True)
    copied = min(run.seconds for run in found[COPY])
    record: dict[str, object] = {"source_GB": round(bytes_read / 1e9, 3)}
    return record | {name: _summary(values, bytes_read, copied) for name, values in found.items()}


def _summary(runs: Sequence[Run], bytes_read: int, copied: float) -> dict[str, object]:
    seconds = min(run.seconds for run in runs)
    return {
        "s": round(seconds, 2),
        "all_s": [round(run.seconds, 2) for run in runs],
        "process_s": round(min(run.process_seconds for run in runs), 2),
        "peak_MB": round(max(run.peak for run in runs)),
        "GB_per_s": round(bytes_read / 1e9 / seconds, 3),
        "of_copy": round(copied / seconds, 3),
    }


def in_child(script: str, *arguments: str) -> Run:
    start = time.perf_counter()
    command = [sys.executable, script, "--child", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = map(float, done.stdout.splitlines()[-1].split())
    return Run(seconds, time.perf_counter() - start, peak)


def say(transfer: Callable[[], object]) -> None:
    """In the child: what `in_child` reads."""
    start = time.perf_counter()
    transfer()
    seconds = time.perf_counter() - start
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def copy(source: Path, target: Path) -> None:
    """A plain copy, flushed to the disk."""
    shutil.copytree(source, target)
    for path in target.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def drop_cache(directory: Path) -> None:
    """Takes files out of the page cache (Linux), so that nobody reads them from memory."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def check_room(directory: Path, num_bytes: float) -> None:
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise SystemExit(
            f"{directory} has no room: {free / 1e9:.1f} GB are free, {num_bytes / 1e9:.1f} are needed"
        )
