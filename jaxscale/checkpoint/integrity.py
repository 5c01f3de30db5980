"""A sum of every file of a checkpoint: written before it becomes visible, checked before use.

The sums are taken over what the operating system reads back, so they catch what happens to a
file afterwards (truncation, bit rot, a lost or half-copied file), not a fault in memory before.
They lie beside the files, so they are no seal against people: XXH3 in 128 bits finds what
SHA-256 finds of accidents and runs ten times as fast. Checkpoints that have SHA-256 are checked by it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from jaxscale.checkpoint.layout import CHECKSUMS_FILE, flush
from jaxscale.checkpoint.places import Place, files_below

_ALGORITHM = "xxh3_128"
_DIGESTS: Mapping[str, Callable[[], Any]] = {
    _ALGORITHM: xxhash.xxh3_128,
    "sha256": hashlib.sha256,
}
# TensorStore gives a file its name when it is whole.
_UNFINISHED = ".__lock"


class Problem(NamedTuple):
    """One damaged file: its path inside the checkpoint and what is wrong with it."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class FileSum(NamedTuple):
    """Size in bytes and digest (hexadecimal) of one file."""

    bytes: int
    digest: str
    algorithm: str = _ALGORITHM


class EarlySums:
    """Sums of the files below a local directory that are whole, taken while others are still being written.

    They are flushed to the disk then, too: it has time.

    A file is the same for as long as its inode, size and time of change are.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pool = ThreadPoolExecutor(1)
        self._sums: dict[Any, Future[FileSum]] = {}

    def start(self) -> None:
        """Begin with what is there and is not being written under another name."""
        for path in self._directory.rglob("*"):
            if path.is_file() and not path.name.endswith(_UNFINISHED):
                version = _version(path)
                if version not in self._sums:
                    self._sums[version] = self._pool.submit(_hash_and_flush, path)

    def of(self, path: Path) -> FileSum:
        """The sum of a file as it is now."""
        early = self._sums.get(_version(path))
        return early.result() if early else _hash_file(path)

    def stop(self) -> None:
        """Begin no more of them, and return when none is being read."""
        self._pool.shutdown(cancel_futures=True)


def write_checksums(directory: Place, sum_of: Callable[[Any], FileSum] | None = None) -> int:
    """Hashes every file below `directory` into its checksums file; returns the bytes hashed.

    sum_of: of a file, where some are known.
    """
    names = list(files_below(directory))
    found = _hash_files([directory / name for name in names], sum_of or _hash_file)
    sums = dict(zip(names, found, strict=True))
    table = {name: {"bytes": one.bytes, _ALGORITHM: one.digest} for name, one in sums.items()}
    document = {"algorithm": _ALGORITHM, "files": table, "self": _digest_of_table(table)}
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
    algorithms = {directory / name: sums[name].algorithm for name in intact}
    found = _hash_files(list(algorithms), lambda path: _hash_file(path, algorithms[path]))
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
        name,
        f"content changed: {actual.algorithm} {actual.digest[:12]}, saved {expected.digest[:12]}",
    )


def _read_checksums(directory: Place) -> dict[str, FileSum] | Problem:
    path = directory / CHECKSUMS_FILE
    if not path.is_file():
        return Problem(CHECKSUMS_FILE, "missing")
    try:
        document = json.loads(path.read_bytes())
        table, saved_digest, kind = document["files"], document["self"], document["algorithm"]
        if kind not in _DIGESTS:
            return Problem(CHECKSUMS_FILE, f"has {kind} sums, which this jaxscale does not know")
        sums = {name: FileSum(one["bytes"], one[kind], kind) for name, one in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Problem(CHECKSUMS_FILE, f"unreadable: {error!r}")
    if saved_digest != _digest_of_table(table):
        return Problem(CHECKSUMS_FILE, "content changed: it does not match its own sum")
    return sums


def _digest_of_table(table: Mapping[str, Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _hash_files(paths: list[Place], sum_of: Callable[[Any], FileSum]) -> list[FileSum]:
    # Reading and hashing release the interpreter lock, so threads scale with cores.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(sum_of, paths))


def _version(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _hash_and_flush(path: Path) -> FileSum:
    found = _hash_file(path)
    flush(path)
    return found


def _hash_file(path: Place, algorithm: str = _ALGORITHM) -> FileSum:
    opened: Any = path.open("rb")
    with opened as file:
        digest = hashlib.file_digest(file, _DIGESTS[algorithm])
        return FileSum(file.tell(), digest.hexdigest(), algorithm)
