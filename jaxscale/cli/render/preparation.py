"""A progress bar while text becomes tokens."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxscale.data.prepare import Progress as Prepared
from jaxscale.data.prepare import Report

_DOING = {"hash": "reading", "tokenize": "tokenizing", "write": "writing"}


@contextmanager
def preparation_bar() -> Iterator[Report]:
    """One bar a phase: files done, and the tokens so far."""
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bars:
        tasks = {
            phase: bars.add_task(doing, total=None, tokens=0) for phase, doing in _DOING.items()
        }

        def report(progress: Prepared) -> None:
            bars.update(
                tasks[progress.phase],
                completed=progress.done,
                total=progress.total,
                tokens=progress.count.tokens,
            )

        yield report
