"""A checkpoint as a Hugging Face model: straight from its arrays on disk, with no device and bounded memory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.checkpoint.locate import Located, locate
from jaxscale.checkpoint.places import Place
from jaxscale.checkpoint.stored import StoredArrays
from jaxscale.config.model_section import ModelSection
from jaxscale.errors import UserError
from jaxscale.interop.export import export_tensors
from jaxscale.interop.export_job import Exported, ExportJob, ExportOptions
from jaxscale.interop.hf_config import to_hf_config
from jaxscale.interop.hf_tokenizer import (
    RunTokenizer,
    find_tokenizer,
    start_of_text,
    write_hf_tokenizer,
)
from jaxscale.interop.journal import write_atomically
from jaxscale.interop.model_card import model_card
from jaxscale.interop.names import bind
from jaxscale.interop.tensor_source import TensorSource, check_complete, weights_part
from jaxscale.models.build import model_builder
from jaxscale.models.description import Description, blueprint

_DEFAULTS = ExportOptions()


def export_hf(
    checkpoint: Place | str,
    out: Place | str,
    *,
    step: int | None = None,
    dtype: np.dtype[Any] | None = None,
    part: str | None = None,
    options: ExportOptions = _DEFAULTS,
) -> Exported:
    """Write `out` so that `transformers` loads it unchanged; run it again to go on after an interruption.

    checkpoint: a run directory, or one checkpoint of it. step: which one of a run (default: the newest). out: a
    directory. Each a path or a URL (gs://, s3://).
    dtype: of the weights (default: as stored). part: `params` or `average` (default: the average where it was kept).
    Raises UserError where the input is wrong (see `export_tensors`), and for a model that no Hugging Face family
    computes; nothing is ever written to the checkpoint.
    """
    model = open_model(checkpoint, step)
    family, config = to_hf_config(model.section)
    names = bind(family.names, model.description)
    chosen = weights_part(model.stored, part)
    check_complete(model.stored, chosen, model.description)
    source = TensorSource(model.stored, chosen, names.tensors, dtype)
    config = _complete(config, source.infos[0].dtype, model.tokenizer)
    side = _SideFiles(model, chosen, config)
    return export_tensors(ExportJob(source, options, json.dumps(config), side.write), out)


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint with the model of its configuration. tokenizer: None where it is not to be found."""

    located: Located
    stored: StoredArrays
    section: ModelSection
    description: Description
    tokenizer: RunTokenizer | None

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.stored.manifest.metadata


def open_model(checkpoint: Place | str, step: int | None) -> StoredModel:
    """Raises UserError where there is no checkpoint, or where it does not say which model it holds."""
    located = locate(checkpoint, step)
    stored = StoredArrays(located.checkpoint)
    metadata = stored.manifest.metadata
    if "model" not in metadata.get("config", {}):
        raise UserError(
            f"checkpoint {located.checkpoint} does not say which model it holds: it was not saved by `jaxscale train`"
        )
    section = ModelSection.model_validate(metadata["config"]["model"])
    description = blueprint(model_builder(section)).description
    tokenizer = find_tokenizer(located.run, metadata.get("data", {}).get("tokenizer"))
    return StoredModel(located, stored, section, description, tokenizer)


@dataclass(frozen=True)
class _SideFiles:
    """Everything beside the weights."""

    model: StoredModel
    part: str
    config: Mapping[str, Any]

    def write(self, out: Path) -> None:
        model, notes = self.model, []
        if model.tokenizer is None:
            notes.append("The tokenizer was not found beside the checkpoint and is not included.")
        else:
            write_hf_tokenizer(model.tokenizer, out, model.section.max_positions)
        if self.part == "average":
            notes.append("The weights are the exponential moving average of training.")
        card = model_card(
            model.metadata,
            model.description,
            step=model.located.step,
            run=model.located.run,
            notes=notes,
        )
        write_atomically(out / "README.md", card)
        if not (out / "generation_config.json").is_file():  # An imported model's own comes along.
            ids = {key: self.config[key] for key in self.config if key.endswith("_token_id")}
            write_atomically(out / "generation_config.json", json.dumps(ids, indent=2) + "\n")
        write_atomically(out / "config.json", json.dumps(self.config, indent=2) + "\n")


def _complete(
    config: Mapping[str, Any], dtype: np.dtype[Any], tokenizer: RunTokenizer | None
) -> dict[str, Any]:
    """With the dtype and the token ids, which our model section does not know."""
    start = None if tokenizer is None else start_of_text(tokenizer.tokenizer)
    end = None if tokenizer is None else tokenizer.tokenizer.eod_id
    return {**config, "torch_dtype": dtype.name, "bos_token_id": start, "eos_token_id": end}
