"""`jaxscale checkpoint`: what is in checkpoints, whether they are whole, and copies of them that differ."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxscale.cli.amounts import parse_option
from jaxscale.errors import UserError

if TYPE_CHECKING:
    from jaxscale.checkpoint.locate import Located
    from jaxscale.checkpoint.places import Place
    from jaxscale.checkpoint.rewrite import Change, Rewritten

EXIT_DAMAGED = 2

Source = Annotated[
    str, typer.Argument(help="run directory, or one checkpoint of it; local, gs://, s3://")
]
Out = Annotated[
    str,
    typer.Argument(help="run directory to make, with this checkpoint alone; local, gs://, s3://"),
]
Step = Annotated[int | None, typer.Option(help="checkpoint (default: the newest)")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

app = typer.Typer(
    help="Look into checkpoints, check them, and copy them changed.", no_args_is_help=True
)


@app.command("ls")
def list_all(
    run: Annotated[
        str, typer.Argument(help="run directory, or its checkpoints folder; local, gs://, s3://")
    ],
    as_json: AsJson = False,
) -> None:
    """List checkpoints: step, what they hold, bytes."""
    from jaxscale.checkpoint import layout
    from jaxscale.checkpoint.contents import list_checkpoint
    from jaxscale.checkpoint.locate import find_checkpoints
    from jaxscale.cli.render.checkpoint import list_data, print_list

    directory = find_checkpoints(run)
    listed = [list_checkpoint(directory, step) for step in layout.listed_steps(directory)]
    _print_json([list_data(one) for one in listed]) if as_json else print_list(listed)


@app.command()
def show(source: Source, step: Step = None, as_json: AsJson = False) -> None:
    """Show a checkpoint's tree, shapes, dtypes, bytes and blocks, and the model and plan it was saved with."""
    from jaxscale.checkpoint.contents import read_contents
    from jaxscale.checkpoint.locate import locate
    from jaxscale.cli.render.checkpoint import contents_data, print_contents

    contents = read_contents(locate(source, step).checkpoint)
    _print_json(contents_data(contents)) if as_json else print_contents(contents)


@app.command()
def verify(
    source: Source,
    step: Annotated[int | None, typer.Option(help="one checkpoint (default: all)")] = None,
    as_json: AsJson = False,
) -> None:
    """Read every file and compare its checksum. Exit status 2 if one is damaged, with the files named."""
    from jaxscale.checkpoint import layout
    from jaxscale.checkpoint.integrity import find_problems
    from jaxscale.checkpoint.locate import find_checkpoints, locate
    from jaxscale.checkpoint.places import open_place

    directory = find_checkpoints(source)
    one = step is not None or open_place(source).absolute().parent == directory
    steps = [locate(source, step).step] if one else layout.listed_steps(directory)
    found = {step: find_problems(directory / str(step)) for step in steps}
    if as_json:
        _print_json(
            {str(step): [p._asdict() for p in problems] for step, problems in found.items()}
        )
    else:
        for step_, problems in found.items():
            typer.echo(f"{directory / str(step_)}: {'DAMAGED' if problems else 'good'}")
            for problem in problems:
                typer.echo(f"  {problem}")
    if any(found.values()):
        raise typer.Exit(EXIT_DAMAGED)


@app.command()
def reshard(
    source: Source,
    out: Out,
    step: Step = None,
    chunk_size: Annotated[str, typer.Option(help="most bytes of a block")] = "32MiB",
    file_size: Annotated[
        str, typer.Option(help="bytes of a data file; twice as many are held in memory")
    ] = "128MiB",
) -> None:
    """Copy a checkpoint, stored in other blocks and files."""
    from jaxscale.checkpoint.rewrite import Change

    change = Change(
        chunk_bytes=parse_option(chunk_size, "--chunk-size"),
        file_bytes=parse_option(file_size, "--file-size"),
    )
    _copy_changed(source, step, out, change)


@app.command()
def prune(
    source: Source,
    out: Annotated[
        str | None,
        typer.Argument(help="run directory to make; local, gs://, s3://", show_default=False),
    ] = None,
    step: Step = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="replace the checkpoint itself: it cannot be resumed")
    ] = False,
) -> None:
    """Drop the optimizer state: a third of the bytes, enough to evaluate, sample and export."""
    from jaxscale.checkpoint.locate import locate
    from jaxscale.checkpoint.rewrite import Change

    if in_place == (out is not None):
        raise UserError("say where the pruned checkpoint goes: OUT, or --in-place to replace it")
    change = Change(drop=frozenset({"optimizer"}))
    if out is not None:
        _copy_changed(source, step, out, change)
        return
    located = locate(source, step)
    _report(_rewrite(located, located.directory, change, in_place=True))


@app.command()
def convert(
    source: Source,
    out: Out,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32")],
    step: Step = None,
    allow_overflow: Annotated[
        bool, typer.Option("--allow-overflow", help="let what is too large become infinite")
    ] = False,
) -> None:
    """Copy a checkpoint with its floating-point arrays in another dtype."""
    from jaxscale.checkpoint.casting import float_dtype
    from jaxscale.checkpoint.rewrite import Change

    change = Change(dtype=float_dtype(dtype), overflow="allow" if allow_overflow else "refuse")
    _copy_changed(source, step, out, change)


def _copy_changed(source: str, step: int | None, out: str, change: "Change") -> None:
    from jaxscale.checkpoint.locate import CHECKPOINTS_FOLDER, copy_run_files, locate
    from jaxscale.checkpoint.places import check_reachable, open_place

    located, target = locate(source, step), open_place(out)
    check_reachable(target)
    if target.exists() and not (target / CHECKPOINTS_FOLDER).is_dir() and _is_occupied(target):
        raise UserError(f"{out} is there and has no checkpoints: name a directory to make")
    made = _rewrite(located, target / CHECKPOINTS_FOLDER, change)
    if located.run is not None:
        copy_run_files(located.run, target)
    _report(made)


def _rewrite(
    located: "Located", directory: "Place", change: "Change", *, in_place: bool = False
) -> "Rewritten":
    from jaxscale.checkpoint.manifest import read_manifest
    from jaxscale.checkpoint.rewrite import rewrite
    from jaxscale.cli.render.checkpoint import bytes_progress

    total = read_manifest(located.checkpoint).bytes
    with bytes_progress(f"writing {directory / str(located.step)}", total) as report:
        return rewrite(
            located.checkpoint,
            directory,
            change,
            existing="replace" if in_place else "refuse",
            progress=report,
        )


def _report(made: "Rewritten") -> None:
    from jaxscale.telemetry.format import bytes_text

    count = sum(made.overflows.values())
    typer.echo(f"{made.checkpoint}: {bytes_text(made.bytes)} in {len(made.arrays)} arrays")
    if count:
        typer.echo(f"{count:,} values became infinite in {', '.join(sorted(made.overflows))}")


def _is_occupied(path: "Place") -> bool:
    return not path.is_dir() or any(path.iterdir())


def _print_json(values: Any) -> None:
    typer.echo(json.dumps(values, indent=2))
