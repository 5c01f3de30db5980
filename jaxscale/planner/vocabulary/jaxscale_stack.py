"""What our own trainer does, as a `Stack`."""

from typing import Literal

from jaxscale.config.plan import Precision
from jaxscale.planner.vocabulary.stack import Stack

# What XLA's latency-hiding schedulers overlap: gathers and scatters of parameters with the layer before or after, sums
# of gradients with the last backward pass; on GPU the collectives of `tensor` wait, on TPU half of their time does
# (assumed; compiled for eight v5p, half of a layer's gathers over `tensor` start before what is computed beside them).
# What ZeRO 1 and 2 gather waits: the trainer does not run them, and a step ends with what it updates.
_OVERLAP = {
    "fsdp": 0.8, "expert": 0.8, "context": 0.8, "data": 0.8, "keys": 0.8, "tokens": 0.0, "pipeline": 0.5,
}  # fmt: skip
_TENSOR_OVERLAP = {"tpu": 0.5, "gpu": 0.0, "cpu": 0.0}
# Compiled (libtpu 0.0.42): gathered matrices of 4,096 x 14,336 over whole slices of these chips, whose compiler we tell
# nothing; v5e scatters over 2x2 and 2x4 and sums over 4x4, v4 scatters over 2x2x1 and sums over 2x2x2.
_SUMMED_SLICES = {"TPU v5e": 8, "TPU v4": 4}
# Compiled: four gated layers over v5e:2x4 to 4x8, v4:2x2x2 and 2x4x4, v5p:2x2x2 to 2x4x4, v6e:2x4; not over 4 chips of
# v4 and v5p, nor over 64 of any, nor beside another axis. (Over 4 of v5e it cuts some: 31 pieces where 27 would do.)
_WINDOWS = (8, 32)


def jaxscale_stack(
    kind: Literal["tpu", "gpu", "cpu"],
    *,
    precision: Precision = "auto",
    moments_bytes: float = 8,
    loss_chunk: int = 1024,
) -> Stack:
    """moments_bytes: optimizer state, bytes a parameter (AdamW: two fp32 moments). loss_chunk: tokens."""
    narrow = precision == "bfloat16" or (precision == "auto" and kind != "cpu")
    compute_bytes = 2 if narrow else 4
    return Stack(
        name="jaxscale",
        matmul_dtype="bfloat16" if narrow else "float32",
        compute_bytes=compute_bytes,
        gather_bytes=compute_bytes,
        reduce_bytes=compute_bytes,
        moments_bytes=moments_bytes,
        loss_chunk=loss_chunk,
        logit_bytes=8 + compute_bytes,
        # On TPU their gradient is formed in the compute dtype at once.
        held_logit_bytes=4 + compute_bytes if kind == "tpu" else 0,
        two_moments=kind == "tpu",
        # XLA's attention in blocks, in turn: weights and their gradients in fp32.
        query_block=128 if kind == "tpu" else 0,
        score_bytes=8,
        # Compiled for one H200 (scripts/bench/planner_gpu --ahead): a plain layer of a scan keeps about 78 kB a token
        # more than the least, at widths of 2,048 and 8,192, and half of that at half of them.
        plain_streams=3,
        plain_mlp=4,
        adds_apart=True,
        prunes=True,
        scatters=kind != "cpu",
        summed_slices=_SUMMED_SLICES,
        windows=_WINDOWS if kind == "tpu" else (0, 0),
        # Compiled over v4:4x4x4, v5e:8x8, v5p:4x4x4 and 4x4x8, v6e:8x8 and 16x16: the chunks' loop reads a copy of what
        # was gathered with its columns outermost. Not over v5p:2x2x2 and v6e:4x4.
        copies_table=_WINDOWS[1] if kind == "tpu" else 0,
        # In a pipeline these are the compiler's: on TPU each of q, k, v, gate and up gathers the input, on CPU the
        # input's gradient is summed for each. Elsewhere they are written out (`parallel.blocks`).
        staged_moves=(13, 2) if kind == "tpu" else (6, 5),
        looks_up=True,
        splits_logits=True,
        lockstep=True,
        overlap=_OVERLAP | {"tensor": _TENSOR_OVERLAP[kind]},
        source="jaxscale.training and jaxscale.parallel, compared with what the compiler makes of them",
    )
