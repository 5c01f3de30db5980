"""Everything of a run that follows from its configuration, checked before anything is compiled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax

from jaxscale.config.plan import MESH_AXES, Plan
from jaxscale.config.run import RunConfig
from jaxscale.data.corpus import Corpus, Report, open_corpus
from jaxscale.data.loader import Batches
from jaxscale.data.store import check_vocab
from jaxscale.errors import UserError
from jaxscale.models.build import model_builder
from jaxscale.models.description import Blueprint, blueprint
from jaxscale.models.families import resolve
from jaxscale.parallel.mesh import auto_plan, check_batch, make_mesh
from jaxscale.parallel.placement import Placement, place
from jaxscale.training.optimizers import make_optimizer
from jaxscale.training.schedules import Schedule, learning_rate
from jaxscale.training.state import TrainState, state_specs


@dataclass(frozen=True)
class Chosen:
    """A plan, and what whoever proposed it predicts of it: kept in the run as `prediction.json`."""

    plan: Plan
    prediction: Mapping[str, Any] | None = None


# Training does not know the planner: whoever starts a run may hand over a function that asks it.
PlanChooser = Callable[[RunConfig, Blueprint], Chosen]


@dataclass(frozen=True)
class Job:
    """A run's parts. They hold no parameter and no optimizer state yet."""

    config: RunConfig
    directory: Path
    corpus: Corpus
    model: Blueprint
    placement: Placement
    schedule: Schedule
    optimizer: optax.GradientTransformation
    specs: TrainState
    batches: Batches
    prediction: Mapping[str, Any] | None = None


def without_planner(config: RunConfig, model: Blueprint) -> Chosen:
    """The plan by hand, or all attached devices as they are; nothing is predicted of it."""
    return Chosen(choose_plan(config, model))


def make_job(
    config: RunConfig,
    directory: Path,
    report: Report | None = None,
    *,
    choose: PlanChooser = without_planner,
) -> Job:
    """Raises UserError for everything about a run that can be known to be wrong before it is compiled."""
    check_positions(config)
    model = blueprint(model_builder(config.model))
    training = config.training
    chosen = choose(config, model)
    plan = chosen.plan
    check_batch(plan, training.global_batch, config.data.sequence_length)
    placement = place(plan, make_mesh(plan), model.description)
    schedule = learning_rate(
        training.schedule, peak=training.optimizer.learning_rate, steps=training.steps
    )
    stored = placement.stored(model.description)
    optimizer = make_optimizer(training.optimizer, schedule, stored)
    corpus = open_corpus(config.data, report)
    check_vocabulary(config, corpus)
    return Job(
        config=config,
        directory=directory,
        corpus=corpus,
        model=model,
        placement=placement,
        schedule=schedule,
        optimizer=optimizer,
        specs=state_specs(stored, optimizer, averaged=training.ema_decay is not None),
        batches=Batches(
            corpus.train, config.data.sequence_length, training.global_batch, training.seed
        ),
        prediction=chosen.prediction,
    )


def choose_plan(config: RunConfig, model: Blueprint) -> Plan:
    """The plan by hand. `auto`, or a plan that names no axis of the mesh, takes the attached devices as they are."""
    plan = plan_as_given(config)
    if is_by_hand(plan):
        return plan
    return auto_plan(model.description, jax.device_count(), config.training.global_batch, plan)


def plan_as_given(config: RunConfig) -> Plan:
    """The keys of the plan section; none for `auto`."""
    return config.plan if isinstance(config.plan, Plan) else Plan()


def is_by_hand(plan: Plan) -> bool:
    """Whether a plan as it was given names an axis of the mesh: then its axes are not chosen for it."""
    return bool(plan.model_fields_set & set(MESH_AXES))


def check_positions(config: RunConfig) -> None:
    """Raises UserError for rows longer than the positions that the model has."""
    limit, length = config.model.max_positions, config.data.sequence_length
    if limit is not None and length > limit:
        raise UserError(
            f"data.sequence_length={length} is longer than model.max_positions={limit}; "
            f"use data.sequence_length={limit}, or give the model more positions"
        )


def check_vocabulary(config: RunConfig, corpus: Corpus) -> None:
    """Raises UserError for a tokenizer with more tokens than the model's table has rows."""
    if config.model.build is not None:
        return
    vocab_size = resolve(config.model).vocab_size
    for source in corpus.train.sources:
        check_vocab(source.store, vocab_size)
