"""Gemma 2, and the text models of Gemma 3."""

from dataclasses import replace
from typing import Any

from jaxscale.interop.config_fields import Fields
from jaxscale.interop.families.decoder import FOUR_NORMS
from jaxscale.interop.family import HfFamily, Sizes
from jaxscale.interop.rope_config import (
    layer_types,
    read_two_ropes,
    read_windows,
    single_rope,
    write_layer_types,
    write_rope,
)
from jaxscale.models.architecture import Architecture


def _read_gemma2(fields: Fields, sizes: Sizes) -> dict[str, Any]:
    usual = layer_types(sizes["num_layers"], 2)
    window, pattern = read_windows(fields, fields.integer("sliding_window", 4096), usual)
    caps = _read_caps(fields, attention=50.0, logits=30.0)
    rope = single_rope(fields, 10_000.0, window)
    return {"window": window, "window_pattern": pattern, **caps, **rope}


def _read_gemma3(fields: Fields, sizes: Sizes) -> dict[str, Any]:
    usual = layer_types(sizes["num_layers"], fields.integer("sliding_window_pattern", 6) or 6)
    window, pattern = read_windows(fields, fields.integer("sliding_window", 4096), usual)
    base, scaling, local_base = read_two_ropes(fields, 1_000_000.0, 10_000.0)
    return {
        "window": window,
        "window_pattern": pattern,
        "rope_base": base,
        "rope_local_base": local_base,
        "rope_scaling": scaling,
        **_read_caps(fields, attention=None, logits=None),
    }


def _read_caps(
    fields: Fields, *, attention: float | None, logits: float | None
) -> dict[str, float | None]:
    return {
        "query_scale": float(fields.size("query_pre_attn_scalar", 256) or 256),
        "attention_softcap": fields.number("attn_logit_softcapping", attention),
        "logit_softcap": fields.number("final_logit_softcapping", logits),
    }


def _write(arch: Architecture) -> dict[str, Any]:
    scale = arch.query_scale
    return {
        "query_pre_attn_scalar": int(scale) if scale.is_integer() else scale,
        "attn_logit_softcapping": arch.attention_softcap,
        "final_logit_softcapping": arch.logit_softcap,
        "sliding_window": arch.window,
        "layer_types": write_layer_types(arch),
        **write_rope(arch),
    }


GEMMA2 = HfFamily(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    ours=("gemma2",),
    names=FOUR_NORMS,
    defaults={
        "vocab_size": 256_000,
        "max_position_embeddings": 8192,
        "num_hidden_layers": 26,
        "hidden_size": 2304,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    fixed={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "use_bidirectional_attention": (False, None),
    },
    unused=frozenset({"hidden_act"}),
    read=_read_gemma2,
    write=_write,
)
GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    ours=("gemma3",),
    defaults={**GEMMA2.defaults, "vocab_size": 262_208, "max_position_embeddings": 131_072},
    read=_read_gemma3,
    write=lambda arch: {**_write(arch), "rope_local_base_freq": arch.rope_local_base},
)
