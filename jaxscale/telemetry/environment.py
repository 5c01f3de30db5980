"""What a run ran on: enough to repeat it, nothing that identifies a person or a machine."""

import os
import platform
import subprocess
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from jaxscale.telemetry.peak import usable_cores

_PACKAGES = ("jaxscale", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe_environment() -> dict[str, Any]:
    """Versions, devices, processes, flags, the working directory's commit; plain JSON types."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "backend": jax.default_backend(),
        "devices": dict(Counter(device.device_kind for device in jax.devices())),
        "num_processes": jax.process_count(),
        "cpu_cores": usable_cores(),
        "host_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "flags": {k: os.environ[k] for k in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") if k in os.environ},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_has_changes": _git_has_changes(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_has_changes() -> bool | None:
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return None if changes is None else bool(changes)


def _git(*arguments: str) -> str | None:
    """What git prints about the working directory; None without git or outside a repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
