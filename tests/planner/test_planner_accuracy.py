"""The scorer of published results: what it prints, how it counts, and that it looks up nothing."""

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from planner_truth.cases import Case, CaseFile
from planner_truth.evaluate import Evaluation, evaluate_case
from planner_truth.scoring import judge, score
from planner_truth.summary import confusion, rank_correlations, spearman
from planner_truth.symbols import Symbolic
from planner_truth.values import Chosen, plain
from published import FILE, a_case

ROOT = Path(__file__).parents[2]


@lru_cache
def evaluated(name: str) -> Evaluation:
    """A case of the file, evaluated once for all tests."""
    return evaluate_case(next(case for case in FILE.cases if case.id == name), FILE)


def a_file(tmp_path: Path, cases: list[dict[str, Any]]) -> Path:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"cases": cases}))
    return path


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "scripts/bench/planner_accuracy")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def entry(name: str, kind: str, given: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": name,
        "kind": kind,
        "given": given,
        "expected": expected,
        "tolerance": {"rel": 0.01},
    }


TINY = [
    entry("a-1", "bubble", {"pipe": 5, "microbatches": 4}, {"bubble_over_ideal": 1.0}),
    entry("a-2", "bubble", {"pipe": 5, "microbatches": 4}, {"bubble_over_ideal": 0.8}),
    entry("b-1", "memory", {"params": 1e9}, {"bytes_bf16_mixed": 1.6e10, "color": "blue"}),
    entry(
        "b-2",
        "throughput",
        {"hw": "abacus", "n_chips": 8, "model": "llama2-7b"},
        {"step_s": 1.0, "fits": True},
    ),
]


def test_the_script_prints_what_it_promises(tmp_path: Path) -> None:
    done = run_script("--cases", str(a_file(tmp_path, TINY)), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"cases", "summary"}
    cases = {case["id"]: case for case in document["cases"]}
    fields = {"id", "kind", "status", "predicted", "expected", "rel_error", "reason"}
    assert all(set(case) == fields for case in cases.values())
    assert {name: case["status"] for name, case in cases.items()} == {
        "a-1": "pass", "a-2": "miss", "b-1": "miss", "b-2": "unsupported",
    }  # fmt: skip
    assert cases["a-1"]["predicted"] == cases["a-2"]["predicted"] == {"bubble_over_ideal": 1.0}
    assert cases["a-2"]["rel_error"] == pytest.approx(0.25)
    assert "color" in cases["b-1"]["reason"]
    assert "abacus" in cases["b-2"]["reason"]


def test_the_summary_counts_by_kind_and_by_prefix(tmp_path: Path) -> None:
    summary = json.loads(run_script("--cases", str(a_file(tmp_path, TINY)), "--json").stdout)[
        "summary"
    ]
    bubbles = summary["by_kind"]["bubble"]
    assert (bubbles["count"], bubbles["pass"], bubbles["miss"]) == (2, 1, 1)
    assert (bubbles["median_rel_error"], bubbles["worst_rel_error"]) == pytest.approx((0.125, 0.25))
    assert summary["by_prefix"]["a"] == bubbles
    assert summary["by_prefix"]["b"]["unsupported"] == 1
    # A row without a prediction is not one that fits.
    assert summary["all"]["feasibility"]["expected_fits_predicted_oom"] == 1


