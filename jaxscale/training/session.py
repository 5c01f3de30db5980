"""The steps of a run, from where it starts to its last one, and the way back from a bad one."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jax.sharding import NamedSharding

from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.data.loader import Batches, iterate
from jaxscale.errors import UserError
from jaxscale.telemetry.journal import Journal
from jaxscale.telemetry.ledger import CLOSING, COMPILE
from jaxscale.telemetry.meter import StepMeter
from jaxscale.telemetry.profiler import StepProfiler
from jaxscale.training.actions import make_actions
from jaxscale.training.batches import batch_sharding, local_rows, place_batch
from jaxscale.training.health.agreement import Agreement, make_agreement
from jaxscale.training.health.bad_steps import RollBack
from jaxscale.training.health.judge import Judge
from jaxscale.training.health.preemption import StopRequest
from jaxscale.training.health.self_test import check_devices
from jaxscale.training.health.start_checks import check_start
from jaxscale.training.health.watchdog import Watchdog
from jaxscale.training.job import Job
from jaxscale.training.loop import Due, Loop, run_loop
from jaxscale.training.losses import Batch
from jaxscale.training.observation import Observer, run_peak
from jaxscale.training.outputs import Outputs, is_main
from jaxscale.training.resume import Start, go_back, return_step
from jaxscale.training.state import TrainState
from jaxscale.training.step import StepFunction
from jaxscale.training.summary import write_summary

# Bad steps behind one checkpoint, after which going back again is no help.
_MOST_RETURNS = 3


@dataclass(frozen=True)
class Around:
    """What a run has open around its steps."""

    job: Job
    outputs: Outputs
    checkpoints: Checkpointer
    request: StopRequest
    journal: Journal
    watchdog: Watchdog
    step: StepFunction

    def last_checkpoint(self) -> int | None:
        return max(self.checkpoints.steps(), default=None)


def train(around: Around, start: Start) -> int:
    """Makes the steps and returns their number in all; leaves a checkpoint of the last one."""
    job, journal, first = around.job, around.journal, start.step
    if first < job.config.training.steps:
        check_start(job, around.outputs.progress.note)
    tokens = job.config.training.global_batch * job.config.data.sequence_length
    meter = StepMeter(tokens_per_step=tokens, ledger=journal.ledger)
    judge = _judge(around, start)
    peak = run_peak(job)
    agreement = make_agreement(around.request)
    observer = Observer(job, around.outputs, meter, peak, judge, agreement)
    actions = make_actions(
        job,
        around.outputs,
        around.checkpoints,
        meter,
        history=lambda: judge.history,
        alive=around.watchdog.alive,
    )
    steps = job.config.training.steps
    with closing(_profiler(job)) as profiler:
        rounds = _Rounds(
            around=around,
            judge=judge,
            observer=observer,
            actions=actions,
            meter=meter,
            profiler=profiler,
            watchdog=around.watchdog,
            agreement=agreement,
            step=journal.ledger.first_call(COMPILE, around.step),
        )
        state = rounds.run(start)
    done = int(state.step)
    around.watchdog.turn_to("end of the last checkpoint", actions[-1].stored_bytes)
    if first < done < steps and not actions[-1].now(done, steps):
        actions[-1].action(done, state)
    journal.ledger.turn_to(CLOSING)
    with meter.checkpoint():
        around.checkpoints.wait()
    if is_main():
        write_summary(
            job,
            done=done,
            peak=peak,
            flops_per_token=observer.flops_per_token,
            first_step_seconds=observer.first_step_seconds,
        )
    return done


@dataclass(frozen=True)
class _Rounds:
    """The loop, begun anew behind each return to a checkpoint."""

    around: Around
    judge: Judge
    observer: Observer
    actions: Sequence[Due]
    meter: StepMeter
    profiler: StepProfiler
    watchdog: Watchdog
    agreement: Agreement
    step: StepFunction

    def run(self, start: Start) -> TrainState:
        returns: list[int] = []
        while True:
            try:
                return self._round(start)
            except RollBack as found:
                # Nothing of the exception may live on: its frames hold the state that is dropped.
                done, why = found.done, found.why
            start = self._go_back(done, why, returns)

    def _round(self, start: Start) -> TrainState:
        job, profiler, first = self.around.job, self.profiler, start.step
        with closing(_host_batches(job, self.judge.batches, first)) as batches:
            self.meter.restart()
            loop = Loop(
                step=self.step,
                batches=batches,
                place=_placer(job),
                observe=self._observe,
                actions=self.actions,
                meter=self.meter,
                before_step=lambda index: profiler.before(index - first + 1),
                after_step=lambda done, metrics: profiler.after(done - first, metrics),
                agreement=self.agreement,
                watchdog=self.watchdog,
            )
            return run_loop(loop, start.state, start=first, stop=job.config.training.steps)

    def _observe(self, done: int, metrics: Mapping[str, float]) -> None:
        self.around.journal.step(done)
        self.observer(done, metrics)

    def _go_back(self, done: int, why: str, returns: list[int]) -> Start:
        """The checkpoint before a bad step, and the order of batches behind it without those since then."""
        around, judge = self.around, self.judge
        stored = self.actions[-1].stored_bytes
        with self.watchdog.during("end of the way back", stored), self.meter.excluded():
            around.checkpoints.wait()
            check_devices()
            start = go_back(around.job, around.checkpoints, done, around.outputs.progress.note)
        step = max(return_step(around.job, done), start.step)
        returns.append(step)
        if returns.count(step) > _MOST_RETURNS:
            raise UserError(
                f"{why}\nThe run has gone back to step {step} {_MOST_RETURNS} times, and each time a step "
                "behind it was bad, with other batches: lower the learning rate, or look for a bad device "
                "(training.self_test=true)"
            )
        history = judge.history.gone_back(judge.batches, step, done - 1)
        judge.history = replace(history, losses=start.history.losses)
        judge.batches = replace(around.job.batches, skipped=history.skipped)
        around.outputs.go_back(start.step)
        around.outputs.progress.note(
            f"{why}\nback to step {start.step}; batches left out: {_ranges(history.skipped)}"
        )
        around.journal.resume(start.step)
        return start


def _ranges(skipped: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{start} to {stop - 1}" for start, stop in skipped)


def _judge(around: Around, start: Start) -> Judge:
    job = around.job
    return Judge(
        job.config.training,
        replace(job.batches, skipped=start.history.skipped),
        start.history,
        around.outputs.progress.note,
        around.last_checkpoint,
    )


def _sharding(job: Job) -> NamedSharding:
    rows, length = job.config.training.global_batch, job.config.data.sequence_length
    return batch_sharding(job.placement, rows, length)


def _placer(job: Job) -> Callable[[Mapping[str, np.ndarray]], Batch]:
    return partial(place_batch, sharding=_sharding(job), rows=job.config.training.global_batch)


def _host_batches(
    job: Job, batches: Batches, start: int
) -> Generator[tuple[int, Mapping[str, np.ndarray]]]:
    """Rows of this process of each batch from step `start` on, read ahead."""
    data = job.config.data
    mine = local_rows(_sharding(job), job.config.training.global_batch)
    return iterate(
        batches, start_step=start, rows=mine, prefetch=data.prefetch, threads=data.threads
    )


def _profiler(job: Job) -> StepProfiler:
    section = job.config.telemetry.profile
    first, steps = (section.start, section.steps) if section else (1, 0)
    return StepProfiler(first, steps, job.directory / "profile")
