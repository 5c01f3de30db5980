"""Transposes that are really carried out.

XLA's CPU backend folds a transpose into the product that reads it, and then takes a slow path: 3 times the time in
bfloat16, which leaves AMX, and 2 times for attention's products in fp32. An optimization barrier does not stop it; a
layout constraint does.
"""

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float


def transposed_copy(array: Float[Array, "*batch a b"]) -> Float[Array, "*batch b a"]:
    """The last two dims swapped, in memory too. For arrays of one device: a partitioner gathers what it pins."""
    swapped = array.swapaxes(-1, -2)
    pinned: jax.Array = with_layout_constraint(swapped, Layout(tuple(range(array.ndim))))
    return pinned
