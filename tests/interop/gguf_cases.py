"""Tiny GGUF files, written with the `gguf` library as llama.cpp's converter lays models out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jaxscale.config.model_section import ModelSection
from jaxscale.interop.hf_config import to_hf_config
from jaxscale.models.architecture import Architecture
from jaxscale.models.families import resolve
from jaxscale.models.rope import frequencies

KINDS = {"gemma3_text": "gemma3", "mistral": "llama"}
# llama.cpp's names of what Hugging Face calls so; a layer's come after `blk.N.`.
NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LAYER_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def write_gguf(
    path: Path,
    section: ModelSection,
    tensors: Mapping[str, np.ndarray],
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    **changes: Any,
) -> None:
    """A file of Hugging Face `tensors`; matrices quantized, the rest in float32; `changes` of its metadata."""
    arch, family = resolve(section), to_hf_config(section)[0]
    kind = KINDS.get(family.model_type, family.model_type)
    writer = gguf.GGUFWriter(path, kind)
    for key, value in {**metadata(kind, arch), **changes}.items():
        add(writer, key, value)
    tokens = [f"<{i}>" for i in range(arch.vocab_size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    if arch.rope_scaling is not None and arch.rope_scaling.low_frequency_factor is not None:
        plain = frequencies(arch.head_dim, arch.rope_base, None)
        factors = plain / frequencies(arch.head_dim, arch.rope_base, arch.rope_scaling)
        writer.add_tensor("rope_freqs.weight", factors)
    for name, values in tensors.items():
        their_name, laid = converted(kind, name, values, arch)
        # Blocks of 32 values share a scale; what has others stays as it is.
        fits = laid.ndim == 2 and laid.shape[-1] % 32 == 0
        if not fits or quantization is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(their_name, laid)
        else:
            data = gguf.quants.quantize(laid, quantization)
            writer.add_tensor(their_name, data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case str():
            writer.add_string(key, value)
        case float():
            writer.add_float32(key, value)
        case _:
            writer.add_uint32(key, value)


def metadata(kind: str, arch: Architecture) -> dict[str, Any]:
    values: dict[str, Any] = {
        "block_count": arch.num_layers,
        "context_length": arch.max_positions,
        "embedding_length": arch.embed_dim,
        "feed_forward_length": arch.mlp_dim,
        "attention.head_count": arch.num_heads,
    }
    if kind == "gpt2":
        values["attention.layer_norm_epsilon"] = arch.norm_epsilon
        return {f"{kind}.{key}": value for key, value in values.items()}
    values |= {
        "attention.head_count_kv": arch.num_kv_heads,
        "attention.key_length": arch.head_dim,
        "attention.value_length": arch.head_dim,
        "attention.layer_norm_rms_epsilon": arch.norm_epsilon,
        "rope.freq_base": arch.rope_base,
        "rope.dimension_count": arch.head_dim,
    }
    if kind.startswith("gemma"):
        values["attention.sliding_window"] = arch.window
    if arch.logit_softcap is not None:
        values["attn_logit_softcapping"] = arch.attention_softcap
        values["final_logit_softcapping"] = arch.logit_softcap
    scaling = arch.rope_scaling
    if scaling is not None and scaling.low_frequency_factor is None:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    return {f"{kind}.{key}": value for key, value in values.items()}


def converted(
    kind: str, name: str, values: np.ndarray, arch: Architecture
) -> tuple[str, np.ndarray]:
    """What llama.cpp's converter makes of a tensor of Hugging Face."""
    stem, ending = name.rsplit(".", 1)
    parts = stem.split(".", 3)
    if kind == "llama" and stem.endswith(("q_proj", "k_proj")):
        heads = arch.num_heads if stem.endswith("q_proj") else arch.num_kv_heads
        half = values.shape[0] // heads // 2
        values = values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
    if kind.startswith("gemma") and stem.endswith("norm"):
        values = values + 1
    if kind == "gpt2" and parts[0] == "transformer" and "h" in parts and values.ndim == 2:
        values = values.T
    values = np.ascontiguousarray(values, np.float32)
    if stem in NAMES:
        return f"{NAMES[stem]}.{ending}", values
    layer, rest = parts[2], parts[3]
    short = LAYER_NAMES[rest]
    if kind.startswith("gemma") and rest == "post_attention_layernorm":
        short = "post_attention_norm"
    return f"blk.{layer}.{short}.{ending}", values
