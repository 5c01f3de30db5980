"""Hugging Face directories made here, without PyTorch: random tensors under the family's names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxscale.config.model_section import ModelSection
from jaxscale.data.tokenizers import train_bpe
from jaxscale.interop.hf_config import to_hf_config
from jaxscale.interop.names import NameMap, bind
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint

Tensors = dict[str, np.ndarray]

# Every dim divides over eight devices, and no two dims are alike.
WIDE = ModelSection(
    family="llama3",
    vocab_size=272,
    max_positions=64,
    num_layers=2,
    embed_dim=32,
    num_heads=8,
    num_kv_heads=8,
    head_dim=6,
    mlp_dim=40,
)


def names_of(section: ModelSection) -> NameMap:
    family, _ = to_hf_config(section)
    return bind(family.names, blueprint(model_builder(section)).description)


def random_tensors(section: ModelSection, seed: int = 0) -> Tensors:
    generator = np.random.default_rng(seed)
    return {
        tensor.name: 0.2 * generator.standard_normal(tensor.shape, np.float32)
        for tensor in names_of(section).tensors
    }


def write_hf(
    folder: Path,
    section: ModelSection = WIDE,
    *,
    tensors: Mapping[str, np.ndarray] | None = None,
    config: Mapping[str, Any] = {},
    num_shards: int = 1,
) -> Tensors:
    """A directory with config.json (some of its keys changed), tokenizer and weights; returns the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {**to_hf_config(section)[1], **config}
    (folder / "config.json").write_text(json.dumps(values))
    train_bpe(["to be or not to be"], 257).save(folder)
    held = dict(random_tensors(section) if tensors is None else tensors)
    save_shards(folder, held, num_shards)
    return held


def save_shards(folder: Path, tensors: Tensors, count: int) -> None:
    if count == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    files = {name: shard_name(index % count, count) for index, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name, at in files.items() if at == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05}-of-{count:05}.safetensors"


def perplexity(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Of tokens [rows, length] under logits [rows, length, vocabulary]."""
    wide = logits[:, :-1].astype(np.float64)
    largest = wide.max(-1)
    normalizer = largest + np.log(np.exp(wide - largest[..., None]).sum(-1))
    chosen = np.take_along_axis(wide, tokens[:, 1:, None], -1)[..., 0]
    return float(np.exp((normalizer - chosen).mean()))


def save_as_transformers_reads(file: Path, out: Path) -> None:
    """A GGUF file as a Hugging Face directory, by transformers alone; skips the test where that is not installed."""
    for package in ("torch", "transformers", "accelerate"):
        pytest.importorskip(package)
    import torch
    import transformers

    read = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    del read.config.quantization_config
    # It counts as quantized and is not saved: a plain one with its weights is.
    plain = type(read)(read.config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(out)
