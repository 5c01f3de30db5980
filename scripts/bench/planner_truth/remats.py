"""Rematerialization in every family's words -> ours; None where the words leave it open."""

import re

from jaxscale.planner.vocabulary.layout import Remat

# In order; the first that matches decides. Megatron's "selective" recomputes the scores of attention (Korthikanti et
# al. 2022), PyTorch's keeps products and attention (op-level selective checkpointing) and so is `dots`.
_RULES: tuple[tuple[str, Remat], ...] = (
    (r"offload", "offload"),
    (r"attention core", "attention"),
    (r"minimal_flash_attention_only", "minimal"),
    (r"except_mlp|qkv_proj|out_proj", "projections"),
    (r"op-level|per-op|\bsac\b", "alternate"),
    (r"\bminimal|save_dot|checkpoint_dots", "dots"),
    (r"^none|no remat|without|^off\b|disabled", "none"),
    (r"full", "full"),
)
_SELECTIVE: dict[str, Remat] = {"megatron": "attention", "torch": "alternate", "jax": "dots"}


def remat_of(words: str, family: str) -> Remat | None:
    """family: whose words they are: `megatron`, `torch` or `jax`."""
    lowered = words.lower()
    # "full, no sequence parallelism" and the like: what comes after the comma is about something else.
    for part in re.split(r"[,;]|\bno\s+sequence", lowered):
        for pattern, remat in _RULES:
            if re.search(pattern, part.strip()):
                return remat
        if "selective" in part:
            return _SELECTIVE[family]
    return _spelled(lowered)


def _spelled(words: str) -> Remat | None:
    return "none" if words in {"false", "no"} else "full" if words == "true" else None
