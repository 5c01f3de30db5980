"""Worked problems about bytes: activations by policy, state by stage, caches, slices, shardings."""

import math
import re
from collections.abc import Callable, Mapping

from jaxscale.planner.closed_forms import memory as forms
from jaxscale.planner.closed_forms import pipeline
from planner_truth.cases import Unsupported
from planner_truth.problem import Problem, Rule
from planner_truth.symbols import Symbolic, Values

# Table 3 of Korthikanti et al. 2022 (sequence 2048, tensor parallelism 8): width and heads of its four models.
_KORTHIKANTI = ((6144, 64), (12288, 96), (20480, 128), (25600, 160))
# Short names of the same paper's figures, and the policy that each means.
_SHORT: Mapping[str, forms.ActivationPolicy] = {
    "none": "none", "t": "tensor", "ts": "tensor+sequence", "tss": "tensor+sequence+selective",
    "tsel": "tensor+selective", "full": "full",
}  # fmt: skip
_LAYER_TEXTS: Mapping[forms.ActivationPolicy, str] = {
    "none": "sbh(34 + 5as/h)",
    "tensor": "sbh(10 + 24/t + 5as/(ht))",
    "tensor+sequence": "sbh/t (34 + 5as/h)",
    "tensor+selective": "sbh(10 + 24/t)",
    "tensor+sequence+selective": "34sbh/t",
    "full": "2sbh",
}


def policy_of(words: str) -> forms.ActivationPolicy:
    """`tensor+sequence+selective`, `no parallelism`, `full recompute`. Raises Unsupported."""
    if "full" in words:
        return "full"
    if "no parallelism" in words or "no remat" in words or words.strip() == "baseline":
        return "none"
    parts = [part for part in ("tensor", "sequence", "selective") if part in words]
    if "tensor" not in parts:
        raise Unsupported(f"no activation policy is meant by {words!r}")
    found = "+".join(parts)
    return next(policy for policy in _SHORT.values() if policy == found)


def layer_formula(problem: Problem) -> Symbolic:
    problem.needs("policy")
    policy = policy_of(problem.words("policy"))

    def function(s: float, b: float, h: float, a: float, t: float) -> float:
        return forms.layer_activation_bytes(policy, s=s, b=b, h=h, a=a, t=t)

    return Symbolic(_LAYER_TEXTS[policy], ("s", "b", "h", "a", "t"), function)


def model_formula(problem: Problem) -> Symbolic:
    """All layers, nothing recomputed, no parallelism."""
    problem.needs("formula")

    def function(L: float, s: float, b: float, h: float, a: float) -> float:
        return L * forms.layer_activation_bytes("none", s=s, b=b, h=h, a=a)

    names = {"seq": "s", "bs": "b", "n_heads": "a"}
    derived = {name: _picked(ours) for name, ours in names.items()}
    return Symbolic("L sbh(34 + 5as/h)", ("L", "s", "b", "h", "a"), function, derived)


def _picked(name: str) -> Callable[[Values], float]:
    return lambda values: values[name]


def bytes_per_layer(problem: Problem) -> Mapping[str, float]:
    return {name: _layer_bytes(problem, policy) for name, policy in _SHORT.items()}


def _layer_bytes(problem: Problem, policy: forms.ActivationPolicy) -> float:
    shape = problem.shape
    return forms.layer_activation_bytes(
        policy,
        s=problem.need("seq"),
        b=problem.need("microbatch"),
        h=shape.embed,
        a=shape.heads,
        t=problem.mesh.get("tensor", 1),
    )


def layers_worth(problem: Problem) -> float:
    """1F1B: the first of p stages holds p microbatches of L / p layers; interleaving holds more."""
    stages, chunks = problem.mesh.get("pipeline", 1), problem.given.get("virtual_stages", 1)
    factor = forms.interleaved_memory_factor(stages, chunks) if chunks > 1 else 1.0
    return problem.shape.layers * factor


def first_stage_bytes(problem: Problem) -> float:
    return layers_worth(problem) * _layer_bytes(problem, "tensor+sequence+selective")


def interleaving_factor(problem: Problem) -> Symbolic:
    problem.needs("schedule")
    return Symbolic("1 + (p - 1)/(p m)", ("p", "m"), forms.interleaved_memory_factor)


def _fraction(policy: forms.ActivationPolicy) -> float:
    """Of what tensor parallelism alone keeps, mean over the paper's models."""
    shares = [
        forms.layer_activation_bytes(policy, s=2048, b=1, h=h, a=a, t=8)
        / forms.layer_activation_bytes("tensor", s=2048, b=1, h=h, a=a, t=8)
        for h, a in _KORTHIKANTI
    ]
    return sum(shares) / len(shares)


def selective_fraction(problem: Problem) -> float:
    problem.needs("policy")
    return _fraction("tensor+sequence+selective")


def full_fraction(problem: Problem) -> float:
    problem.needs("policy")
    return _fraction("full")


def kept_arrays(problem: Problem) -> float:
    """Arrays of batch x embed a layer: every product's result, the input alone, or everything."""
    words = problem.words("policy")
    if "big matmul" in words or "matmul outputs" in words or "dots" in words:
        return 4.0 + 3.0  # Queries, keys, values, output; gate, up and down.
    if "block" in words or "input" in words or "full" in words:
        return 1.0
    if "no remat" in words or "everything" in words or "save all" in words:
        return float(forms.KEPT_WITHOUT_REMAT)
    raise Unsupported(f"no policy is meant by {words!r}")


