"""A layer's backward pass in parts that run apart in time, with nothing computed twice.

`jax.vjp` keeps what its backward pass reads in a closure, parameters among it. A pipeline keeps that for every
microbatch in flight, so here parameters, and whatever follows from them and from the microbatch's own small inputs, are
left out and read again. For zero-bubble schedules the backward pass itself is divided: what the gradient of the input
needs comes first, the remaining equations, which only weight gradients need, later. The equations are JAX's own,
divided by what depends on what.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var

from jaxscale.parallel.pipeline.equations import (
    Traced,
    evaluate,
    following,
    needed,
    trace,
    variables_of,
)

# (parameters, inputs, x) -> (y, auxiliary loss summed over tokens). `inputs`: what a layer reads beside the residual
# stream, at hand in both passes.
Layer = Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]]
Arrays = tuple[jax.Array, ...]
Shapes = tuple[jax.ShapeDtypeStruct, ...]

# Results of these are made again from what they read rather than kept, if that is no larger.
_FREE = frozenset(
    {"convert_element_type", "reshape", "transpose", "squeeze", "expand_dims", "name", "copy"}
)
# A weight gradient with none of these behind it is not worth to be put off: its operands are larger than itself.
_PRODUCTS = frozenset(
    {"dot_general", "conv_general_dilated", "ragged_dot_general", "scan", "while", "shard_map"}
    | {"pallas_call", "ragged_dot", "custom_partitioning"}
)


@dataclass(frozen=True)
class SplitLayer:
    """A layer as functions. residuals: kept from forward to backward; pending: from input to weight gradient.

    is_late: whether the gradient of a leaf of the parameters is put off.

    forward(parameters, inputs, x) -> (y, auxiliary loss, residuals)
    backward(parameters, inputs, residuals, dy) -> (gradient by parameters, gradient by x)
    input_gradient(parameters, inputs, residuals, dy) -> (gradients that are cheap, None for others; by x; pending)
    weight_gradient(parameters, inputs, residuals, pending) -> (the other gradients, None where they were cheap)

    The gradient is that of the auxiliary loss plus whatever dy is the gradient of.
    """

    residuals: Shapes
    pending: Shapes
    is_late: tuple[bool, ...]
    forward: Callable[..., tuple[jax.Array, jax.Array, Arrays]]
    backward: Callable[..., tuple[Any, jax.Array]]
    input_gradient: Callable[..., tuple[list[Any], jax.Array, Arrays]]
    weight_gradient: Callable[..., list[Any]]


def split_layer(layer: Layer, parameters: Any, inputs: Any, x: Any) -> SplitLayer:
    """Divide `layer`, traced for the shapes of the arguments (arrays or `jax.ShapeDtypeStruct`)."""
    forward = _Forward(layer, parameters, inputs, x)
    kept = forward.residuals
    residuals = tuple(_shape(variable) for variable in kept)

    def backward(parameters: Any, inputs: Any, residuals: Any, dy: jax.Array) -> Any:
        return forward.pull_back(parameters, inputs, residuals)((dy, jnp.ones((), jnp.float32)))

    def backward_flat(*arguments: Any) -> list[Any]:
        to_parameters, to_x = backward(*arguments)
        return [to_x, *jax.tree.leaves(to_parameters)]

    traced = trace(backward_flat, parameters, inputs, residuals, _shape_of(x))
    divided = _divide(traced)
    return SplitLayer(
        residuals=residuals,
        pending=tuple(_shape(variable) for variable in divided.pending),
        is_late=tuple(divided.is_late),
        forward=forward.run,
        backward=backward,
        input_gradient=divided.input_gradient,
        weight_gradient=divided.weight_gradient,
    )


class _Forward:
    """The forward pass as equations: the layer's results, and the leaves of its `vjp` function."""

    def __init__(self, layer: Layer, parameters: Any, inputs: Any, x: Any) -> None:
        def with_leaves(parameters: Any, inputs: Any, x: jax.Array) -> list[Any]:
            (y, auxiliary), vjp = jax.vjp(
                lambda parameters, x: layer(parameters, inputs, x), parameters, x
            )
            leaves, self._structure = jax.tree.flatten(vjp)
            return [y, auxiliary, *leaves]

        self._traced = trace(with_leaves, parameters, inputs, x)
        self._results, self._leaves = self._traced.outputs[:2], self._traced.outputs[2:]
        equations, (stream,) = self._traced.equations, self._traced.inputs[2]
        moving = following(equations, [stream])
        wanted = [leaf for leaf in self._leaves if isinstance(leaf, Var) and leaf in moving]
        self.residuals = _origins(equations, wanted)
        self._running = needed(equations, [*self._results, *self.residuals])
        self._rebuilding = needed(equations, self._leaves, given=self.residuals)

    def run(self, parameters: Any, inputs: Any, x: jax.Array) -> tuple[Any, Any, Arrays]:
        values = _values(self._traced, parameters, inputs, x)
        y, auxiliary, *kept = evaluate(self._running, values, [*self._results, *self.residuals])
        return y, auxiliary, tuple(kept)

    def pull_back(self, parameters: Any, inputs: Any, residuals: Arrays) -> Callable[..., Any]:
        """The vjp function, from what was kept and what is at hand."""
        values = _values(self._traced, parameters, inputs)
        values.update(zip(self.residuals, residuals, strict=True))
        leaves = evaluate(self._rebuilding, values, self._leaves)
        pulled: Callable[..., Any] = jax.tree.unflatten(self._structure, leaves)
        return pulled


