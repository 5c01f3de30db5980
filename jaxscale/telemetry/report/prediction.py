"""The report's section on what the planner predicted, beside what the run measured."""

from collections.abc import Sequence
from html import escape

from jaxscale.telemetry.format import bytes_text
from jaxscale.telemetry.report.charts import FORMATS
from jaxscale.telemetry.report.predicted import Pair, pairs, parts
from jaxscale.telemetry.report.run import RunData

_FORMATS = {**FORMATS, "bytes": bytes_text}


def prediction_section(run: RunData) -> str:
    """A table of both, and the predicted components folded; nothing where the run has no prediction."""
    rows = pairs(run)
    if not rows:
        return ""
    return _beside(rows) + _note(run) + _components(run)


def _beside(rows: Sequence[Pair]) -> str:
    head = "".join(
        f"<th scope='col'>{label}</th>"
        for label in ("", "Predicted", "Measured", "Measured / predicted")
    )
    body = "".join(_row(row) for row in rows)
    return (
        f"<details open><summary>Predicted beside measured</summary><div class='scroll'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _row(row: Pair) -> str:
    form = _FORMATS[row.form]
    measured = "-" if row.measured is None else form(row.measured)
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    cells = "".join(f"<td>{escape(text)}</td>" for text in (form(row.predicted), measured, ratio))
    return f"<tr><th scope='row'>{escape(row.label)}</th>{cells}</tr>"


def _note(run: RunData) -> str:
    """What was laid out on what, and what the numbers cannot say."""
    prediction = run.prediction
    said = [str(prediction[key]) for key in ("plan", "cluster") if prediction.get(key)]
    sentences = [" on ".join(said), *(str(note) for note in _list(prediction.get("notes")))]
    text = ". ".join(sentence for sentence in sentences if sentence)
    return f"<p class='note'>{escape(text)}.</p>" if text else ""


def _components(run: RunData) -> str:
    """No profile is read here, so components have no measured side."""
    time, memory = parts(run.prediction, "time_seconds"), parts(run.prediction, "memory_bytes")
    tables = [
        _table(
            "Predicted time of a step, by component (no profile is read: not measured)",
            time,
            "seconds",
        ),
        _table("Predicted memory of a device, by component (not measured)", memory, "bytes"),
    ]
    return "".join(tables)


def _table(title: str, found: Sequence[tuple[str, float]], form: str) -> str:
    if not found:
        return ""
    whole = sum(value for _, value in found)
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(_FORMATS[form](value))}</td>"
        f"<td>{100 * value / whole:.1f}%</td></tr>"
        for name, value in found
    )
    return (
        f"<details><summary>{title}</summary><div class='scroll'><table><tbody>{rows}</tbody>"
        "</table></div></details>"
    )


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
