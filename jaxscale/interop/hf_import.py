"""A Hugging Face directory, opened."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.checkpoint.places import Place, file_names
from jaxscale.checkpoint.stored import Box
from jaxscale.config.model_section import ModelSection
from jaxscale.errors import UserError
from jaxscale.interop.byte_ranges import open_folder
from jaxscale.interop.hf_config import FromHf, from_hf_config
from jaxscale.interop.hf_weights import Stored, open_weights, read_finite, without_copied_head
from jaxscale.interop.match import match
from jaxscale.interop.names import STRIP_ELEMENTS, bind
from jaxscale.interop.open_model import OpenModel
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint

CONFIG_FILE = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def open_hf(
    location: str, *, section: ModelSection | None = None, ignore: Collection[str] = ()
) -> OpenModel:
    """A directory, local or remote, of which only headers are read.

    section: what the model is to be instead of what config.json says (with another window, say).
    ignore: keys of config.json to pass over.
    Raises UserError for an unknown family, a configuration that cannot be represented, and tensors that are missing,
    too many, of another shape, or in files that are damaged.
    """
    folder = open_folder(location)
    found, stored = _read_config(folder, ignore)
    section = section or found.section
    model = blueprint(model_builder(section))
    names = bind(found.family.names, model.description)
    matched = match(names, without_copied_head(names, stored), str(folder))
    dtypes = Counter(tensor.numpy_dtype.name for tensor in matched.values())

    def read_theirs(name: str, box: Box) -> np.ndarray[Any, Any]:
        return read_finite(matched[name], box)

    facts = {
        "from": str(folder),
        "format": "safetensors",
        "family": found.family.model_type,
        "dtypes": dict(dtypes),
    }
    return OpenModel(
        section,
        model,
        names,
        read_theirs,
        lambda: tokenizer_files(folder),
        facts,
        found.notes,
        # Out of a store a request takes as long as many of them.
        strip_elements=STRIP_ELEMENTS if isinstance(folder, Path) else None,
    )


def hf_section(location: str) -> ModelSection:
    """The `model:` section that a directory's config.json means. Raises UserError like `open_hf`."""
    return _read_config(open_folder(location), ignore=())[0].section


def tokenizer_files(folder: Place) -> dict[str, bytes]:
    """What of a directory belongs to its tokenizer and to generation, by file name."""
    present = set(file_names(folder))
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if name in present}


def _read_config(folder: Place, ignore: Collection[str]) -> tuple[FromHf, Stored]:
    config = _read_json(folder, CONFIG_FILE)
    stored = open_weights(folder)
    name = f"{folder}/{CONFIG_FILE}"
    return from_hf_config(config, name, tensors=stored, ignore=ignore), stored


def _read_json(folder: Place, name: str) -> Mapping[str, Any]:
    try:
        values = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {name}: give the directory of a Hugging Face model; this one has "
            f"{', '.join(file_names(folder)[:8]) or 'no files'}"
        ) from None
    except ValueError as error:
        raise UserError(f"{folder}/{name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{folder}/{name} holds no object")
    return values
