"""Statements in words that the planner is asked to check, by what they say."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

from jaxscale.planner.closed_forms import rooflines as forms
from jaxscale.planner.vocabulary.prediction import Prediction
from planner_truth.cases import Case, CaseFile, Unsupported
from planner_truth.closed_rooflines import best_fsdp
from planner_truth.problem import Problem
from planner_truth.reasons import layout_words, memory_words, terms
from planner_truth.settings import Setting, best, settings_of
from planner_truth.stacks import software_of
from planner_truth.values import Claim

# What somebody ran counts as chosen where nothing is predicted to be faster by more (as in `scoring`).
_NEAR = 1.10
_TENSORS = (8, 16, 32, 64, 128)


def claim(case: Case, file: CaseFile, words: str) -> Claim:
    """Raises Unsupported for a statement that is about nothing the planner computes."""
    for pattern, check in _CHECKS.items():
        if re.search(pattern, words.lower()):
            return check(case, file)
    raise Unsupported(f"no rule checks the statement {words!r}")


def _run(case: Case, file: CaseFile, **given: object) -> Prediction:
    return best(settings_of(replace(case, given={**case.given, **given}), file))[1]


def _rate(case: Case, file: CaseFile, **given: object) -> float:
    prediction = _run(case, file, **given)
    return prediction.tokens_per_second_per_chip if prediction.fits else 0.0


def tensor_slows(case: Case, file: CaseFile) -> Claim:
    """Throughput at growing tensor parallelism, the rest data parallel, with a batch of many sequences a replica."""
    chips = int(case.given["n_chips"])
    rates = {}
    for tensor in (2, 4, 8, 16, 32):
        if chips % tensor:
            continue
        mesh = {"tensor": tensor, "data": chips // tensor}
        rates[tensor] = _rate(
            case, file, mesh=mesh, tensor=tensor, global_batch_seqs=8 * chips, remat="full", zero=1
        )
    known = [rate for rate in rates.values() if rate]
    falls = len(known) > 1 and all(before > after for before, after in pairwise(known))
    said = ", ".join(f"tensor {tensor}: {rate:,.0f}" for tensor, rate in rates.items() if rate)
    return Claim(f"tokens/s a chip {said}", falls)


def fsdp_alone(case: Case, file: CaseFile) -> Claim:
    """FSDP over everything against tensor parallelism inside a host and a mix, for the sizes that are named."""
    sizes = re.findall(
        r"[\d.]+\s*[MB]", str(case.given.get("models", case.given.get("model", "7B")))
    )
    said, holds = [], True
    for size in sizes:
        case_of_size = replace(case, given={**case.given, "model": f"GPT {size}", "seq": 1024})
        alone = _rate(case_of_size, file, mesh={})
        others = [_rate_of_mix(case_of_size, file, tensor) for tensor in (2, 4, 8)]
        holds &= alone * _NEAR >= max(others)
        said.append(
            f"{size}: FSDP {alone:,.0f} tokens/s a chip, with tensor parallelism at most {max(others):,.0f}"
        )
    return Claim("; ".join(said), holds)


def _rate_of_mix(case: Case, file: CaseFile, tensor: int) -> float:
    setting: Setting = settings_of(case, file)[0]
    devices = setting.cluster.num_devices
    try:
        return _rate(case, file, mesh={"fsdp": devices // tensor, "tensor": tensor})
    except Unsupported:
        return 0.0


def pipeline_between_pods(case: Case, file: CaseFile) -> Claim:
    """A pipeline over the slow network against sharing the batch over it, as its software can: FSDP, else data
    parallelism. Inside pods the best tensor parallelism of each."""
    axis = "fsdp" if "fsdp" in software_of(case).axes else "data"
    between, across = (_best_over(case, file, slow, axis) for slow in ("pipe", axis))
    rates = [one.tokens_per_second_per_chip if one.fits else 0.0 for one in (between, across)]
    said = (
        f"tokens/s a chip: pipeline between pods {rates[0]:,.0f} ({layout_words(between)}), {axis} between pods"
        f" {rates[1]:,.0f} ({layout_words(across)}), whose terms beside the pipeline's: {terms(between, across)}"
    )
    for one in (between, across):
        said += "" if one.fits else f"; {layout_words(one)}: {memory_words(one)}"
    return Claim(said, rates[0] > 0 and rates[0] * _NEAR >= rates[1])


def _best_over(case: Case, file: CaseFile, slow: str, axis: str) -> Prediction:
    """The best layout with one axis over the slow network, the rest of the devices `axis` and tensor parallelism."""
    pods = int(case.given.get("pods", case.given.get("slices", 2)))
    empty = replace(case, given={**case.given, "mesh": {}})
    inside = settings_of(empty, file)[0].cluster.num_devices // pods
    meshes = [
        {f"{slow}_dcn": pods, f"{axis}_ici": inside // tensor, "tensor": tensor}
        for tensor in _TENSORS
        if inside % tensor == 0
    ]
    found = [_run(case, file, mesh=mesh, global_batch_tokens=6e6) for mesh in meshes]
    return max(
        found, key=lambda one: one.tokens_per_second_per_chip if one.fits else -one.peak_bytes
    )


def mixed_then_pure(case: Case, file: CaseFile) -> Claim:
    """The mix sends less at the small end of a range of batches; pure FSDP is bound by arithmetic at its large end."""
    problem = Problem(case, file)
    low, high = case.given["batch_tokens_range"]
    figures, chips = problem.figures, problem.chips
    pure = forms.sharded_axis_tokens(figures.peak, 2 * figures.link * figures.torus_axes)
    mixed = forms.mixed_tokens(figures.intensity, problem.mlp, problem.axes_product, "sum")
    holds = low / chips < pure <= high / chips and mixed < pure
    said = f"pure FSDP is bound by arithmetic from {pure * chips:.2g} tokens a step, a mix from {mixed * chips:.2g}"
    return Claim(said, holds)


def least_communication(case: Case, file: CaseFile) -> Mapping[str, int]:
    """The mix that sends least at the small end of a range of batches, in powers of two."""
    low = case.given["batch_tokens_range"][0]
    problem = Problem(replace(case, given={**case.given, "batch_tokens": low}), file)
    fsdp = 2 ** (round(best_fsdp(problem)).bit_length() - 1)
    return {"fsdp": fsdp, "tensor": problem.chips // fsdp}


_CHECKS: Mapping[str, Callable[[Case, CaseFile], Claim]] = {
    r"(decreas|fall|drop)\w* as tensor": tensor_slows,
    r"fsdp alone": fsdp_alone,
    r"pipelining between": pipeline_between_pods,
    r"axes fsdp|pure fsdp best": mixed_then_pure,
}
