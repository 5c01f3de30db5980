"""`jaxscale plan --measured RUN`: what was predicted of a run beside what it did."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxscale.planner.measured.calibration_file import add_measurement, measure
from jaxscale.planner.measured.runs import Comparison, compare
from jaxscale.telemetry.format import bytes_text, compact, percent, seconds_text
from jaxscale.telemetry.report.predicted import Pair, pairs
from jaxscale.telemetry.report.run import load_run


def measured_data(found: Comparison) -> dict[str, Any]:
    """A comparison as plain data."""
    measured, record = found.measured, found.kept.record
    return {
        "run": str(found.run),
        "model": found.model,
        "cluster": found.kept.cluster.name,
        "plan": record["plan"],
        "predicted": {
            "step_seconds": found.predicted_seconds,
            "tokens_per_second": found.tokens_per_step / found.predicted_seconds,
            "peak_bytes": found.predicted_peak,
        },
        "measured": {
            "step_seconds": measured.step_seconds,
            "waiting_seconds": measured.waiting_seconds,
            "tokens_per_second": found.tokens_per_step / measured.step_seconds,
            "peak_bytes": measured.peak_bytes,
            "spread": measured.spread,
            "steps": measured.num_steps,
        },
        "ratio": found.ratio,
    }


def print_measured(
    run_dir: Path, calibration: Path | None = None, *, console: Console | None = None
) -> Comparison:
    """`plan --measured RUN`: predicted against achieved, and what it says of the chip, written where a file is named.

    Raises UserError for a run without a prediction or without steps behind its warm-up.
    """
    found, console = compare(run_dir), console or Console()
    record, measured = found.kept.record, found.measured
    console.print(
        f"{found.model} on {found.kept.cluster.name}: {record['plan']}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    console.print(_table(pairs(load_run(run_dir))))
    console.print(
        f"{measured.num_steps} steps in {measured.num_windows} windows, +- {percent(measured.spread)}; of a step "
        f"{seconds_text(measured.waiting_seconds)} waiting for data and checkpoints",
        highlight=False,
        soft_wrap=True,
    )
    for note in record["notes"]:
        console.print(str(note), highlight=False, soft_wrap=True, markup=False)
    _print_calibration(found, calibration, console)
    return found


def _print_calibration(found: Comparison, path: Path | None, console: Console) -> None:
    chip = found.kept.cluster.chip.name
    measurement = measure(found)
    before = found.kept.efficiency.products
    console.print(
        f"{chip}: products at {measurement.products:.3f} of peak explain this run; {before:.3f} was planned with",
        highlight=False,
        soft_wrap=True,
    )
    if path is None:
        return
    entry = add_measurement(path, chip, measurement).chips[chip]
    console.print(
        f"{path}: {chip} {entry.products:.3f} (median of {len(entry.runs)} runs); plan with --calibration {path}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


_FORMS: dict[str, Callable[[float], str]] = {
    "seconds": seconds_text, "compact": compact, "percent": percent, "bytes": bytes_text,
}  # fmt: skip


def _table(rows: list[Pair]) -> Table:
    table = Table("", "predicted", "measured", "measured / predicted")
    for row in rows:
        form = _FORMS[row.form]
        measured = "-" if row.measured is None else form(row.measured)
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.label, form(row.predicted), measured, ratio)
    return table
