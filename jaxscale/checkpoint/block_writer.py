"""Blocks of arrays into an OCDBT database, as Orbax lays it out: gathered in memory until they fill data files."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import tensorstore as ts

from jaxscale.checkpoint.manifest import ArrayEntry
from jaxscale.checkpoint.places import Place, kvstore
from jaxscale.checkpoint.stored import Box

# Shapes inline, blocks never; one root node: as Orbax has it.
_CONFIG: Mapping[str, int] = {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 100_000_000}

_SHOWN = 300


class BlockWriter:
    """Writes below `folder`; for one thread.

    Files in a directory are not flushed to the disk: a checkpoint is when it becomes visible.
    chunks: by path, the shape of the blocks of an array. gathered_bytes: what is held in memory, then written at once,
    while as much again gathers; as files of `file_bytes`, where these are given.
    """

    def __init__(
        self,
        folder: Place,
        chunks: Mapping[str, tuple[int, ...]],
        gathered_bytes: int,
        *,
        file_bytes: int | None = None,
    ) -> None:
        files = {} if file_bytes is None else {"target_data_file_size": file_bytes}
        self._store = {**_database(folder), **files}
        self._chunks, self._max_gathered = chunks, gathered_bytes
        self._context, self._gathered = ts.Context({"file_io_sync": False}), 0
        self._transaction = ts.Transaction()
        self._current: tuple[ArrayEntry, ts.TensorStore] | None = None
        self._committing: ts.Future[None] | None = None

    def write(self, entry: ArrayEntry, box: Box, block: np.ndarray[Any, Any]) -> None:
        """A block of an array, which nobody changes any more; all of one array come before those of the next.

        Raises ValueError, TensorStore's word for whatever the disk or the store says.
        """
        if self._current is None or self._current[0] != entry:
            self._current = entry, self._open(entry, is_new=True)
        self._current[1][box].write(block, can_reference_source_data_indefinitely=True).result()
        self._gathered += block.nbytes
        if self._gathered >= self._max_gathered:
            self._commit()

    def finish(self) -> None:
        """Return when all is written. Raises ValueError like `write`."""
        self._commit()
        self._wait()

    def abort(self) -> None:
        """Forget what was gathered, and return when nothing is written any more."""
        self._transaction.abort()
        with suppress(ValueError):
            self._wait()

    def _commit(self) -> None:
        """Begin to write what was gathered, as soon as what came before is written. Raises ValueError like `write`."""
        self._wait()
        self._committing = self._transaction.commit_async()
        self._transaction, self._gathered = ts.Transaction(), 0
        if self._current is not None:
            entry, _ = self._current
            # Its shape is in the transaction that is being written now.
            self._current = entry, self._open(entry, is_new=False)

    def _wait(self) -> None:
        if self._committing is not None:
            committing, self._committing = self._committing, None
            committing.result()

    def _open(self, entry: ArrayEntry, *, is_new: bool) -> ts.TensorStore:
        metadata = {"shape": entry.shape, "chunks": self._chunks[entry.path], "compressor": None}
        spec = {
            "driver": "zarr",
            "kvstore": {**self._store, "path": f"{entry.path}/"},
            "dtype": entry.dtype,
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        return ts.open(
            spec,
            create=is_new,
            open=not is_new,
            assume_metadata=not is_new,
            context=self._context,
            transaction=self._transaction,
        ).result()


def reason(error: Exception) -> str:
    """What the system said, out of TensorStore's words about each layer that heard of it; else the first of those."""
    found = re.search(r": ([^:]+?) \[os_error_code", str(error))
    return found[1] if found else str(error)[:_SHOWN]


def merge(folder: Place, prefix: str) -> None:
    """One database of those that processes wrote into folders of their own, whose names begin with `prefix`.

    Its blocks stay where they are. Raises ValueError where they cannot be read.
    """
    context, transaction = ts.Context(), ts.Transaction(atomic=True)
    whole = ts.KvStore.open(_database(folder), context=context).result()
    parts = [path for path in folder.iterdir() if path.name.startswith(prefix)]
    opened = [ts.KvStore.open(_database(part), context=context).result() for part in parts]
    target = whole.with_transaction(transaction)
    for copied in [part.experimental_copy_range_to(target) for part in opened]:
        copied.result()
    transaction.commit_async().result()


def check_complete(folder: Place, arrays: Iterable[tuple[ArrayEntry, tuple[int, ...]]]) -> None:
    """Raises ValueError if a block of these arrays, each with the shape of its blocks, is not in the database."""
    keys = ts.KvStore.open(_database(folder)).result().list().result()
    found = Counter(key.decode().rpartition("/")[0] for key in keys)
    for entry, chunk in arrays:
        count = math.prod(-(-size // part) for size, part in zip(entry.shape, chunk, strict=True))
        if found[entry.path] != count + 1:  # And its shape.
            raise ValueError(f"{entry.path} has {found[entry.path] - 1} of {count} blocks")


def write_tree(folder: Place, paths: Iterable[str]) -> None:
    """Orbax's own file about the tree, of which its reader takes the names and kinds of leaves."""
    kind = {"value_type": "jax.Array", "skip_deserialize": False}
    leaves = {
        str((path,)): {"key_metadata": [{"key": path, "key_type": 2}], "value_metadata": kind}
        for path in paths
    }
    flags = {"use_ocdbt": True, "use_zarr3": False, "store_array_data_equal_to_fill_value": True}
    text = json.dumps({"tree_metadata": leaves, **flags, "custom_metadata": None})
    (folder / "_METADATA").write_text(text)


def _database(folder: Place) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": kvstore(folder), "config": _CONFIG}
