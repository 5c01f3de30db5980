"""The runs below a directory, read as they grow."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from jaxscale.telemetry.dashboard.checkpoints import NewestCheckpoints
from jaxscale.telemetry.journal import EVENTS_FILE, Event, parse_event
from jaxscale.telemetry.report.run import RunData, load_run
from jaxscale.telemetry.status import RunStatus, status_of

T = TypeVar("T")

METRICS_FILE = "metrics.jsonl"
_MARKS = (METRICS_FILE, "config.yaml", EVENTS_FILE)
_READ = (*_MARKS, "plan.yaml", "prediction.json", "environment.json", "summary.json", "samples")
_DEPTH = 3
_MAX_RUNS = 500
# A row of the list needs the newest values, which the last lines have.
_TAIL_BYTES = 1 << 16
_WHOLE_RUNS = 12


@dataclass
class _Lines(Generic[T]):
    """The lines of a file that grows, parsed once each; read anew when the file has been replaced."""

    parse: Callable[[str], T | None]
    inode: int = -1
    offset: int = 0
    items: list[T] = field(default_factory=list)

    def read(self, path: Path, *, last: int | None = None) -> list[T]:
        """Every whole line that parses; of a file not seen before, those of its `last` bytes."""
        if not path.is_file():
            return []
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self.inode or found.st_size < self.offset:
                self.items, self.inode = [], found.st_ino
                self.offset = 0 if last is None else max(0, found.st_size - last)
            file.seek(self.offset)
            whole, newline, _torn = file.read().rpartition(b"\n")
        self.offset += len(whole) + len(newline)
        lines = whole.decode(errors="replace").split("\n")
        self.items += [item for line in lines if (item := self.parse(line)) is not None]
        return self.items


@dataclass
class _Known:
    """What has been read of a run."""

    events: _Lines[Event] = field(default_factory=lambda: _Lines(parse_event))
    tail: _Lines[dict[str, Any]] = field(default_factory=lambda: _Lines(parse_record))
    records: _Lines[dict[str, Any]] | None = None


class Runs:
    """Runs by name: their path below the directory. Names come from the directory and never become a path again."""

    def __init__(self, directory: Path) -> None:
        self._root = directory.resolve()
        self._known: dict[str, _Known] = {}
        self._checkpoints = NewestCheckpoints()

    @property
    def root(self) -> Path:
        return self._root

    def found(self) -> dict[str, Path]:
        """Every run that is there now, those that began last first."""
        runs = {self._name(path): path for path in _runs_below(self._root, _DEPTH)}
        newest = sorted(runs, key=lambda name: _begun(runs[name]), reverse=True)
        self._known = {name: known for name, known in self._known.items() if name in runs}
        return {name: runs[name] for name in newest[:_MAX_RUNS]}

    def status(self, name: str, path: Path, now: float) -> RunStatus:
        """A run's status, by its last records."""
        known = self._known.setdefault(name, _Known())
        records = known.tail.read(path / METRICS_FILE, last=_TAIL_BYTES)
        del records[:-1000]
        run = load_run(path, list(records))
        events = known.events.read(path / EVENTS_FILE)
        newest = self._checkpoints.of(path)
        return replace(status_of(run, events, path, newest.saved, now=now), unseen=newest.unseen)

    def whole(self, name: str, path: Path) -> RunData:
        """Everything of a run. The records of a few runs are kept, those asked for last."""
        known = self._known.pop(name, _Known())
        self._known[name] = known
        known.records = known.records or _Lines(parse_record)
        kept = [one for one in self._known.values() if one.records is not None]
        for one in kept[:-_WHOLE_RUNS]:
            one.records = None
        return load_run(path, list(known.records.read(path / METRICS_FILE)))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._root)) if path != self._root else path.name


def parse_record(line: str) -> dict[str, Any] | None:
    """A metrics record; None for what is none: one damaged line must not hide a run."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    good = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if good else None


def _runs_below(directory: Path, depth: int) -> Iterator[Path]:
    """Run directories, not looking inside them. What links out of the directory is not a run of it."""
    if any((directory / mark).is_file() for mark in _MARKS):
        if _keeps_to_itself(directory):
            yield directory
        return
    if depth == 0:
        return
    for path in _folders(directory):
        yield from _runs_below(path, depth - 1)


def _folders(directory: Path) -> list[Path]:
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return []
    hidden = (".", "__")
    return [
        Path(entry.path)
        for entry in entries
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(hidden)
    ]


def _keeps_to_itself(directory: Path) -> bool:
    """Whether all that would be read of a run is its own: no link to somebody's files, nothing that is no file."""
    paths = [directory / name for name in _READ]
    samples = directory / "samples"
    if samples.is_dir() and not samples.is_symlink():
        paths += samples.glob("*.txt")
    return all(
        not path.is_symlink() and (not path.exists() or path.is_file() or path == samples)
        for path in paths
    )


def _begun(directory: Path) -> float:
    """When its newest process began, which a list that is looked at can be sorted by: it writes `config.yaml` first."""
    times = [path.stat().st_mtime for name in _MARKS if (path := directory / name).is_file()]
    config = directory / "config.yaml"
    return config.stat().st_mtime if config.is_file() else max(times, default=0.0)
