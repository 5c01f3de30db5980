"""SHA-256 of every file of a checkpoint: written before it becomes visible, checked before use.

The sums are taken over what the operating system reads back, so they catch what happens to a
file afterwards (truncation, bit rot, a lost or half-copied file), not a fault in memory before.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from jaxscale.checkpoint.layout import CHECKSUMS_FILE
from jaxscale.checkpoint.places import Place, files_below


class Problem(NamedTuple):
    """One damaged file: its path inside the checkpoint and what is wrong with it."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class FileSum(NamedTuple):
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    bytes: int
    sha256: str


def write_checksums(directory: Place) -> int:
    """Hashes every file below `directory` into its checksums file; returns the bytes hashed."""
    names = list(files_below(directory))
    sums = dict(zip(names, _hash_files([directory / name for name in names]), strict=True))
    table = {name: entry._asdict() for name, entry in sums.items()}
    document = {"algorithm": "sha256", "files": table, "self": _digest_of_table(table)}
    (directory / CHECKSUMS_FILE).write_text(json.dumps(document, indent=1) + "\n")
    return sum(entry.bytes for entry in sums.values())


def find_problems(directory: Place, *, part: int = 0, num_parts: int = 1) -> list[Problem]:
    """Every file that is missing, truncated or changed, in the order of their names.

    With `num_parts` processes on a shared disk each checks every num_parts-th file, from `part`.
    """
    sums = _read_checksums(directory)
    if isinstance(sums, Problem):
        return [sums]
    names, sizes = sorted(sums)[part::num_parts], files_below(directory)
    problems = {name: _size_problem(name, sums[name], sizes.get(name)) for name in names}
    intact = [name for name in names if problems[name] is None]
    found = _hash_files([directory / name for name in intact])
    for name, actual in zip(intact, found, strict=True):
        problems[name] = _content_problem(name, sums[name], actual)
    return [problem for problem in problems.values() if problem is not None]


def _size_problem(name: str, expected: FileSum, size: int | None) -> Problem | None:
    if size is None:
        return Problem(name, "missing")
    if size != expected.bytes:
        return Problem(name, f"{size} bytes, was saved with {expected.bytes}")
    return None


def _content_problem(name: str, expected: FileSum, actual: FileSum) -> Problem | None:
    if actual == expected:
        return None
    return Problem(
        name, f"content changed: sha256 {actual.sha256[:12]}, saved {expected.sha256[:12]}"
    )


def _read_checksums(directory: Place) -> dict[str, FileSum] | Problem:
    path = directory / CHECKSUMS_FILE
    if not path.is_file():
        return Problem(CHECKSUMS_FILE, "missing")
    try:
        document = json.loads(path.read_bytes())
        table, saved_digest = document["files"], document["self"]
        sums = {name: FileSum(**entry) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Problem(CHECKSUMS_FILE, f"unreadable: {error!r}")
    if saved_digest != _digest_of_table(table):
        return Problem(CHECKSUMS_FILE, "content changed: it does not match its own sum")
    return sums


def _digest_of_table(table: Mapping[str, Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _hash_files(paths: list[Place]) -> list[FileSum]:
    # hashlib releases the interpreter lock, so threads scale with cores.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_hash_file, paths))


def _hash_file(path: Place) -> FileSum:
    opened: Any = path.open("rb")
    with opened as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileSum(file.tell(), digest.hexdigest())
