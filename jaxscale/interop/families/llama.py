"""Llama 2, 3, 3.1 and 3.2 (text), and what is built like them (SmolLM2)."""

from typing import Any

from jaxscale.interop.config_fields import Fields
from jaxscale.interop.families.decoder import TWO_NORMS
from jaxscale.interop.family import HfFamily, Sizes
from jaxscale.interop.rope_config import single_rope, write_rope


def _read(fields: Fields, _: Sizes) -> dict[str, Any]:
    return single_rope(fields, 10_000.0, window=None)


LLAMA = HfFamily(
    model_type="llama",
    architecture="LlamaForCausalLM",
    ours=("llama2", "llama3", "llama3.1", "llama3.2"),
    names=TWO_NORMS,
    defaults={
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "intermediate_size": 11_008,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    fixed={"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
    read=_read,
    write=write_rope,
)
