"""What a checkpoint holds, as data: for people to look at and programs to read."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxscale.checkpoint.manifest import ArrayEntry, read_manifest
from jaxscale.checkpoint.places import Place, files_below
from jaxscale.checkpoint.stored import StoredArrays
from jaxscale.errors import UserError


@dataclass(frozen=True)
class Group:
    """The arrays below one top-level name (`params`, `optimizer`). bytes: before compression."""

    name: str
    num_arrays: int
    bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Listed:
    """One checkpoint in a list. problem: why it cannot be read, where it cannot."""

    step: int
    groups: tuple[Group, ...]
    bytes_on_disk: int
    metric: tuple[str, float] | None
    problem: str | None = None


@dataclass(frozen=True)
class Contents:
    """One checkpoint in full. chunks: by path, the shape of the blocks that an array is stored in."""

    checkpoint: Place
    step: int
    arrays: tuple[ArrayEntry, ...]
    chunks: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, Any]


def list_checkpoint(directory: Place, step: int) -> Listed:
    """A line about one checkpoint, from its metadata and the sizes of its files."""
    folder = directory / str(step)
    size = sum(files_below(folder).values())
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return Listed(step, (), size, None, str(error))
    name, value = manifest.metric_name, manifest.metric_value
    metric = None if name is None or value is None else (name, value)
    return Listed(step, groups(manifest.arrays), size, metric)


def read_contents(checkpoint: Place) -> Contents:
    """Everything but the values. Raises UserError for a checkpoint that cannot be read."""
    stored = StoredArrays(checkpoint)
    chunks = {entry.path: stored.chunk_shape(entry.path) for entry in stored.manifest.arrays}
    manifest = stored.manifest
    return Contents(checkpoint, manifest.step, manifest.arrays, chunks, manifest.metadata)


def groups(entries: Iterable[ArrayEntry]) -> tuple[Group, ...]:
    """Arrays summed up by the first part of their path, the largest group first."""
    found: dict[str, list[ArrayEntry]] = defaultdict(list)
    for entry in entries:
        found[entry.path.split("/")[0]].append(entry)
    made = [
        Group(name, len(own), sum(e.bytes for e in own), tuple(sorted({e.dtype for e in own})))
        for name, own in found.items()
    ]
    return tuple(sorted(made, key=lambda group: (-group.bytes, group.name)))
