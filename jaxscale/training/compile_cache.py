"""Compiled programs kept between processes: a run that starts again reads its step instead of compiling it."""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

FOLDER = ".compile_cache"
# JAX's own variable, which wins: a directory of one's own, or nothing for no cache.
VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_OPTION = "jax_compilation_cache_dir"


@contextmanager
def compile_cache(run: Path) -> Iterator[Path | None]:
    """JAX's cache of compiled programs, on as long as the context is open; yields where it is, None where it stays off.

    It lies beside the run, because a run's directory is on storage that all its hosts reach: with several processes
    only one writes, and a restart may wake up on another machine.
    """
    directory = cache_directory(run)
    if VARIABLE in os.environ or not _can_be_made(directory):
        yield Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
        return
    jax.config.update(_OPTION, str(directory))
    try:
        yield directory
    finally:
        jax.config.update(_OPTION, None)
        reset_cache()  # It is opened at the first compilation, and stays open.


def cache_directory(run: Path) -> Path:
    """Where the programs of a run are kept: programs for CPUs apart, by what those can do."""
    return run.absolute().parent / FOLDER / _host()


def _can_be_made(directory: Path) -> bool:
    """A cache is a help and no need."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)


def _host() -> str:
    """A name for CPUs that run each other's programs. JAX's keys tell accelerators apart, but not CPUs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    # `flags` on x86, `Features` on Arm.
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    digest = hashlib.sha256(features.encode()).hexdigest()[:8]
    return f"{platform.machine()}-{digest}"
