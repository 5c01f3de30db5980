"""A few steps of a tiny model under any plan."""

from typing import Any, NamedTuple

import jax
import numpy as np
from tiny import packed_batch

from jaxscale.config.plan import Plan
from jaxscale.config.run_sections import TrainingSection
from jaxscale.models.description import Blueprint
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import Placement, place
from jaxscale.training.batches import batch_sharding, place_batch
from jaxscale.training.optimizers import make_optimizer
from jaxscale.training.schedules import learning_rate
from jaxscale.training.stage_order import in_model_order
from jaxscale.training.state import TrainState, init_state, state_shardings, state_specs
from jaxscale.training.step import compile_step, make_train_step

# Softmax ignores what is added to all scores of a row, and without RoPE that is all a bias of the keys
# does: its true gradient is zero, and its updates are rounding error.
WITHOUT_GRADIENT = {("gpt2", "layers/attention/key_bias")}


class Course(NamedTuple):
    """first: the parameters before. updates: what was added to each. Layers in the model's order."""

    losses: list[Any]
    norms: list[Any]
    updates: dict[str, np.ndarray]
    first: dict[str, np.ndarray]


def train(
    model: Blueprint,
    plan: Plan,
    training: TrainingSection,
    steps: int = 5,
    first: dict[str, np.ndarray] | None = None,
) -> Course:
    """From parameters made in their place, or from those of another course: to compile what makes them takes longer
    than to compile a step.
    """
    devices = jax.devices()[: plan.num_devices]
    placement = place(plan, make_mesh(plan, devices), model.description)
    schedule = learning_rate(
        training.schedule, peak=training.optimizer.learning_rate, steps=training.steps
    )
    stored = placement.stored(model.description)
    optimizer = make_optimizer(training.optimizer, schedule, stored)
    averaged = training.ema_decay is not None
    specs = state_specs(stored, optimizer, averaged=averaged)
    given = first and jax.device_put(first, placement.unstaged().shardings(model.description))
    state = init_state(
        model, optimizer, placement, seed=training.seed, averaged=averaged, given=given
    )
    step = compile_step(
        make_train_step(model, placement, optimizer, schedule, training),
        state_shardings(specs, placement),
        placement,
    )
    before = logical(state, specs, placement)
    sharding = batch_sharding(placement, 16, 16)
    metrics = []
    for index in range(steps):
        state, found = step(state, place_batch(packed_batch(index % 2), sharding, 16))
        metrics.append(jax.device_get(found))
    after = logical(state, specs, placement)
    updates = {path: after[path] - before[path] for path in after}
    losses, norms = ([m[name] for m in metrics] for name in ("loss", "grad_norm"))
    return Course(losses, norms, updates, before)


def logical(state: TrainState, specs: TrainState, placement: Placement) -> dict[str, np.ndarray]:
    """Copies of the parameters, layers in the model's order."""
    ordered = in_model_order(state.params, specs.params, placement)
    return {path: np.asarray(value).copy() for path, value in ordered.items()}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative, in the 2-norm: |a - b| / |b|."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
