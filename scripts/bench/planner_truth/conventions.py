"""What a source counts as FLOPs: those of a step in its own convention, so that its TFLOP/s and MFU can be compared.

Traps that are handled here: the TFLOP/s of SC'21, MT-NLG and BLOOM include a second forward pass; MaxText counted
the full square of attention before July 2025; fp8 runs divide by the fp8 peak.
"""

import re

from jaxscale.planner.model.flops import active_weights, step_flops
from jaxscale.planner.model.parameters import num_parameters, parameter_groups
from jaxscale.planner.model.shape import ModelShape
from jaxscale.planner.model.workload import Workload
from planner_truth.cases import Case

# Rows that name no convention but say in their note how attention is counted.
_NOTES = (
    (r"attention flops\D*non-?causal|counts? non-?causal", "active+noncausal"),
    (r"attention flops\D*causal|counts? causal", "active+causal"),
)


def counted_flops(case: Case, workload: Workload, default: str) -> float:
    """FLOPs of a step as the row's source counts them. default: the convention of its software."""
    convention = convention_of(case, default)
    shape, tokens = workload.shape, workload.tokens
    attention = 12 * shape.layers * workload.sequence * shape.heads * shape.head_dim
    if convention == "recomputed":
        return _recomputed_flops(workload)
    if convention == "megatron":
        return _megatron_flops(workload)
    # Nobody counts experts that a token does not go to.
    if convention == "all+noncausal" and shape.experts is None:
        return tokens * (6 * _matrix_parameters(shape) + attention)
    if convention in {"active+noncausal", "all+noncausal"}:
        return tokens * (6 * active_weights(shape) + attention)
    return step_flops(workload)


def model_flops(case: Case, workload: Workload, default: str) -> float:
    """The same without what is computed twice: a utilization of model FLOPs never counts it."""
    if convention_of(case, default) == "recomputed":
        return _megatron_flops(workload)
    return counted_flops(case, workload, default)


def convention_of(case: Case, default: str) -> str:
    """recomputed, megatron, all+noncausal, active+noncausal or active+causal."""
    words = case.flops_convention.lower().replace(" ", "")
    if not words:
        noted = next(
            (name for pattern, name in _NOTES if re.search(pattern, case.note.lower())), ""
        )
        words = noted or default.lower()
    if words.startswith(("96", "8/6", "4*")):
        return "recomputed"
    if words.startswith("72"):
        return "megatron"
    if "excl" in words or words.startswith("active"):
        return "active+noncausal" if "noncausal" in words else "active+causal"
    if "calculate_tflops" in words or "causal" in words.replace("noncausal", ""):
        return "active+causal"
    return "all+noncausal"


def _megatron_flops(workload: Workload) -> float:
    """72 B s l h^2 (1 + s / 6h + V / 12 l h) (Korthikanti et al. 2022, appendix A)."""
    shape, s = workload.shape, workload.sequence
    layers, h, v = shape.layers, shape.embed, shape.vocab
    scale = 72 * workload.global_batch * s * layers * h**2
    return scale * (1 + s / (6 * h) + v / (12 * layers * h))


def _recomputed_flops(workload: Workload) -> float:
    """96 B s l h^2 (1 + s / 6h + V / 16 l h): the forward pass runs twice (Narayanan et al. 2021, equation 3)."""
    shape, s = workload.shape, workload.sequence
    layers, h, v = shape.layers, shape.embed, shape.vocab
    scale = 96 * workload.global_batch * s * layers * h**2
    return scale * (1 + s / (6 * h) + v / (16 * layers * h))


def _matrix_parameters(shape: ModelShape) -> int:
    """Every parameter, tables too, as the 6 N of a paper counts them."""
    return num_parameters(parameter_groups(shape))
