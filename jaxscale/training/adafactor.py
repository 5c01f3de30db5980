"""Adafactor (Shazeer & Stern 2018), for parameters that are stacks of arrays.

optax.adafactor takes a leaf for one array: on a stack of layers it would clip and scale all layers
by one root mean square, and might factor over `layers`. Here every array of the stack is by
itself, which is what optax computes on the unstacked arrays. The second moment of an array is kept
as the means over its two largest dims where both have at least `MIN_DIM_TO_FACTOR` elements, in
full otherwise.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxscale.models.description import Description, Params, ParamSpec
from jaxscale.training.parameter_kinds import num_stack_dims

MIN_DIM_TO_FACTOR = 128
_DECAY_EXPONENT = 0.8  # Section 7.2.
_EPSILON_SQUARED_GRADIENT = 1e-30  # Epsilon 1 of algorithm 4.
_MIN_PARAMETER_SCALE = 1e-3  # Epsilon 2 of algorithm 4.
_CLIP_RMS = 1.0  # Section 6.


class AdafactorState(NamedTuple):
    """Second moments by path, each mapping with only the parameters that it concerns.

    step: updates made. row: means over the largest dim. column: means over the second largest dim.
    full: those of parameters that are not factored.
    """

    step: jax.Array
    row: Params
    column: Params
    full: Params


class Factored(NamedTuple):
    """Dims that the means average over: `row` lacks `largest`, `column` lacks `second`."""

    largest: int
    second: int


def factored_dims(spec: ParamSpec) -> Factored | None:
    """The two largest dims beside the stack (of equals the later), None if either is small."""
    dims = sorted(range(num_stack_dims(spec), len(spec.shape)), key=lambda dim: spec.shape[dim])
    if len(dims) < 2 or spec.shape[dims[-2]] < MIN_DIM_TO_FACTOR:
        return None
    return Factored(largest=dims[-1], second=dims[-2])


def scale_by_adafactor(description: Description) -> optax.GradientTransformation:
    """Updates u * max(1e-3, RMS(parameter)), with u clipped to RMS 1 (algorithm 4).

    In ascent direction, before the learning rate; no first moment.
    """
    factored = {path: factored_dims(spec) for path, spec in description.items()}

    def init(params: Params) -> AdafactorState:
        return _zeros(params, factored)

    def update(
        gradient: Params, state: AdafactorState, params: Params
    ) -> tuple[Params, AdafactorState]:
        beta = 1 - (state.step + 1.0) ** -_DECAY_EXPONENT
        state = _accumulate(gradient, state, factored, beta)
        updates = {
            path: _relative_update(
                leaf * _inverse_root(path, state, factored), params[path], description[path]
            )
            for path, leaf in gradient.items()
        }
        return updates, state

    return optax.GradientTransformation(init, update)


def _zeros(params: Params, factored: dict[str, Factored | None]) -> AdafactorState:
    row, column, full = {}, {}, {}
    for path, param in params.items():
        dims = factored[path]
        if dims is None:
            full[path] = jnp.zeros_like(param)
        else:
            row[path] = jnp.zeros_like(jnp.mean(param, axis=dims.largest))
            column[path] = jnp.zeros_like(jnp.mean(param, axis=dims.second))
    return AdafactorState(jnp.zeros((), jnp.int32), row, column, full)


def _accumulate(
    gradient: Params,
    state: AdafactorState,
    factored: dict[str, Factored | None],
    beta: jax.Array,
) -> AdafactorState:
    row, column, full = {}, {}, {}
    for path, leaf in gradient.items():
        squared, dims = leaf * leaf + _EPSILON_SQUARED_GRADIENT, factored[path]
        if dims is None:
            full[path] = _decayed(state.full[path], squared, beta)
        else:
            row[path] = _decayed(state.row[path], jnp.mean(squared, axis=dims.largest), beta)
            column[path] = _decayed(state.column[path], jnp.mean(squared, axis=dims.second), beta)
    return AdafactorState(state.step + 1, row, column, full)


def _decayed(moment: jax.Array, sample: jax.Array, beta: jax.Array) -> jax.Array:
    return (beta * moment + (1 - beta) * sample).astype(moment.dtype)


def _inverse_root(
    path: str, state: AdafactorState, factored: dict[str, Factored | None]
) -> jax.Array:
    """1 / sqrt(second moment), which is row x column / mean(row) where factored (algorithm 1)."""
    dims = factored[path]
    if dims is None:
        return jax.lax.rsqrt(state.full[path])
    row = jnp.expand_dims(state.row[path], dims.largest)
    column = jnp.expand_dims(state.column[path], dims.second)
    mean = jnp.mean(row, axis=dims.second, keepdims=True)
    return jax.lax.rsqrt(row / mean) * jax.lax.rsqrt(column)


def _relative_update(update: jax.Array, param: jax.Array, spec: ParamSpec) -> jax.Array:
    clipped = update / jnp.maximum(1.0, _rms(update, spec) / _CLIP_RMS)
    return clipped * jnp.maximum(_MIN_PARAMETER_SCALE, _rms(param, spec))


def _rms(array: jax.Array, spec: ParamSpec) -> jax.Array:
    """Root mean square of each array of the stack, dims kept."""
    dims = tuple(range(num_stack_dims(spec), array.ndim))
    return jnp.sqrt(jnp.mean(array * array, axis=dims, keepdims=True))
