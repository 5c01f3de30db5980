"""Which software ran a case, and how: dtypes, sequence parallelism, sharding."""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod

from jaxscale.planner.costs import calibration
from jaxscale.planner.vocabulary.stack import Stack
from planner_truth.cases import Case
from planner_truth.clusters import clusters_of, tpu_family
from planner_truth.figures import DTYPES
from planner_truth.meshes import given_mesh
from planner_truth.software import (
    BY_PREFIX,
    BY_SOURCE,
    DEEPSPEED,
    MAXTEXT,
    MEGATRON,
    MEGATRON_CORE,
    NCCL_HIDES,
    TORCHTITAN,
    Software,
)


def software_of(case: Case) -> Software:
    """By id prefix, else by what the source says; else what runs on such hardware, without a constant of its own."""
    known = BY_PREFIX.get(case.prefix) or _by_source(case)
    software = known or _by_hardware(case)
    if software is MEGATRON and given_mesh(case.given).get("fsdp", 1) > 1:
        software = DEEPSPEED  # Megatron has no ZeRO 3: those rows are of what it is compared with.
    if software is MEGATRON and re.search(
        r"h[128]00|b[23]00", str(case.given.get("hw", "")).lower()
    ):
        software = (
            MEGATRON_CORE  # What Megatron was on A100 in 2021 and 2022 never ran on later GPUs.
        )
    name = software.stack.name
    stack = replace(
        software.stack,
        efficiency=stack_efficiency(software.kernels or name) if known else 1.0,
        gather_share=calibration.GATHER_SHARE.get(name, 1.0),
        layer_seconds=calibration.LAYER_SECONDS.get(name, 0.0),
    )
    if software.sends_once:
        stack = _with_exchange(stack, case)
    return replace(software, stack=_as_run(stack, case))


