"""`jaxscale status`: how a run is doing, while it goes on and afterwards."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jaxscale.telemetry.status import RunStatus


def status(
    run: Annotated[Path, typer.Argument(help="directory of the run")],
    as_json: Annotated[bool, typer.Option("--json", help="print data")] = False,
) -> None:
    """Say how a run is doing: step, loss, speed, checkpoint, goodput, and when it will end."""
    from jaxscale.telemetry.status import status_data

    now = time.time()
    found = look_at(run, now)
    if as_json:
        typer.echo(json.dumps(status_data(found, now), indent=2))
        return
    from rich.console import Console

    from jaxscale.cli.render.status import print_status

    print_status(Console(), found, now)


def look_at(directory: Path, now: float) -> "RunStatus":
    """Raises UserError where no run is."""
    from jaxscale.errors import UserError
    from jaxscale.telemetry.journal import EVENTS_FILE
    from jaxscale.telemetry.status import run_status

    marks = ("metrics.jsonl", "config.yaml", EVENTS_FILE)
    if directory.is_dir() and not any((directory / mark).is_file() for mark in marks):
        raise UserError(
            f"{directory} holds no run: a run's directory has {', '.join(marks)}; `jaxscale dashboard {directory}` "
            "shows the runs below a directory"
        )
    return run_status(directory, now=now)
