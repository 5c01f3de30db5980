"""transformers as the outside oracle: its configuration of an architecture of ours, and its weights under our paths."""

from typing import Any

import numpy as np
import torch
import transformers

from jaxscale.models.architecture import Architecture


def hf_config(arch: Architecture) -> Any:
    if arch.family.startswith("gpt"):
        return transformers.GPT2Config(
            vocab_size=arch.vocab_size,
            n_positions=arch.max_positions,
            n_embd=arch.embed_dim,
            n_layer=arch.num_layers,
            n_head=arch.num_heads,
            n_inner=arch.mlp_dim,
            layer_norm_epsilon=arch.norm_epsilon,
            **_COMMON,
        )
    base, special = _FAMILIES[arch.family.split(".")[0]]
    return base(**_shared(arch), **special(arch))


def hf_model(arch: Architecture, seed: int = 0) -> Any:
    """A random model in fp32: every weight is drawn, norms and biases too, so that nothing is at its neutral value."""
    model = transformers.AutoModelForCausalLM.from_config(
        hf_config(arch), attn_implementation="eager"
    )
    model = model.to(torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_norm = weight.ndim == 1 and "bias" not in name
            weight.copy_(
                0.7 + 0.3 * noise if is_norm else noise * (0.3 if weight.ndim == 1 else 0.2)
            )
    return model


def hf_num_parameters(arch: Architecture) -> int:
    """Exact count on the meta device; tied tables count once."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(hf_config(arch))
    return sum(weight.numel() for weight in model.parameters())


def hf_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()


def our_params(model: Any, arch: Architecture) -> dict[str, np.ndarray]:
    state = {name: weight.numpy() for name, weight in model.state_dict().items()}
    return _gpt(state, arch) if arch.family.startswith("gpt") else _others(state, arch)


_COMMON = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _shared(arch: Architecture) -> dict[str, Any]:
    return {
        "vocab_size": arch.vocab_size,
        "max_position_embeddings": arch.max_positions,
        "num_hidden_layers": arch.num_layers,
        "hidden_size": arch.embed_dim,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_dim,
        "intermediate_size": arch.mlp_dim,
        "tie_word_embeddings": arch.tied_embeddings,
        "rms_norm_eps": arch.norm_epsilon,
        **_COMMON,
    }


def _rope(arch: Architecture) -> dict[str, Any]:
    scaling, rope = arch.rope_scaling, {"rope_type": "default", "rope_theta": arch.rope_base}
    if scaling is None:
        return rope
    if scaling.original_positions is None:
        return rope | {"rope_type": "linear", "factor": scaling.factor}
    return rope | {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_positions,
    }


def _layer_types(arch: Architecture) -> list[str]:
    windows = [arch.kind(layer).window for layer in range(arch.num_layers)]
    return ["full_attention" if window is None else "sliding_attention" for window in windows]


def _gemma2(arch: Architecture) -> dict[str, Any]:
    return {
        "rope_parameters": _rope(arch),
        "sliding_window": arch.window,
        "layer_types": _layer_types(arch),
        "query_pre_attn_scalar": int(arch.query_scale),
        "attn_logit_softcapping": arch.attention_softcap,
        "final_logit_softcapping": arch.logit_softcap,
    }


def _gemma3(arch: Architecture) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": arch.rope_local_base}
    return {
        "rope_parameters": {"full_attention": _rope(arch), "sliding_attention": local},
        "sliding_window": arch.window,
        "layer_types": _layer_types(arch),
        "query_pre_attn_scalar": int(arch.query_scale),
    }


_FAMILIES: dict[str, Any] = {
    "llama2": (transformers.LlamaConfig, lambda arch: {"rope_parameters": _rope(arch)}),
    "llama3": (transformers.LlamaConfig, lambda arch: {"rope_parameters": _rope(arch)}),
    "mistral": (
        transformers.MistralConfig,
        lambda arch: {"rope_parameters": _rope(arch), "sliding_window": arch.window},
    ),
    "qwen2": (transformers.Qwen2Config, lambda arch: {"rope_parameters": _rope(arch)}),
    "qwen3": (transformers.Qwen3Config, lambda arch: {"rope_parameters": _rope(arch)}),
    "gemma2": (transformers.Gemma2Config, _gemma2),
    "gemma3": (transformers.Gemma3TextConfig, _gemma3),
}


def _stacked(state: dict[str, np.ndarray], pattern: str, arch: Architecture) -> np.ndarray:
    return np.stack([state[pattern.format(layer)] for layer in range(arch.num_layers)])


def _gpt(state: dict[str, np.ndarray], arch: Architecture) -> dict[str, np.ndarray]:
    layers, embed, heads, head_dim = arch.num_layers, arch.embed_dim, arch.num_heads, arch.head_dim

    def take(name: str) -> np.ndarray:
        return _stacked(state, "transformer.h.{}." + name, arch)

    qkv = take("attn.c_attn.weight").reshape(layers, embed, 3, heads, head_dim)
    qkv_bias = take("attn.c_attn.bias").reshape(layers, 3, heads, head_dim)
    params = {
        "embedding/table": state["transformer.wte.weight"],
        "positions/table": state["transformer.wpe.weight"],
        "layers/attention/output": take("attn.c_proj.weight").reshape(
            layers, heads, head_dim, embed
        ),
        "layers/attention/output_bias": take("attn.c_proj.bias"),
        "layers/mlp/up": take("mlp.c_fc.weight"),
        "layers/mlp/up_bias": take("mlp.c_fc.bias"),
        "layers/mlp/down": take("mlp.c_proj.weight"),
        "layers/mlp/down_bias": take("mlp.c_proj.bias"),
    }
    for index, name in enumerate(("query", "key", "value")):
        params[f"layers/attention/{name}"] = qkv[:, :, index]
        params[f"layers/attention/{name}_bias"] = qkv_bias[:, index]
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        params[f"layers/attention_norm/{ours}"] = take(f"ln_1.{theirs}")
        params[f"layers/mlp_norm/{ours}"] = take(f"ln_2.{theirs}")
        params[f"final_norm/{ours}"] = state[f"transformer.ln_f.{theirs}"]
    return params


def _others(state: dict[str, np.ndarray], arch: Architecture) -> dict[str, np.ndarray]:
    layers, embed, head_dim = arch.num_layers, arch.embed_dim, arch.head_dim
    heads = {"q": arch.num_heads, "k": arch.num_kv_heads, "v": arch.num_kv_heads}

    def take(name: str) -> np.ndarray:
        return _stacked(state, "model.layers.{}." + name + ".weight", arch)

    params = {
        "embedding/table": state["model.embed_tokens.weight"],
        "final_norm/scale": state["model.norm.weight"],
        "layers/attention/output": take("self_attn.o_proj")
        .swapaxes(1, 2)
        .reshape(layers, arch.num_heads, head_dim, embed),
        **{
            f"layers/mlp/{name}": take(f"mlp.{name}_proj").swapaxes(1, 2)
            for name in ("gate", "up", "down")
        },
    }
    for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
        shape = (layers, embed, heads[letter], head_dim)
        params[f"layers/attention/{name}"] = (
            take(f"self_attn.{letter}_proj").swapaxes(1, 2).reshape(shape)
        )
        if arch.qkv_bias:
            bias = _stacked(state, "model.layers.{}.self_attn." + f"{letter}_proj.bias", arch)
            params[f"layers/attention/{name}_bias"] = bias.reshape(layers, heads[letter], head_dim)
        if arch.qk_norm and letter != "v":
            params[f"layers/attention/{name}_norm/scale"] = take(f"self_attn.{letter}_norm")
    for ours, theirs in _norms(arch).items():
        params[f"layers/{ours}/scale"] = take(theirs)
    if not arch.tied_embeddings:
        params["head/table"] = state["lm_head.weight"]
    return params


def _norms(arch: Architecture) -> dict[str, str]:
    if not arch.post_norms:
        return {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    return {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    }
