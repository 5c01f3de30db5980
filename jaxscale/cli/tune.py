"""`jaxscale tune`: measures the kernels' configurations and writes the tables that `auto` reads."""

from pathlib import Path
from typing import Annotated

import typer

from jaxscale.errors import UserError


def tune(
    models: Annotated[
        list[Path], typer.Argument(help="YAML files of models, whose products are measured")
    ],
    op: Annotated[str, typer.Option(help="only this op: matmul, glu")] = "",
    rows: Annotated[int, typer.Option(min=1, help="tokens of a device in a pass")] = 8192,
    dtype: Annotated[str, typer.Option(help="of the operands")] = "bfloat16",
    into: Annotated[
        Path | None,
        typer.Option(help="folder for the tables, one in it an op (default: the package's own)"),
    ] = None,
) -> None:
    """Try each Pallas kernel's configurations beside XLA and keep the fastest. Nothing else ever tunes."""
    from jaxscale.cli.kernel_cases import TABLES, cases_of
    from jaxscale.kernels.measure import Timing
    from jaxscale.kernels.measure import tune as fastest
    from jaxscale.kernels.target import target_of
    from jaxscale.kernels.tuning import SMALLEST_WIN, write

    target = target_of()
    if target.platform == "cpu":
        raise UserError(
            "there is nothing to tune on a CPU: Pallas kernels here are for TPU and GPU. Run this on the device that "
            "will train; `jaxscale bench kernels` measures XLA's products anywhere"
        )
    for case in cases_of(models, op, rows, dtype):
        entries = fastest(case, target, Timing())
        folder = TABLES[case.op] if into is None else into / case.op
        write(folder, entries)
        for entry in entries:
            verdict = "taken by auto" if entry.win >= SMALLEST_WIN else "left to XLA"
            ratio = entry.baseline_seconds / entry.seconds
            typer.echo(
                f"{case.name}: {entry.implementation} {ratio:.3f}x of XLA's speed, {verdict}"
            )
