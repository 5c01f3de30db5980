"""Rings of slots that a stage reads and writes by index, in place."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.parallel.pipeline.split import Arrays


def read(rings: Arrays, slot: jax.Array, place: jax.Array) -> Arrays:
    """What a layer left, straight off the rings: no copy of a whole slot."""

    def entry(ring: jax.Array) -> jax.Array:
        rest = ring.shape[2:]
        start = (slot, place, *(jnp.int32(0) for _ in rest))
        return jax.lax.dynamic_slice(ring, start, (1, 1, *rest)).reshape(rest)

    return tuple(entry(ring) for ring in rings)


def written(rings: Arrays, slot: jax.Array, arrays: Arrays) -> Arrays:
    """The rings with one array each in a slot."""
    return tuple(put(ring, slot, array) for ring, array in zip(rings, arrays, strict=True))


def at(array: jax.Array, index: jax.Array) -> jax.Array:
    """One entry along the first dim."""
    picked: jax.Array = jax.lax.dynamic_index_in_dim(array, index, keepdims=False)
    return picked


def put(array: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    """The array with another entry along the first dim."""
    updated: jax.Array = jax.lax.dynamic_update_index_in_dim(array, value, index, 0)
    return updated


def number_like(like: Any, number: float) -> jax.Array:
    """The number in an array's dtype; zero where it is not a float."""
    floats = jnp.issubdtype(like.dtype, jnp.inexact)
    return jnp.asarray(number if floats else 0, like.dtype)
