"""A case -> what is predicted, under the names of what is expected."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from planner_truth.cases import ODD, Case, CaseFile, Unsupported, reason_of
from planner_truth.choices import best_microbatch, best_option, published_choice
from planner_truth.claims import claim, least_communication
from planner_truth.closed import closed_form, rules_for
from planner_truth.quantities import Run, is_planned, quantity, run_of
from planner_truth.values import Predicted


@dataclass
class Evaluation:
    """predicted: by name. reasons: why the others are not. notes: of what was predicted."""

    predicted: dict[str, Predicted] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluate_case(case: Case, file: CaseFile) -> Evaluation:
    """Closed forms first, then words, then the planner: of each quantity, the first that can tell."""
    evaluation = Evaluation()
    for source in (_closed, _worded, _chosen, _planned):
        missing = [name for name in case.expected if name not in evaluation.predicted]
        if missing:
            source(case, file, missing, evaluation)
    return evaluation


def _attempt(name: str, evaluation: Evaluation, compute: Callable[[], Predicted]) -> None:
    try:
        value = compute()
        if isinstance(value, float) and not math.isfinite(value):
            raise Unsupported(f"{value} is no answer")
        evaluation.predicted[name] = value
    except ODD as error:
        evaluation.reasons[name] = reason_of(error)


def _closed(case: Case, file: CaseFile, missing: list[str], evaluation: Evaluation) -> None:
    for name in missing:
        if any(True for _ in rules_for(name)):
            _attempt(name, evaluation, partial(closed_form, case, file, name))


def _worded(case: Case, file: CaseFile, missing: list[str], evaluation: Evaluation) -> None:
    if "options" in case.given:
        try:
            evaluation.predicted |= best_option(case, file)
        except ODD as error:
            evaluation.reasons |= dict.fromkeys(missing, reason_of(error))
        return
    for name in missing:
        if name in {"rule", "best"}:
            _attempt(name, evaluation, partial(claim, case, file, str(case.expected[name])))
        if name == "interactive_min":
            _attempt(name, evaluation, partial(least_communication, case, file))
        if name == "best_microbatch":
            _attempt(name, evaluation, partial(best_microbatch, case, file))


def _chosen(case: Case, file: CaseFile, missing: list[str], evaluation: Evaluation) -> None:
    if "mesh" not in missing:
        return
    try:
        evaluation.predicted |= published_choice(case, file)
    except ODD as error:
        evaluation.reasons |= dict.fromkeys(missing, reason_of(error))


def _planned(case: Case, file: CaseFile, missing: list[str], evaluation: Evaluation) -> None:
    try:
        run = run_of(case, file)
    except ODD as error:
        for name in missing:
            if is_planned(name) or name not in evaluation.reasons:
                evaluation.reasons[name] = reason_of(error)
        return
    found = {**evaluation.predicted}
    for name in missing:
        if is_planned(name) or name not in evaluation.reasons:
            _attempt(name, evaluation, partial(quantity, run, name))
    if evaluation.predicted != found and run.setting.open:
        evaluation.notes.append(_open_words(run))


def _open_words(run: Run) -> str:
    layout = run.setting.layout
    chosen: Mapping[str, object] = {
        "batch": f"{run.setting.workload.global_batch} sequences",
        "microbatch": f"{layout.microbatches} microbatches",
        "remat": f"remat {layout.remat}",
        "virtual stages": f"{layout.virtual_stages} virtual stages",
    }
    return "not given, the planner's choice: " + ", ".join(
        str(chosen[name]) for name in run.setting.open
    )
