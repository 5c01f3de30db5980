"""The metadata of a GGUF file as the `config.json` that says the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.errors import UserError

_MODEL_TYPES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
# What llama.cpp itself takes for granted.
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read_config(
    path: Path, fields: Mapping[str, Any], tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """Raises UserError for another kind of model, or metadata that is not there."""
    kind = str(fields.get("general.architecture"))
    if kind not in _MODEL_TYPES:
        known = ", ".join(_MODEL_TYPES)
        raise UserError(f"{path} holds a model of kind {kind!r}; jaxscale reads GGUF of {known}")
    if int(fields.get("split.count", 1)) > 1:
        raise UserError(
            f"{path} is one part of {fields['split.count']}: join them with `llama-gguf-split --merge`"
        )
    if kind == "llama" and fields.get("llama.expert_count"):
        raise UserError(
            f"{path} has {fields['llama.expert_count']} experts, which jaxscale does not train yet"
        )
    metadata = _Metadata(path, kind, fields)
    rows = int(tensors["token_embd.weight"].shape[1]) if "token_embd.weight" in tensors else 0
    read = _gpt2 if kind == "gpt2" else _decoder
    return {
        "model_type": _MODEL_TYPES[kind],
        "vocab_size": rows,
        "tie_word_embeddings": "output.weight" not in tensors,
        **read(metadata, tensors),
    }


class _Metadata:
    """Keys of a file under the prefix of its kind."""

    def __init__(self, path: Path, kind: str, fields: Mapping[str, Any]) -> None:
        self.path, self.kind, self.fields = path, kind, fields

    def __getitem__(self, key: str) -> Any:
        """Raises UserError where the file does not say."""
        value = self.get(key)
        if value is None:
            raise UserError(f"{self.path} does not say {self.kind}.{key}")
        return value

    def get(self, key: str) -> Any:
        value = self.fields.get(f"{self.kind}.{key}")
        # Numbers are stored in float32: 1e-05 is what 9.999999747378752e-06 was.
        return float(str(np.float32(value))) if isinstance(value, float) else value


def _gpt2(metadata: _Metadata, _: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "n_positions": metadata["context_length"],
        "n_embd": metadata["embedding_length"],
        "n_layer": metadata["block_count"],
        "n_head": metadata["attention.head_count"],
        "n_inner": metadata["feed_forward_length"],
        "layer_norm_epsilon": metadata["attention.layer_norm_epsilon"],
    }


def _decoder(metadata: _Metadata, tensors: Mapping[str, Any]) -> dict[str, Any]:
    heads, width = metadata["attention.head_count"], metadata["embedding_length"]
    head_dim = metadata.get("attention.key_length") or width // heads
    return {
        "max_position_embeddings": metadata["context_length"],
        "hidden_size": width,
        "num_hidden_layers": metadata["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "intermediate_size": metadata["feed_forward_length"],
        "rms_norm_eps": metadata["attention.layer_norm_rms_epsilon"],
        "rope_theta": _base(metadata),
        "rope_scaling": _scaling(metadata, tensors, head_dim),
        **(_gemma(metadata, head_dim) if metadata.kind.startswith("gemma") else {}),
    }


def _gemma(metadata: _Metadata, head_dim: int) -> dict[str, Any]:
    largest = metadata["block_count"] == _GEMMA_27B_LAYERS[metadata.kind]
    per_head = metadata["embedding_length"] // metadata["attention.head_count"]
    return {
        "query_pre_attn_scalar": per_head if largest else head_dim,
        "sliding_window": metadata["attention.sliding_window"],
        "attn_logit_softcapping": metadata.get("attn_logit_softcapping"),
        "final_logit_softcapping": metadata.get("final_logit_softcapping"),
    }


def _base(metadata: _Metadata) -> float:
    usual = {"gemma3": 1_000_000.0}.get(metadata.kind, 10_000.0)
    return float(metadata.get("rope.freq_base") or usual)


def _scaling(
    metadata: _Metadata, tensors: Mapping[str, Any], head_dim: int
) -> dict[str, Any] | None:
    kind = metadata.get("rope.scaling.type") or "none"
    factors = tensors.get("rope_freqs.weight")
    if factors is not None:
        values = np.asarray(factors.data, np.float32).reshape(-1)
        return _by_frequency(metadata, values, head_dim)
    if kind == "none":
        return None
    if kind != "linear":
        raise UserError(
            f"{metadata.path} stretches rotary positions by {kind}; jaxscale has linear and Llama 3's"
        )
    return {"rope_type": "linear", "factor": metadata["rope.scaling.factor"]}


def _by_frequency(
    metadata: _Metadata, factors: np.ndarray[Any, Any], head_dim: int
) -> dict[str, Any]:
    """Llama 3's stretching, of which the file has only the factor of each frequency: put in and compared."""
    from jaxscale.models.architecture import RopeScaling
    from jaxscale.models.rope import frequencies

    base, factor = _base(metadata), float(factors.max())
    low, high, original = _LLAMA3.values()
    scaling = RopeScaling(factor, low, high, int(original))
    expected = frequencies(head_dim, base, None) / frequencies(head_dim, base, scaling)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise UserError(
            f"{metadata.path} stretches rotary positions by factors of its own (rope_freqs), which are not Llama 3's"
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