def test_a_file_that_is_none_ends_in_one_line(tmp_path: Path) -> None:
    done = run_script("--cases", str(tmp_path / "absent.json"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_rank_correlation() -> None:
    assert spearman([(1, 10), (2, 20), (3, 30)]) == 1
    assert spearman([(1, 3), (2, 2), (3, 1)]) == -1
    # Ranks 1 2 3 against 1 3 2: 1 - 6 * 2 / (3 * 8).
    assert spearman([(1, 1), (2, 3), (3, 2)]) == 0.5
    assert spearman([(1, 5), (2, 5), (3, 5)]) is None


def scored(name: str, published: float, predicted: float, **given: Any):
    case = a_case(given, {"tok_s_chip": published, "fits": True}, id=name)
    found = score(case, evaluate_case(case, CaseFile((), {}, {})))
    return replace(found, predicted={"tok_s_chip": predicted, "fits": predicted > 1})


def test_rows_are_ranked_within_one_model_and_cluster() -> None:
    rows = [scored(f"x-{n}", n, n, model="a", hw="gpu.H100") for n in (1, 2, 3)]
    others = [scored(f"x-{n}", n, -n, model="b", hw="gpu.H100") for n in (1, 2, 3)]
    assert rank_correlations([*rows, *others]) == {"x a gpu.H100": 1, "x b gpu.H100": -1}
    assert confusion(rows)["expected_fits_predicted_fits"] == 2


def test_predictions_do_not_look_at_what_is_expected() -> None:
    """Other published numbers, layouts and ids, the same predictions.

    What a published layout itself comes to (whether it fits) is asked of that layout, and of no other.
    """
    choices = [case for case in FILE.cases if case.kind == "choice"]
    others = [case for case in FILE.cases if case.kind != "choice"]
    for case in [*choices, *random.Random(0).sample(others, 30)]:
        changed = replace(case, id=f"{case.prefix}-{case.kind}", expected=_altered(case))
        before, after = evaluated(case.id), evaluate_case(changed, FILE)
        assert _values(before) == _values(after), case.id


def _altered(case: Case) -> dict[str, Any]:
    """Numbers scaled; a mesh whose axes have each other's sizes; another policy."""
    altered: dict[str, Any] = {}
    for name, value in case.expected.items():
        if name == "mesh":
            altered[name] = _turned(value)
        elif name == "remat":
            altered[name] = "none" if value == "full" else "full"
        elif isinstance(value, float | int) and not isinstance(value, bool):
            altered[name] = value * 1.37
        else:
            altered[name] = value
    return altered


def _turned(mesh: dict[str, Any]) -> dict[str, Any]:
    axes = [axis for axis, size in mesh.items() if isinstance(size, int) and axis != "expert_nodes"]
    sizes = [mesh[axis] for axis in axes]
    return {**mesh, **dict(zip(axes, sizes[1:] + sizes[:1], strict=True))}


def _values(evaluation: Any) -> dict[str, object]:
    """What is predicted, without what is said of the published layout beside it."""
    return {
        name: plain(value)
        for name, value in evaluation.predicted.items()
        if not isinstance(value, Symbolic) and name != "fits"
    }


def test_a_row_that_says_exact_wants_the_planners_own_choice() -> None:
    near = Chosen(4.0, 1.03, fits=True, why="")
    assert not judge(
        a_case({}, {"best_microbatch": 2}, tolerance={"exact": True}), "best_microbatch", near
    ).holds
    assert judge(a_case({}, {"best_microbatch": 2}), "best_microbatch", near).holds
    assert judge(
        a_case({}, {"best_microbatch": 4}, tolerance={"exact": True}), "best_microbatch", near
    ).holds


def test_every_disagreement_about_a_layout_says_why_term_by_term() -> None:
    """Seconds that terms differ by add up to the difference of the steps, but for those too small to be told."""
    disagreed = 0
    for case in FILE.cases:
        if case.kind != "choice":
            continue
        found = score(case, evaluated(case.id))
        if found.status == "pass" or not isinstance(found.reason, str):
            continue
        disagreed += 1
        told = re.search(r": ([^:]*) \(([\d.]+) s against ([\d.]+) s\)", found.reason)
        assert told, f"{case.id}: {found.reason}"
        changes = [float(number) for number in re.findall(r"([+-][\d.e+-]+) s", told.group(1))]
        slower, faster = float(told.group(2)), float(told.group(3))
        assert sum(changes) == pytest.approx(faster - slower, abs=0.02 * slower), case.id
    assert disagreed


def test_every_given_case_is_evaluated_or_says_why_not() -> None:
    for case in random.Random(1).sample(FILE.cases, 60):
        found = score(case, evaluate_case(case, FILE))
        assert "not understood" not in (found.reason or ""), f"{case.id}: {found.reason}"
        assert found.predicted or found.reason
