"""Tensors of another format out of a checkpoint, some rows at a time, in the dtype and order that the file wants."""

import itertools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxscale.checkpoint.casting import cast, is_float, num_overflows
from jaxscale.checkpoint.stored import Box, StoredArrays
from jaxscale.errors import UserError
from jaxscale.interop.layout import box_shape, make_layout, whole, within
from jaxscale.interop.names import STRIP_ELEMENTS, Part, Tensor, read_theirs
from jaxscale.interop.safetensors_format import TensorInfo
from jaxscale.models.description import Description

# Rows and columns that are turned at once. Whole matrices take 4.5 times as long to transpose, as they leave the cache:
# 1.6 GB/s of fp32 into bf16 on a core, 2.7 into fp32.
_TILE = (64, 1024)
_TILE_ROWS = 64


class Scratch(threading.local):
    """Buffers that a thread uses again for every piece: fresh memory costs a page fault every 4 KiB.

    What `take` gives is the caller's until this thread calls `keep` with fewer.
    """

    def __init__(self) -> None:
        self._buffers: list[np.ndarray[Any, Any]] = []
        self._taken = 0

    def keep(self, count: int) -> None:
        """All but the first `count` that were taken may be taken again."""
        self._taken = count

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        size = math.prod(shape) * dtype.itemsize
        if self._taken == len(self._buffers):
            self._buffers.append(np.empty(0, np.uint8))
        if self._buffers[self._taken].nbytes < size:
            self._buffers[self._taken] = np.empty(size, np.uint8)
        self._taken += 1
        return self._buffers[self._taken - 1][:size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class TensorSource:
    """Tensors bound to the arrays of a checkpoint; threads may share it.

    part: top-level group of the checkpoint that they come from (`params` or `average`).
    dtype: of floating-point tensors; None keeps what is stored.
    """

    stored: StoredArrays
    part: str
    tensors: tuple[Tensor, ...]
    dtype: np.dtype[Any] | None
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """Names, shapes and dtypes, without reading."""
        return tuple(
            TensorInfo(one.name, one.shape, self._dtype(one.parts[0].path)) for one in self.tensors
        )

    def rows(self, tensor: Tensor, start: int, stop: int) -> tuple[np.ndarray[Any, Any], int]:
        """Rows along the first dim, contiguous, and how many of their values overflowed the dtype.

        They lie in a buffer that this thread's next call fills anew.
        """
        self.scratch.keep(0)
        box = (slice(start, stop), *whole(tensor.shape[1:])) if tensor.shape else ()
        out, lost = self.scratch.take(box_shape(box), self._dtype(tensor.parts[0].path)), 0
        for strip in tensor.parts[0].layout.strips_of_theirs(box, STRIP_ELEMENTS):
            self.scratch.keep(1)
            values = read_theirs(tensor, strip, self._read)
            lost += pack(values, out[within(strip, box) or ...])
        return out, lost

    def _read(self, path: str, box: Box) -> np.ndarray[Any, Any]:
        path = f"{self.part}/{path}"
        return self.stored.read(
            path, box, self.scratch.take(box_shape(box), self.stored.dtype(path))
        )

    def _dtype(self, path: str) -> np.dtype[Any]:
        stored = self.stored.dtype(f"{self.part}/{path}")
        return self.dtype if self.dtype is not None and is_float(stored) else stored


def pack(values: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> int:
    """Fill `out` with the values in its dtype; how many finite ones became infinite."""
    if values.ndim == 2 and values.strides[0] < values.strides[1]:
        return _pack_transposed(values.T, out)
    lost = 0
    for row in range(0, len(values), _TILE_ROWS):
        strip, target = values[row : row + _TILE_ROWS], out[row : row + _TILE_ROWS]
        target[...] = packed = cast(strip, out.dtype)
        lost += num_overflows(strip, packed)
    return lost


def _pack_transposed(source: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> int:
    lost = 0
    # As plain bits: NumPy moves its own types several times faster than bfloat16.
    bits = np.dtype(f"u{out.dtype.itemsize}")
    rows, columns = (range(0, size, tile) for size, tile in zip(source.shape, _TILE, strict=True))
    for row, column in itertools.product(rows, columns):
        tile = source[row : row + _TILE[0], column : column + _TILE[1]]
        packed = cast(tile, out.dtype)
        lost += num_overflows(tile, packed)
        target = out.view(bits)[column : column + _TILE[1], row : row + _TILE[0]]
        target[...] = packed.view(bits).T
    return lost


def weights_part(stored: StoredArrays, asked: str | None = None) -> str:
    """The group that holds the model: the averaged parameters where they were kept, or the one asked for.

    Raises UserError where the checkpoint has none.
    """
    there = {path.split("/")[0] for path in stored.entries}
    wanted = (asked,) if asked else ("average", "params")
    found = next((part for part in wanted if part in there), None)
    if found is None:
        raise UserError(
            f"checkpoint {stored.checkpoint} has no {' or '.join(wanted)}: it holds {', '.join(sorted(there))}"
        )
    return found


def check_complete(stored: StoredArrays, part: str, description: Description) -> None:
    """Raises UserError naming each parameter of the model that the checkpoint lacks or has in another shape."""
    lines = []
    for path, spec in description.items():
        entry = stored.entries.get(f"{part}/{path}")
        if entry is None:
            lines.append(f"  {part}/{path} {list(spec.shape)} is missing")
        elif entry.shape != spec.shape:
            lines.append(
                f"  {part}/{path} is {list(entry.shape)}, the model has {list(spec.shape)}"
            )
    if lines:
        raise UserError(
            f"checkpoint {stored.checkpoint} does not hold the model of its configuration:\n"
            + "\n".join(lines[:10])
        )


def as_they_are(description: Description) -> tuple[Tensor, ...]:
    """Our own parameters as tensors, under their paths."""
    return tuple(_own(path, spec.shape) for path, spec in description.items())


def _own(path: str, shape: Sequence[int]) -> Tensor:
    dims = tuple(f"dim{number}" for number in range(len(shape)))
    return Tensor(path, tuple(shape), 0, (Part(path, None, make_layout(dims, tuple(shape)), 0),))
