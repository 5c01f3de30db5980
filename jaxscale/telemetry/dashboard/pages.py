"""The dashboard's two pages: all runs side by side, and one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template

from jaxscale.telemetry.dashboard import parts
from jaxscale.telemetry.dashboard.parts import text
from jaxscale.telemetry.report.curves import charts_of
from jaxscale.telemetry.report.page import details_of, render_tiles
from jaxscale.telemetry.report.run import RunData
from jaxscale.telemetry.status import RunStatus


@dataclass(frozen=True)
class Row:
    """A run of the list. data: its curves, where it is one of those that are compared."""

    name: str
    status: RunStatus
    data: RunData | None = None


def index_page(rows: Sequence[Row], place: str) -> str:
    """Every run in a row, and the curves of the chosen ones in shared charts."""
    chosen = [row for row in rows if row.data is not None]
    numbers = {row.name: number for number, row in enumerate(chosen, start=1)}
    body = (
        f"<header><p class='kind'>{text(place)}</p><h1>Runs</h1>"
        f"<p class='status good live'>{_count(rows)}</p></header>"
    )
    if not rows:
        body += (
            "<p class='panel empty'>No runs here yet. A run appears as soon as it starts: "
            "<code>jaxscale train CONFIG</code> writes to <code>runs/NAME</code>.</p>"
        )
        return _page("Runs", body)
    listed = "".join(_row(row, numbers.get(row.name)) for row in rows)
    body += (
        "<form method='get' action='/' class='runs' role='table' aria-label='Runs'>"
        f"{_HEAD}{listed}<noscript><button>Compare</button></noscript></form>"
    )
    compared = [(row.name, row.data) for row in chosen if row.data is not None]
    return _page("Runs", body + parts.curves(parts.comparison(compared)))


def run_page(row: Row, now: float) -> str:
    """One run: how it is doing, its curves, and what it was given."""
    assert row.data is not None
    status = row.status
    goodput = "" if status.goodput is None else parts.goodput_panel(status.goodput)
    body = (
        f"<header><p class='kind'><a href='/'>Runs</a></p><h1>{text(row.name)}</h1>{parts.pill(status)}"
        f"<p class='why'>{text(status.why)}; last sign {parts.ago(status.age)}</p></header>"
        f"<dl class='tiles'>{render_tiles(parts.tiles_of(status, now))}</dl>{goodput}"
        f"{parts.curves(charts_of(row.data))}{details_of(row.data)}"
    )
    return _page(row.name, body)


def message_page(title: str, words: str) -> str:
    """A page that says one thing."""
    body = f"<header><p class='kind'><a href='/'>Runs</a></p><h1>{text(title)}</h1></header>"
    return _page(title, f"{body}<p class='panel empty'>{text(words)}</p>")


def asset(name: str) -> str:
    """A style sheet or script of ours; the report's are the dashboard's too."""
    folder = "report" if name.startswith("report.") else "dashboard"
    return (resources.files(f"jaxscale.telemetry.{folder}") / name).read_text(encoding="utf-8")


def _page(title: str, body: str) -> str:
    return Template(asset("page.html")).substitute(title=text(title), body=body)


def _count(rows: Sequence[Row]) -> str:
    going = sum(row.status.is_going for row in rows)
    return (
        f"{len(rows):,} runs, {going:,} going on" if len(rows) != 1 else f"1 run, {going} going on"
    )


_HEAD = (
    "<div class='row head' role='row'>"
    + "".join(
        f"<span role='columnheader' class='{kind}'>{label}</span>"
        for kind, label in (
            *(("name", "Run"), ("state", "State"), ("step", "Step"), ("number", "Loss")),
            *(("number", "Evaluation"), ("number", "Tokens/s"), ("number", "MFU")),
            *(("goodput", "Goodput"), ("age", "Last sign")),
        )
    )
    + "</div>"
)


def _row(row: Row, number: int | None) -> str:
    status, name = row.status, text(row.name)
    color = f" c{number}" if number else ""
    checked = " checked" if number else ""
    found = status.goodput
    goodput = f"<b>{found.ratio:.0%}</b>{parts.goodput_bar(found)}" if found else "-"
    numbers = "".join(
        f"<span role='cell' class='number' data-label='{label}'>{parts.value(status, key)}</span>"
        for label, key in (
            *(("Loss", "loss"), ("Evaluation", "eval_loss")),
            *(("Tokens/s", "tokens_per_second"), ("MFU", "mfu")),
        )
    )
    return (
        f"<div class='row{color}' role='row'><span role='cell' class='name'>"
        f"<input type='checkbox' name='run' value='{name}' aria-label='compare {name}'{checked}>"
        f"<span><a href='{parts.link(row.name)}'>{name}</a><small>{text(status.plan)}</small></span></span>"
        f"<span role='cell' class='state'>{parts.pill(status)}</span>"
        f"<span role='cell' class='step'>{parts.progress(status)}</span>{numbers}"
        f"<span role='cell' class='goodput' data-label='Goodput'>{goodput}</span>"
        f"<span role='cell' class='age'>{parts.ago(status.age)}</span></div>"
    )
