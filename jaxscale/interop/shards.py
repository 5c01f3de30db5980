"""Which tensor goes into which file, and which bytes each process writes: known before any value is read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from jaxscale.interop.safetensors_format import TensorInfo, header_bytes

INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shard:
    """One safetensors file. tensors: in the order of their bytes."""

    file: str
    tensors: tuple[TensorInfo, ...]

    @cached_property
    def header(self) -> bytes:
        return header_bytes(self.tensors)

    @cached_property
    def offsets(self) -> Mapping[str, int]:
        """Where each tensor begins in the file."""
        found, at = {}, len(self.header)
        for tensor in self.tensors:
            found[tensor.name] = at
            at += tensor.num_bytes
        return found

    @property
    def num_bytes(self) -> int:
        """Of the whole file."""
        return len(self.header) + sum(tensor.num_bytes for tensor in self.tensors)


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor (along its first dim) that are converted and written at once. offset: in the file."""

    shard: Shard
    tensor: TensorInfo
    start: int
    stop: int
    offset: int
    num_bytes: int


Sized = TypeVar("Sized", Piece, Shard)


def plan_shards(tensors: Sequence[TensorInfo], max_bytes: int) -> tuple[Shard, ...]:
    """Files of at most `max_bytes` of tensors in their order; a larger tensor has a file of its own."""
    groups: list[list[TensorInfo]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.num_bytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.num_bytes
    count = len(groups)
    return tuple(
        Shard(_file_name(number, count), tuple(group)) for number, group in enumerate(groups, 1)
    )


def index(shards: Sequence[Shard]) -> dict[str, Any]:
    """What `model.safetensors.index.json` holds: the file of each tensor."""
    tensors = [(tensor, shard.file) for shard in shards for tensor in shard.tensors]
    return {
        "metadata": {"total_size": sum(tensor.num_bytes for tensor, _ in tensors)},
        "weight_map": {tensor.name: file for tensor, file in tensors},
    }


def pieces(shards: Sequence[Shard], piece_bytes: int) -> Iterator[Piece]:
    """All tensors in pieces of at most `piece_bytes`, or one row where a row is more."""
    for shard in shards:
        for tensor in shard.tensors:
            yield from _pieces_of(shard, tensor, piece_bytes)


def shares(parts: Sequence[Sized], num_processes: int) -> list[list[Sized]]:
    """The consecutive parts of each process: equal shares of the bytes, to within a part."""
    total = sum(part.num_bytes for part in parts)
    found: list[list[Sized]] = [[] for _ in range(num_processes)]
    at = 0
    for part in parts:
        # The process in whose share the middle lies, in whole numbers: 2 * middle * processes / (2 * total).
        found[(2 * at + part.num_bytes) * num_processes // (2 * total)].append(part)
        at += part.num_bytes
    return found


def _pieces_of(shard: Shard, tensor: TensorInfo, piece_bytes: int) -> Iterator[Piece]:
    rows = tensor.shape[0] if tensor.shape else 1
    row_bytes = tensor.num_bytes // rows
    step = max(1, piece_bytes // row_bytes)
    # Of equal size, so that the last is not a sliver.
    step = -(-rows // -(-rows // step))
    offset = shard.offsets[tensor.name]
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield Piece(
            shard, tensor, start, stop, offset + start * row_bytes, (stop - start) * row_bytes
        )


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
