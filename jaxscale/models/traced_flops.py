"""FLOPs of any function, counted from the matrix products of its trace: for modules whose formula nobody wrote."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.models.description import Blueprint, bind
from jaxscale.models.flops import TRAINING_FACTOR


def traced_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """2 m n k of every matrix product that `function` makes, loops counted by their trips.

    Branches of a conditional count as the most expensive one; a `while` of unknown length counts once.
    """
    return sum(_flops(jax.make_jaxpr(function)(*arguments).jaxpr))


def traced_training_flops_per_token(model: Blueprint, sequence_length: int) -> float:
    """Forward and backward FLOPs a token of one row, as the module computes it (masked work included)."""
    tokens = jax.ShapeDtypeStruct((1, sequence_length), jnp.int32)
    params = {
        path: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
        for path, spec in model.description.items()
    }

    def forward(params: Any, tokens: jax.Array) -> Any:
        module: Any = bind(model, params)
        return module(tokens, jnp.zeros_like(tokens), jnp.ones_like(tokens))

    return TRAINING_FACTOR * traced_flops(forward, params, tokens) / sequence_length


def _flops(jaxpr: Any) -> Iterator[float]:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            yield _dot_flops(equation)
        elif name == "conv_general_dilated":
            yield _convolution_flops(equation)
        elif name == "cond":
            yield max(sum(_flops(branch.jaxpr)) for branch in equation.params["branches"])
        else:
            trips = equation.params["length"] if name == "scan" else 1
            for inner in inner_jaxprs(equation.params):
                yield trips * sum(_flops(inner))


def inner_jaxprs(params: Any) -> Iterator[Any]:
    """The functions inside an equation's parameters: loop bodies, called functions."""
    for leaf in jax.tree.leaves(params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
        inner = getattr(leaf, "jaxpr", leaf)
        if hasattr(inner, "eqns"):
            yield inner


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(int(left[dim]) for dim in contracted)
    return 2.0 * _size(equation.outvars[0]) * depth


def _convolution_flops(equation: Any) -> float:
    """Each output value is a product over the kernel's window and its input channels (its dims but the first)."""
    kernel = equation.invars[1]
    out_channels = int(kernel.aval.shape[equation.params["dimension_numbers"].rhs_spec[0]])
    return 2.0 * _size(equation.outvars[0]) * _size(kernel) / out_channels


def _size(variable: Any) -> int:
    return math.prod(int(size) for size in variable.aval.shape)
