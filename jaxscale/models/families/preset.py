"""A family as plain data, and how a `model:` section becomes an `Architecture`."""

from dataclasses import dataclass

from jaxscale.models.architecture import Activation, Norm, Positions, RopeScaling


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a family is before sizes. Defaults are those most families share.

    mlp_ratio: mlp_dim / embed_dim where the family fixes it, None where each size says.
    rope_local_base: None takes rope_base. For the other fields see Architecture.
    """

    norm: Norm = "rms"
    norm_epsilon: float = 1e-5
    norm_offset: bool = False
    post_norms: bool = False
    activation: Activation = "silu"
    gated_mlp: bool = True
    mlp_ratio: int | None = None
    positions: Positions = "rope"
    rope_base: float = 10_000.0
    rope_local_base: float | None = None
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    window_pattern: int | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    qkv_bias: bool = False
    output_biases: bool = False
    qk_norm: bool = False
    embed_scale: bool = False
    tied_embeddings: bool = False
