"""A whole run: made from a configuration, resumed where there is something to resume, and closed whatever happens."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from jaxscale.checkpoint.layout import listed_steps
from jaxscale.checkpoint.locate import checkpoints_of
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.interop.pretrained import keep_tokenizer_files, with_pretrained
from jaxscale.kernels.choice_table import choice_table
from jaxscale.parallel.pipeline.advice import few_microbatches
from jaxscale.telemetry.journal import Journal
from jaxscale.telemetry.report import write_report
from jaxscale.telemetry.report.run import PREDICTION_FILE
from jaxscale.training.compile_ahead import TrainStep
from jaxscale.training.exposed import exposed
from jaxscale.training.health.attempts import counted
from jaxscale.training.health.preemption import (
    Preempted,
    StopRequest,
    grace_seconds,
    stop_on_signal,
)
from jaxscale.training.health.start_checks import checkpoint_bytes, own_checkpoint_bytes
from jaxscale.training.health.watchdog import Watchdog, watch
from jaxscale.training.job import Job, PlanChooser, make_job, without_planner
from jaxscale.training.observation import run_peak
from jaxscale.training.outputs import is_main, open_outputs, write_json, write_run_files
from jaxscale.training.preparation import show_preparation
from jaxscale.training.resume import open_checkpoints, start_or_resume
from jaxscale.training.session import Around, train


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    steps: int
    preempted: bool
    report: Path
    sample: str


def train_run(
    config: RunConfig,
    directory: Path,
    say: Callable[[str], None] = print,
    *,
    choose: PlanChooser = without_planner,
    watchdog: Watchdog | None = None,
) -> Outcome:
    """Train from the newest checkpoint, or from the start, to the last step or until a signal asks to stop.

    choose: lays the run out once its model is known (`cli.auto_plan` asks the planner). watchdog: that watches already.
    Raises UserError for whatever the user can mend; what is complete on disk stays complete.
    """
    watchdog = watchdog or watch(config.training, directory)
    with closing(watchdog), stop_on_signal(grace_seconds(), watchdog.standing) as request:
        try:
            return _run(with_pretrained(config), directory, say, choose, request, watchdog)
        except Preempted:
            steps = max(
                listed_steps(checkpoints_of(directory, config.checkpoint.directory)), default=0
            )
            return Outcome(steps=steps, preempted=True, report=directory / "report.html", sample="")


def _run(
    config: RunConfig,
    directory: Path,
    say: Callable[[str], None],
    choose: PlanChooser,
    request: StopRequest,
    watchdog: Watchdog,
) -> Outcome:
    with ExitStack() as stack:
        journal = stack.enter_context(_journal(config, directory))

        def between() -> None:
            watchdog.alive()
            request.check()

        job = make_job(config, directory, show_preparation(say, between), choose=choose)
        warn_of_idle_stages(job.placement.plan, say)
        watchdog.starting(stored_bytes=checkpoint_bytes(job.specs))
        checkpoints = stack.enter_context(open_checkpoints(job))
        request.standing.saved = checkpoints.steps
        request.standing.done = max(checkpoints.steps(), default=0)
        step = TrainStep(job, say)
        run_peak(job)  # Measured beside a compiler, a CPU's would be too low.
        if request.standing.done < config.training.steps:
            step.compile_ahead()
        start = start_or_resume(job, checkpoints, warn=say)
        watchdog.starting()
        request.standing.done = start.step
        journal.resume(start.step)
        if is_main():
            write_run_files(config, job.placement.plan, job.corpus.tokenizer, directory)
            keep_tokenizer_files(config, directory)
            _keep_prediction(job)
            stack.enter_context(counted(directory, resumed=start.step, standing=request.standing))
            stack.callback(_report, directory, say)
        expose = stack.enter_context(exposed(config, journal.ledger, say))
        outputs = open_outputs(config, directory, start.step, expose)
        stack.callback(outputs.close)
        outputs.progress.note(_headline(job, start.step))
        step.tell = lambda choices: outputs.progress.note(f"kernels:\n{choice_table(choices)}")
        around = Around(job, outputs, checkpoints, request, journal, watchdog, step)
        # However the run ends, a save that is being written is waited for.
        stack.callback(watchdog.turn_to, "end of the run", own_checkpoint_bytes(job.specs))
        done = train(around, start)
        journal.ended("finished" if done >= config.training.steps else "preempted")
    return Outcome(
        steps=done,
        preempted=done < config.training.steps,
        report=directory / "report.html",
        sample=outputs.last_sample(),
    )


def _journal(config: RunConfig, directory: Path) -> Journal:
    """What this process does with its time, from its start; written down by the one that speaks for the run."""
    where = directory if is_main() else None
    return Journal(where, planned_steps=config.training.steps, preemption=Preempted)


def warn_of_idle_stages(plan: Plan, say: Callable[[str], None]) -> None:
    """Says so where a pipeline has fewer microbatches than stages."""
    warning = few_microbatches(
        plan.schedule,
        stages=plan.pipeline,
        microbatches=plan.microbatches,
        chunks=plan.virtual_stages,
    )
    if warning is not None:
        say(f"warning: {warning}")


def _keep_prediction(job: Job) -> None:
    """What is predicted of this plan; of another one it would be wrong."""
    path = job.directory / PREDICTION_FILE
    if job.prediction is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, job.prediction)


def _report(directory: Path, say: Callable[[str], None]) -> None:
    """Write the report of a run however it ended; that it cannot be written must not hide why the run ended."""
    try:
        write_report(directory)
    except OSError as error:
        say(f"the report was not written: {error}")


def _headline(job: Job, start: int) -> str:
    """What runs where, in a line."""
    count = sum(spec.size for spec in job.model.description.values())
    mesh = " x ".join(
        f"{axis} {size}" for axis, size in job.placement.mesh_shape.items() if size > 1
    )
    plan, layout = job.placement.plan, job.placement.stages
    if layout is not None:
        counts = ", ".join(map(str, layout.counts))
        mesh += f", {plan.schedule} of {plan.microbatches} microbatches over {counts} layers"
    place = f"{job.placement.mesh.size} {job.placement.platform} device(s)" + (
        f", {mesh}" if mesh else ""
    )
    origin = (
        f"resuming behind step {start}"
        if start
        else f"from {job.config.model.init_from or 'scratch'}"
    )
    return f"{job.config.name}: {count:,} parameters on {place}, {origin}"
