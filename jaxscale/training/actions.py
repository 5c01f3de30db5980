"""What happens between steps: evaluation, checkpoints, samples, each at its own interval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.data.loader import eval_batches
from jaxscale.errors import UserError
from jaxscale.models.description import Params
from jaxscale.models.sampling import Sampling
from jaxscale.telemetry.meter import StepMeter
from jaxscale.telemetry.report import write_report
from jaxscale.training.evaluation import Evaluation, evaluate, make_evaluation_step
from jaxscale.training.health.bad_steps import History
from jaxscale.training.health.preemption import short_grace
from jaxscale.training.health.start_checks import own_checkpoint_bytes
from jaxscale.training.job import Job
from jaxscale.training.loop import Due
from jaxscale.training.optimizer_state import flatten_state
from jaxscale.training.outputs import Outputs, is_main
from jaxscale.training.resume import run_metadata
from jaxscale.training.sampling import Sampler, make_sampler, sample_text
from jaxscale.training.stage_order import in_model_order
from jaxscale.training.state import TrainState

_SAMPLING = Sampling(temperature=0.8, top_p=0.95)


@dataclass
class Results:
    """The newest evaluation, which the next checkpoint is judged by."""

    evaluation: Evaluation | None = field(default=None)

    @property
    def loss(self) -> float | None:
        return None if self.evaluation is None else self.evaluation.loss


def evaluated_params(state: TrainState) -> Params:
    """The averaged parameters where an average is kept."""
    return state.average or state.params


def make_actions(
    job: Job,
    outputs: Outputs,
    checkpoints: Checkpointer,
    meter: StepMeter,
    history: Callable[[], History],
    alive: Callable[[], None],
) -> list[Due]:
    """All actions of a run. The checkpoint comes last, behind the evaluation that may make it the best.

    history: what the run remembers at the moment of a checkpoint. alive: called as an evaluation goes on.
    """
    results = Results()
    training = job.config.training
    actions = []
    if job.corpus.eval is not None:
        held_out = _Evaluate(job, outputs, meter, results, alive)
        actions.append(Due(training.eval_every, held_out, "batch of the evaluation"))
    if training.sample_tokens and training.sample_prompts:
        sample = _Sample(job, outputs, meter)
        actions.append(Due(training.sample_every, sample, "end of the text sample"))
    save = _Save(job, outputs, checkpoints, meter, results, history)
    every = job.config.checkpoint.every
    actions.append(Due(every, save, "end of the checkpoint", own_checkpoint_bytes(job.specs)))
    return actions


class _Evaluate:
    """Loss on the held-out text: to the log, and to the checkpoint that follows."""

    def __init__(
        self,
        job: Job,
        outputs: Outputs,
        meter: StepMeter,
        results: Results,
        alive: Callable[[], None],
    ) -> None:
        self._job, self._outputs, self._meter, self._results = job, outputs, meter, results
        self._alive = alive
        self._step = make_evaluation_step(job.model, job.placement, job.config.training)

    def __call__(self, done: int, state: TrainState) -> None:
        job = self._job
        with self._meter.excluded():
            assert job.corpus.eval is not None
            rows = job.config.training.global_batch
            batches = eval_batches(job.corpus.eval, job.config.data.sequence_length, rows)
            limit = job.config.training.eval_batches or None
            found = evaluate(
                self._step,
                evaluated_params(state),
                islice(batches, limit),
                job.placement,
                job.corpus.tokenizer.token_byte_lengths(),
                self._alive,
            )
        self._results.evaluation = found
        self._outputs.record({"step": done, **found.record()})
        if is_main():
            write_report(job.directory)


class _Sample:
    """Continuations of the prompts, in `samples/`; a model without a KV cache gives none, and says so once."""

    def __init__(self, job: Job, outputs: Outputs, meter: StepMeter) -> None:
        self._job, self._outputs, self._meter = job, outputs, meter
        self._sampler: Sampler | None = None
        try:
            self._sampler = make_sampler(job.model, job.placement, job.corpus.tokenizer)
        except UserError as reason:
            outputs.progress.note(f"no text samples: {reason}")

    def __call__(self, done: int, state: TrainState) -> None:
        if self._sampler is None:
            return
        training = self._job.config.training
        with self._meter.excluded():
            texts = sample_text(
                self._sampler,
                self._job.corpus.tokenizer,
                evaluated_params(state),
                training.sample_prompts,
                num_tokens=training.sample_tokens,
                sampling=_SAMPLING,
                seed=training.seed,
            )
        self._outputs.sample(done, "\n\n".join(texts) + "\n")


class _Save:
    """A checkpoint, written behind the loop's back."""

    def __init__(
        self,
        job: Job,
        outputs: Outputs,
        checkpoints: Checkpointer,
        meter: StepMeter,
        results: Results,
        history: Callable[[], History],
    ) -> None:
        self._job, self._checkpoints, self._meter, self._results = job, checkpoints, meter, results
        self._outputs, self._history = outputs, history
        self._has_warned = False

    def __call__(self, done: int, state: TrainState) -> None:
        with self._meter.checkpoint():
            saved = in_model_order(state, self._job.specs, self._job.placement)
            arrays: Mapping[str, Any] = flatten_state(saved)
            metadata = run_metadata(self._job, done, self._history())
            self._checkpoints.save(done, arrays, metadata, metric_value=self._results.loss)
        self._warn(self._checkpoints.last_seconds)

    def _warn(self, seconds: float | None) -> None:
        """Once, where a checkpoint before this one took longer than a preemption leaves."""
        warning = None if seconds is None or self._has_warned else short_grace(seconds)
        if warning is not None:
            self._has_warned = True
            self._outputs.progress.note(f"warning: {warning}")