@dataclass(frozen=True)
class _Divided:
    """A backward pass in two. early, late: its equations; pending: what the late ones read of the early ones."""

    traced: Traced
    early: Sequence[JaxprEqn]
    late: Sequence[JaxprEqn]
    is_late: Sequence[bool]
    pending: Sequence[Var]

    def input_gradient(
        self, parameters: Any, inputs: Any, residuals: Arrays, dy: jax.Array
    ) -> tuple[list[Any], jax.Array, Arrays]:
        values = _values(self.traced, parameters, inputs, residuals, dy)
        to_x, *weights = self.traced.outputs
        cheap = [None if late else atom for atom, late in zip(weights, self.is_late, strict=True)]
        wanted = [to_x, *self.pending, *(atom for atom in cheap if atom is not None)]
        dx, *found = evaluate(self.early, values, wanted)
        pending, rest = found[: len(self.pending)], iter(found[len(self.pending) :])
        return [None if atom is None else next(rest) for atom in cheap], dx, tuple(pending)

    def weight_gradient(
        self, parameters: Any, inputs: Any, residuals: Arrays, pending: Arrays
    ) -> list[Any]:
        values = _values(self.traced, parameters, inputs, residuals)
        values.update(zip(self.pending, pending, strict=True))
        _, *weights = self.traced.outputs
        late = [atom for atom, is_late in zip(weights, self.is_late, strict=True) if is_late]
        found = iter(evaluate(self.late, values, late))
        return [next(found) if is_late else None for is_late in self.is_late]


def _divide(traced: Traced) -> _Divided:
    equations, (to_x, *weights) = traced.equations, traced.outputs
    first = needed(equations, [to_x])
    is_late = [_has_product(needed(equations, [weight]), first) for weight in weights]
    cheap = [weight for weight, late in zip(weights, is_late, strict=True) if not late]
    put_off = [weight for weight, late in zip(weights, is_late, strict=True) if late]
    early = needed(equations, [to_x, *cheap])
    at_hand = {variable for group in traced.inputs[:3] for variable in group}
    at_hand |= set(traced.constants)
    all_late = _without(needed(equations, put_off), early)
    made = {variable for equation in all_late for variable in equation.outvars}
    read = [variable for equation in all_late for variable in variables_of(equation)]
    read += [weight for weight in put_off if isinstance(weight, Var)]
    crossing = [variable for variable in dict.fromkeys(read) if variable not in made | at_hand]
    pending = [variable for variable in _origins(equations, crossing) if variable not in at_hand]
    late = needed(equations, put_off, given=pending)
    return _Divided(traced, early, late, is_late, pending)


def _has_product(equations: Iterable[JaxprEqn], besides: Sequence[JaxprEqn]) -> bool:
    own = _without(equations, besides)
    return any(equation.primitive.name in _PRODUCTS for equation in own)


def _without(equations: Iterable[JaxprEqn], others: Iterable[JaxprEqn]) -> list[JaxprEqn]:
    excluded = {id(equation) for equation in others}
    return [equation for equation in equations if id(equation) not in excluded]


def _origins(equations: Sequence[JaxprEqn], variables: Iterable[Var]) -> list[Var]:
    """What to keep of `variables`: the smallest that each can be made from by moving or widening elements."""
    made_by = {variable: equation for equation in equations for variable in equation.outvars}

    def origin(variable: Var) -> Var:
        equation = made_by.get(variable)
        if equation is None or equation.primitive.name not in _FREE:
            return variable
        (source,) = variables_of(equation) or [variable]
        if _num_bytes(source) <= _num_bytes(variable):
            return variable if source is variable else origin(source)
        return variable

    return list(dict.fromkeys(origin(variable) for variable in variables))


def _num_bytes(variable: Var) -> int:
    shape = _shape(variable)
    return int(math.prod(shape.shape) * shape.dtype.itemsize)


def _values(traced: Traced, *arguments: Any) -> dict[Var, Any]:
    values = dict(traced.constants)
    for variables, argument in zip(traced.inputs, arguments, strict=False):
        values.update(zip(variables, jax.tree.leaves(argument), strict=True))
    return values


def _shape(variable: Var) -> jax.ShapeDtypeStruct:
    return _shape_of(variable.aval)


def _shape_of(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
