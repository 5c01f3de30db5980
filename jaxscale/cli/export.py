"""`jaxscale export`: a trained model in the formats that others read."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from jaxscale.cli.amounts import parse_option

if TYPE_CHECKING:
    from jaxscale.interop.export_job import Exported


class Format(StrEnum):
    """What `--to` takes."""

    hf = "hf"
    stablehlo = "stablehlo"


class Weights(StrEnum):
    """What `--weights` takes."""

    params = "params"
    average = "average"


def export(
    source: Annotated[
        str, typer.Argument(help="run directory, or one checkpoint of it; local, gs://, s3://")
    ],
    out: Annotated[str, typer.Argument(help="directory to make; local, gs://, s3://")],
    to: Annotated[
        Format, typer.Option(help="hf: Hugging Face; stablehlo: programs that only need jax")
    ],
    step: Annotated[int | None, typer.Option(help="checkpoint (default: the newest)")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16 or fp32 (default: as stored)")
    ] = None,
    weights: Annotated[
        Weights | None, typer.Option(help="default: the average where it was kept, else params")
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(min=1, help="stablehlo: tokens of a row in the forward pass (default: any)"),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="most bytes of a file")] = "5GB",
    process: Annotated[
        int, typer.Option(min=0, help="this process, where several share the work")
    ] = 0,
    num_processes: Annotated[
        int, typer.Option(min=1, help="processes that share the work and the target")
    ] = 1,
    allow_overflow: Annotated[
        bool, typer.Option("--allow-overflow", help="let what is too large become infinite")
    ] = False,
    skip_verify: Annotated[
        bool, typer.Option("--skip-verify", help="do not check the checkpoint's checksums first")
    ] = False,
) -> None:
    """Write a model for others to use. Run the same command again to go on where it stopped."""
    from jaxscale.checkpoint.casting import float_dtype
    from jaxscale.cli.render.checkpoint import bytes_progress
    from jaxscale.interop.export_job import ExportOptions

    chosen = None if dtype is None else float_dtype(dtype)
    part = None if weights is None else weights.value
    with bytes_progress(f"writing {out}", None) as report:
        options = ExportOptions(
            max_shard_bytes=parse_option(max_shard_size, "--max-shard-size"),
            process=process,
            num_processes=num_processes,
            overflow="allow" if allow_overflow else "refuse",
            integrity="skip" if skip_verify else "verify",
            report=report,
        )
        if to is Format.hf:
            from jaxscale.interop.export_hf import export_hf

            made = export_hf(source, out, step=step, dtype=chosen, part=part, options=options)
        else:
            from jaxscale.interop.stablehlo import export_stablehlo

            made = export_stablehlo(
                source,
                out,
                step=step,
                dtype=chosen,
                part=part,
                sequence_length=sequence_length,
                options=options,
            )
    _say(made, num_processes)


def _say(made: "Exported", num_processes: int) -> None:
    from jaxscale.telemetry.format import bytes_text

    files = "1 file" if len(made.files) == 1 else f"{len(made.files)} files"
    if made.complete:
        typer.echo(f"{made.out}: {bytes_text(made.num_bytes)} in {files}, every tensor read back")
    else:
        typer.echo(f"{made.out}: this part of {num_processes} is written; others are not yet")
