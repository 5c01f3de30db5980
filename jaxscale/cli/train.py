"""`jaxscale train`: the whole way from text to a trained model; the same command resumes."""

from pathlib import Path
from typing import Annotated

import typer

EXIT_PREEMPTED = 75


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
    from jaxscale.config.plan import Plan
    from jaxscale.hardware.cpu_process import prepare_cpu_process

    settings = load_config(config, overrides or [])
    directory = run_dir or Path("runs") / settings.name

    precision = settings.plan.precision if isinstance(settings.plan, Plan) else "auto"
    prepare_cpu_process("float32" if precision == "auto" else precision)

    from jaxscale.checkpoint.late_writes import hush_late_writes
    from jaxscale.cli.auto_plan import planner
    from jaxscale.training.run import train_run

    hush_late_writes()

    outcome = train_run(settings, directory, choose=planner(directory, say=typer.echo))
    if outcome.preempted:
        typer.echo(
            f"stopped at step {outcome.steps} with a checkpoint saved; run the same command to go on"
        )
        raise typer.Exit(EXIT_PREEMPTED)
    if outcome.sample:
        typer.echo(f"\n{outcome.sample}")
    typer.echo(f"report: {outcome.report}")
