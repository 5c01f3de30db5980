"""Arrays of a checkpoint off the disk, box by box: no device, and never more in memory than was asked for."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from jaxscale.checkpoint.block_files import find_blocks, read_into
from jaxscale.checkpoint.layout import ARRAYS_FOLDER
from jaxscale.checkpoint.manifest import ArrayEntry, Manifest, read_manifest
from jaxscale.checkpoint.places import Place, kvstore
from jaxscale.errors import UserError

Box = tuple[slice, ...]
"""A range with start and stop for each dim."""

# Most bytes of a single read: what cannot go straight into place passes through the processor's cache.
_RUN_BYTES = 2**20
# Blocks out of object stores stay in memory for the next part of them that is asked for.
_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Stored:
    """One open array. plain: blocks are its bytes in C order, so that parts of them can be read."""

    entry: ArrayEntry
    dtype: np.dtype[Any]
    array: ts.TensorStore
    chunk: tuple[int, ...]
    plain: bool


class StoredArrays:
    """The arrays of one checkpoint; threads may share it.

    Usage::

        stored = StoredArrays(run / "checkpoints" / "1000")
        layer = stored.read("params/layers/mlp/up", (slice(3, 4), slice(0, 512), slice(0, 2048)))
    """

    def __init__(self, checkpoint: Place) -> None:
        """Raises UserError if the checkpoint's metadata or the tree of its arrays is missing or damaged."""
        self.checkpoint = checkpoint
        self.manifest: Manifest = read_manifest(checkpoint)
        self.entries: Mapping[str, ArrayEntry] = {e.path: e for e in self.manifest.arrays}
        folder = checkpoint / ARRAYS_FOLDER
        self._store = {"driver": "ocdbt", "base": kvstore(folder)}
        self._is_local = isinstance(folder, Path)
        cache_bytes = 0 if self._is_local else _CACHE_BYTES
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
        self._open: dict[str, _Stored] = {}
        try:
            self._blocks = find_blocks(folder) if isinstance(folder, Path) else {}
            self._values = ts.KvStore.open(self._store, context=self._context).result()
        except ValueError as error:
            raise self._unreadable("the tree of its arrays", error) from error

    def read(
        self, path: str, box: Box, out: np.ndarray[Any, Any] | None = None
    ) -> np.ndarray[Any, Any]:
        """The elements of a box of the array at `path`, in `out` (C order, of its shape and dtype) where it is given.

        Raises UserError if the checkpoint's files do not hold what its metadata promises.
        """
        stored = self._opened(path)
        out = np.empty(_shape(box), stored.dtype) if out is None else out
        try:
            if stored.plain:
                self._read_plain(stored, box, out)
            else:
                out[...] = stored.array[box].read().result()
        except (ValueError, FileNotFoundError) as error:
            raise self._unreadable(path, error) from error
        return out

    def dtype(self, path: str) -> np.dtype[Any]:
        return jnp.dtype(self.entries[path].dtype)

    def chunk_shape(self, path: str) -> tuple[int, ...]:
        """The shape of the blocks that an array is stored in."""
        return self._opened(path).chunk

    def _opened(self, path: str) -> _Stored:
        if path not in self._open:
            try:
                self._open[path] = self._open_array(self.entries[path])
            except ValueError as error:  # TensorStore's word for whatever is wrong with the files.
                raise self._unreadable(path, error) from error
        return self._open[path]

    def _open_array(self, entry: ArrayEntry) -> _Stored:
        spec = {
            "driver": "zarr",
            "kvstore": {**self._store, "path": f"{entry.path}/"},
            "fill_missing_data_reads": False,  # Else what is lost reads as zeros.
        }
        array = ts.open(spec, open=True, read=True, context=self._context).result()
        if tuple(array.shape) != entry.shape:
            raise ValueError(f"its shape is {list(array.shape)}, was saved as {list(entry.shape)}")
        found = array.spec().to_json()["metadata"]
        plain = found["compressor"] is None and found["filters"] is None and found["order"] == "C"
        # Out of a store a request takes as long as a whole block.
        plain = plain and found["dimension_separator"] == "." and self._is_local
        return _Stored(entry, jnp.dtype(entry.dtype), array, tuple(found["chunks"]), plain)

    def _read_plain(self, stored: _Stored, box: Box, out: np.ndarray[Any, Any]) -> None:
        for chunk, inside, place in _parts(stored.chunk, box):
            key = f"{stored.entry.path}/{'.'.join(map(str, chunk)) or '0'}"
            runs = _runs(stored.chunk, inside, stored.dtype.itemsize)
            part = out[place or ...]  # Of a scalar, too, a view.
            targets = ((bytes_, part[run]) for bytes_, run in runs)
            self._read_block(key, targets)

    def _read_block(self, key: str, targets: Iterator[tuple[slice, np.ndarray[Any, Any]]]) -> None:
        """Byte ranges of one block into arrays."""
        location = self._blocks.get(key)
        if location is None:
            for bytes_, target in targets:
                found = self._values.read(key, byte_range=bytes_).result()
                if found.state != "value":
                    raise ValueError(f"block {key} is missing")
                target[...] = np.frombuffer(found.value, target.dtype).reshape(target.shape)
            return
        with location.file.open("rb", buffering=0) as file:
            for bytes_, target in targets:
                if bytes_.stop > location.length:
                    raise ValueError(f"block {key} has {location.length} bytes, not {bytes_.stop}")
                read_into(file, location.offset + bytes_.start, target)

    def _unreadable(self, path: str, error: Exception) -> UserError:
        return UserError(
            f"{path} cannot be read from {self.checkpoint}: {str(error)[:300]}. Look at it with "
            "`jaxscale checkpoint verify`"
        )


def _parts(chunk: tuple[int, ...], box: Box) -> Iterator[tuple[tuple[int, ...], Box, Box]]:
    """Of each block that a box touches: its index, the box inside it, and that part's place in the whole box."""
    counts = (range(r.start // c, -(-r.stop // c)) for r, c in zip(box, chunk, strict=True))
    for index in itertools.product(*counts):
        inside, place = [], []
        for at, size, wanted in zip(index, chunk, box, strict=True):
            low, high = max(wanted.start, at * size), min(wanted.stop, (at + 1) * size)
            inside.append(slice(low - at * size, high - at * size))
            place.append(slice(low - wanted.start, high - wanted.start))
        yield index, tuple(inside), tuple(place)


def _runs(
    chunk: tuple[int, ...], inside: Box, itemsize: int
) -> Iterator[tuple[slice, tuple[Any, ...]]]:
    """The contiguous byte ranges of a box inside a block, each with its place in that box."""
    if not chunk:
        yield slice(0, itemsize), (...,)
        return
    split = max((dim for dim, r in enumerate(inside) if r != slice(0, chunk[dim])), default=0)
    strides = [math.prod(chunk[dim + 1 :]) * itemsize for dim in range(len(chunk))]
    outer, rows = inside[:split], inside[split]
    step = max(1, _RUN_BYTES // strides[split])
    for index in itertools.product(*(range(r.start, r.stop) for r in outer)):
        base = sum(at * stride for at, stride in zip(index, strides, strict=False))
        place = tuple(at - r.start for at, r in zip(index, outer, strict=True))
        for row in range(rows.start, rows.stop, step):
            end = min(row + step, rows.stop)
            bytes_ = slice(base + row * strides[split], base + end * strides[split])
            yield bytes_, (*place, slice(row - rows.start, end - rows.start))


def _shape(box: Box) -> tuple[int, ...]:
    return tuple(r.stop - r.start for r in box)
