"""The scorer of published results: what it prints, how it counts, and that it looks up nothing."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planner_truth.cases import Case, CaseFile
from planner_truth.evaluate import evaluate_case
from planner_truth.scoring import score
from planner_truth.summary import confusion, rank_correlations, spearman
from planner_truth.symbols import Symbolic
from published import FILE, a_case

ROOT = Path(__file__).parents[2]


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
    """Other published numbers, other ids, the same predictions. A published layout stays: it is laid out."""
    sample = random.Random(0).sample(FILE.cases, 60)
    for case in sample:
        changed = replace(case, id=f"{case.prefix}-{case.kind}", expected=_scaled(case))
        before, after = evaluate_case(case, FILE), evaluate_case(changed, FILE)
        assert _numbers(before) == _numbers(after), case.id


def _scaled(case: Case) -> dict[str, Any]:
    layout = {"mesh", "remat", "per_chip_batch_seqs", "fits"}
    return {
        name: value * 1.37 if isinstance(value, float | int) and name not in layout else value
        for name, value in case.expected.items()
    }


def _numbers(evaluation: Any) -> dict[str, object]:
    return {
        name: value
        for name, value in evaluation.predicted.items()
        if not isinstance(value, Symbolic)
    }


def test_every_given_case_is_evaluated_or_says_why_not() -> None:
    for case in random.Random(1).sample(FILE.cases, 60):
        found = score(case, evaluate_case(case, FILE))
        assert "not understood" not in (found.reason or ""), f"{case.id}: {found.reason}"
        assert found.predicted or found.reason
