"""Tuning tables: what was measured, on which device, with which software. One JSON file a device kind and op."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxscale.errors import UserError

# A kernel that is not at least this much faster than what XLA gives is not taken: closer ones change places with noise.
SMALLEST_WIN = 0.02
Config = Mapping[str, int]


@dataclass(frozen=True)
class Key:
    """What a measurement is of.

    version: of the implementation, raised when its code changes speed. layout: which dims are summed over, and what
    else of a call decides which kernel it is. bucket: see `bucket`.
    """

    op: str
    implementation: str
    version: int
    dtype: str
    layout: str
    bucket: str
    device_kind: str
    jaxlib: str


@dataclass(frozen=True)
class Entry(Key):
    """seconds: of the kernel with `config`; baseline_seconds: of what runs otherwise. date: ISO, UTC."""

    config: Config
    seconds: float
    baseline_seconds: float
    date: str

    @property
    def win(self) -> float:
        """Share of the baseline's time that is saved; negative where the kernel is slower."""
        return 1 - self.seconds / self.baseline_seconds


_KEY_FIELDS = tuple(field.name for field in fields(Key))


def bucket(sizes: Mapping[str, int]) -> str:
    """Each size rounded up to a power of two: one measurement stands for all calls of its bucket.

    A size that an exported program leaves open is in a bucket of its own, which nothing is measured for.
    """
    return "_".join(f"{name}{_rounded(size)}" for name, size in sizes.items())


def _rounded(size: Any) -> str:
    return str(1 << max(0, size - 1).bit_length()) if isinstance(size, int) else "_any"


def lookup(table: Iterable[Entry], key: Key) -> Entry | None:
    """The measurement under a key, or None."""
    return next((entry for entry in table if _key(entry) == key), None)


def other_jaxlib(table: Iterable[Entry], key: Key) -> str | None:
    """A jaxlib with which the same was measured, where it was not with this one."""
    same = (e.jaxlib for e in table if _key(replace(e, jaxlib=key.jaxlib)) == key)
    return next(same, None)


@cache
def read(directory: Path) -> tuple[Entry, ...]:
    """All entries of a folder's `*.json`; none where there is no folder. Raises UserError as `read_file`."""
    return tuple(entry for path in sorted(directory.glob("*.json")) for entry in read_file(path))


def read_file(path: Path) -> tuple[Entry, ...]:
    """Entries of one file. Raises UserError where it is not a list of entries."""
    try:
        return tuple(Entry(**row) for row in json.loads(path.read_text()))
    except (TypeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} is not a tuning table: {error}. Write it with `jaxscale tune`."
        ) from error


def write(directory: Path, entries: Iterable[Entry]) -> list[Path]:
    """Put entries into the files of their device kinds, in place of those with the same key; returns the files."""
    by_file: dict[Path, list[Entry]] = {}
    for entry in entries:
        by_file.setdefault(directory / f"{_file_name(entry.device_kind)}.json", []).append(entry)
    directory.mkdir(parents=True, exist_ok=True)
    for path, new in by_file.items():
        replaced = {_key(entry) for entry in new}
        kept = [e for e in (read_file(path) if path.exists() else ()) if _key(e) not in replaced]
        rows = sorted((asdict(entry) for entry in (*kept, *new)), key=_order)
        path.write_text(json.dumps(rows, indent=1) + "\n")
    read.cache_clear()
    return list(by_file)


def jaxlib_version() -> str:
    return version("jaxlib")


def _key(entry: Entry) -> Key:
    return Key(**{name: getattr(entry, name) for name in _KEY_FIELDS})


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEY_FIELDS)


def _file_name(device_kind: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", device_kind.lower()).strip("_")
