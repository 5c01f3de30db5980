"""The file of published results, and cases of one's own."""

from pathlib import Path
from typing import Any

from planner_truth.cases import Case, load_cases

FILE = load_cases(Path(__file__).parents[1] / "data/planner_truth/cases.json")


def a_case(given: dict[str, Any], expected: dict[str, Any] | None = None, **more: Any) -> Case:
    fields = {"id": "new-1", "kind": "throughput", "tolerance": {"rel": 0.05}, **more}
    return Case(given=given, expected=expected or {}, **fields)
