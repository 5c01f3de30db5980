"""Gradients added up over microbatches, in fp32 or wider, in place."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.parallel.pipeline.equations import needed, trace, variables_of
from jaxscale.parallel.pipeline.rings import at, put


def no_gradient(parameters: Any) -> Any:
    """Zeros to add gradients to."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), parameters
    )


def gradients_of(function: Callable[..., Any], shared: Any, *arguments: Any) -> list[Any]:
    """A zero gradient for each leaf of `shared` that the function reads, None for the others."""
    traced = trace(function, shared, *arguments)
    read = {
        variable
        for equation in needed(traced.equations, traced.outputs)
        for variable in variables_of(equation)
    }
    return [
        no_gradient(leaf) if variable in read else None
        for variable, leaf in zip(traced.inputs[0], jax.tree.leaves(shared), strict=True)
    ]


def both(some: Sequence[Any], others: Sequence[Any], shared: Any) -> Any:
    """The sum of two lists of gradients as a tree like `shared`; zero where neither has one."""
    leaves, structure = jax.tree.flatten(shared)
    sums = []
    for leaf, one, other in zip(leaves, some, others, strict=True):
        found = [gradient for gradient in (one, other) if gradient is not None]
        sums.append(sum(found[1:], start=found[0]) if found else no_gradient(leaf))
    return jax.tree.unflatten(structure, sums)


def added(total: Sequence[Any], new: Any) -> list[Any]:
    """Leaf by leaf, where there is a total."""
    leaves = jax.tree.leaves(new)
    return [
        None if old is None else old + leaf.astype(old.dtype)
        for old, leaf in zip(total, leaves, strict=True)
    ]


def added_at(total: Any, place: jax.Array, new: Sequence[Any]) -> Any:
    """A stack of gradients with one layer's added in its place. new: by leaf, None for nothing to add."""

    def both(old: jax.Array, more: jax.Array | None) -> jax.Array:
        return old if more is None else put(old, place, at(old, place) + more.astype(old.dtype))

    leaves, structure = jax.tree.flatten(total)
    return jax.tree.unflatten(structure, [both(*pair) for pair in zip(leaves, new, strict=True)])
