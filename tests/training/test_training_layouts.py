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


def train(model: Blueprint, plan: Plan, training: TrainingSection) -> tuple[Any, Any, Any]:
    """Losses, gradient norms and final parameters of a few steps."""
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
    sharding = batch_sharding(placement, 16, 16)
    metrics = []
    for index in range(STEPS):
        state, found = step(state, place_batch(packed_batch(index), sharding, 16))
        metrics.append(jax.device_get(found))
    params = {path: np.asarray(value) for path, value in state.params.items()}
    return [m["loss"] for m in metrics], [m["grad_norm"] for m in metrics], params


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_trains_like_one_device(family: str) -> None:
    """fp32 sums in another order differ by a few units of 2^-24 each: 1e-5 leaves room for sums of thousands.

    Parameters differ more where AdamW divides a gradient by its own size: there an update may differ by the error of the
    gradient over the gradient. Entries are compared at 1e-3 of the largest update (5 steps x rate 1e-2).
    """
    model = blueprint(model_builder(tiny_model(family)))
    training = tiny_training()
    losses, norms, params = train(model, Plan(), training)
    assert losses[-1] < losses[0]
    for name, plan in LAYOUTS.items():
        other_losses, other_norms, other_params = train(model, plan, training)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(other_norms, norms, rtol=1e-5, err_msg=name)
        for path, value in params.items():
            np.testing.assert_allclose(
                other_params[path], value, rtol=0, atol=5e-5, err_msg=f"{name}: {path}"
            )
