"""The same numbers on every layout: one device is the plain run, every mesh is compared with it."""

from typing import Any

import jax
import numpy as np
import pytest
from tiny import FAMILIES, packed_batch, tiny_model, tiny_training

from jaxscale.config.plan import Plan
from jaxscale.config.run_sections import TrainingSection
from jaxscale.models.build import model_builder
from jaxscale.models.description import Blueprint, blueprint
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import place
from jaxscale.training.batches import batch_sharding, place_batch
from jaxscale.training.optimizers import make_optimizer
from jaxscale.training.schedules import learning_rate
from jaxscale.training.state import init_state, state_shardings, state_specs
from jaxscale.training.step import compile_step, make_train_step

STEPS = 5
LAYOUTS = {
    "accumulation 4": Plan(microbatches=4),
    "data 8": Plan(data=8),
    "fsdp 8": Plan(fsdp=8),
    "tensor 2": Plan(tensor=2),
    "tensor 4": Plan(tensor=4),
    "tensor 8": Plan(tensor=8),
    "data 2 fsdp 2 tensor 2": Plan(data=2, fsdp=2, tensor=2),
    "data 2 fsdp 2 tensor 2, accumulation 4": Plan(data=2, fsdp=2, tensor=2, microbatches=4),
}

# Softmax ignores what is added to all scores of a row, and without RoPE that is all a bias of the keys
# does: its true gradient is zero, and its updates are rounding error.
WITHOUT_GRADIENT = {("gpt2", "layers/attention/key_bias")}


def train(model: Blueprint, plan: Plan, training: TrainingSection) -> tuple[Any, Any, Any]:
    """Losses, gradient norms, and what a few steps added to each parameter."""
    devices = jax.devices()[: plan.num_devices]
    placement = place(plan, make_mesh(plan, devices), model.description)
    schedule = learning_rate(
        training.schedule, peak=training.optimizer.learning_rate, steps=training.steps
    )
    optimizer = make_optimizer(training.optimizer, schedule, model.description)
    averaged = training.ema_decay is not None
    specs = state_specs(model.description, optimizer, averaged=averaged)
    state = init_state(model, optimizer, placement, seed=training.seed, averaged=averaged)
    step = compile_step(
        make_train_step(model, placement, optimizer, schedule, training),
        state_shardings(specs, placement),
        placement,
    )
    before = {path: np.asarray(value).copy() for path, value in state.params.items()}
    sharding = batch_sharding(placement, 16, 16)
    metrics = []
    for index in range(STEPS):
        state, found = step(state, place_batch(packed_batch(index % 2), sharding, 16))
        metrics.append(jax.device_get(found))
    updates = {path: np.asarray(value) - before[path] for path, value in state.params.items()}
    return [m["loss"] for m in metrics], [m["grad_norm"] for m in metrics], updates


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative, in the 2-norm: |a - b| / |b|."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_trains_like_one_device(family: str) -> None:
    """fp32 sums in another order differ by a few units of 2^-24: 1e-5 leaves room for sums of thousands.

    AdamW divides a gradient by its own size, so that where a gradient is near zero its rounding error
    becomes part of the update. What 5 steps added to a parameter is therefore compared as a whole,
    within 1e-3 of its 2-norm: a single wrong entry in 1000 is 30 times more.
    """
    model = blueprint(model_builder(tiny_model(family)))
    training = tiny_training()
    losses, norms, updates = train(model, Plan(), training)
    assert losses[4] < losses[2] < losses[0]  # all on the same batch
    for name, plan in LAYOUTS.items():
        other_losses, other_norms, other_updates = train(model, plan, training)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(other_norms, norms, rtol=1e-5, err_msg=name)
        for path, update in updates.items():
            if (family, path) not in WITHOUT_GRADIENT:
                assert distance(other_updates[path], update) < 1e-3, f"{name}: {path}"
