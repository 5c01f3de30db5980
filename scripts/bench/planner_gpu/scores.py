"""Predicted against measured: errors of every plan, and what one constant would change."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from planner_truth.summary import spearman

# What is compared: name -> how it is called.
QUANTITIES = {
    "step_seconds": "step time",
    "peak_bytes": "peak memory",
    "compiled_peak_bytes": "peak memory by the compiler",
}
GOAL = 0.10
_LEAST = 2

Row = Mapping[str, Any]


def measured_of(result: Mapping[str, Any]) -> dict[str, float]:
    """From what a process says: what can be compared. A peak that was there before the first step is no step's peak."""
    found: dict[str, float] = {}
    if result.get("compiled_peak_bytes"):
        found["compiled_peak_bytes"] = result["compiled_peak_bytes"]
    if "steps" not in result:
        return found
    found["step_seconds"] = median(result["steps"])
    *before, after = result["peak_after"].values()
    if after is not None and after > max(before):
        found["peak_bytes"] = after
    return found


def errors_of(predicted: Mapping[str, Any], measured: Mapping[str, float]) -> dict[str, float]:
    """Relative to what was measured; positive is too much."""
    return {name: predicted[_predicted_as(name)] / value - 1 for name, value in measured.items()}


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """By quantity, of the plans given: those that have it."""
    return {name: found for name in QUANTITIES if (found := _summary(rows, name))}


def _summary(rows: Sequence[Row], name: str) -> dict[str, Any]:
    errors = {row["name"]: row["error"][name] for row in rows if name in row["error"]}
    if not errors:
        return {}
    worst = max(errors, key=lambda key: abs(errors[key]))
    pairs = [
        (row["measured"][name], row["predicted"][_predicted_as(name)])
        for row in rows
        if name in row["measured"]
    ]
    typical = median(map(abs, errors.values()))
    return {
        "count": len(errors),
        "median_error": typical,
        "worst_error": abs(errors[worst]),
        "worst_plan": worst,
        "within_goal": typical <= GOAL,
        "spearman": spearman(pairs),
        "median_measured_over_predicted": median(first / second for first, second in pairs),
    }


def suggestion(rows: Sequence[Row], products: float) -> dict[str, Any]:
    """The constant for products that the measured steps ask for, and what it does to plans it was not taken from.

    products: the constant that the predictions were made with. Fitted on every second plan, scored on the others, and
    the other way round.
    """
    timed = [row for row in rows if "step_seconds" in row["measured"]]
    if len(timed) < _LEAST:
        return {}
    ratio = median(
        row["measured"]["step_seconds"] / row["predicted"]["step_seconds"] for row in timed
    )
    halves = timed[::2], timed[1::2]
    crossed = [
        error
        for own, other in (halves, halves[::-1])
        for error in _errors_with(other, products, _fitted(own, products))
    ]
    return {
        "median_measured_over_predicted": ratio,
        "products_now": products,
        "products_fitted": _fitted(timed, products),
        "products_by_plan": {row["name"]: implied_products(row, products) for row in timed},
        "held_out": {"median_error": median(crossed), "worst_error": max(crossed)},
    }


def implied_products(row: Row, products: float) -> float | None:
    """The constant with which the prediction would be what was measured; None where none does."""
    predicted, seconds = row["predicted"], float(row["measured"]["step_seconds"])
    left = seconds - float(predicted["other_seconds"])
    if left <= 0:
        return None
    return products * float(predicted["step_seconds"] - predicted["other_seconds"]) / left


def seconds_with(row: Row, products: float, other: float) -> float:
    """Predicted seconds of a step with the constant `other` in place of `products`."""
    predicted = row["predicted"]
    fixed = float(predicted["other_seconds"])
    return fixed + (float(predicted["step_seconds"]) - fixed) * products / other


def _fitted(rows: Sequence[Row], products: float) -> float:
    found = [implied for row in rows if (implied := implied_products(row, products)) is not None]
    return median(found) if found else products


def _errors_with(rows: Sequence[Row], products: float, other: float) -> list[float]:
    return [
        abs(seconds_with(row, products, other) / row["measured"]["step_seconds"] - 1)
        for row in rows
    ]


def _predicted_as(name: str) -> str:
    return "peak_bytes" if name == "compiled_peak_bytes" else name
