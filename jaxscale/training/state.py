"""What a run carries from step to step, and where each part of it lives."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxscale.models.description import Blueprint, Description, Params, ParamSpec, init_params
from jaxscale.parallel.placement import Placement
from jaxscale.training.ema import init_ema
from jaxscale.training.optimizer_axes import optimizer_state_specs
from jaxscale.training.stage_order import stored_params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """step: updates made. average: exponential moving average of the parameters, empty where none is kept."""

    step: jax.Array
    params: Params
    optimizer: Any
    average: Params


def state_specs(
    description: Description, optimizer: optax.GradientTransformation, *, averaged: bool
) -> TrainState:
    """A `ParamSpec` for every array of the state: the optimizer's inherit the axes of their parameters.

    description: of what is stored (`Placement.stored`).
    """
    params: Any = dict(description)
    counter: Any = ParamSpec((), jnp.dtype(jnp.int32), (), "zeros")
    return TrainState(
        step=counter,
        params=params,
        optimizer=optimizer_state_specs(optimizer, description),
        average=params if averaged else {},
    )


def state_shardings(specs: TrainState, placement: Placement) -> TrainState:
    """The sharding of every array of the state."""
    shardings = jax.tree.map(
        lambda spec: placement.sharding("optimizer state", spec.shape, spec.axes),
        specs,
        is_leaf=_is_spec,
    )
    assert isinstance(shardings, TrainState)
    return shardings


def abstract_state(specs: TrainState, placement: Placement) -> TrainState:
    """Shapes, dtypes and shardings of the state: what to lower a step for, or to restore a checkpoint into."""
    abstract = jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding),
        specs,
        state_shardings(specs, placement),
        is_leaf=_is_spec,
    )
    assert isinstance(abstract, TrainState)
    return abstract


def init_state(
    model: Blueprint,
    optimizer: optax.GradientTransformation,
    placement: Placement,
    *,
    seed: int,
    averaged: bool,
    given: Params | None = None,
) -> TrainState:
    """A fresh state, every array created in its place: no host copy, no copy on a single device.

    given: parameters to start from instead of random ones, by the description; they are used up.
    """
    specs = state_specs(placement.stored(model.description), optimizer, averaged=averaged)

    def create(key: jax.Array, given: Params | None) -> TrainState:
        first = init_params(model, key) if given is None else given
        params = stored_params(first, model.description, placement)
        average = init_ema(params) if averaged else {}
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)

    with jax.set_mesh(placement.mesh):
        jitted = jax.jit(create, out_shardings=state_shardings(specs, placement), donate_argnums=1)
        state: TrainState = jitted(jax.random.key(seed), given)
    return state


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, ParamSpec)
