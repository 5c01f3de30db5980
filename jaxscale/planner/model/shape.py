"""The sizes of a model that its memory and its time depend on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Experts:
    """Routed MLPs. Each token meets `per_token` of `count` experts of width `mlp`, and `shared` more of that width.

    dense_layers: leading layers that have one MLP of width `dense_mlp` instead.
    """

    count: int
    per_token: int
    mlp: int
    shared: int = 0
    dense_layers: int = 0
    dense_mlp: int = 0


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): low-rank queries, keys and values.

    query_rank: 0 where queries are not compressed (DeepSeek-V2-Lite, appendix B).
    """

    query_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder transformer. mlp_products: 3 with a gate, else 2. positions: rows of a learned table, else 0.

    windows: tokens a query sees in each layer of one period (None: all before it).
    norm_scales: scale (and bias) vectors of width `embed` in a layer. biases: elements of bias vectors in a layer.
    parallel: attention and MLP read one normalized input, and what they give is added up at once (PaLM,
    arXiv:2204.02311, section 2).
    """

    name: str
    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    mlp_products: int
    vocab: int
    tied: bool
    positions: int = 0
    windows: tuple[int | None, ...] = (None,)
    norm_scales: int = 2
    biases: int = 0
    experts: Experts | None = None
    latent: LatentAttention | None = None
    parallel: bool = False
