"""A run's status on a terminal."""

import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxscale.telemetry.format import compact, duration, loss_text, percent, seconds_text
from jaxscale.telemetry.goodput import SPLIT, USEFUL, Goodput
from jaxscale.telemetry.status import RunStatus

_STYLES = {"running": "green", "finished": "green", "starting": "cyan", "preempted": "yellow"}
_WORDS = {"data_wait": "data wait", "lost": "lost steps", "restart": "restarts"}
_COLORS = {
    USEFUL: "green",
    "startup": "blue",
    "compile": "cyan",
    "data_wait": "yellow",
    "checkpoint": "magenta",
    "evaluation": "bright_blue",
    "restart": "bright_red",
    "lost": "red",
}
_BAR_WIDTH = 48


def print_status(console: Console, status: RunStatus, now: float) -> None:
    """A line of what it is, a grid of what is known, and where the time went."""
    style = _STYLES.get(status.state, "red")
    console.print(
        Text.assemble(
            (status.name, "bold"), "  ", (status.state, f"bold {style}"), f"  {status.why}"
        ),
        soft_wrap=True,
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, value in facts(status, now):
        grid.add_row(name, Text(value))
    console.print(grid)
    if status.goodput is not None:
        _print_goodput(console, status.goodput)


def facts(status: RunStatus, now: float) -> list[tuple[str, str]]:
    """What is known, in the order in which somebody asks."""
    latest, found = status.latest, status.goodput
    rows = [("step", _step_text(status))]
    shown = (
        ("loss", "loss", loss_text),
        ("evaluation", "eval_loss", loss_text),
        ("tokens/s", "tokens_per_second", compact),
        ("MFU", "mfu", percent),
        ("step time", "step_seconds", seconds_text),
    )
    rows += [(name, form(latest[key])) for name, key, form in shown if key in latest]
    if status.age is not None:
        rows.append(("last sign", f"{duration(status.age)} ago"))
    rows.append(("checkpoint", _checkpoint_text(status, now)))
    if status.plan:
        rows.append(("plan", status.plan))
    if found is not None and found.first_step_seconds is not None:
        rows.append(
            ("first step", f"{duration(found.first_step_seconds)} after the process started")
        )
    if status.seconds_left is not None:
        rows.append(("ends", _end_text(status.seconds_left, now)))
    if status.stacks is not None:
        rows.append(("stacks", str(status.stacks)))
    return rows


def split_words(found: Goodput) -> list[tuple[str, str, float]]:
    """(name, words, seconds) of every kind that took time, useful steps first."""
    return [
        (kind, _WORDS.get(kind, kind), found.seconds[kind])
        for kind in SPLIT
        if found.seconds[kind] > 0
    ]


def _step_text(status: RunStatus) -> str:
    if not status.planned_steps:
        return f"{status.step:,}"
    share = percent(status.step / status.planned_steps)
    return f"{status.step:,} of {status.planned_steps:,} ({share})"


def _checkpoint_text(status: RunStatus, now: float) -> str:
    if status.saved is None:
        return f"not to be seen from here: {status.unseen}" if status.unseen else "none yet"
    age = duration(now - status.saved.time)
    behind = status.step - status.saved.step
    return f"step {status.saved.step:,}, {age} ago" + (
        f", {behind:,} steps behind" if behind > 0 else ""
    )


def _end_text(seconds: float, now: float) -> str:
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(now + seconds))
    return f"in {duration(seconds)}, {end}"


def _print_goodput(console: Console, found: Goodput) -> None:
    again = f", {found.lost_steps:,} steps made again" if found.lost_steps else ""
    processes = f", {found.num_processes} processes" if found.num_processes > 1 else ""
    console.print(
        Text.assemble(
            ("goodput ", "dim"),
            (percent(found.ratio), "bold"),
            f" of {duration(found.wall_seconds)}{processes}{again}",
        )
    )
    parts = split_words(found)
    bar, legend = Text(), Text()
    for kind, words, seconds in parts:
        share = seconds / found.wall_seconds
        bar.append("█" * round(share * _BAR_WIDTH), _COLORS.get(kind, "white"))
        legend.append("■\u00a0", _COLORS.get(kind, "white"))
        legend.append(f"{words} {percent(share)}".replace(" ", "\u00a0") + "  ")
    console.print(bar)
    console.print(legend)
