"""Statements in words that the planner is asked to check, by what they say."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

from jaxscale.planner import closed_forms as forms
from planner_truth.cases import Case, CaseFile, Unsupported
from planner_truth.closed_rooflines import best_fsdp
from planner_truth.problem import Problem
from planner_truth.settings import Setting, best, settings_of
from planner_truth.values import Claim


def claim(case: Case, file: CaseFile, words: str) -> Claim:
    """Raises Unsupported for a statement that is about nothing the planner computes."""
    for pattern, check in _CHECKS.items():
        if re.search(pattern, words.lower()):
            return check(case, file)
    raise Unsupported(f"no rule checks the statement {words!r}")


def _rate(case: Case, file: CaseFile, **given: object) -> float:
    _, prediction = best(settings_of(replace(case, given={**case.given, **given}), file))
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
        holds &= alone >= max(others)
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
    """A pipeline over the slow network against FSDP over it; inside pods, FSDP and tensor parallelism of eight."""
    pods = int(case.given.get("pods", case.given.get("slices", 2)))
    inside = {"fsdp_ici": 1, "tensor": 8}
    setting = settings_of(replace(case, given={**case.given, "mesh": {}}), file)[0]
    inside["fsdp_ici"] = setting.cluster.num_devices // pods // 8
    between = _rate(case, file, mesh={"pipe_dcn": pods, **inside}, global_batch_tokens=6e6)
    across = _rate(case, file, mesh={"fsdp_dcn": pods, **inside}, global_batch_tokens=6e6)
    said = f"tokens/s a chip: pipeline between pods {between:,.0f}, FSDP between pods {across:,.0f}"
    return Claim(said, between > 0 and between >= across)


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
