"""A checkpoint written block by block, by whoever never holds a whole array: no device, bounded memory."""

import itertools
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax.numpy as jnp
import numpy as np

from jaxscale.checkpoint import layout
from jaxscale.checkpoint.block_writer import BlockWriter, reason, write_tree
from jaxscale.checkpoint.integrity import EarlySums, write_checksums
from jaxscale.checkpoint.manifest import METADATA_FILE, ArrayEntry, Manifest, to_json
from jaxscale.checkpoint.places import Place, remove_tree
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
        directory: Place,
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
        if manifest.step in layout.listed_steps(directory):
            _check_replaceable(self.checkpoint, existing)
        _check_room(directory, manifest.bytes)
        self._manifest = manifest
        self._chunks = {e.path: _chunk(e, chunk_bytes) for e in manifest.arrays} | dict(
            chunks or {}
        )
        # Its own staging folder alone: others here may be those of a run that is saving.
        self._folder = layout.staging(directory, manifest.step, 0)
        self._writer = BlockWriter(self._folder / layout.ARRAYS_FOLDER, self._chunks, file_bytes)
        self._sums = EarlySums(self._folder) if isinstance(self._folder, Path) else None

    def __enter__(self) -> Self:
        remove_tree(self._folder)
        if isinstance(self._folder, Path):
            (self._folder / layout.ARRAYS_FOLDER).mkdir(parents=True)
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
                self._writer.abort()
        finally:
            if self._sums is not None:
                self._sums.stop()
            layout.abandon(self._folder)  # Gone already unless this failed.

    def boxes(self, path: str) -> Iterator[Box]:
        """The blocks that the array is stored in, in C order."""
        return boxes(self.entries[path].shape, self._chunks[path])

    def write(self, path: str, box: Box, block: np.ndarray[Any, Any]) -> None:
        """One of `boxes(path)`; all boxes of a path come before those of the next.

        Raises UserError if the disk does not take it.
        """
        with self._said():
            self._writer.write(self.entries[path], box, block)
        if self._sums is not None:
            self._sums.start()

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:  # TensorStore's word for whatever the disk says.
            raise UserError(
                f"writing {self.checkpoint} failed, nothing is left of it: {reason(error)}"
            ) from error

    def _finish(self) -> None:
        with self._said():
            self._writer.finish()
        write_tree(self._folder / layout.ARRAYS_FOLDER, self.entries)
        (self._folder / METADATA_FILE).write_text(to_json(self._manifest))
        write_checksums(self._folder, self._sums.of if self._sums else None)
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


def _check_replaceable(checkpoint: Place, existing: Literal["refuse", "replace"]) -> None:
    if existing == "refuse":
        raise UserError(f"there is a checkpoint {checkpoint} already: name another place")
    if not isinstance(checkpoint, Path):
        raise UserError(
            f"{checkpoint}: an object store cannot put one checkpoint in the place of another at once. Name a place "
            "for the new one, then remove the old"
        )


def _check_room(directory: Place, needed: int) -> None:
    if not isinstance(directory, Path):
        return
    place = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{directory} has no room: {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free. Nothing was "
            "written"
        )
