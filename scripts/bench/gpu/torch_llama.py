"""Llama in PyTorch, as functions of a flat dict of fp32 weights, computing in one narrower dtype.

Written to be a strong opponent: one graph for `torch.compile`, fused kernels of `scaled_dot_product_attention` with
grouped keys, one cast of each weight a step, a loss whose logits are either formed at once or chunk by chunk.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from jaxscale.models.architecture import Architecture, RopeScaling

Weights = dict[str, torch.Tensor]
Angles = tuple[torch.Tensor, torch.Tensor]
_DEVIATION = 0.02


@dataclass(frozen=True)
class Style:
    """checkpointed: recompute each block in the backward pass. repeat: give every query head its own key head.

    chunk: tokens whose logits exist at one time, 0 for all.
    """

    dtype: torch.dtype
    checkpointed: bool = False
    repeat: bool = False
    chunk: int = 0


def initial_weights(arch: Architecture, device: torch.device) -> Weights:
    """The distribution that jaxscale draws from: normal(0.02), additions to the residual shrunk, norms one."""
    embed, heads, kv_heads = (
        arch.embed_dim,
        arch.num_heads * arch.head_dim,
        arch.num_kv_heads * arch.head_dim,
    )
    shapes = {
        "query": (heads, embed),
        "key": (kv_heads, embed),
        "value": (kv_heads, embed),
        "output": (embed, heads),
        "gate": (arch.mlp_dim, embed),
        "up": (arch.mlp_dim, embed),
        "down": (embed, arch.mlp_dim),
    }
    weights = {"embedding": _DEVIATION * torch.randn(arch.vocab_size, embed, device=device)}
    weights["norm"] = torch.ones(embed, device=device)
    for layer in range(arch.num_layers):
        for name, shape in shapes.items():
            shrink = math.sqrt(2 * arch.num_layers) if name in {"output", "down"} else 1.0
            drawn = torch.randn(*shape, device=device)
            weights[f"{layer}/{name}"] = _DEVIATION / shrink * drawn
        for name in ("attention_norm", "mlp_norm"):
            weights[f"{layer}/{name}"] = torch.ones(embed, device=device)
    return {name: weight.requires_grad_() for name, weight in weights.items()}


def angles(arch: Architecture, length: int, device: torch.device) -> Angles:
    """Cosines and sines, fp32 [length, head_dim], both halves alike."""
    exponents = torch.arange(0, arch.head_dim, 2, dtype=torch.float32) / arch.head_dim
    per_token = 1.0 / arch.rope_base**exponents
    if arch.rope_scaling is not None:
        per_token = _stretched(per_token, arch.rope_scaling)
    turned = torch.outer(torch.arange(length, dtype=torch.float32), per_token).repeat(1, 2)
    return turned.cos().to(device), turned.sin().to(device)


def _stretched(per_token: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Llama 3.1's: slow turns are stretched, fast ones kept, a linear blend between (arXiv:2407.21783)."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    assert low is not None
    assert high is not None
    assert scaling.original_positions is not None
    turns = scaling.original_positions * per_token / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * per_token / scaling.factor + kept * per_token


def _normalized(x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * inverse * scale).to(x.dtype)


def _rotated(x: torch.Tensor, by: Angles) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x.float() * by[0] + turned * by[1]).to(x.dtype)


def _attend(
    x: torch.Tensor, weights: Weights, by: Angles, arch: Architecture, style: Style
) -> torch.Tensor:
    rows, length, _ = x.shape
    query, key, value = (
        functional.linear(x, weights[name]).view(rows, length, -1, arch.head_dim).transpose(1, 2)
        for name in ("query", "key", "value")
    )
    query, key = _rotated(query, by), _rotated(key, by)
    group = arch.num_heads // arch.num_kv_heads
    if style.repeat:
        key, value = (each.repeat_interleave(group, dim=1) for each in (key, value))
    mixed = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=not style.repeat and group > 1
    )
    return functional.linear(mixed.transpose(1, 2).reshape(rows, length, -1), weights["output"])


def _block(
    x: torch.Tensor, weights: Weights, by: Angles, arch: Architecture, style: Style
) -> torch.Tensor:
    cast = {name: weight.to(style.dtype) for name, weight in weights.items()}
    scales = weights["attention_norm"], weights["mlp_norm"]
    x = x + _attend(_normalized(x, scales[0], arch.norm_epsilon), cast, by, arch, style)
    h = _normalized(x, scales[1], arch.norm_epsilon)
    gated = functional.silu(functional.linear(h, cast["gate"])) * functional.linear(h, cast["up"])
    return x + functional.linear(gated, cast["down"])


def loss(
    weights: Weights,
    tokens: torch.Tensor,
    targets: torch.Tensor,
    by: Angles,
    arch: Architecture,
    style: Style,
) -> torch.Tensor:
    """Mean negative log-likelihood of the targets, in nats."""
    table = weights["embedding"].to(style.dtype)
    x = functional.embedding(tokens, table)
    for layer in range(arch.num_layers):
        prefix = f"{layer}/"
        own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        if style.checkpointed:
            x = checkpoint(_block, x, own, by, arch, style, use_reentrant=False)
        else:
            x = _block(x, own, by, arch, style)
    x = _normalized(x, weights["norm"], arch.norm_epsilon).flatten(0, 1)
    return _cross_entropy(x, table, targets.flatten(), style.chunk) / targets.numel()


def _cross_entropy(
    x: torch.Tensor, table: torch.Tensor, targets: torch.Tensor, chunk: int
) -> torch.Tensor:
    if not chunk:
        return _summed(x, table, targets)
    total = x.new_zeros((), dtype=torch.float32)
    chunks = -(-len(targets) // chunk)
    for states, wanted in zip(x.chunk(chunks), targets.chunk(chunks), strict=True):
        total = total + checkpoint(_summed, states, table, wanted, use_reentrant=False)
    return total


def _summed(x: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(functional.linear(x, table).float(), targets, reduction="sum")
