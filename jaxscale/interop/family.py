"""What is known of a Hugging Face family: its names, its configuration, and how both become ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from jaxscale.config.model_section import Family
from jaxscale.interop.config_fields import Fields
from jaxscale.interop.names import Entry
from jaxscale.models.architecture import Architecture

# Values of an `Architecture` by the key of `config.json` that means the same.
DECODER_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "vocab_size": "vocab_size",
        "max_positions": "max_position_embeddings",
        "num_layers": "num_hidden_layers",
        "embed_dim": "hidden_size",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "mlp_dim": "intermediate_size",
        "norm_epsilon": "rms_norm_eps",
        "tied_embeddings": "tie_word_embeddings",
    }
)


Sizes = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class HfFamily:
    """A family of Hugging Face.

    architecture: the class that loads it.
    ours: presets of ours that it may be.
    keys: fields of `Architecture` by the key of `config.json` that means the same.
    defaults: what `transformers` takes where such a key is left out.
    fixed: other keys, with the only values that our model computes.
    unused: keys that `transformers` does not read in this family.
    read: further fields of `Architecture`, from keys that need more than a name, given those of `keys`.
    write: those keys, from the architecture.
    """

    model_type: str
    architecture: str
    ours: tuple[Family, ...]
    names: tuple[Entry, ...]
    defaults: Mapping[str, Any]
    read: Callable[[Fields, Sizes], Mapping[str, Any]]
    write: Callable[[Architecture], Mapping[str, Any]]
    keys: Mapping[str, str] = field(default_factory=lambda: DECODER_KEYS)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    dropouts: tuple[str, ...] = ("attention_dropout",)
