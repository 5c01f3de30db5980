"""A checkpoint written anew with other blocks, without some arrays, or in another dtype: streamed block by block."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxscale.checkpoint.casting import cast, is_float, num_overflows, overflow_message
from jaxscale.checkpoint.integrity import find_problems
from jaxscale.checkpoint.manifest import ArrayEntry
from jaxscale.checkpoint.places import Place
from jaxscale.checkpoint.stored import StoredArrays
from jaxscale.checkpoint.streamed import CHUNK_BYTES, FILE_BYTES, StreamedCheckpoint
from jaxscale.errors import UserError

Progress = Callable[[int], None]
"""Told the bytes of each block."""


def silent(_num_bytes: int) -> None:
    """No progress."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to be different. What it does not name stays as it is.

    drop: top-level groups of arrays to leave out (`optimizer`).
    dtype: of all floating-point arrays.
    overflow: what to do about finite values that become infinite in `dtype`.
    chunk_bytes: most bytes of a block that is read and written at once.
    file_bytes: a data file is written when it has this many; they are in memory until then.
    """

    drop: frozenset[str] = frozenset()
    dtype: np.dtype[Any] | None = None
    overflow: Literal["refuse", "allow"] = "refuse"
    chunk_bytes: int = CHUNK_BYTES
    file_bytes: int = FILE_BYTES


@dataclass(frozen=True)
class Rewritten:
    """What was written. overflows: by path, finite values that became infinite."""

    checkpoint: Place
    arrays: tuple[ArrayEntry, ...]
    overflows: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.arrays)


def rewrite(
    source: Place,
    directory: Place,
    change: Change,
    *,
    existing: Literal["refuse", "replace"] = "refuse",
    progress: Progress = silent,
) -> Rewritten:
    """The checkpoint `source` as `directory/STEP`, changed; visible once it is complete and summed.

    The source is verified first and never written to, unless it is itself what `existing="replace"` replaces.
    Raises UserError if the source is damaged, the target exists, the disk has no room, or values overflow.
    """
    _check_intact(source)
    stored = StoredArrays(source)
    kept = [e for e in stored.manifest.arrays if e.path.split("/")[0] not in change.drop]
    entries = tuple(_changed(entry, change) for entry in kept)
    target = StreamedCheckpoint(
        directory,
        replace(stored.manifest, arrays=entries),
        chunk_bytes=change.chunk_bytes,
        file_bytes=change.file_bytes,
        existing=existing,
    )
    with target:
        overflows = _copy(stored, target, progress)
        if overflows and change.overflow == "refuse":
            assert change.dtype is not None
            raise UserError(overflow_message(str(source), overflows, change.dtype))
    return Rewritten(target.checkpoint, entries, overflows)


def _copy(stored: StoredArrays, target: StreamedCheckpoint, report: Progress) -> Mapping[str, int]:
    overflows: Counter[str] = Counter()
    for path, entry in target.entries.items():
        dtype = jnp.dtype(entry.dtype)
        for box in target.boxes(path):
            before = stored.read(path, box)
            block = cast(before, dtype)
            overflows[path] += num_overflows(before, block)
            target.write(path, box, block)
            report(block.nbytes)
    return +overflows  # Only those above zero.


def _changed(entry: ArrayEntry, change: Change) -> ArrayEntry:
    if change.dtype is None or not is_float(jnp.dtype(entry.dtype)):
        return entry
    size = math.prod(entry.shape)
    return entry._replace(dtype=change.dtype.name, bytes=size * change.dtype.itemsize)


def _check_intact(source: Place) -> None:
    problems = find_problems(source)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"checkpoint {source} is damaged; nothing was written:\n{lines}")
