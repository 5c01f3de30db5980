"""`jaxscale train`: the whole way from text to a trained model; the same command resumes."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value ..., for example training.steps=200")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="where the run lives (default: runs/NAME)")
    ] = None,
) -> None:
    """Train, evaluate and checkpoint. Run the same command again to resume."""
    from jaxscale.config.loading import load_config

    settings = load_config(config, overrides or [])
    directory = run_dir or Path("runs") / settings.name

    from jaxscale.training.run import train_run

    if train_run(settings, directory).preempted:
        raise typer.Exit(75)
