"""Matmul FLOPs of a forward pass, per token, term by term with the formula written out.

A product of [m, k] and [k, n] counts 2 m n k. Norms, activations, softmax, embedding look-ups and recomputation are not
model FLOPs. Training counts three times forward (two products backward for each one forward).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxscale.models.architecture import Architecture

Convention = Literal["causal", "full"]
TRAINING_FACTOR = 3


@dataclass(frozen=True)
class FlopsTerm:
    """FLOPs per token of one component, all layers together, and the formula with its values put in."""

    component: str
    flops: float
    formula: str


def flops_terms(
    arch: Architecture, sequence_length: int, *, convention: Convention = "causal"
) -> tuple[FlopsTerm, ...]:
    """Forward FLOPs per token by component, averaged over a sequence of `sequence_length` tokens.

    convention: "causal" counts the keys that a query may see (half the square with its diagonal, windows respected);
    "full" counts every key for every query, the convention of PaLM (arXiv:2204.02311, appendix B).
    """
    products = 3 if arch.gated_mlp else 2
    layers, embed = arch.num_layers, arch.embed_dim
    heads, kv_heads, head_dim = arch.num_heads, arch.num_kv_heads, arch.head_dim
    keys = [_mean_keys(arch, layer, sequence_length, convention) for layer in range(layers)]
    return (
        FlopsTerm(
            "attention projections",
            4 * layers * embed * head_dim * (heads + kv_heads),
            f"2 x {layers} layers x {embed} embed x {head_dim} head_dim x "
            f"(2 x {heads} heads + 2 x {kv_heads} kv_heads)",
        ),
        FlopsTerm(
            "attention scores",
            4 * heads * head_dim * sum(keys),
            f"2 x 2 x {layers} layers x {heads} heads x {head_dim} head_dim x {sum(keys) / layers:,.10g} keys seen "
            f"(mean, {convention})",
        ),
        FlopsTerm(
            "mlp",
            2 * products * layers * embed * arch.mlp_dim,
            f"2 x {products} products x {layers} layers x {embed} embed x {arch.mlp_dim} mlp",
        ),
        FlopsTerm(
            "head",
            2 * embed * arch.vocab_size,
            f"2 x {embed} embed x {arch.vocab_size} vocab",
        ),
    )


def forward_flops_per_token(
    arch: Architecture, sequence_length: int, *, convention: Convention = "causal"
) -> Mapping[str, float]:
    """FLOPs by component; see `flops_terms`."""
    terms = flops_terms(arch, sequence_length, convention=convention)
    return {term.component: term.flops for term in terms}


def training_flops_per_token(
    arch: Architecture, sequence_length: int, *, convention: Convention = "causal"
) -> float:
    """FLOPs of forward and backward, all components, without recomputation."""
    forward = forward_flops_per_token(arch, sequence_length, convention=convention)
    return TRAINING_FACTOR * sum(forward.values())


def keys_seen(sequence_length: int, window: int | None) -> float:
    """Keys a causal query sees, itself included, averaged over the sequence.

    Query i (from 0) sees min(i + 1, window) keys: a triangle up to the window, then a band.
    """
    full = min(window or sequence_length, sequence_length)
    triangle = full * (full + 1) // 2
    return (triangle + (sequence_length - full) * full) / sequence_length


def _mean_keys(
    arch: Architecture, layer: int, sequence_length: int, convention: Convention
) -> float:
    if convention == "full":
        return sequence_length
    return keys_seen(sequence_length, arch.kind(layer).window)
