"""The planner on a second batch of published runs (tests/data/planner_truth_unseen_2/README.md).

Bounds are those of the goal where it names one; others are what was measured on 2026-11-22, with head-room, and guard
against regressions only.
"""

from functools import lru_cache
from pathlib import Path
from statistics import median

import pytest
from planner_truth.cases import load_cases
from planner_truth.evaluate import evaluate_case
from planner_truth.scoring import Score, score
from planner_truth.summary import confusion, percentile, rank_correlations
from published import FILE

DATA = Path(__file__).parents[1] / "data"
FIRST = load_cases(DATA / "planner_truth_unseen/cases.json")
SECOND = load_cases(DATA / "planner_truth_unseen_2/cases.json")
# Software whose other rows the given file has, and with them its one constant.
KNOWN = {"mt", "tr", "tt"}
SPARSE = ("qwen3", "gpt-oss", "deepseek", "scout")


@lru_cache
def scores() -> tuple[Score, ...]:
    runs = (case for case in SECOND.cases if case.kind != "choice")
    return tuple(score(case, evaluate_case(case, SECOND)) for case in runs)


def group(found: Score) -> str:
    if found.case.prefix in KNOWN:
        return "known"
    model = str(found.case.given.get("model"))
    return "sparse" if any(name in model for name in SPARSE) else "dense"


def errors(name: str) -> list[float]:
    timed = (found for found in scores() if found.case.kind == "throughput")
    chosen = [found.rel_error for found in timed if group(found) == name]
    return sorted(error for error in chosen if error is not None)


def test_no_row_stands_in_another_file_and_each_names_its_source() -> None:
    others = [case for file in (FILE, FIRST) for case in file.cases]
    seen = [(case.given, case.expected) for case in others]
    assert not {case.id for case in SECOND.cases} & {case.id for case in others}
    assert not [case.id for case in SECOND.cases if (case.given, case.expected) in seen]
    assert all(case.source for case in SECOND.cases)


def test_every_row_is_understood() -> None:
    assert not [found.case.id for found in scores() if found.status == "unsupported"]
    assert not [f.case.id for f in scores() if f.status != "pass" and not f.reason]
    assert not [f.case.id for f in scores() if "not understood" in (f.reason or "")]


@pytest.mark.parametrize(
    ("name", "count", "middle", "tenth"),
    [
        ("known", 15, 0.20, 0.30),  # Measured: median 15.7 %, 90th percentile 26.7.
        (
            "dense",
            73,
            0.15,
            0.25,
        ),  # 8.2 and 18.1; a stack held out whole may miss by 25 in the median.
        ("sparse", 14, 0.30, 0.60),  # 22.2 and 56.4.
    ],
)
def test_errors_stay_where_they_are(name: str, count: int, middle: float, tenth: float) -> None:
    found = errors(name)
    assert len(found) == count
    assert median(found) <= middle
    worst_tenth = percentile(found, 0.9)
    assert worst_tenth is not None
    assert worst_tenth <= tenth


def test_runs_are_accepted_and_those_out_of_memory_refused() -> None:
    """All 102 are accepted; one of nine that ran out of memory is computed at 77.2 GiB of 78.4 (docs/planner.md)."""
    counts = confusion(scores())
    assert counts["expected_fits_predicted_oom"] == 0
    assert counts["expected_oom_predicted_oom"] >= 8


def test_published_layouts_are_within_a_tenth_of_the_planners_best() -> None:
    choices = [case for case in SECOND.cases if case.kind == "choice"]
    found = [score(case, evaluate_case(case, SECOND)) for case in choices]
    assert len(found) == 8
    assert sum(one.status == "pass" for one in found) >= 7


@pytest.mark.parametrize("model", ["aleph-llama-65b", "llama2-7b"])
def test_the_order_of_layouts_is_kept(model: str) -> None:
    """Spearman 0.8, as the goal says of a stack held out: ten layouts of one sheet, five lengths of sequences."""
    chosen = (found for found in scores() if found.case.given.get("model") == model)
    orders = [order for name, order in rank_correlations(chosen).items() if model in name]
    assert orders
    assert min(orders) >= 0.8
