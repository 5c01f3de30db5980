"""`jaxscale bench kernels`: every implementation of each product, beside XLA's and beside what the device can do."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Measure kernels on the attached devices.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    pass


@app.command("kernels")
def kernels(
    models: Annotated[
        list[Path], typer.Argument(help="YAML files of models, whose products are measured")
    ],
    op: Annotated[str, typer.Option(help="only this op: matmul, glu")] = "",
    rows: Annotated[int, typer.Option(min=1, help="tokens of a device in a pass")] = 8192,
    dtype: Annotated[str, typer.Option(help="of the operands")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Time each implementation that serves the device: ratio to XLA, share of the roofline, reasons of the others."""
    from jaxscale.cli.kernel_cases import cases_of
    from jaxscale.cli.render.kernels import Device, as_rows, print_rows
    from jaxscale.kernels.measure import Timing, measure
    from jaxscale.kernels.target import target_of

    cases = cases_of(models, op, rows, dtype)
    device, target = Device.here(dtype), target_of()
    found: list[dict[str, Any]] = []
    for case in cases:
        found += as_rows(list(measure(case, target, Timing())), device)
    typer.echo(json.dumps(found, indent=1)) if as_json else print_rows(found, device)
