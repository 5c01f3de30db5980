"""Families by name, and `resolve`: a `model:` section as an `Architecture`.

A new family is one preset and one line here.
"""

from collections.abc import Mapping
from typing import Any

from jaxscale.config.model_section import Family, ModelSection, RopeScalingSection
from jaxscale.errors import UserError
from jaxscale.models.architecture import Architecture, RopeScaling
from jaxscale.models.families.gemma import GEMMA2, GEMMA3
from jaxscale.models.families.gpt import GPT2, GPT3
from jaxscale.models.families.llama import LLAMA2, LLAMA3, LLAMA3_1, LLAMA3_2
from jaxscale.models.families.mistral import MISTRAL
from jaxscale.models.families.preset import Preset
from jaxscale.models.families.qwen import QWEN2, QWEN3

PRESETS: Mapping[Family, Preset] = {
    "gpt2": GPT2,
    "gpt3": GPT3,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "llama3.1": LLAMA3_1,
    "llama3.2": LLAMA3_2,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
}
# Keys of the section that a family may set, under the same name in both.
_SHARED_KEYS = (
    "tied_embeddings",
    "norm_epsilon",
    "rope_base",
    "rope_local_base",
    "window",
    "window_pattern",
    "attention_softcap",
    "logit_softcap",
    "qkv_bias",
    "qk_norm",
)
_FAMILY_ONLY = (
    "norm",
    "norm_offset",
    "post_norms",
    "activation",
    "gated_mlp",
    "positions",
    "output_biases",
    "embed_scale",
)


def resolve(section: ModelSection) -> Architecture:
    """The architecture that a section means: its own values, else the family's.

    Raises UserError where sizes do not fit each other, with the numbers and what would work.
    """
    if section.family is None:
        raise UserError(
            "a model with `build` has no family: it cannot be resolved to a transformer"
        )
    preset = PRESETS[section.family]
    values: dict[str, Any] = {name: getattr(preset, name) for name in _FAMILY_ONLY}
    values |= _sizes(section, preset)
    values |= {name: _first(getattr(section, name), getattr(preset, name)) for name in _SHARED_KEYS}
    values["rope_local_base"] = _first(values["rope_local_base"], values["rope_base"])
    for name in ("window", "window_pattern", "attention_softcap", "logit_softcap"):
        values[name] = values[name] or None  # 0 switches off what the family has.
    if values["window"] is None and not section.window_pattern:
        values["window_pattern"] = None
    values["query_scale"] = _first(section.query_scale, float(values["head_dim"]))
    values["rope_scaling"] = _first(_scaling(section.rope_scaling), preset.rope_scaling)
    return Architecture(family=section.family, **values)


def _sizes(section: ModelSection, preset: Preset) -> dict[str, int]:
    names = ("vocab_size", "max_positions", "num_layers", "embed_dim", "num_heads")
    sizes: dict[str, int] = {name: getattr(section, name) for name in names}
    sizes["num_kv_heads"] = _first(section.num_kv_heads, sizes["num_heads"])
    sizes["head_dim"] = _first(section.head_dim, 0) or _even_head_dim(section, sizes)
    sizes["mlp_dim"] = _first(section.mlp_dim, 0) or _mlp_dim(section, preset, sizes["embed_dim"])
    return sizes


def _even_head_dim(section: ModelSection, sizes: Mapping[str, int]) -> int:
    embed_dim, num_heads = sizes["embed_dim"], sizes["num_heads"]
    if embed_dim % num_heads:
        raise UserError(
            f"embed_dim {embed_dim} does not divide among num_heads {num_heads} ({section.family}): change one of "
            "them, or give head_dim"
        )
    return embed_dim // num_heads


def _mlp_dim(section: ModelSection, preset: Preset, embed_dim: int) -> int:
    if preset.mlp_ratio is None:
        raise UserError(
            f"a model of family {section.family} needs mlp_dim: the family fixes no ratio to embed_dim {embed_dim}"
        )
    return preset.mlp_ratio * embed_dim


def _scaling(section: RopeScalingSection | None) -> RopeScaling | None:
    return None if section is None else RopeScaling(**section.model_dump())


def _first(given: Any, default: Any) -> Any:
    return default if given is None else given
