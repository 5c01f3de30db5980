"""Sharded arrays to and from an object store: each process moves the blocks that its own devices hold.

Through TensorStore, in the form that Orbax gives a checkpoint: Orbax itself reaches Google's stores alone.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding

from jaxscale.checkpoint.block_writer import BlockWriter, check_complete, merge
from jaxscale.checkpoint.manifest import ArrayEntry, array_entry
from jaxscale.checkpoint.places import Place
from jaxscale.checkpoint.stored import Box, StoredArrays

_CHUNK_BYTES = 32 * 2**20
# Gathered in memory, then sent as several objects at once.
_GATHERED_BYTES = 256 * 2**20
_FILE_BYTES = 64 * 2**20
_READERS = 8
_BARRIER_MILLISECONDS = 600_000
_PROCESS = "ocdbt.process_"


@dataclass(frozen=True)
class Part:
    """What this process holds of an array, in host memory."""

    entry: ArrayEntry
    chunk: tuple[int, ...]
    blocks: Sequence[tuple[Box, np.ndarray[Any, Any]]]


class StoreWriter:
    """Writes one flat tree at a time, in the background. All processes call `start` and `wait` together."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-write")
        self._written: Future[None] | None = None
        self._folder: Place | None = None
        self._parts: Sequence[tuple[ArrayEntry, tuple[int, ...]]] = ()
        self._num_starts = 0

    def start(self, folder: Place, arrays: Mapping[str, jax.Array]) -> None:
        """Returns with all values on the host; the arrays may be donated then."""
        self._num_starts += 1
        parts = [on_host(path, array) for path, array in sorted(arrays.items())]
        own = folder if jax.process_count() == 1 else folder / f"{_PROCESS}{jax.process_index()}"
        self._folder, self._parts = folder, [(part.entry, part.chunk) for part in parts]
        self._written = self._thread.submit(self._write, own, parts)

    def wait(self) -> None:
        """Returns when every process has written its blocks; raises ValueError or OSError where this one could not."""
        assert self._written is not None
        assert self._folder is not None
        self._written.result()
        self._meet("written")
        if jax.process_index() == 0:
            if jax.process_count() > 1:
                merge(self._folder, _PROCESS)
            check_complete(self._folder, self._parts)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()

    def _write(self, own: Place, parts: Sequence[Part]) -> None:
        self._meet("cleared")  # Process 0 has emptied the place before it came here.
        _write(own, parts)

    def _meet(self, what: str) -> None:
        """Waits for all processes; not a collective of devices, which may be busy with a step."""
        key = f"jaxscale checkpoint {self._num_starts} {what}"
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=_BARRIER_MILLISECONDS)


def read_arrays(
    checkpoint: Place, target: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """The arrays named in `target`, each in its target's sharding; a process reads what its own devices hold."""
    stored = StoredArrays(checkpoint)

    def read(path: str) -> jax.Array:
        like = target[path]
        return in_boxes(like.shape, like.sharding, lambda box: stored.read(path, box))

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(target, pool.map(read, target), strict=True))


def in_boxes(
    shape: tuple[int, ...], sharding: Sharding, read: Callable[[Box], np.ndarray[Any, Any]]
) -> jax.Array:
    """An array whose boxes are read one after the other: each once, however many devices hold it."""
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        holders.setdefault(_bounds(index, shape), []).append(device)
    arrays = []
    for bounds, devices in holders.items():
        block = read(tuple(slice(*bound) for bound in bounds))
        places = (SingleDeviceSharding(d, memory_kind=sharding.memory_kind) for d in devices)
        arrays += [jax.device_put(block, place) for place in places]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    pairs = zip(index, shape, strict=True)
    return tuple((range_.indices(size)[0], range_.indices(size)[1]) for range_, size in pairs)


def on_host(path: str, array: jax.Array) -> Part:
    """Copies, never views: what they would show is given away to the next step."""
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    for shard in shards:
        shard.data.copy_to_host_async()
    boxes = [tuple(slice(*bound) for bound in _bounds(s.index, array.shape)) for s in shards]
    blocks = [(box, np.array(s.data)) for box, s in zip(boxes, shards, strict=True)]
    shard_shape = array.sharding.shard_shape(array.shape)
    chunk = dividing_chunk(shard_shape, array.dtype.itemsize, _CHUNK_BYTES)
    return Part(array_entry(path, array.shape, array.dtype), chunk, blocks)


def dividing_chunk(shape: tuple[int, ...], itemsize: int, max_bytes: int) -> tuple[int, ...]:
    """The largest blocks of at most `max_bytes` that divide a shape evenly, whole trailing dims first."""
    room, chunk = max(1, max_bytes // itemsize), list[int]()
    for size in reversed(shape):
        chunk.append(next(part for part in range(min(size, room), 0, -1) if size % part == 0))
        room //= chunk[-1]
    return tuple(reversed(chunk))


def _write(folder: Place, parts: Sequence[Part]) -> None:
    chunks = {part.entry.path: part.chunk for part in parts}
    writer = BlockWriter(folder, chunks, _GATHERED_BYTES, file_bytes=_FILE_BYTES)
    try:
        for part in parts:
            for box, block in part.blocks:
                writer.write(part.entry, box, block)
        writer.finish()
    except BaseException:
        writer.abort()
        raise
