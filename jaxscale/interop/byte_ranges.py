"""Ranges of bytes of files, local or remote, each read straight into the memory that it is for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jaxscale.checkpoint.places import Place, check_reachable, open_place
from jaxscale.errors import UserError

MAX_IN_FLIGHT = 32


class ByteFile(Protocol):
    """A file of which parts are read; threads may share it."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def smallest_range(self) -> int:
        """Bytes under which a range costs as much as this many: better to read what lies between."""

    def read_into(self, starts: Sequence[int], parts: Sequence[memoryview]) -> None:
        """Fill each part from its start. Raises UserError where the file ends before."""


@dataclass(frozen=True)
class LocalFile:
    """Read with pread: mapped pages would count as memory of this process for as long as the system likes."""

    path: Path

    # A call takes about as long as copying this from the page cache.
    smallest_range = 512

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read_into(self, starts: Sequence[int], parts: Sequence[memoryview]) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for start, part in zip(starts, parts, strict=True):
                self._fill(descriptor, start, part)
        finally:
            os.close(descriptor)

    def _fill(self, descriptor: int, start: int, part: memoryview) -> None:
        while part:  # One call reads 2 GiB at most.
            count = os.preadv(descriptor, [part], start)
            if count == 0:
                raise ended_early(self.name, start + len(part))
            start, part = start + count, part[count:]


@dataclass(frozen=True)
class RemoteFile:
    """A file that fsspec reaches: gs://, s3://, https://."""

    system: Any
    path: str
    name: str

    # A request takes tens of milliseconds: as long as this much of what follows.
    smallest_range = 2**20

    @property
    def size(self) -> int:
        return int(self.system.size(self.path))

    def read_into(self, starts: Sequence[int], parts: Sequence[memoryview]) -> None:
        for at in range(0, len(starts), MAX_IN_FLIGHT):
            self._read_some(starts[at : at + MAX_IN_FLIGHT], parts[at : at + MAX_IN_FLIGHT])

    def _read_some(self, starts: Sequence[int], parts: Sequence[memoryview]) -> None:
        ends = [start + len(part) for start, part in zip(starts, parts, strict=True)]
        found = self.system.cat_ranges([self.path] * len(starts), list(starts), ends)
        for data, part, end in zip(found, parts, ends, strict=True):
            if len(data) != len(part):
                raise ended_early(self.name, end)
            part[:] = data


def open_file(place: Place) -> ByteFile:
    """The file at a place; its absence shows when it is read."""
    if isinstance(place, Path):
        return LocalFile(place)
    return RemoteFile(place.fs, place.path, str(place))


def open_folder(location: str) -> Place:
    """The directory at a path or URL.

    Raises UserError if there is none, no library that reaches it, or no right to.
    """
    place = open_place(location)
    check_reachable(place)
    if not place.is_dir():
        what = "is a file, not a directory" if place.exists() else "does not exist"
        raise UserError(f"{place} {what}: give a directory with config.json and *.safetensors")
    return place


def ended_early(name: str, wanted: int) -> UserError:
    return UserError(f"{name} ends before byte {wanted:,}: it changed while it was read")
