"""What our own trainer does, as a `Stack`."""

from typing import Literal

from jaxscale.config.plan import Precision
from jaxscale.planner.vocabulary.stack import Stack

# What XLA's latency-hiding schedulers overlap: gathers and scatters of parameters with the layer before or after, sums
# of gradients with the last backward pass; on GPU the collectives of `tensor` wait, on TPU they are split into a ring
# of products for half of their time.
_OVERLAP = {
    "fsdp": 0.8, "expert": 0.8, "context": 0.8, "data": 0.8, "keys": 0.8, "tokens": 0.0, "pipeline": 0.5,
}  # fmt: skip
_TENSOR_OVERLAP = {"tpu": 0.5, "gpu": 0.0, "cpu": 0.0}


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
        # Compiled for one H200 (scripts/bench/planner_gpu --ahead): a plain layer of a scan keeps about 78 kB a token
        # more than the least, at widths of 2,048 and 8,192, and half of that at half of them.
        plain_streams=3,
        plain_mlp=4,
        adds_apart=True,
        prunes=True,
        scatters=kind != "cpu",
        # Lanes of a TPU's vectors. Seen with 64 shards of 4,096: docs/benchmarks/planner/compiled.json.
        narrow=128 if kind == "tpu" else 0,
        # As compiled: on CPU the input's gradient is summed for each of q, k, v, gate and up; on TPU each gathers it.
        tensor_gathers=13 if kind == "tpu" else 6,
        input_gradients=2 if kind == "tpu" else 5,
        table_sums=True,
        lockstep=True,
        overlap=_OVERLAP | {"tensor": _TENSOR_OVERLAP[kind]},
        source="jaxscale.training and jaxscale.parallel, compared with what the compiler makes of them",
    )
