"""`metadata.json`: what a checkpoint holds, readable without loading an array."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.checkpoint.places import Place
from jaxscale.errors import UserError

METADATA_FILE = "metadata.json"
FORMAT = 1
MAX_LINES = 10


class ArrayEntry(NamedTuple):
    """One stored array: logical path, global shape, dtype name, and bytes before compression."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of `metadata.json`; `metadata` is the caller's own, anything JSON can hold."""

    step: int
    metric_name: str | None
    metric_value: float | None
    arrays: tuple[ArrayEntry, ...]
    metadata: dict[str, Any]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.arrays)


def describe(arrays: Mapping[str, jax.Array]) -> tuple[ArrayEntry, ...]:
    """Entries of a flat tree of arrays, by path.

    Raises UserError for what Orbax cannot store: random keys and arrays without elements.
    """
    for path, array in arrays.items():
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            raise UserError(f"{path} is a random key; store jax.random.key_data({path}) instead")
        if array.size == 0:
            raise UserError(f"{path} has shape {list(array.shape)}: an empty array has no data")
    return tuple(
        array_entry(path, array.shape, array.dtype) for path, array in sorted(arrays.items())
    )


def to_json(manifest: Manifest) -> str:
    """Text of the file. Raises TypeError where the caller's metadata is not JSON."""
    document = {
        "format": FORMAT,
        "step": manifest.step,
        "metric": {"name": manifest.metric_name, "value": manifest.metric_value},
        "arrays": [entry._asdict() for entry in manifest.arrays],
        "metadata": manifest.metadata,
    }
    return json.dumps(document, indent=1) + "\n"


def read_manifest(checkpoint: Place) -> Manifest:
    """Raises UserError if the file is missing, damaged, or of a newer format."""
    path = checkpoint / METADATA_FILE
    try:
        document = json.loads(path.read_bytes())
        if document["format"] > FORMAT:
            raise UserError(
                f"{path} has format {document['format']}; this version reads up to {FORMAT}: "
                "update jaxscale"
            )
        return _from_document(document)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {checkpoint}: {METADATA_FILE} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error


def _from_document(document: dict[str, Any]) -> Manifest:
    entries = (ArrayEntry(**entry) for entry in document["arrays"])
    return Manifest(
        step=document["step"],
        metric_name=document["metric"]["name"],
        metric_value=document["metric"]["value"],
        arrays=tuple(entry._replace(shape=tuple(entry.shape)) for entry in entries),
        metadata=document["metadata"],
    )


def check_fits(
    checkpoint: Place,
    manifest: Manifest,
    target: Mapping[str, jax.ShapeDtypeStruct],
    *,
    allow_extra: bool,
) -> None:
    """Raises UserError naming each array of the target that differs from the stored one.

    Arrays that only the checkpoint has are an error too unless `allow_extra`.
    """
    stored = {entry.path: entry for entry in manifest.arrays}
    wanted = {path: array_entry(path, array.shape, array.dtype) for path, array in target.items()}
    lines = list(_differences(stored, wanted))
    if not allow_extra:
        lines += [
            f"{path} {_shape(stored[path])} is in the checkpoint, not in the model"
            for path in sorted(stored.keys() - wanted.keys())
        ]
    if lines:
        raise UserError(_difference_message(checkpoint, lines))


def _differences(
    stored: Mapping[str, ArrayEntry], wanted: Mapping[str, ArrayEntry]
) -> Iterator[str]:
    for path, model in sorted(wanted.items()):
        saved = stored.get(path)
        if saved is None:
            yield f"{path} {_shape(model)} is in the model, not in the checkpoint"
        elif saved.shape != model.shape:
            yield f"{path} is {_shape(saved)} in the checkpoint, {_shape(model)} in the model"
        elif saved.dtype != model.dtype:
            yield f"{path} is {saved.dtype} in the checkpoint, {model.dtype} in the model"


def _difference_message(checkpoint: Place, lines: list[str]) -> str:
    noun = "array differs" if len(lines) == 1 else "arrays differ"
    shown = [f"  {line}" for line in lines[:MAX_LINES]]
    if len(lines) > MAX_LINES:
        shown.append(f"  ... and {len(lines) - MAX_LINES} more")
    head = f"checkpoint {checkpoint} does not fit the model: {len(lines)} {noun}"
    advice = "Resume with the configuration it was saved with, or start a new run."
    return "\n".join([head, *shown, advice])


def _shape(entry: ArrayEntry) -> str:
    return str(list(entry.shape))


def array_entry(path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ArrayEntry:
    # A dtype of under eight bits (int4) still takes a whole byte an element on the host.
    return ArrayEntry(path, tuple(shape), dtype.name, math.prod(shape) * dtype.itemsize)