def _with_exchange(stack: Stack, case: Case) -> Stack:
    """Experts of several nodes: a token goes to each node once (`Software.sends_once`).

    Sent beside products, NCCL's kernels take from them as those of FSDP do.
    """
    mesh = given_mesh(case.given)
    experts = mesh.get("expert", 1)
    if experts == 1:
        return stack
    inside = prod(dim.size for dim in next(clusters_of(case)).dims if not dim.slow)
    nodes = -(-experts // inside)
    if nodes == 1:
        return stack
    overlaps = mesh.get("pipeline", 1) > 1 and int(case.given.get("virtual_stages", 1)) > 1
    share = NCCL_HIDES["fsdp"] if overlaps else stack.overlap["tokens"]
    return replace(stack, expert_nodes=nodes, overlap={**stack.overlap, "tokens": share})


def _by_source(case: Case) -> Software | None:
    # The rest of an id names models, whose authors' software is not what runs them elsewhere.
    words = f"{case.prefix} {case.source}".lower()
    return next((software for pattern, software in BY_SOURCE if re.search(pattern, words)), None)


def _by_hardware(case: Case) -> Software:
    is_tpu = tpu_family(str(case.given.get("hw", ""))) is not None
    return MAXTEXT if is_tpu else TORCHTITAN


def stack_efficiency(name: str) -> float:
    """The one constant of a software stack, a factor on its chip family's; 1 for one that was never calibrated."""
    return calibration.STACK_EFFICIENCY.get(name, 1.0)


def _as_run(stack: Stack, case: Case) -> Stack:
    for adapt in (
        _with_dtypes,
        _with_gradient_dtype,
        _with_weight_dtype,
        _with_loss,
        _with_attention,
        _with_host,
        _with_sharding,
        _with_tensor_options,
    ):
        stack = adapt(stack, case)
    return stack


def _with_dtypes(stack: Stack, case: Case) -> Stack:
    """`fp8`, `fp8-tensorwise`, `fp8 + fp8 all-gather`, `amp_fp8`, int8 products."""
    fields = ("compute_dtype", "matmul_dtype", "dtype", "mixed_precision")
    words = " ".join(str(case.given.get(name, "")) for name in fields).lower()
    names = ("fp8", "float8", "int8", "bf16", "fp16")
    kind = next((DTYPES[name] for name in names if name in words), stack.matmul_dtype)
    gather = 1.0 if re.search(r"(fp8|float8) all-?gather", words) else stack.gather_bytes
    if kind == "int8" and stack.name == "maxtext":
        stack = _by_aqt(stack)
    # Transformer Engine keeps the operands of its products as it multiplied them.
    narrow = stack.name == "megatron-core" and DTYPES["fp8"] == kind
    kept = 1.0 if narrow else stack.kept_bytes
    return replace(stack, matmul_dtype=kind, gather_bytes=gather, kept_bytes=kept)


def _by_aqt(stack: Stack) -> Stack:
    """AQT adds up products of 8-bit integers in 32 bits, and that is what MaxText's `minimal` of 2024 keeps
    (`checkpoint_dots_with_no_batch_dims`; its other policies name 16-bit arrays). Its scale is the largest value of the
    array as it is: a pass of its own (aqt/jax/v2/calibration.py, AbsMaxCalibration)."""
    return replace(stack, wide_products=2.0, narrowing=5)


def _with_gradient_dtype(stack: Stack, case: Case) -> Stack:
    """Composer's `bf16` or PURE reduces in 16 bits; DeepSpeed's BF16 optimizer adds up fp32 gradients beside."""
    if str(case.given.get("mixed_precision", "")).lower() in {"bf16", "pure"}:
        return replace(stack, reduce_bytes=2)
    precision = str(case.given.get("precision", "")).lower()
    if stack.gradient_bytes == 2 and re.search("bf16 optimizer|fp32 grad", precision):
        return replace(stack, gradient_bytes=6, adding_bytes=10)
    return stack


def _with_weight_dtype(stack: Stack, case: Case) -> Stack:
    """16-bit parameters, and moments and gradients as wide as those (MaxText's `weight_dtype`; optax)."""
    words = " ".join(str(case.given.get(name, "")) for name in ("params", "weight_dtype")).lower()
    if re.search(r"(bf16|bfloat16) (weights|params)|weight_dtype\W*(bf16|bfloat16)", words):
        return replace(stack, param_bytes=2, moments_bytes=4, gradient_bytes=2, reduce_bytes=2)
    return stack


def _with_loss(stack: Stack, case: Case) -> Stack:
    """torchtitan compiled its loss from 2025 on: 16-bit logits and their gradient (components/loss.py at e7c0cae; not
    in December 2024, e8977b0)."""
    dated = re.search(r"2025-?(0[3-9]|1[0-2])", case.source)
    if stack.name == "torchtitan" and dated and case.given.get("compile") is not False:
        return replace(stack, logit_bytes=4)
    return stack


def _with_attention(stack: Stack, case: Case) -> Stack:
    """A row that says that it ran without flash attention."""
    if re.search(r"(without|no) flash.?attention", case.note.lower()):
        return replace(stack, attention="unfused", causal_skip=False)
    return stack


def _with_host(stack: Stack, case: Case) -> Stack:
    """Megatron FSDP on GB200 keeps activations of up to three quarters of its layers on the host instead of computing
    them again: `cpu_offloading_num_layers` is 40 of Llama 3 70B's 80 and 95 of 405B's 126 (Megatron Bridge,
    perf_recipes/llama/gb200; NeMo, model_configs_gb200.csv). Half of 70B's, 156 GB, take 0.7 s at 225 GB/s one way
    (two GPUs share NVLink-C2C's 900 both ways), a forward pass 1.2."""
    is_there = "gb200" in str(case.given.get("hw", "")).lower()
    if stack.name == "megatron-core" and is_there and given_mesh(case.given).get("fsdp", 1) > 1:
        return replace(stack, hosted=0.75)
    return stack


def _with_sharding(stack: Stack, case: Case) -> Stack:
    """FSDP's SHARD_GRAD_OP, and torchtitan in a pipeline, keep gathered parameters until the backward pass.

    Without a compiler nothing fuses.
    """
    keeps = stack.name == "torchtitan" and given_mesh(case.given).get("pipeline", 1) > 1
    if keeps or case.given.get("sharding") == "SHARD_GRAD_OP":
        stack = replace(stack, regather=False)
    if case.given.get("compile") is False:
        stack = replace(stack, elementwise=max(2.0, stack.elementwise))
    return stack


def _with_tensor_options(stack: Stack, case: Case) -> Stack:
    """Asynchronous tensor parallelism, Megatron's sequence parallelism, and MaxText before its fused attention."""
    said = case.given.get("sequence_parallel")
    if isinstance(said, bool):
        return replace(stack, sequence_parallel=said)
    if stack.name == "torchtitan" and "asynctp" in f"{case.id} {case.note}".lower():
        return replace(stack, overlap={**stack.overlap, "tensor": 1.0})
    if stack.name == "megatron":
        return replace(stack, sequence_parallel=_is_sequence_parallel(case))
    if stack.name == "maxtext" and "gpu" in str(case.given.get("hw", "")):
        return replace(stack, overlap={**NCCL_HIDES, "tensor": 0.0, "tokens": 0.0})
    if stack.name == "maxtext" and "v4" in str(case.given.get("hw", "")):
        return replace(
            stack, attention="unfused", causal_skip=False
        )  # Its tables of v4 are of April 2023.
    return stack


def _is_sequence_parallel(case: Case) -> bool:
    """Korthikanti et al. 2022: named as an axis or a policy, or meant by selective recomputation in whole runs."""
    given, mesh = case.given, case.given.get("mesh", {})
    words = f"{given.get('remat', '')} {given.get('policy', '')}".lower()
    if "no sequence" in words:
        return False
    is_named = "sequence" in words or (isinstance(mesh, Mapping) and "sequence" in mesh)
    return is_named or "selective" in str(given.get("remat", "")).lower()
