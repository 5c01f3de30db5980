"""Reads boxes of the tensors in safetensors files: eight bytes of length, a JSON header, then the bytes of the tensors.

Own code for so small a format because it reads from object stores too, and only the bytes of a box into only the memory
of that box; the library maps whole files.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxscale.checkpoint.stored import Box
from jaxscale.errors import UserError
from jaxscale.interop.byte_ranges import ByteFile
from jaxscale.interop.layout import box_shape
from jaxscale.interop.safetensors_format import DTYPE_NAMES

_DTYPES = {theirs: jnp.dtype(ours) for ours, theirs in DTYPE_NAMES.items()}
_WEIGHTS = ("F64", "F32", "F16", "BF16")
_MAX_HEADER = 100_000_000
# Where ranges are too small to be read one by one, what lies between them comes along, this much at a time.
_BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file. dtype: as the format names it. start: first byte in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    file: ByteFile

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Raises UserError for a dtype that weights are not stored in here."""
        if self.dtype not in _WEIGHTS:
            raise UserError(
                f"{self.file.name}: {self.name} is {self.dtype}; jaxscale reads {', '.join(_WEIGHTS)}. "
                "Convert the checkpoint to bfloat16 or float32 first"
            )
        return _DTYPES[self.dtype]


def read_header(file: ByteFile) -> dict[str, StoredTensor]:
    """The tensors of a file, by name.

    Raises UserError for a file that is no safetensors file, is damaged, or ends before its last tensor.
    """
    size = file.size
    length = int.from_bytes(_read(file, 0, 8), "little") if size >= 8 else size
    if length > min(size - 8, _MAX_HEADER):
        raise UserError(
            f"{file.name} is not a whole safetensors file: it has {size:,} bytes and should begin with a header of "
            f"{length:,}. Download it again"
        )
    try:
        header = json.loads(_read(file, 8, length))
        header.pop("__metadata__", None)
        tensors = {name: _entry(name, one, 8 + length, file) for name, one in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file.name} has a damaged header ({error!r}): download it again"
        ) from error
    _check_extent(file, header, size - 8 - length)
    return tensors


def read_box(tensor: StoredTensor, box: Box) -> np.ndarray[Any, Any]:
    """The elements of a box, in the tensor's dtype. Raises UserError if the file became shorter."""
    dtype = tensor.numpy_dtype
    starts, length = _ranges(tensor.shape, box, dtype.itemsize)
    if len(starts) > 1 and length < tensor.file.smallest_range:
        return _read_rows(tensor, box)
    out = np.empty(box_shape(box), dtype)
    view = out.reshape(-1).view(np.uint8).data
    parts = [view[at : at + length] for at in range(0, len(view), max(length, 1))]
    tensor.file.read_into([tensor.start + start for start in starts], parts)
    return out


def _read_rows(tensor: StoredTensor, box: Box) -> np.ndarray[Any, Any]:
    """A box by way of whole rows, a block of them at a time."""
    dtype = tensor.numpy_dtype
    out = np.empty(box_shape(box), dtype)
    row = math.prod(tensor.shape[1:]) * dtype.itemsize
    step = max(1, _BLOCK_BYTES // row)
    for first in range(box[0].start, box[0].stop, step):
        last = min(first + step, box[0].stop)
        raw = _read(tensor.file, tensor.start + first * row, (last - first) * row)
        rows = np.frombuffer(raw, dtype).reshape(last - first, *tensor.shape[1:])
        out[first - box[0].start : last - box[0].start] = rows[(slice(None), *box[1:])]
    return out


def _ranges(shape: tuple[int, ...], box: Box, itemsize: int) -> tuple[list[int], int]:
    """First bytes, and the common length, of the contiguous pieces of a box."""
    split = max((dim for dim, r in enumerate(box) if r != slice(0, shape[dim])), default=0)
    strides = [math.prod(shape[dim + 1 :]) * itemsize for dim in range(len(shape))]
    if not shape:
        return [0], itemsize
    firsts = (
        range(r.start, r.stop)
        for r in (*box[:split], slice(box[split].start, box[split].start + 1))
    )
    starts = [sum(map(int.__mul__, index, strides)) for index in itertools.product(*firsts)]
    return starts, (box[split].stop - box[split].start) * strides[split]


def _read(file: ByteFile, start: int, length: int) -> bytearray:
    data = bytearray(length)
    file.read_into([start], [memoryview(data)])
    return data


def _entry(name: str, one: Mapping[str, Any], base: int, file: ByteFile) -> StoredTensor:
    shape, dtype, (start, stop) = tuple(one["shape"]), one["dtype"], one["data_offsets"]
    if dtype in _DTYPES and stop - start != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError(f"{name} of {dtype}{list(shape)} has {stop - start} bytes")
    return StoredTensor(name, shape, dtype, base + start, file)


def _check_extent(file: ByteFile, header: Mapping[str, Any], available: int) -> None:
    """Tensors follow each other without gaps to the end of the file; the first that does not is named."""
    at = 0
    for name, start, stop in _in_order(header):
        if start != at:
            raise UserError(
                f"{file.name} is damaged: {name} begins at byte {start:,} of the data, not at {at:,}"
            )
        if stop > available:
            raise UserError(
                f"{file.name} is truncated: {name} ends at byte {stop:,} of the data, but the file has only "
                f"{available:,}. Download it again"
            )
        at = stop
    if at != available:
        raise UserError(f"{file.name} is damaged: {available - at:,} bytes follow its last tensor")


def _in_order(header: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    spans = ((name, *one["data_offsets"]) for name, one in header.items())
    return iter(sorted(spans, key=lambda span: (span[1], span[2])))
