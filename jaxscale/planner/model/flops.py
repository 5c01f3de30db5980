"""Model FLOPs: what a step must compute, whatever the layout."""

from jaxscale.planner.model.shape import Experts, LatentAttention, ModelShape
from jaxscale.planner.model.sizes import mean_keys
from jaxscale.planner.model.workload import Workload

TRAINING_FACTOR = 3


def step_flops(workload: Workload) -> float:
    """FLOPs of a step: forward and backward, exact causal attention, nothing recomputed."""
    return TRAINING_FACTOR * workload.tokens * forward_flops(workload.shape, workload.sequence)


def forward_flops(shape: ModelShape, sequence: int) -> float:
    """Per token: two for each weight that a token meets, and the two products of attention."""
    score, value = head_widths(shape)
    attention = 2 * shape.layers * mean_keys(shape, sequence) * shape.heads * (score + value)
    return 2 * active_weights(shape) + attention


def active_weights(shape: ModelShape) -> int:
    """Elements of the matrices that one token is multiplied with."""
    attention = (
        2 * shape.embed * shape.head_dim * (shape.heads + shape.kv_heads)
        if shape.latent is None
        else latent_weights(shape, shape.latent)
    )
    mlp = (
        shape.layers * shape.mlp_products * shape.embed * shape.mlp
        if shape.experts is None
        else _routed_weights(shape, shape.experts)
    )
    return shape.layers * attention + mlp + shape.vocab * shape.embed


def latent_weights(shape: ModelShape, latent: LatentAttention) -> int:
    """DeepSeek-V2, arXiv:2405.04434, equations 9 to 19."""
    key_dim = latent.nope_dim + latent.rope_dim
    queries = latent.query_rank * (shape.embed + shape.heads * key_dim)
    if not latent.query_rank:
        queries = shape.embed * shape.heads * key_dim
    down = shape.embed * (latent.kv_rank + latent.rope_dim)
    up = latent.kv_rank * shape.heads * (latent.nope_dim + latent.value_dim)
    return queries + down + up + shape.heads * latent.value_dim * shape.embed


def head_widths(shape: ModelShape) -> tuple[int, int]:
    """Width of a head in the products of scores and of values."""
    if shape.latent is None:
        return shape.head_dim, shape.head_dim
    return shape.latent.nope_dim + shape.latent.rope_dim, shape.latent.value_dim


def _routed_weights(shape: ModelShape, experts: Experts) -> int:
    routed = shape.layers - experts.dense_layers
    one = shape.mlp_products * shape.embed
    each = (experts.per_token + experts.shared) * experts.mlp
    router = shape.embed * experts.count
    return routed * (one * each + router) + experts.dense_layers * one * experts.dense_mlp
