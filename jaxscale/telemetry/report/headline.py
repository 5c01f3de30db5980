"""The numbers a reader wants first, and whether the run got where it was going."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from jaxscale.telemetry.format import compact, count, duration, loss_text, percent
from jaxscale.telemetry.mfu import MFU_CONVENTION
from jaxscale.telemetry.report.run import RunData


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    note: str = ""


def tiles(run: RunData) -> list[Tile]:
    """The headline, without what the run did not record.

    `parameters` and `wall_seconds` come from the summary; without one, the time is what the logged
    steps took.
    """
    found = [
        *_final_losses(run),
        _bits_per_byte(run),
        _typical(run, "tokens_per_second", "Tokens per second", compact),
        _typical(run, "mfu", "MFU", percent),
        _wall_time(run),
        _total(run, "tokens", "Tokens"),
        _parameters(run),
    ]
    return [tile for tile in found if tile is not None]


def convention(run: RunData) -> str:
    """What MFU means here: the run's own sentence if it kept one; nothing if it has no MFU."""
    if not run.points("mfu"):
        return ""
    return str(run.summary.get("mfu_convention", MFU_CONVENTION))


def status(run: RunData) -> tuple[str, str]:
    """A CSS class (good, warn, bad) and a sentence about how the run ended."""
    diverged = run.nonfinite_steps("loss")
    if diverged:
        return "bad", f"Loss not finite at step {diverged[0]:,} ({len(diverged):,} logged steps)"
    if not run.records:
        return "warn", "Nothing was logged"
    if "status" in run.summary:
        finished = run.summary["status"] in {"finished", "done", "completed"}
        return "good" if finished else "warn", f"{run.summary['status']} at step {run.last_step:,}"
    if run.planned_steps and run.last_step < run.planned_steps:
        return "warn", f"Step {run.last_step:,} of {run.planned_steps:,}"
    return "good", f"{run.last_step:,} steps"


def _final_losses(run: RunData) -> list[Tile]:
    found = []
    for key, label in (("loss", "Training loss"), ("eval_loss", "Evaluation loss")):
        points = run.points(key)
        if points:
            best_step, best = min(points, key=lambda point: point[1])
            note = (
                f"lowest {loss_text(best)} at {best_step:,}" if best_step != points[-1][0] else ""
            )
            found.append(Tile(label, loss_text(points[-1][1]), note or "its lowest"))
    return found


def _bits_per_byte(run: RunData) -> Tile | None:
    points = run.points("eval_bits_per_byte")
    return Tile("Bits per byte", f"{points[-1][1]:.4f}", "evaluation") if points else None


def _typical(run: RunData, key: str, label: str, form: Callable[[float], str]) -> Tile | None:
    """The median, which compilation and checkpoints do not sway."""
    values = [value for _, value in run.points(key)]
    if not values:
        return None
    return Tile(label, form(statistics.median(values)), f"median; highest {form(max(values))}")


def _wall_time(run: RunData) -> Tile | None:
    if isinstance(run.summary.get("wall_seconds"), int | float):
        return Tile("Wall time", duration(run.summary["wall_seconds"]))
    seconds, before = 0.0, 0
    for step, per_step in run.points("step_seconds"):
        seconds += (step - before) * per_step
        before = step
    return Tile("Wall time", duration(seconds), "in training steps") if seconds else None


def _total(run: RunData, key: str, label: str) -> Tile | None:
    points = run.points(key)
    return Tile(label, count(points[-1][1]), "seen in training") if points else None


def _parameters(run: RunData) -> Tile | None:
    parameters = run.summary.get("parameters")
    if not isinstance(parameters, int | float):
        return None
    return Tile("Parameters", count(parameters), f"{parameters:,.0f}" if parameters >= 1e6 else "")
