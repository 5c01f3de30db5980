"""Tiny models of awkward shapes, at least one of each family."""

from typing import Any

import jax
import numpy as np

from jaxscale.config.model_section import ModelSection
from jaxscale.models.architecture import Architecture
from jaxscale.models.build import model_builder
from jaxscale.models.description import Blueprint, Params, blueprint
from jaxscale.models.families import resolve

VOCAB, SEQUENCE = 61, 23
_SIZES: dict[str, Any] = {"vocab_size": VOCAB, "max_positions": 48, "num_layers": 2}
_GQA = _SIZES | {"embed_dim": 24, "num_heads": 6, "num_kv_heads": 2, "head_dim": 6, "mlp_dim": 28}
_ODD = _SIZES | {"embed_dim": 20, "num_heads": 5, "head_dim": 6, "mlp_dim": 28}
_STRETCH = {
    "factor": 4.0,
    "low_frequency_factor": 1.0,
    "high_frequency_factor": 4.0,
    "original_positions": 32,
}

CASES: dict[str, dict[str, Any]] = {
    "gpt2": _SIZES | {"family": "gpt2", "embed_dim": 21, "num_heads": 3},
    "gpt3 with its own mlp": _SIZES
    | {"family": "gpt3", "embed_dim": 20, "num_heads": 5, "mlp_dim": 17, "num_layers": 3},
    "llama2, odd heads": _ODD | {"family": "llama2"},
    "llama3, grouped": _GQA | {"family": "llama3"},
    "llama3.1, stretched": _GQA | {"family": "llama3.1", "rope_scaling": _STRETCH},
    "llama3.2, tied": _GQA | {"family": "llama3.2", "rope_scaling": _STRETCH},
    "mistral, short window": _GQA | {"family": "mistral", "window": 5},
    "qwen2": _GQA | {"family": "qwen2", "num_heads": 4, "num_kv_heads": 1},
    "qwen2, tied": _ODD | {"family": "qwen2", "tied_embeddings": True},
    "qwen3": _GQA | {"family": "qwen3", "head_dim": 10},
    "gemma2, odd layers": _GQA
    | {
        "family": "gemma2",
        "num_layers": 5,
        "window": 5,
        "attention_softcap": 2.0,
        "logit_softcap": 3.0,
        "query_scale": 11.0,
    },
    "gemma3, layers beyond the pattern": _GQA
    | {"family": "gemma3", "num_layers": 8, "window": 5, "rope_scaling": {"factor": 8.0}},
    "gemma3, fewer layers than the pattern": _ODD
    | {"family": "gemma3", "num_layers": 4, "window": 7, "query_scale": 9.0},
    "gemma3, pattern of three": _ODD
    | {"family": "gemma3", "num_layers": 7, "window": 4, "window_pattern": 3},
}


def section(name: str, **changes: Any) -> ModelSection:
    return ModelSection(**CASES[name] | changes)


def architecture(name: str, **changes: Any) -> Architecture:
    return resolve(section(name, **changes))


def make_blueprint(name: str, **changes: Any) -> Blueprint:
    return blueprint(model_builder(section(name, **changes)))


def random_params(model: Blueprint, seed: int = 0) -> Params:
    """Every parameter drawn, so that norms and biases are not at their neutral values."""
    generator = np.random.default_rng(seed)
    return {
        path: jax.numpy.asarray(0.2 * generator.standard_normal(spec.shape), "float32")
        for path, spec in model.description.items()
    }


def random_tokens(seed: int = 0, shape: tuple[int, int] = (2, SEQUENCE)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, shape, np.int32)
