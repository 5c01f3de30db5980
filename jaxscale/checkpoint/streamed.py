"""A checkpoint written block by block, by whoever never holds a whole array: no device, bounded memory."""

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from jaxscale.checkpoint import layout
from jaxscale.checkpoint.block_files import file_store
from jaxscale.checkpoint.checkpointer import ARRAYS_FOLDER
from jaxscale.checkpoint.integrity import write_checksums
from jaxscale.checkpoint.manifest import METADATA_FILE, ArrayEntry, Manifest, to_json
from jaxscale.checkpoint.stored import Box
from jaxscale.errors import UserError

CHUNK_BYTES = 32 * 2**20
FILE_BYTES = 128 * 2**20


class StreamedCheckpoint:
    """The checkpoint of `manifest` below `directory`, visible when the `with` block ends well, else not there.

    Blocks gather in memory until they make a data file of `file_bytes`; it is for one thread.

    Usage::

        with StreamedCheckpoint(run / "checkpoints", manifest) as target:
            for path in target.entries:
                for box in target.boxes(path):
                    target.write(path, box, block_of(path, box))
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        chunks: Mapping[str, tuple[int, ...]] | None = None,
        file_bytes: int = FILE_BYTES,
        existing: Literal["refuse", "replace"] = "refuse",
    ) -> None:
        """Arrays are stored in blocks of `chunks` by path, or of at most `chunk_bytes`.

        Raises UserError if there is a checkpoint of this step already, or if the disk has no room."""
        self.checkpoint = directory / str(manifest.step)
        self.entries = {entry.path: entry for entry in manifest.arrays}
        if existing == "refuse" and self.checkpoint.exists():
            raise UserError(f"there is a checkpoint {self.checkpoint} already: name another place")
        _check_room(directory, manifest.bytes)
        self._manifest, self._file_bytes = manifest, file_bytes
        self._chunks = {e.path: _chunk(e, chunk_bytes) for e in manifest.arrays} | dict(
            chunks or {}
        )
        # Its own staging folder alone: others here may be those of a run that is saving.
        self._folder = layout.staging(directory, manifest.step, 0)
        self._context, self._transaction, self._gathered = ts.Context(), ts.Transaction(), 0
        self._current: tuple[str, ts.TensorStore] | None = None

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        (self._folder / ARRAYS_FOLDER).mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
            else:
                self._transaction.abort()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)  # Gone already unless this failed.

    def boxes(self, path: str) -> Iterator[Box]:
        """The blocks that the array is stored in, in C order."""
        return boxes(self.entries[path].shape, self._chunks[path])

    def write(self, path: str, box: Box, block: np.ndarray[Any, Any]) -> None:
        """One of `boxes(path)`; all boxes of a path come before those of the next.

        Raises UserError if the disk does not take it.
        """
        self._opened(path)[box].write(block).result()
        self._gathered += block.nbytes
        if self._gathered >= self._file_bytes:
            self._commit()

    def _opened(self, path: str) -> ts.TensorStore:
        if self._current is None or self._current[0] != path:
            self._current = path, self._create(self.entries[path])
        return self._current[1]

    def _commit(self) -> None:
        try:
            self._transaction.commit_async().result()
        except ValueError as error:  # TensorStore's word for whatever the disk says.
            raise UserError(
                f"writing {self.checkpoint} failed, nothing is left of it: {error}"
            ) from error
        self._transaction, self._gathered = ts.Transaction(), 0
        if self._current is not None:
            path, array = self._current
            self._current = path, array.with_transaction(self._transaction)

    def _create(self, entry: ArrayEntry) -> ts.TensorStore:
        store = {
            "driver": "ocdbt",
            "base": file_store(self._folder / ARRAYS_FOLDER),
            "path": f"{entry.path}/",
            # Shapes inline, blocks never; one root node: as Orbax has it.
            "config": {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 100_000_000},
        }
        metadata = {"shape": entry.shape, "chunks": self._chunks[entry.path], "compressor": None}
        spec = {
            "driver": "zarr",
            "kvstore": store,
            "dtype": entry.dtype,
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        return ts.open(
            spec, create=True, context=self._context, transaction=self._transaction
        ).result()

    def _finish(self) -> None:
        self._commit()
        (self._folder / ARRAYS_FOLDER / "_METADATA").write_text(_orbax_tree(self._manifest))
        (self._folder / METADATA_FILE).write_text(to_json(self._manifest))
        write_checksums(self._folder)
        layout.publish(self._folder, self._manifest.step)


def _chunk(entry: ArrayEntry, max_bytes: int) -> tuple[int, ...]:
    return chunk_shape(entry.shape, jnp.dtype(entry.dtype).itemsize, max_bytes)


def chunk_shape(shape: tuple[int, ...], itemsize: int, max_bytes: int) -> tuple[int, ...]:
    """Blocks of at most `max_bytes`, contiguous in the array: whole trailing dims, then a part of one, then ones."""
    room, chunk = max(1, max_bytes // itemsize), list[int]()
    for size in reversed(shape):
        chunk.append(max(1, min(size, room)))
        room //= chunk[-1]
    return tuple(reversed(chunk))


def boxes(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[Box]:
    """The blocks of an array in C order, those at the end smaller."""
    starts = (range(0, size, step) for size, step in zip(shape, chunk, strict=True))
    for corner in itertools.product(*starts):
        ends = zip(corner, chunk, shape, strict=True)
        yield tuple(slice(at, min(at + step, size)) for at, step, size in ends)


def _orbax_tree(manifest: Manifest) -> str:
    """Orbax's own file about the tree, of which its reader takes the names and kinds of leaves."""
    kind = {"value_type": "jax.Array", "skip_deserialize": False}
    leaves = {
        str((entry.path,)): {
            "key_metadata": [{"key": entry.path, "key_type": 2}],
            "value_metadata": kind,
        }
        for entry in manifest.arrays
    }
    flags = {"use_ocdbt": True, "use_zarr3": False, "store_array_data_equal_to_fill_value": True}
    return json.dumps({"tree_metadata": leaves, **flags, "custom_metadata": None})


def _check_room(directory: Path, needed: int) -> None:
    place = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{directory} has no room: {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free. Nothing was "
            "written"
        )
