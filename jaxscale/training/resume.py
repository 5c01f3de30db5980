"""Saving a run's state and taking it up again, on whatever mesh it wakes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax

from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.checkpoint.keep import Keep
from jaxscale.checkpoint.locate import checkpoints_of
from jaxscale.config.run import RunConfig
from jaxscale.errors import UserError
from jaxscale.interop.pretrained import differences, initial_params
from jaxscale.models.description import Params
from jaxscale.telemetry.environment import describe_environment
from jaxscale.telemetry.metrics import read as read_metrics
from jaxscale.training.health.bad_steps import History
from jaxscale.training.job import Job
from jaxscale.training.optimizer_state import flatten_state, unflatten_state
from jaxscale.training.stage_order import in_stage_order, logical_specs
from jaxscale.training.state import TrainState, abstract_state, init_state

# What the batch of a step depends on: a change makes the rest of the run see other data.
_DATA_KEYS = ("sequence_length",)
_TRAINING_KEYS = ("global_batch", "seed")


def open_checkpoints(job: Job) -> Checkpointer:
    """The run's checkpoints, with its rules of what to keep."""
    section = job.config.checkpoint
    keep = Keep(
        last=section.keep_last,
        every=section.keep_every,
        best=section.keep_best,
        metric="eval_loss" if section.keep_best else None,
        mode="min",
    )
    return Checkpointer(checkpoints_of(job.directory, section.directory), keep)


def run_metadata(job: Job, step: int, history: History) -> dict[str, Any]:
    """What a checkpoint says beside its arrays: enough to know what it is and to go on from it."""
    config = job.config
    return {
        "step": step,
        "config": config.model_dump(mode="json"),
        "plan": job.placement.plan.model_dump(mode="json"),
        "data": {
            "next_step": step,
            "seed": config.training.seed,
            "stores": {
                source.name: source.store.manifest.checksums for source in job.corpus.train.sources
            },
            "tokenizer": job.corpus.tokenizer.fingerprint,
        },
        "history": history.to_metadata(),
        "random": {
            "seed": config.training.seed,
            "implementation": str(jax.random.key_impl(jax.random.key(0))),
        },
        "environment": describe_environment(),
    }


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on: its state, and what it remembers."""

    state: TrainState
    history: History

    @property
    def step(self) -> int:
        return int(self.state.step)


def start_or_resume(job: Job, checkpoints: Checkpointer, warn: Callable[[str], None]) -> Start:
    """The newest good checkpoint, placed by this run's plan; a fresh state where there is none.

    Raises UserError if the model, the tokenizer or the optimizer changed since.
    """
    if not checkpoints.steps():
        _warn_of_lost_steps(job, warn)
        return _fresh(job, warn)
    step = checkpoints.latest_good(warn=warn)
    if step is None:
        raise UserError(
            f"every checkpoint in {checkpoints.directory} is damaged; move that directory away to "
            "start again from step 0"
        )
    check_same_run(job, checkpoints.read_metadata(step), warn)
    return _from_checkpoint(job, checkpoints, step, integrity="skip")


def _warn_of_lost_steps(job: Job, warn: Callable[[str], None]) -> None:
    """A run that ended before its first checkpoint begins anew; so does one whose checkpoints somebody took away."""
    log = read_metrics(job.directory / "metrics.jsonl")
    if log:
        warn(
            f"warning: {job.directory} has made {log[-1]['step']} steps and has no checkpoint: it starts again from "
            "step 0. If its checkpoints were moved, stop it and put them back"
        )


def go_back(job: Job, checkpoints: Checkpointer, done: int, warn: Callable[[str], None]) -> Start:
    """Where a run goes on whose step `done` was bad: at or before the step that `return_step` names.

    Only where no checkpoint of that time is left and good, behind it: then a run that was interrupted ends otherwise
    than one that was not.
    """
    wanted = return_step(job, done)
    steps = [step for step in reversed(checkpoints.steps()) if step < done]
    before = [step for step in steps if step <= wanted]
    for step in before or (steps if wanted else []):
        try:
            return _from_checkpoint(job, checkpoints, step, integrity="verify")
        except UserError as damage:
            warn(f"{damage}\nTrying the checkpoint before it.")
    return _fresh(job, warn)


def return_step(job: Job, done: int) -> int:
    """The last step before `done` that `checkpoint.every` asks to keep.

    Not that of the newest checkpoint: a preemption may have left one, and a run that was interrupted has to leave out
    the batches that one leaves out that was not.
    """
    every = job.config.checkpoint.every
    return (done - 1) // every * every if every else 0


def _fresh(job: Job, warn: Callable[[str], None]) -> Start:
    training = job.config.training
    state = init_state(
        job.model,
        job.optimizer,
        job.placement,
        seed=training.seed,
        averaged=training.ema_decay is not None,
        given=_given_params(job, warn),
    )
    return Start(state, History())


def _from_checkpoint(
    job: Job, checkpoints: Checkpointer, step: int, *, integrity: Literal["verify", "skip"]
) -> Start:
    like = abstract_state(logical_specs(job.specs, job.placement), job.placement.unstaged())
    restored = checkpoints.restore(flatten_state(like), step, integrity=integrity)
    saved = unflatten_state(like, restored.arrays)
    state = in_stage_order(saved, job.specs, job.placement)
    assert isinstance(state, TrainState)
    return Start(state, History.of_metadata(restored.metadata))


def _given_params(job: Job, warn: Callable[[str], None]) -> Params | None:
    """What `model.init_from` names, in its place; None for a model that starts at random."""
    if job.config.model.init_from is None:
        return None
    for difference in differences(job.config.model):
        warn(difference)
    return initial_params(job.config.model, job.model, job.placement.unstaged())


def check_same_run(job: Job, metadata: dict[str, Any], warn: Callable[[str], None]) -> None:
    """Raises UserError for a changed model or tokenizer; warns where the data order changes."""
    before = RunConfig.model_validate(metadata["config"])
    # Where a run once started from does not matter to how it goes on.
    models = [one.model.model_dump(exclude={"init_from"}) for one in (before, job.config)]
    changed = _differences(models[0], models[1], "model")
    changed += _differences(
        {"name": before.training.optimizer.name},
        {"name": job.config.training.optimizer.name},
        "training.optimizer",
    )
    if changed:
        raise UserError(
            f"{job.directory} holds a run of another model: {'; '.join(changed)}. "
            "Give the changed run a directory of its own (--run-dir), or change the keys back."
        )
    if metadata["data"]["tokenizer"] != job.corpus.tokenizer.fingerprint:
        raise UserError(
            f"{job.directory} was trained with another tokenizer; start a run of its own with --run-dir, "
            "or name the old tokenizer in data.tokenizer"
        )
    order = _order(before), _order(job.config)
    for difference in _differences(*order, "batches depend on"):
        warn(f"{difference}: from here on the batches are not those of the run so far")


def _order(config: RunConfig) -> dict[str, Any]:
    picked = {f"training.{key}": getattr(config.training, key) for key in _TRAINING_KEYS}
    picked |= {f"data.{key}": getattr(config.data, key) for key in _DATA_KEYS}
    return picked | {"data.train": [source.model_dump() for source in config.data.train]}


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str) -> list[str]:
    return [
        f"{prefix}.{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
