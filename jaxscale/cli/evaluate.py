"""`jaxscale eval`: loss, perplexity and bits per byte of a run on any text."""

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="run directory")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value ..., for example plan.tensor=2")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="text, or a store (its held-out part); default: the run's evaluation set"
        ),
    ] = None,
    step: Annotated[int | None, typer.Option(help="checkpoint (default: the newest)")] = None,
    batches: Annotated[
        int, typer.Option(min=0, help="batches, each as in the run's evaluations (0: everything)")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Print the loss of a trained model, on any mesh."""
    from jaxscale.cli.render.preparation import preparation_report
    from jaxscale.training.trained import load_trained
    from jaxscale.training.trained_evaluation import evaluate_trained

    trained = load_trained(
        run, overrides or [], step=step, warn=lambda text: typer.echo(text, err=True)
    )
    with preparation_report() as report:
        found = evaluate_trained(trained, data, batches, report)
    if as_json:
        typer.echo(json.dumps({"step": trained.step, **found.record()}))
        return
    bits = found.bits_per_byte
    typer.echo(
        f"step {trained.step}: loss {found.loss:.4f} nats a token, perplexity {found.perplexity:.2f}, "
        f"{'bits per byte unknown' if bits is None else f'{bits:.4f} bits per byte'} "
        f"over {found.num_tokens:,} tokens"
    )