def zero_bytes(problem: Problem) -> float:
    problem.needs("stage", "Nd")
    match = re.search(r"(?:zero[- ]?|stage[- ]?)(\d)", problem.words("stage"))
    return forms.zero_bytes(
        problem.parameters,
        problem.need("Nd"),
        int(match.group(1)) if match else 0,
        optimizer_bytes=problem.given.get("K", 12),
    )


def mixed_bytes(problem: Problem) -> float:
    return forms.mixed_precision_bytes(problem.parameters)


def mixed_bytes_float32_gradients(problem: Problem) -> float:
    return forms.mixed_precision_bytes(problem.parameters, float32_gradients=True)


def plain_bytes_per_parameter(problem: Problem) -> float:
    problem.needs("training")
    return forms.megatron_bytes_per_parameter()


def split_bytes_per_parameter(problem: Problem) -> Symbolic:
    problem.needs("training")

    def function(dp: float) -> float:
        return forms.megatron_bytes_per_parameter(dp, distributed=True)

    return Symbolic("6 + 12/dp", ("dp",), function)


def checkpoint_bytes(problem: Problem) -> float:
    return forms.checkpoint_bytes(problem.parameters)


def checkpoint_bytes_per_parameter(problem: Problem) -> float:
    return checkpoint_bytes(problem) / problem.parameters


def most_parameters(problem: Problem) -> float:
    each = problem.given.get("bytes_per_param", forms.ADAM_BYTES)
    return forms.largest_model(problem.figures.hbm_bytes, each)


def state_bytes(problem: Problem) -> float:
    each = problem.given.get(
        "bytes_params_opt", problem.given.get("bytes_per_param", forms.ADAM_BYTES)
    )
    return problem.parameters * float(each)


def state_bytes_per_device(problem: Problem) -> float:
    """Tensor and pipeline parallelism split the state; data parallelism does not, unless it is FSDP."""
    mesh = problem.mesh
    split = math.prod(mesh.get(axis, 1) for axis in ("tensor", "pipeline", "fsdp", "expert"))
    return state_bytes(problem) / split


def state_fits(problem: Problem) -> bool:
    """Whether state alone leaves room. No more is known of a problem that names neither sequence nor microbatch."""
    if "seq" in problem.given or "microbatch" in problem.given:
        raise Unsupported("a whole layout, not its state alone")
    return state_bytes_per_device(problem) < problem.figures.hbm_bytes


def kept_products(problem: Problem) -> float:
    """`after each of 3 FFW matmuls (BF,BF,BD)`: 16-bit results of the products that are named."""
    problem.needs("checkpoints")
    match = re.search(r"\(([BDF,\s]+)\)", str(problem.given["checkpoints"]))
    if match is None:
        raise Unsupported("no products are named")
    sizes = {"B": problem.batch_tokens, "D": problem.shape.embed, "F": problem.shape.mlp}
    results = [
        math.prod(sizes[letter] for letter in name.strip()) for name in match.group(1).split(",")
    ]
    return 2 * problem.shape.layers * sum(results)


def stage_parameters(problem: Problem) -> float:
    """Of a GPU of the first stage, embedding included: its layers and its part of the table."""
    return stage_layer_parameters(problem) + problem.shape.vocab * problem.shape.embed / _tensor(
        problem
    )


def stage_layer_parameters(problem: Problem) -> float:
    """12 h^2 + 13 h a layer (Narayanan et al. 2021, equation 2), over tensor and pipeline parallelism."""
    shape = problem.shape
    layers = shape.layers / problem.mesh.get("pipeline", 1)
    return layers * (12 * shape.embed**2 + 13 * shape.embed) / _tensor(problem)


def _tensor(problem: Problem) -> int:
    return problem.mesh.get("tensor", 1)


def state_with_embedding(problem: Problem) -> float:
    return stage_parameters(problem) * problem.need("bytes_per_param")


def state_without_embedding(problem: Problem) -> float:
    return stage_layer_parameters(problem) * problem.need("bytes_per_param")


def boundary(problem: Problem) -> Symbolic:
    if problem.given.get("axis") not in {"pipe", "pipeline"}:
        raise Unsupported("elements of what?")
    return Symbolic("b s h", ("b", "s", "h"), pipeline.boundary_elements)


RULES: Mapping[str, Rule] = {
    "formula": layer_formula,
    "bytes": model_formula,
    "bytes_per_layer": bytes_per_layer,
    "first_stage_layers_worth": layers_worth,
    "first_stage_bytes_tss": first_stage_bytes,
    "first_stage_activation_factor": interleaving_factor,
    "fraction_of_baseline_below": selective_fraction,
    "full_recompute_fraction": full_fraction,
    "saved_per_layer_BD_units": kept_arrays,
    "bytes_per_gpu": zero_bytes,
    "bytes_bf16_mixed": mixed_bytes,
    "bytes_bf16_mixed_fp32_grad_acc": mixed_bytes_float32_gradients,
    "bytes_per_param_no_dist_opt": plain_bytes_per_parameter,
    "bytes_per_param_dist_opt": split_bytes_per_parameter,
    "checkpoint_bytes": checkpoint_bytes,
    "bytes_per_param": checkpoint_bytes_per_parameter,
    "max_params": most_parameters,
    "params_opt_bytes": state_bytes,
    "activation_bytes": kept_products,
    "state_bytes_per_gpu": state_bytes_per_device,
    "fits": state_fits,
    "params_per_gpu_with_emb": stage_parameters,
    "params_per_gpu_without_emb": stage_layer_parameters,
    "state_bytes_with_emb": state_with_embedding,
    "state_bytes_without_emb": state_without_embedding,
    "elements": boundary,
}
