"""Progress while text becomes tokens: on standard error, as standard output is for results."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from jaxscale.data.prepare import Progress, Report
from jaxscale.training.preparation import show_preparation

_DOING = {"hash": "reading", "tokenize": "tokenizing", "write": "writing"}


@contextmanager
def preparation_report() -> Iterator[Report]:
    """A bar a phase, gone when all is done; where nobody watches, a line a phase."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield show_preparation(lambda text: typer.echo(text, err=True))
        return
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files{task.fields[tokens]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        yield _bar_report(bars)


def _bar_report(bars: Bars) -> Report:
    tasks: dict[str, TaskID] = {}

    def report(progress: Progress) -> None:
        if progress.phase not in tasks:
            tasks[progress.phase] = bars.add_task(_DOING[progress.phase], tokens="")
        bars.update(
            tasks[progress.phase],
            completed=progress.done,
            total=progress.total,
            tokens="" if progress.phase == "hash" else f", {progress.count.tokens:,} tokens",
        )

    return report
