"""A whole run: made from a configuration, resumed where there is something to resume, and closed whatever happens."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jax.sharding import NamedSharding

from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.data.loader import iterate
from jaxscale.interop.pretrained import keep_tokenizer_files, with_pretrained
from jaxscale.parallel.pipeline.advice import few_microbatches
from jaxscale.telemetry.meter import StepMeter
from jaxscale.telemetry.profiler import StepProfiler
from jaxscale.telemetry.report import write_report
from jaxscale.telemetry.report.run import PREDICTION_FILE
from jaxscale.training.actions import Results, make_actions
from jaxscale.training.batches import batch_sharding, local_rows, place_batch
from jaxscale.training.job import Job, PlanChooser, make_job, without_planner
from jaxscale.training.loop import Loop, StopRequest, run_loop, stop_on_signal
from jaxscale.training.losses import Batch
from jaxscale.training.observation import Observer, run_peak
from jaxscale.training.outputs import Outputs, open_outputs, write_json, write_run_files
from jaxscale.training.preparation import show_preparation
from jaxscale.training.resume import open_checkpoints, start_or_resume
from jaxscale.training.state import TrainState, state_shardings
from jaxscale.training.step import StepFunction, compile_step, make_train_step
from jaxscale.training.summary import write_summary


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
    with ExitStack() as stack:
        request = stack.enter_context(stop_on_signal())
        job = make_job(config, directory, show_preparation(say), choose=choose)
        warn_of_idle_stages(job.placement.plan, say)
        checkpoints = stack.enter_context(open_checkpoints(job))
        state = start_or_resume(job, checkpoints, warn=say)
        start = int(state.step)
        write_run_files(config, job.placement.plan, job.corpus.tokenizer, directory)
        keep_tokenizer_files(config, directory)
        _keep_prediction(job)
        stack.callback(_report, directory, say)
        outputs = open_outputs(config, directory, start)
        stack.callback(outputs.close)
        outputs.progress.note(_headline(job, start))
        done = _train(job, state, outputs, checkpoints, request)
    return Outcome(
        steps=done,
        preempted=done < config.training.steps,
        report=directory / "report.html",
        sample=outputs.last_sample(),
    )


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


def _train(
    job: Job, state: TrainState, outputs: Outputs, checkpoints: Checkpointer, request: StopRequest
) -> int:
    """Runs the loop and returns the number of steps made in all; leaves a checkpoint of the last one."""
    training, start = job.config.training, int(state.step)
    meter = StepMeter(tokens_per_step=training.global_batch * job.config.data.sequence_length)
    peak, results = run_peak(job), Results()
    observer = Observer(job, outputs, meter, peak, lambda: max(checkpoints.steps(), default=None))
    actions = make_actions(job, outputs, checkpoints, meter, results)
    with closing(_host_batches(job, start)) as batches, closing(_profiler(job)) as profiler:
        meter.restart()
        loop = Loop(
            step=_compiled_step(job),
            batches=batches,
            place=_placer(job),
            observe=observer,
            actions=actions,
            meter=meter,
            before_step=lambda index: profiler.before(index - start + 1),
            after_step=lambda done, metrics: profiler.after(done - start, metrics),
        )
        state = run_loop(loop, state, start=start, stop=training.steps, request=request)
    done = int(state.step)
    if request.asked and done > start:
        actions[-1].action(done, state)
    checkpoints.wait()
    write_summary(
        job,
        done=done,
        peak=peak,
        flops_per_token=observer.flops_per_token,
        first_step_seconds=observer.first_step_seconds,
    )
    return done


def _compiled_step(job: Job) -> StepFunction:
    step = make_train_step(
        job.model, job.placement, job.optimizer, job.schedule, job.config.training
    )
    return compile_step(step, state_shardings(job.specs, job.placement), job.placement)


def _sharding(job: Job) -> NamedSharding:
    rows, length = job.config.training.global_batch, job.config.data.sequence_length
    return batch_sharding(job.placement, rows, length)


def _placer(job: Job) -> Callable[[Mapping[str, np.ndarray]], Batch]:
    return partial(place_batch, sharding=_sharding(job), rows=job.config.training.global_batch)


def _host_batches(job: Job, start: int) -> Generator[tuple[int, Mapping[str, np.ndarray]]]:
    """Rows of this process of each batch from step `start` on, read ahead."""
    data = job.config.data
    mine = local_rows(_sharding(job), job.config.training.global_batch)
    return iterate(
        job.batches, start_step=start, rows=mine, prefetch=data.prefetch, threads=data.threads
    )


def _profiler(job: Job) -> StepProfiler:
    section = job.config.telemetry.profile
    first, steps = (section.start, section.steps) if section else (1, 0)
    return StepProfiler(first, steps, job.directory / "profile")


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
