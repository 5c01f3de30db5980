"""A whole run: made from a configuration, resumed where there is something to resume, and closed whatever happens."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from jaxscale.checkpoint.layout import listed_steps
from jaxscale.checkpoint.locate import checkpoints_of
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.interop.pretrained import keep_tokenizer_files, with_pretrained
from jaxscale.parallel.pipeline.advice import few_microbatches
from jaxscale.telemetry.journal import Journal
from jaxscale.telemetry.report import write_report
from jaxscale.telemetry.report.run import PREDICTION_FILE
from jaxscale.training.exposed import exposed
from jaxscale.training.health.preemption import (
    Preempted,
    StopRequest,
    grace_seconds,
    stop_on_signal,
)
from jaxscale.training.job import Job, PlanChooser, make_job, without_planner
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
) -> Outcome:
    """Train from the newest checkpoint, or from the start, to the last step or until a signal asks to stop.

    choose: lays the run out once its model is known (`cli.auto_plan` asks the planner).
    Raises UserError for whatever the user can mend; what is complete on disk stays complete.
    """
    config = with_pretrained(config)
    with stop_on_signal(grace_seconds()) as request:
        try:
            return _run(config, directory, say, choose, request)
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
) -> Outcome:
    with ExitStack() as stack:
        journal = stack.enter_context(_journal(config, directory))
        job = make_job(config, directory, show_preparation(say, request.check), choose=choose)
        warn_of_idle_stages(job.placement.plan, say)
        checkpoints = stack.enter_context(open_checkpoints(job))
        request.standing.saved = checkpoints.steps
        start = start_or_resume(job, checkpoints, warn=say)
        journal.resume(start.step)
        if is_main():
            write_run_files(config, job.placement.plan, job.corpus.tokenizer, directory)
            keep_tokenizer_files(config, directory)
            _keep_prediction(job)
            stack.callback(_report, directory, say)
        expose = stack.enter_context(exposed(config, journal.ledger, say))
        outputs = open_outputs(config, directory, start.step, expose)
        stack.callback(outputs.close)
        outputs.progress.note(_headline(job, start.step))
        done = train(Around(job, outputs, checkpoints, request, journal), start)
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
