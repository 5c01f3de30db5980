"""Pieces of the dashboard's pages."""

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from jaxscale.telemetry.format import bytes_text, compact, duration, loss_text, percent
from jaxscale.telemetry.goodput import SPLIT, Goodput
from jaxscale.telemetry.report.charts import Chart, Line, chart_data, render_chart
from jaxscale.telemetry.report.headline import Tile
from jaxscale.telemetry.report.page import embedded_json
from jaxscale.telemetry.report.run import RunData
from jaxscale.telemetry.report.series import bucket_means, envelope, smoothed
from jaxscale.telemetry.status import RunStatus

PALETTE = 6
_SMOOTH_FROM = 50
_CLASSES = {
    **dict.fromkeys(("finished", "running"), "good"),
    **dict.fromkeys(("starting", "preempted", "hung?", "unknown"), "warn"),
    **dict.fromkeys(("failed", "dead"), "bad"),
}
KIND_WORDS = {
    "useful": "useful steps",
    "startup": "start-up",
    "compile": "compiling",
    "data_wait": "data wait",
    "checkpoint": "checkpoints",
    "evaluation": "evaluation",
    "closing": "closing",
    "restart": "restarts",
    "lost": "steps made again",
}


def link(name: str) -> str:
    """Where a run's page is; a name that is no text (bytes of another encoding) keeps its bytes."""
    return f"/run?name={quote(name, safe='', errors='surrogateescape')}"


def text(words: str) -> str:
    """Words of unknown origin as HTML, of which nothing is markup."""
    return escape(words.encode(errors="replace").decode())


def pill(status: RunStatus) -> str:
    kind = _CLASSES[status.state]
    live = " live" if status.state == "running" else ""
    return (
        f"<span class='status {kind}{live}' title='{text(status.why)}'>{text(status.state)}</span>"
    )


def ago(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s ago" if seconds < 60 else f"{duration(seconds)} ago"


def value(status: RunStatus, key: str) -> str:
    forms = {"tokens_per_second": compact, "mfu": percent}
    found = status.latest.get(key)
    return "-" if found is None else forms.get(key, loss_text)(found)


def progress(status: RunStatus) -> str:
    """Steps made, as a bar where it is known of how many."""
    if not status.planned_steps:
        return f"<span class='steps'>{status.step:,}</span>"
    share = min(1.0, status.step / status.planned_steps)
    return (
        f"<span class='steps'>{status.step:,}<small> / {status.planned_steps:,}</small></span>"
        f"<span class='bar'><i style='width:{100 * share:.2f}%'></i></span>"
    )


def goodput_bar(found: Goodput) -> str:
    """All the time as one bar; words for those who do not see it."""
    parts = [(kind, found.seconds[kind] / found.wall_seconds) for kind in SPLIT]
    shown = [(kind, share) for kind, share in parts if share > 0.001]
    words = ", ".join(f"{KIND_WORDS[kind]} {percent(share)}" for kind, share in shown)
    bars = "".join(
        f"<i class='k-{kind}' style='flex-grow:{1000 * share:.0f}' title='{KIND_WORDS[kind]} {percent(share)}'></i>"
        for kind, share in shown
    )
    return f"<span class='split' role='img' aria-label='{words}'>{bars}</span>"


def goodput_panel(found: Goodput) -> str:
    """The bar with its legend: what took how much of the time."""
    rows = "".join(
        f"<li class='k-{kind}'><i></i>{KIND_WORDS[kind]} <output>{percent(found.seconds[kind] / found.wall_seconds)}"
        f"</output> <small>{duration(found.seconds[kind])}</small></li>"
        for kind in SPLIT
        if found.seconds[kind] > 0
    )
    note = f"of {duration(found.wall_seconds)}"
    if found.num_processes > 1:
        note += f", {found.num_processes} processes"
    if found.lost_steps:
        note += f", {found.lost_steps:,} steps made again"
    return (
        f"<section class='panel' aria-labelledby='goodput'><h3 id='goodput'>Goodput {percent(found.ratio)} "
        f"<small>{note}</small></h3>{goodput_bar(found)}<ul class='legend'>{rows}</ul></section>"
    )


def tiles_of(status: RunStatus, now: float) -> list[Tile]:
    """What somebody wants to know of a run that goes on."""
    latest = status.latest
    known = (
        ("Training loss", "loss", loss_text),
        ("Evaluation loss", "eval_loss", loss_text),
        ("Tokens per second", "tokens_per_second", compact),
        ("MFU", "mfu", percent),
        ("Device memory", "device_memory_bytes", bytes_text),
    )
    tiles = [Tile("Step", f"{status.step:,}", _of_planned(status))]
    tiles += [Tile(label, form(latest[key])) for label, key, form in known if key in latest]
    if status.saved is not None:
        tiles.append(
            Tile("Checkpoint", f"{status.saved.step:,}", ago(max(0.0, now - status.saved.time)))
        )
    elif status.unseen:
        tiles.append(Tile("Checkpoint", "unreachable", status.unseen))
    if status.seconds_left is not None:
        tiles.append(Tile("Time left", duration(status.seconds_left), "at this pace"))
    found = status.goodput
    if found is not None and found.first_step_seconds is not None:
        tiles.append(Tile("First step", duration(found.first_step_seconds), "after the start"))
    return tiles


def _of_planned(status: RunStatus) -> str:
    if not status.planned_steps:
        return ""
    return f"of {status.planned_steps:,}, {percent(status.step / status.planned_steps)}"


def curves(charts: Sequence[Chart]) -> str:
    """Charts, and what reading values off them needs."""
    drawn = [chart for chart in charts if any(line.points for line in chart.lines)]
    if not drawn:
        return ""
    figures = "".join(render_chart(chart, i) for i, chart in enumerate(drawn))
    data = embedded_json([chart_data(chart) for chart in drawn])
    return (
        f"<section class='charts' aria-label='Curves'>{figures}</section>"
        f"<script type='application/json' id='chart-data'>{data}</script>"
    )


def comparison(runs: Sequence[tuple[str, RunData]]) -> list[Chart]:
    """The same curve of several runs in one chart."""
    return [
        Chart(
            "Training loss", _lines(runs, "loss"), "loss", note="by step", wide=True, log_above=2.5
        ),
        Chart("Evaluation loss", _lines(runs, "eval_loss"), "loss", log_above=2.5),
        Chart("Tokens per second", _lines(runs, "tokens_per_second"), "compact", from_zero=True),
        Chart("Model FLOPs utilization", _lines(runs, "mfu"), "percent", from_zero=True),
        Chart("Gradient norm", _lines(runs, "grad_norm"), "compact", log_above=10),
    ]


def _lines(runs: Sequence[tuple[str, RunData]], key: str) -> list[Line]:
    lines = []
    for number, (name, run) in enumerate(runs):
        points = run.points(key)
        calm = key in {"loss", "grad_norm"} and len(points) >= _SMOOTH_FROM
        shown = bucket_means(smoothed(points)) if calm else envelope(points)
        if shown:
            lines.append(Line(name.encode(errors="replace").decode(), shown, number + 1))
    return lines
