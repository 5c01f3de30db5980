"""Results as Markdown."""

from collections.abc import Iterable, Mapping
from typing import Any

from planner_gpu.scores import GOAL, QUANTITIES

_GIB = 2**30
_COLUMNS = (
    "plan", "step s", "predicted", "error", "MFU", "peak GiB", "predicted", "error", "compiler's", "error", "MHz", "W",
    "note",
)  # fmt: skip


def markdown(results: Mapping[str, Any]) -> str:
    sections = [
        "# The planner against one GPU",
        _facts(results),
        *(_summary(name, found) for name, found in results["summary"].items()),
        _suggestion(results["suggestion"]),
        _table(_COLUMNS, map(_row, results["plans"])),
        _left_out(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _facts(results: Mapping[str, Any]) -> str:
    facts = {**results["machine"], "predicted for": results["cluster"], **results["versions"]}
    constants = ", ".join(
        f"{name} {value}" for name, value in results["constants"].items() if name != "source"
    )
    told = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    return f"{told}\n\nConstants of the predictions: {constants} ({results['constants']['source']})"


def _summary(group: str, found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    header = (group, "plans", "median error", "worst", "of", "Spearman", "measured / predicted")
    return _table(header, (_summary_row(name, found[name]) for name in found))


def _summary_row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    verdict = "within" if found["within_goal"] else "beyond"
    return (
        QUANTITIES[name],
        str(found["count"]),
        f"{found['median_error']:.1%} ({verdict} {GOAL:.0%})",
        f"{found['worst_error']:.1%}",
        found["worst_plan"],
        "" if found["spearman"] is None else f"{found['spearman']:.3f}",
        f"{found['median_measured_over_predicted']:.3f}",
    )


def _suggestion(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    held_out = found["held_out"]
    return (
        "Not in the errors above: in the median, steps take "
        f"{found['median_measured_over_predicted']:.3f} of the seconds predicted. A constant for products of "
        f"{found['products_fitted']:.3f} would explain them (now {found['products_now']:g}); fitted on one half and "
        f"scored on the other, the median error would be {held_out['median_error']:.1%}, the worst "
        f"{held_out['worst_error']:.1%}."
    )


def _row(plan: Mapping[str, Any]) -> tuple[str, ...]:
    predicted, measured, error = plan["predicted"], plan["measured"], plan["error"]
    seconds = measured.get("step_seconds")
    mfu = predicted["mfu"] * predicted["step_seconds"] / seconds if seconds else None
    return (
        plan["name"],
        _cell(seconds, ".4f"),
        f"{predicted['step_seconds']:.4f}",
        _cell(error.get("step_seconds"), "+.1%"),
        _cell(mfu, ".1%"),
        _gib(measured.get("peak_bytes")),
        _gib(predicted["peak_bytes"]),
        _cell(error.get("peak_bytes"), "+.1%"),
        _gib(measured.get("compiled_peak_bytes")),
        _cell(error.get("compiled_peak_bytes"), "+.1%"),
        _cell(plan["gpu"].get("sm_mhz"), ".0f"),
        _cell(plan["gpu"].get("watts"), ".0f"),
        _note(plan),
    )


def _note(plan: Mapping[str, Any]) -> str:
    if plan["status"] != "ok":
        return " ".join(f"**{plan['status']}** {plan.get('error_text', '')}".split()).replace(
            "|", "/"
        )
    return "fused attention" if plan["fused_attention"] else "attention not fused"


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value / _GIB:.2f}"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _left_out(results: Mapping[str, Any]) -> str:
    lines = [f"- not run: {name}" for name in results["skipped"]]
    return "\n".join([*lines, *(f"- **{problem}**" for problem in results["problems"])])


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
