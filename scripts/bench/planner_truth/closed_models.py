"""Worked problems about a model alone: parameters, FLOPs, days, generation steps."""

import re
from collections.abc import Mapping

from jaxscale.planner.closed_forms import rooflines as forms
from planner_truth.cases import Unsupported
from planner_truth.closed_sizes import cache_bytes, weight_bytes
from planner_truth.figures import figures_named
from planner_truth.models import training_tokens
from planner_truth.problem import Problem, Rule, dtype_bytes
from planner_truth.symbols import Symbolic, evaluate


def mlp_parameters(problem: Problem) -> float:
    shape = problem.shape
    return shape.layers * shape.mlp_products * shape.embed * shape.mlp


def attention_parameters(problem: Problem) -> float:
    shape = problem.shape
    return shape.layers * 2 * shape.embed * shape.head_dim * (shape.heads + shape.kv_heads)


def table_parameters(problem: Problem) -> float:
    shape = problem.shape
    return (1 if shape.tied else 2) * shape.vocab * shape.embed


def all_parameters(problem: Problem) -> float:
    return problem.parameters


def attention_fraction(problem: Problem) -> float:
    attention = attention_parameters(problem)
    return attention / (attention + mlp_parameters(problem) + table_parameters(problem))


def flops_per_token(problem: Problem) -> float:
    return forms.training_flops(problem.parameters, 1)


def seconds_per_token(problem: Problem) -> float:
    """On one chip of the kind that the quantity names."""
    name = next(name for name in problem.case.expected if name.startswith("time_on_one_"))
    chip = re.sub(r"^time_on_one_|_s$", "", name)
    return flops_per_token(problem) / figures_named(chip, problem.file).peak


def run_flops(problem: Problem) -> float:
    if "model" not in problem.given and "params" not in problem.given:
        raise Unsupported("no model is given")
    return forms.training_flops(problem.parameters, training_tokens(problem.case))


def run_seconds(problem: Problem) -> float:
    given = problem.given
    if "tflops_per_chip" in given:
        return _from_reached_flops(problem)
    if "mesh" in given or "seq" in given:
        raise Unsupported("a layout, not a run at a given utilization")
    flops = given.get("total_flops") or run_flops(problem)
    chips = problem.chips if "n_chips" in given else _bound_chips(problem)
    return forms.training_seconds(flops, chips, problem.figures.peak, given.get("mfu", 1.0))


def _bound_chips(problem: Problem) -> float:
    figures = problem.figures
    bandwidth = 2 * figures.link * figures.torus_axes
    return problem.batch_tokens / forms.sharded_axis_tokens(figures.peak, bandwidth)


def _from_reached_flops(problem: Problem) -> float:
    """By the formula that is given, `8TP/(nX)`, or the same one of ours."""
    reached = problem.need("tflops_per_chip") * 1e12
    tokens, chips = problem.need("tokens"), problem.need("n_chips")
    if "formula" in problem.given:
        values = {"T": tokens, "P": problem.parameters, "n": chips, "X": reached}
        return evaluate(str(problem.given["formula"]), values)
    return forms.recomputed_training_seconds(problem.parameters, tokens, chips, reached)


def run_utilization(problem: Problem) -> float:
    """Of a run whose device hours are known: 6 N T over what the devices could have done."""
    given = problem.given
    hours = given.get("gpu_hours", given.get("chip_hours"))
    if hours is None:
        raise Unsupported("no device hours are given")
    parameters = float(given.get("active_params", problem.parameters))
    flops = forms.training_flops(parameters, training_tokens(problem.case))
    peak = float(given.get("peak_flops", given.get("flops", problem.figures.peak)))
    return flops / (float(hours) * 3600 * peak)


def weights_seconds(problem: Problem) -> float:
    """All weights read from HBM once: the least that a step of generation takes."""
    if "params" not in problem.given and "model" not in problem.given:
        raise Unsupported("no weights are given")
    chips = problem.chips if "n_chips" in problem.given or "topology" in problem.given else 1
    return forms.decode_seconds(
        weight_bytes=weight_bytes(problem),
        cache_bytes=0,
        chips=chips,
        hbm_bandwidth=problem.figures.hbm_bandwidth,
    )


