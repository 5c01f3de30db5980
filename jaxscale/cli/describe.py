"""`jaxscale describe`: a model's parameters, FLOPs and bytes, without creating an array."""

import json
from pathlib import Path
from typing import Annotated

import typer


def describe(
    config: Annotated[Path, typer.Argument(help="YAML file of a run or of a model")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(min=1, help="tokens, for the FLOPs (default: the run's, or max_positions)"),
    ] = None,
    kernels_on: Annotated[
        str | None,
        typer.Option(
            help="instead: the kernels that a run's step takes on a cluster (h200:8, v5p:4x4x4)"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Print the parameter tree with its logical axes, counts, bytes, and FLOPs per token with the formula."""
    if kernels_on is not None:
        from jaxscale.cli.kernel_table import show_kernels

        show_kernels(config, overrides or [], kernels_on, as_json)
        return
    from jaxscale.config.loading import load_model

    section, length = load_model(config, overrides or [])

    from jaxscale.cli.render.description import as_data, as_table
    from jaxscale.models.summary import summarize

    summary = summarize(section, sequence_length or length)
    typer.echo(json.dumps(as_data(summary), indent=2)) if as_json else as_table(summary)
