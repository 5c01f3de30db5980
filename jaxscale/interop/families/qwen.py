"""Qwen2 and Qwen2.5 (biases on queries, keys and values), Qwen3 (norms on queries and keys)."""

from dataclasses import replace
from typing import Any

from jaxscale.interop.config_fields import Fields
from jaxscale.interop.families.decoder import TWO_NORMS
from jaxscale.interop.family import HfFamily, Sizes
from jaxscale.interop.rope_config import (
    FULL,
    SLIDING,
    read_windows,
    single_rope,
    write_layer_types,
    write_rope,
)
from jaxscale.models.architecture import Architecture


def _read(fields: Fields, sizes: Sizes) -> dict[str, Any]:
    used = fields.flag("use_sliding_window", default=False)
    window = fields.integer("sliding_window", 4096)
    first = fields.integer("max_window_layers", 28) or 0
    usual = [SLIDING if layer >= first else FULL for layer in range(sizes["num_layers"])]
    window, pattern = read_windows(fields, window if used else None, usual)
    rope = single_rope(fields, 10_000.0, window)
    return {"window": window, "window_pattern": pattern, **rope}


def _write(arch: Architecture) -> dict[str, Any]:
    windows = {} if arch.window is None else {"layer_types": write_layer_types(arch)}
    return {
        "use_sliding_window": arch.window is not None,
        "sliding_window": arch.window,
        "max_window_layers": arch.num_layers if arch.window is None else 0,
        **windows,
        **write_rope(arch),
    }


QWEN2 = HfFamily(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    ours=("qwen2",),
    names=TWO_NORMS,
    defaults={
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": None,
        "intermediate_size": 22_016,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    fixed={"hidden_act": ("silu",)},
    read=_read,
    write=_write,
)
QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    ours=("qwen3",),
    defaults={**QWEN2.defaults, "head_dim": 128},
    fixed={**QWEN2.fixed, "attention_bias": (False,)},
)
