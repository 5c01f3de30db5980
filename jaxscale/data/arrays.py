"""One-dimensional Zarr 3 arrays through TensorStore.

Chunks are not compressed: the bytes then depend on the contents alone, not on the version of a
compressor, and a row costs one short read. Each chunk carries a CRC-32C that is checked on reading.
"""

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxscale.errors import UserError

if TYPE_CHECKING:
    import tensorstore as ts

CHUNK = 1 << 15
"""Elements read together: 64 kB of uint16."""
SHARD = 1 << 24
"""Elements of a file: 32 MB of uint16."""
CACHE_BYTES = 1 << 27


class ArrayWriter:
    """Writes an array of known length from front to back, whole files at a time."""

    def __init__(self, path: Path, length: int, dtype: str) -> None:
        self._path, self._array = path, _create(path, length, dtype)
        self._pending = [np.zeros(0, dtype)]
        self._num_pending = 0
        self._written = 0
        self._digest = hashlib.sha256()

    def append(self, values: np.ndarray) -> None:
        while self._num_pending + len(values) >= SHARD:
            room = SHARD - self._num_pending
            self._pending.append(values[:room])
            self._flush()
            values = values[room:]
        self._pending.append(values)
        self._num_pending += len(values)

    def finish(self) -> str:
        """Writes what is left; SHA-256 of the contents."""
        self._flush()
        assert self._written == self._array.shape[0]
        return self._digest.hexdigest()

    def _flush(self) -> None:
        values = np.concatenate(self._pending, dtype=self._pending[0].dtype)
        if len(values):
            stop = self._written + len(values)
            try:
                self._array[self._written : stop].write(values).result()
            except ValueError as error:  # TensorStore's name for a full disk, among others.
                raise UserError(f"writing {self._path} failed: {error}") from error
            self._digest.update(_little_endian(values))
            self._written = stop
        self._pending, self._num_pending = [values[:0].copy()], 0


def open_array(path: str) -> "ts.TensorStore":
    """Opens for reading; raises ValueError when there is no such array."""
    import tensorstore as ts

    spec = {
        "driver": "zarr3",
        "kvstore": _kvstore(path),
        "recheck_cached_data": "open",
        "recheck_cached_metadata": "open",
    }
    context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    return ts.open(spec, context=context, open=True, read=True).result()


def hash_array(path: str) -> str:
    """SHA-256 of the contents, read a file at a time; raises ValueError when a chunk is bad."""
    array, digest = open_array(path), hashlib.sha256()
    for start in range(0, array.shape[0], SHARD):
        stop = min(start + SHARD, array.shape[0])
        digest.update(_little_endian(np.asarray(array[start:stop].read().result())))
    return digest.hexdigest()


def _create(path: Path, length: int, dtype: str) -> "ts.TensorStore":
    import tensorstore as ts

    little = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs = [little, {"name": "crc32c"}]
    sharding = {"chunk_shape": [CHUNK], "codecs": codecs, "index_codecs": codecs}
    metadata = {
        "shape": [length],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    spec = {"driver": "zarr3", "kvstore": _kvstore(str(path)), "metadata": metadata}
    return ts.open(spec, create=True, delete_existing=True).result()


def _kvstore(path: str) -> str | dict[str, str]:
    return path if "://" in path else {"driver": "file", "path": str(Path(path).absolute())}


def _little_endian(values: np.ndarray) -> memoryview:
    assert sys.byteorder == "little", "the checksums are of little-endian contents"
    return np.ascontiguousarray(values).data
