"""Bytes in closed form: activations by policy, state by ZeRO stage, parameters, caches.

s: tokens of a sequence, b: sequences of a microbatch, h: width, a: heads, t: tensor parallelism.
"""

from typing import Literal, get_args

# Korthikanti et al. 2022 (arXiv:2205.05198), table 2.
ActivationPolicy = Literal[
    "none", "tensor", "tensor+sequence", "tensor+selective", "tensor+sequence+selective", "full"
]
POLICIES: tuple[ActivationPolicy, ...] = get_args(ActivationPolicy)
# bfloat16 parameters and two float32 moments, as How to Scale Your Model counts Adam ("Training", data parallelism).
ADAM_BYTES = 10.0
# What a layer without rematerialization keeps, in arrays of batch x embed ("Transformers", gradient checkpointing).
KEPT_WITHOUT_REMAT = 20


def layer_activation_bytes(
    policy: ActivationPolicy, *, s: float, b: float, h: float, a: float, t: float = 1
) -> float:
    """16-bit activations that one layer keeps on one device, scores written to memory (Korthikanti et al., table 2)."""
    scores = 5 * a * s / h
    per_element = {
        "none": 34 + scores,
        "tensor": 10 + 24 / t + scores / t,
        "tensor+sequence": (34 + scores) / t,
        "tensor+selective": 10 + 24 / t,
        "tensor+sequence+selective": 34 / t,
        "full": 2.0,
    }
    return s * b * h * per_element[policy]


def interleaved_memory_factor(p: float, m: float) -> float:
    """Activations of the first stage over those of 1F1B, m chunks a device: 1 + (p - 1) / (p m) (ibid., 4.2.3)."""
    return 1 + (p - 1) / (p * m)


def zero_bytes(
    parameters: float, shards: float, stage: int, *, optimizer_bytes: float = 12
) -> float:
    """Bytes a device of 16-bit parameters and gradients and K bytes of optimizer (ZeRO, arXiv:1910.02054, figure 1)."""
    held = {name: shards if stage >= first else 1.0 for name, first in _ZERO_FROM.items()}
    return parameters * (
        2 / held["parameters"] + 2 / held["gradients"] + optimizer_bytes / held["optimizer"]
    )


_ZERO_FROM = {"optimizer": 1, "gradients": 2, "parameters": 3}


def megatron_bytes_per_parameter(dp: float = 1, *, distributed: bool = False) -> float:
    """bf16 parameters, fp32 gradients, fp32 master and moments: 18, or 6 + 12 / dp with the optimizer split over data.

    Megatron-LM, training/theoretical_memory_usage.py.
    """
    return 6 + 12 / dp if distributed else 18.0


def mixed_precision_bytes(parameters: float, *, float32_gradients: bool = False) -> float:
    """16 bytes a parameter (bf16 parameters and gradients, fp32 master and moments), 20 with fp32 gradients beside.

    The Ultra-Scale Playbook, "Memory for weights, gradients and optimizer states".
    """
    return parameters * (20.0 if float32_gradients else 16.0)


def checkpoint_bytes(parameters: float) -> float:
    """fp16 weights, fp32 master and both moments: 14 bytes a parameter (Narayanan et al. 2021, section 5.10)."""
    return 14 * parameters


def cache_bytes_per_token(
    layers: float, kv_heads: float, head_dim: float, element_bytes: float
) -> float:
    """Keys and values of every layer ("Inference", KV caches)."""
    return 2 * layers * kv_heads * head_dim * element_bytes


def largest_model(hbm_bytes: float, bytes_per_parameter: float = ADAM_BYTES) -> float:
    """Parameters that fit without sharding ("Training", data parallelism)."""
    return hbm_bytes / bytes_per_parameter
