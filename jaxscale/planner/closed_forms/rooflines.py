"""Rooflines in closed form: when a product, a collective or a whole layout is bound by arithmetic, and when by bytes.

Sources, unless a docstring says otherwise: Austin et al., "How to Scale Your Model" (2025), chapters "Rooflines",
"Sharded matrices", "Training", "Inference" and "GPUs". C is FLOP/s, W bytes/s, B tokens, D the width of the residual
stream, F that of the MLP, N chips. The planner counts every product and collective of a layer; these are the rules of
thumb that its answers should agree with.
"""

import math
from typing import Literal

Bound = Literal["compute", "memory", "comms", "latency", "bandwidth"]
Overlap = Literal["sum", "max"]

DAY = 86_400.0


def critical_tokens(flops: float, bandwidth: float, *, weight_bytes: float = 2) -> float:
    """Tokens a product needs to hide the reading of its weights: 2 B D F / C = bytes D F / W.

    "Rooflines". The bandwidth is of HBM, or of PCIe where weights stream from the host.
    """
    return flops * weight_bytes / (2 * bandwidth)


def critical_contraction(flops: float, link: float) -> float:
    """D for which half a product on each of two chips takes as long as sending the partial sums: D > 2 C / W.

    "Rooflines", network communication. link: bytes/s one way.
    """
    return 2 * flops / link


def matmul_seconds(
    rows: int, inner: int, columns: int, *, element_bytes: float, flops: float, bandwidth: float
) -> tuple[float, Bound]:
    """The longer of arithmetic and memory traffic of [rows, inner] x [inner, columns], and which it is. "Rooflines"."""
    math_seconds = 2 * rows * inner * columns / flops
    moved = element_bytes * (rows * inner + inner * columns + rows * columns)
    memory_seconds = moved / bandwidth
    return max(math_seconds, memory_seconds), (
        "compute" if math_seconds >= memory_seconds else "memory"
    )


def sharded_axis_tokens(flops: float, bandwidth: float, *, sparsity: float = 1) -> float:
    """Tokens a chip below which data parallelism or FSDP waits for its network: C / W, times experts per active expert.

    "Training", data parallelism and FSDP; sparsity: "GPUs", MoE models. bandwidth: both directions of every axis used.
    """
    return sparsity * flops / bandwidth


def mixed_tokens(intensity: float, mlp: float, axes: float, overlap: Overlap) -> float:
    """Tokens a chip below which no mix of FSDP and tensor parallelism is bound by arithmetic.

    "Training", mixed FSDP and tensor parallelism. intensity: a = C / W of one axis; axes: M_X M_Y. The first revision
    of the book adds the two communications (4 a^2 / (M_X M_Y F)), later ones overlap them (a^2 / (M_X M_Y F)).
    """
    return (4 if overlap == "sum" else 1) * intensity**2 / (axes * mlp)


def best_fsdp(
    tokens: float, chips: float, mlp: float, *, fsdp_axes: float = 2, tensor_axes: float = 1
) -> float:
    """The FSDP size at which a mixed layout sends least: sqrt(B / F  M_X / M_Y  N). "Training", as `mixed_tokens`."""
    return math.sqrt(tokens / mlp * fsdp_axes / tensor_axes * chips)


def tensor_limit(mlp: float, intensity: float, *, axes: int = 1) -> float:
    """Largest tensor parallelism bound by arithmetic: Y < axes F / a. "Training" and "GPUs", tensor parallelism."""
    return axes * mlp / intensity


def two_node_tensor_limit(mlp: float, intensity: float, node: int) -> float:
    """The same over exactly two nodes, half of whose traffic stays inside: F > a (Y - node). "GPUs"."""
    return mlp / intensity + node


def expert_mlp_limit(intensity: float, node: int) -> float:
    """MLP width above which expert parallelism over many nodes is bound by arithmetic: F > node C / W. "GPUs"."""
    return node * intensity


def weight_stationary_chips(mlp_over_embed: float) -> float:
    """Chips above which sharding weights over both D and F sends less than over F alone.

    "Inference", question 7: sqrt(32 F / D) B D / (sqrt(N) W) < 4 B D / (3 W).
    """
    return 32 * mlp_over_embed * (3 / 4) ** 2


def expert_intensity(mlp: float, experts: float) -> float:
    """FLOPs a byte of an all-to-all over `experts` devices of an axis: 4 M / EP. MaxText, "Customizing TPU configs"."""
    return 4 * mlp / experts


def tensor_intensity(mlp: float, tensor: float) -> float:
    """FLOPs a byte of tensor parallelism: M / TP. MaxText, "Customizing TPU configs"."""
    return mlp / tensor


def pipeline_intensity(mlp: float, layers_per_stage: float, experts_per_token: float) -> float:
    """FLOPs a byte between stages: 1.5 layers M k. MaxText, "Sharding", pipeline parallelism."""
    return 1.5 * layers_per_stage * mlp * experts_per_token


def decode_seconds(
    *, weight_bytes: float, cache_bytes: float, chips: float, hbm_bandwidth: float
) -> float:
    """A step of generation at small batches: everything is read once. "Inference", theoretical step time."""
    return (weight_bytes + cache_bytes) / (chips * hbm_bandwidth)


def training_flops(parameters: float, tokens: float) -> float:
    """6 N per token: forward 2, backward 4 (Kaplan et al. 2020; "Transformers")."""
    return 6 * parameters * tokens


def training_seconds(flops: float, chips: float, peak: float, mfu: float = 1.0) -> float:
    return flops / (chips * peak * mfu)


def recomputed_training_seconds(
    parameters: float, tokens: float, chips: float, reached: float
) -> float:
    """8 T P / (n X): with a second forward pass (Narayanan et al. 2021, arXiv:2104.04473, equation 4)."""
    return 8 * tokens * parameters / (chips * reached)
