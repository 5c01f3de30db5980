"""`jaxscale bench kernels`: every implementation of each call, beside the baseline and what the device can do."""

import json
from typing import Annotated, Any

import typer

from jaxscale.cli import kernel_options

app = typer.Typer(help="Measure kernels on the attached devices.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    pass


@app.command("kernels")
def kernels(
    models: kernel_options.Models,
    op: kernel_options.OpName = "",
    rows: kernel_options.Rows = 8192,
    sequence: kernel_options.Sequence = None,
    dtype: kernel_options.Dtype = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Time each implementation that serves the device: speed over what runs untuned, and shares of the roofline.

    The roofline is that of the data sheet, and one measured before: a large product, a pass over a large array.
    """
    from jaxscale.cli.kernel_cases import Pass, cases_of_files
    from jaxscale.cli.render.kernels import Device, as_rows, print_rows
    from jaxscale.kernels.measure import Timing, measure
    from jaxscale.kernels.target import target_of

    cases = cases_of_files(models, op, Pass(rows, dtype, sequence))
    device, target = Device.here(dtype), target_of()
    found: list[dict[str, Any]] = []
    for case in cases:
        measured = list(measure(case, target, Timing()))
        found += as_rows(measured, device, case.baseline(target))
    typer.echo(json.dumps(found, indent=1)) if as_json else print_rows(found, device)
