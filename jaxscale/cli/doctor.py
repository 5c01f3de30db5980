"""`jaxscale doctor`: what works here, what does not, and the fix."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jaxscale.telemetry.doctor.finding import Finding

_NOT_WORKING = 2
_SIGNS = {"good": ("ok", "green"), "warn": ("!", "yellow"), "bad": ("x", "bold red")}


def doctor(
    storage: Annotated[Path, typer.Option(help="directory of the runs, on shared storage")] = Path(
        "runs"
    ),
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="port by which processes find each other")
    ] = 8476,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, to be reached from here")
    ] = None,
    links: Annotated[
        bool, typer.Option("--links", help="measure the links between devices")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print data")] = False,
) -> None:
    """Look over this machine: versions, devices, links, storage, network, clock. Exit 2 if something will not work."""
    from jaxscale.telemetry.doctor.checks import CHECKS, LINKS, run_checks
    from jaxscale.telemetry.doctor.finding import Options

    options = Options(str(storage), port, coordinator)
    findings = run_checks((*CHECKS, LINKS) if links else CHECKS, options)
    bad = any(finding.state == "bad" for finding in findings)
    if as_json:
        typer.echo(
            json.dumps({"works": not bad, "findings": [asdict(f) for f in findings]}, indent=2)
        )
    else:
        _print(findings)
    if bad:
        raise typer.Exit(_NOT_WORKING)


def _print(findings: "list[Finding]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for style in ("", "dim", ""):
        grid.add_column(style=style)
    before = ""
    for finding in findings:
        sign, color = _SIGNS[finding.state]
        words = Text(finding.words)
        if finding.fix:
            words.append(f"\n-> {finding.fix}", style=color)
        grid.add_row(
            Text(sign, style=color), finding.check if finding.check != before else "", words
        )
        before = finding.check
    counts = {state: sum(f.state == state for f in findings) for state in _SIGNS}
    Console().print(grid)
    Console().print(
        f"{counts['good']} good, {counts['warn']} to look at, {counts['bad']} that will not work",
        highlight=False,
    )
