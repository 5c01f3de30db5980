"""The tensors of a Hugging Face directory, one file or many, checked against what a model needs."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxscale.checkpoint.places import Place, file_names
from jaxscale.checkpoint.stored import Box
from jaxscale.errors import UserError
from jaxscale.interop.byte_ranges import open_file
from jaxscale.interop.layout import whole
from jaxscale.interop.match import spelling
from jaxscale.interop.names import NameMap
from jaxscale.interop.safetensors_reader import StoredTensor, read_box, read_header

INDEX_FILE = "model.safetensors.index.json"
Stored = Mapping[str, StoredTensor]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
_HEAD = "lm_head.weight"
_SHOWN = 12
_ROWS_COMPARED = 64


def open_weights(folder: Place) -> dict[str, StoredTensor]:
    """Every tensor of the directory's safetensors files, by name, without reading one.

    Raises UserError for a directory without them, pickle files, and files that are missing, damaged or truncated.
    """
    names = file_names(folder)
    found: dict[str, StoredTensor] = {}
    for name in _weight_files(folder, names):
        for tensor in read_header(open_file(folder / name)).values():
            if tensor.name in found:
                raise UserError(
                    f"{tensor.name} is in {found[tensor.name].file.name} and in {tensor.file.name}: keep one of them"
                )
            found[tensor.name] = tensor
    return found


def without_copied_head(names: NameMap, stored: Stored) -> Stored:
    """The tensors without a head that is only a copy of tied embeddings, as some programs write it.

    Raises UserError if it is another table: rows all over the two are compared.
    """
    head = stored.get(_HEAD)
    if head is None or _HEAD in {tensor.name for tensor in names.tensors}:
        return stored
    embedding = stored.get(spelling(names, stored)(names.tensors[0].name))
    if embedding is not None:  # Its absence is another error.
        _check_tied(head, embedding)
    return {name: tensor for name, tensor in stored.items() if name != _HEAD}


def read_finite(tensor: StoredTensor, box: Box) -> np.ndarray[Any, Any]:
    """A box of a tensor. Raises UserError for values that are not numbers, which only a damaged file has."""
    values = read_box(tensor, box)
    count = _num_nonfinite(values)
    if count:
        raise UserError(
            f"{tensor.file.name} is damaged: {tensor.name} has {count:,} values that are infinite or not a number. "
            "Download it again"
        )
    return values


def _weight_files(folder: Place, names: Sequence[str]) -> list[str]:
    if INDEX_FILE in names:
        files = _indexed(folder)
        missing = sorted(set(files) - set(names))
        if missing:
            raise UserError(f"{folder} lacks {', '.join(missing)}, which {INDEX_FILE} names")
        return files
    files = [name for name in names if name.endswith(".safetensors")]
    whole_model = [name for name in files if name.startswith("model")]
    if not files:
        raise _no_weights(folder, names)
    _check_shards(folder, whole_model)
    return whole_model or files


def _indexed(folder: Place) -> list[str]:
    try:
        index = json.loads((folder / INDEX_FILE).read_bytes())
        return sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{folder}/{INDEX_FILE} is damaged: {error!r}") from error


def _check_shards(folder: Place, files: Sequence[str]) -> None:
    shards = [match for match in map(_SHARD.search, files) if match]
    present = {int(shard[1]) for shard in shards}
    total = max((int(shard[2]) for shard in shards), default=0)
    missing = sorted(set(range(1, total + 1)) - present)
    if missing:
        raise UserError(f"{folder} lacks part {missing} of {total} of its model files")


def _no_weights(folder: Place, names: Sequence[str]) -> UserError:
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if not pickles:
        return UserError(f"{folder} has no *.safetensors file; it has {', '.join(names[:_SHOWN])}")
    return UserError(
        f"{folder} has its weights in {', '.join(pickles[:3])}: a pickle runs whatever code it holds when it "
        "is opened, so jaxscale does not open it. Convert it with PyTorch told to refuse code (weights_only):\n"
        '  python -c "import sys, torch; from safetensors.torch import save_file; '
        "save_file({k: v.clone().contiguous() for k, v in "
        "torch.load(sys.argv[1], map_location='cpu', weights_only=True).items()}, sys.argv[2])\" "
        f"{folder}/{pickles[0]} {folder}/model.safetensors"
    )


def _check_tied(head: StoredTensor, embedding: StoredTensor) -> None:
    rows = np.unique(np.linspace(0, head.shape[0] - 1, _ROWS_COMPARED).astype(int))
    boxes = ((slice(int(row), int(row) + 1), *whole(head.shape)[1:]) for row in rows)
    if head.shape == embedding.shape and all(_is_same(head, embedding, box) for box in boxes):
        return
    raise UserError(
        f"{head.file.name}: {head.name} {list(head.shape)} is not a copy of {embedding.name} {list(embedding.shape)}, "
        "but config.json ties them: set tie_word_embeddings to false there"
    )


def _is_same(one: StoredTensor, other: StoredTensor, box: Box) -> bool:
    return np.array_equal(read_box(one, box), read_box(other, box))


def _num_nonfinite(values: np.ndarray[Any, Any]) -> int:
    if values.dtype.itemsize != 2:
        return int(values.size - np.count_nonzero(np.isfinite(values)))
    # On their bits: isfinite of bfloat16 goes through float32.
    exponent = np.uint16(0x7C00 if values.dtype == np.float16 else 0x7F80)
    return int(np.count_nonzero((values.view(np.uint16) & exponent) == exponent))
