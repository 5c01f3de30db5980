"""The train step: one pure function of state and batch, compiled once for a placement."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxscale.config.run_sections import TrainingSection
from jaxscale.kernels.linear_cross_entropy.api import LossSums
from jaxscale.models.context import use_forward_context
from jaxscale.models.description import Blueprint, Params, bind
from jaxscale.parallel.compiler_options import Say, step_options
from jaxscale.parallel.placement import Placement
from jaxscale.training.ema import update_ema
from jaxscale.training.gradients import GradientFunction, accumulate, reduce_once
from jaxscale.training.losses import Batch, next_token_loss
from jaxscale.training.pipeline import pipelined_gradient
from jaxscale.training.precision import cast, compute_dtype
from jaxscale.training.state import TrainState

Metrics = Mapping[str, jax.Array]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Schedule = Callable[[jax.Array], jax.Array]


def gradient_function(
    model: Blueprint, placement: Placement, training: TrainingSection
) -> GradientFunction:
    """Gradient of the summed loss of one pass, and its sums, in fp32 whatever the compute dtype."""
    dtype = compute_dtype(placement.plan.precision, placement.platform)

    def loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, LossSums]:
        with use_forward_context(placement.forward_context()):
            module = bind(model, cast(params, dtype), key)
            sums = next_token_loss(module, batch, placement, training)
        return sums.loss_sum, sums

    return jax.grad(loss, has_aux=True)


def batch_gradient(
    model: Blueprint, placement: Placement, training: TrainingSection
) -> GradientFunction:
    """Gradient of the summed loss of a whole batch, over the plan's microbatches."""
    if placement.stages is not None:
        return pipelined_gradient(model, placement, training)
    num_microbatches = placement.plan.microbatches
    if num_microbatches == 1:
        return gradient_function(model, placement, training)

    def passes(inside: Placement) -> GradientFunction:
        return accumulate(gradient_function(model, inside, training), num_microbatches)

    return reduce_once(passes, placement)


def make_train_step(
    model: Blueprint,
    placement: Placement,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    training: TrainingSection,
) -> StepFunction:
    """The step to compile: gradient of the mean loss over all valid tokens of the batch, clipped, then the update.

    A step whose loss or gradient is not finite leaves the state as it was, but for its counter, and says so in
    `metrics["finite"]`. Metrics are fp32 scalars that stay on the device.
    """
    gradient = batch_gradient(model, placement, training)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(training.seed), state.step)
        summed, sums = gradient(state.params, batch, key)
        weight = jnp.maximum(sums.weight, 1)
        norm = optax.tree.norm(summed) / weight
        scale = _clip_factor(norm, training.clip_norm) / weight
        finite = jnp.isfinite(norm) & jnp.isfinite(sums.loss_sum)
        proposed = _updated(
            state, jax.tree.map(lambda leaf: leaf * scale, summed), optimizer, training
        )
        metrics = {
            "loss": sums.nll_sum / weight,
            "objective": sums.loss_sum / weight,
            "grad_norm": norm,
            "learning_rate": schedule(state.step),
            "tokens": sums.weight,
            "finite": finite,
        }
        return _choose(finite, proposed, state), metrics

    return step


def jit_step(
    step: StepFunction, shardings: TrainState, placement: Placement, say: Say | None = None
) -> jax.stages.Wrapped:
    """`step` under jit: the state keeps its shardings and its buffers are reused. Call and lower it on the mesh.

    say: is told which options the compiler does without. Raises PlacementError for one in the plan that it does not
    know.
    """
    options = step_options(placement.mesh, placement.plan, say)
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, placement.replicated()),
        compiler_options=options or None,
    )


def compile_step(step: StepFunction, shardings: TrainState, placement: Placement) -> StepFunction:
    """`jit_step` on its mesh: what takes arrays, and nothing else."""
    jitted = jit_step(step, shardings, placement)

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(placement.mesh):
            result: tuple[TrainState, Metrics] = jitted(state, batch)
        return result

    return run


def _clip_factor(norm: jax.Array, clip_norm: float | None) -> jax.Array:
    """min(1, c / norm) (Pascanu et al. 2013)."""
    return (
        jnp.ones(())
        if clip_norm is None
        else jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12))
    )


def _updated(
    state: TrainState,
    gradient: Params,
    optimizer: optax.GradientTransformation,
    training: TrainingSection,
) -> TrainState:
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    assert isinstance(params, dict)
    average = state.average
    if training.ema_decay is not None:
        average = update_ema(average, params, training.ema_decay, state.step)
    return TrainState(state.step + 1, params, optimizer_state, average)


def _choose(finite: jax.Array, proposed: TrainState, previous: TrainState) -> TrainState:
    chosen: Any = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposed, previous)
    return TrainState(proposed.step, chosen.params, chosen.optimizer, chosen.average)
