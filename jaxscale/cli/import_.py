"""`jaxscale import`: models of others as run directories."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jaxscale.interop.open_model import OpenModel

app = typer.Typer(help="Import models of other programs.", no_args_is_help=True)

OUT = Annotated[str, typer.Argument(help="run directory to make; local, gs://, s3://")]
AS_JSON = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def hf(
    directory: Annotated[
        str, typer.Argument(help="Hugging Face directory (safetensors); local, gs://, s3://")
    ],
    out: OUT,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="key of config.json that does not matter to the forward pass"),
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Make a run directory of a Hugging Face model: config.json, safetensors, tokenizer."""
    _prepare()
    from jaxscale.interop.hf_import import open_hf

    _import(open_hf(directory, ignore=ignore or []), out, as_json=as_json)


@app.command()
def gguf(
    file: Annotated[Path, typer.Argument(help="GGUF file (llama.cpp)")],
    out: OUT,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="tokenizer.json, or its directory (default: the file's own)"),
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Make a run directory of a GGUF file, dequantized."""
    _prepare()
    from jaxscale.interop.gguf_import import open_gguf

    _import(open_gguf(file, tokenizer), out, as_json=as_json)


def _prepare() -> None:
    """Blocks come and go: memory that is given back to the system each time costs a third more."""
    from jaxscale.hardware.cpu_process import prepare_cpu_process

    prepare_cpu_process("float32")


def _import(source: "OpenModel", out: str, *, as_json: bool) -> None:
    from jaxscale.cli.render.checkpoint import bytes_progress
    from jaxscale.interop.run_directory import import_model
    from jaxscale.telemetry.format import bytes_text

    for note in source.notes:
        typer.echo(f"note: {note}", err=True)
    total = sum(spec.num_bytes for spec in source.model.description.values())
    with bytes_progress(f"writing {out}", total) as progress:
        done = import_model(source, out, progress)
    family = source.section.family
    if as_json:
        counts = {"parameters": done.num_parameters, "bytes": done.num_bytes}
        typer.echo(json.dumps({"run": out, "family": family, **counts, **source.facts}))
        return
    typer.echo(
        f"{out}: {family} of {done.num_parameters:,} parameters, {bytes_text(done.num_bytes)} in float32"
    )
    typer.echo(f'text: jaxscale generate {out} --prompt "..."')
    typer.echo(f"go on training it: jaxscale train {out}/config.yaml data.train=TEXT --run-dir RUN")