def run_days(problem: Problem) -> float:
    return run_seconds(problem) / forms.DAY


def step_seconds(problem: Problem) -> float:
    """Of generation where a context is given, of training where a utilization is."""
    if "ctx" in problem.given:
        return _decode_seconds(problem)
    problem.needs("mfu", "batch_tokens", "n_chips")
    flops = forms.training_flops(problem.parameters, problem.batch_tokens)
    return forms.training_seconds(flops, problem.chips, problem.figures.peak, problem.need("mfu"))


def _decode_seconds(problem: Problem) -> float:
    problem.needs("batch")
    read = _weights_read(problem) * dtype_bytes(str(problem.given.get("dtype", "bf16")))
    cache = problem.need("batch") * problem.need("ctx") * cache_bytes(problem)
    return forms.decode_seconds(
        weight_bytes=read,
        cache_bytes=cache,
        chips=problem.chips,
        hbm_bandwidth=problem.figures.hbm_bandwidth,
    )


def _weights_read(problem: Problem) -> float:
    """Of an untied embedding only the rows of the batch are read."""
    if "model" not in problem.given or problem.shape.tied:
        return problem.parameters
    return problem.parameters - problem.shape.vocab * problem.shape.embed


def tokens_per_second_per_chip(problem: Problem) -> float:
    problem.needs("batch", "ctx")
    return problem.need("batch") / _decode_seconds(problem) / problem.chips


def attention_over_products(problem: Problem) -> Symbolic:
    """Attention's FLOPs over those of the products, gated MLP with F = 4 D: 12 T D / (6 x 16 D^2) a token and layer."""
    problem.needs("assume")

    def function(T: float, D: float) -> float:
        return 12 * T * D / (6 * (4 * D * D + 3 * D * 4 * D))

    return Symbolic("T / (8 D)", ("T", "D"), function)


def attention_dominates(problem: Problem) -> float:
    """The sequence length at which attention's FLOPs equal the products', for the width in the quantity's name."""
    name = next(name for name in problem.case.expected if name.startswith("attn_dominates_T_at_D"))
    return 8.0 * int(name.rpartition("D")[2])


def attention_equals_projections(problem: Problem) -> Symbolic:
    """12 T D = 6 x 4 D^2."""
    problem.needs("assume")
    return Symbolic("2 D", ("D",), lambda D: 6 * 4 * D * D / (12 * D))


def cache_bytes_of_name(problem: Problem) -> float:
    """`kv_bytes_per_token_int8`: the dtype is in the name."""
    prefix = "kv_bytes_per_token_"
    name = next(name for name in problem.case.expected if name.startswith(prefix))
    return cache_bytes(problem, dtype_bytes(name.removeprefix(prefix)))


def cache_of_sequence(problem: Problem) -> float:
    """`seq32k_bytes`: the length is in the name."""
    names = [re.fullmatch(r"seq(\d+)k_bytes", name) for name in problem.case.expected]
    thousands = next(int(match.group(1)) for match in names if match)
    return thousands * 1024 * cache_bytes(problem)


RULES: Mapping[str, Rule] = {
    "ffw": mlp_parameters,
    "attn": attention_parameters,
    "vocab": table_parameters,
    "total": all_parameters,
    "params": all_parameters,
    "attn_fraction": attention_fraction,
    "train_flops_per_token": flops_per_token,
    "total_flops": run_flops,
    "train_s": run_seconds,
    "train_days": run_days,
    "step_s": step_seconds,
    "tok_s_chip": tokens_per_second_per_chip,
    "mfu": run_utilization,
    "time_s": weights_seconds,
    "attn_over_matmul": attention_over_products,
    "attn_eq_qkvo_T": attention_equals_projections,
    "param_bytes": weight_bytes,
}
PATTERNS: Mapping[str, Rule] = {
    r"time_on_one_\w+_s": seconds_per_token,
    r"attn_dominates_T_at_D\d+": attention_dominates,
    r"kv_bytes_per_token_\w+": cache_bytes_of_name,
    r"seq\d+k_bytes": cache_of_sequence,
}
