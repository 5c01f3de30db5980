"""Blocks of operands in a TPU kernel: products of them, and what lies beyond an array's end."""

from typing import Any

import jax
import jax.numpy as jnp


def dot(left: jax.Array, right: jax.Array, *, over: tuple[int, int]) -> jax.Array:
    """Their product in fp32, summed over one dim of each."""
    # Six passes of bfloat16 make an fp32 product of fp32 operands; one is all that bfloat16 ones need.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        left,
        right,
        (((over[0],), (over[1],)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def within(block: jax.Array, axis: int, index: Any, size: int) -> jax.Array:
    """Block `index` of an array along an axis, with zeros beyond the array's end, where memory may hold anything."""
    width = block.shape[axis]
    if size % width == 0:
        return block
    place = index * width + jax.lax.broadcasted_iota(jnp.int32, block.shape, axis)
    return jnp.where(place < size, block, jnp.zeros_like(block))
