"""`jaxscale train`: the whole way from text to a trained model; the same command resumes."""

from contextlib import closing
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
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, where nothing else says it")
    ] = None,
    num_processes: Annotated[int | None, typer.Option(help="processes of the run in all")] = None,
    process_id: Annotated[int | None, typer.Option(help="which of them this is, from 0")] = None,
    join_timeout: Annotated[
        float | None, typer.Option(help="seconds that processes wait for each other (300)")
    ] = None,
) -> None:
    """Train, evaluate and checkpoint. Run the same command again to resume.

    One of several processes where Slurm, a JobSet, Open MPI, a TPU pod or `jaxscale launch` has started it as such.
    """
    from jaxscale.cli.run_place import check_local
    from jaxscale.config.loading import load_config
    from jaxscale.config.plan import Plan
    from jaxscale.hardware.cpu_process import prepare_cpu_process
    from jaxscale.training.health.exits import PREEMPTED

    settings = load_config(config, overrides or [])
    directory = run_dir or Path("runs") / settings.name
    check_local(directory)

    precision = settings.plan.precision if isinstance(settings.plan, Plan) else "auto"
    prepare_cpu_process("float32" if precision == "auto" else precision)

    from jaxscale.cli.processes import Flags, process_of
    from jaxscale.training.health.watchdog import watch

    flags = Flags(coordinator, num_processes, process_id, join_timeout)
    with (
        closing(watch(settings.training, directory)) as watchdog,
        process_of(settings, directory, flags, watchdog) as process,
    ):
        from jaxscale.checkpoint.late_writes import hush_late_writes
        from jaxscale.cli.auto_plan import planner
        from jaxscale.training.compile_cache import compile_cache
        from jaxscale.training.run import train_run

        watchdog.alive()
        hush_late_writes()
        choose = process.agreeing(planner(directory, say=process.say))
        with compile_cache(directory):
            outcome = train_run(settings, directory, process.say, choose=choose, watchdog=watchdog)
    if outcome.preempted:
        where = (
            f"stopped at step {outcome.steps} with a checkpoint saved"
            if outcome.steps
            else "stopped before the first step"
        )
        process.say(f"{where}; run the same command to go on")
        raise typer.Exit(PREEMPTED)
    if outcome.sample:
        process.say(f"\n{outcome.sample}")
    process.say(f"report: {outcome.report}")
