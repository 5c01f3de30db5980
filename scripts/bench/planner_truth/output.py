"""Scores as JSON, or as text."""

from collections.abc import Mapping, Sequence

from planner_truth.scoring import Score
from planner_truth.summary import as_rows, summarize


def document(scores: Sequence[Score]) -> dict[str, object]:
    return {"cases": [_entry(score) for score in scores], "summary": summarize(scores)}


def _entry(score: Score) -> dict[str, object]:
    return {
        "id": score.case.id,
        "kind": score.case.kind,
        "status": score.status,
        "predicted": dict(score.predicted),
        "expected": dict(score.case.expected),
        "rel_error": score.rel_error,
        "reason": score.reason,
    }


def text(scores: Sequence[Score]) -> str:
    lines = [_line(score) for score in scores if score.status != "pass"]
    summary = summarize(scores)
    for part in ("by_kind", "by_prefix"):
        block = summary[part]
        assert isinstance(block, Mapping)
        lines += ["", _header(part), *(_row(name, found) for name, found in as_rows(block))]
    whole = summary["all"]
    assert isinstance(whole, Mapping)
    return "\n".join([*lines, _row("all", whole)])


def _line(score: Score) -> str:
    error = "" if score.rel_error is None else f" {score.rel_error:.1%}"
    return f"{score.status:11} {score.case.id}{error}: {score.reason}"


def _header(part: str) -> str:
    return (
        f"{part.replace('_', ' '):12} {'cases':>5} {'pass':>5} {'median':>7} {'p90':>7} {'worst':>7} {'Spearman':>8}"
        "  feasible: accepted, refused; out of memory: accepted, refused"
    )


def _row(name: str, found: Mapping[str, object]) -> str:
    counts = found["feasibility"]
    assert isinstance(counts, Mapping)
    errors = "".join(_percent(found[f"{name}_rel_error"]) for name in ("median", "p90", "worst"))
    order = found["median_spearman"]
    ranked = f"{order:9.2f}" if isinstance(order, float) else " " * 9
    fits = ", ".join(str(count) for count in counts.values())
    return f"{name:12} {found['count']:>5} {found['pass']:>5}{errors}{ranked}  {fits}"


def _percent(value: object) -> str:
    return f"{value:8.1%}" if isinstance(value, float) else " " * 8
