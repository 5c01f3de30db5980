"""Mistral 7B and what kept its architecture; releases after v0.1 have no window."""

from typing import Any

from jaxscale.interop.config_fields import Fields
from jaxscale.interop.families.decoder import TWO_NORMS
from jaxscale.interop.family import HfFamily, Sizes
from jaxscale.interop.rope_config import SLIDING, read_windows, single_rope, write_rope
from jaxscale.models.architecture import Architecture


def _read(fields: Fields, sizes: Sizes) -> dict[str, Any]:
    everywhere = [SLIDING] * sizes["num_layers"]
    window, pattern = read_windows(fields, fields.integer("sliding_window", 4096), everywhere)
    rope = single_rope(fields, 10_000.0, window)
    return {"window": window, "window_pattern": pattern, **rope}


def _write(arch: Architecture) -> dict[str, Any]:
    return {"sliding_window": arch.window, **write_rope(arch)}


MISTRAL = HfFamily(
    model_type="mistral",
    architecture="MistralForCausalLM",
    ours=("mistral",),
    names=TWO_NORMS,
    defaults={
        "vocab_size": 32_000,
        "max_position_embeddings": 131_072,
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "intermediate_size": 14_336,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    fixed={"hidden_act": ("silu",)},
    read=_read,
    write=_write,
)
