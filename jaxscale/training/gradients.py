"""Gradients as function transforms: of one pass, of many passes, and reduced over replicas once."""

from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp

from jaxscale.models.description import Params
from jaxscale.parallel.placement import Placement

# (parameters, batch, key) -> (gradient, summed statistics). Both are sums over tokens, so passes add up.
GradientFunction = Callable[[Params, Any, jax.Array], tuple[Params, Any]]


def accumulate(gradient: GradientFunction, num_microbatches: int) -> GradientFunction:
    """The same function over `num_microbatches` passes, one after another, adding results in their own dtype."""
    if num_microbatches == 1:
        return gradient

    def accumulated(params: Params, batch: Any, key: jax.Array) -> tuple[Params, Any]:
        passes = microbatches(batch, num_microbatches)
        keys = jax.random.split(key, num_microbatches)
        first = jax.tree.map(lambda rows: rows[0], passes)
        shapes = jax.eval_shape(gradient, params, first, key)
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

        def one_pass(total: Any, inputs: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *inputs)), None

        total: tuple[Params, Any] = jax.lax.scan(one_pass, zeros, (passes, keys))[0]
        return total

    return accumulated


def microbatches(batch: Any, count: int) -> Any:
    """The batch's rows dealt out in turn, stacked: row r to microbatch r mod count, so that devices keep their rows."""
    return _split_rows(batch, "(row m) ... -> m row ...", m=count)


def num_passes(rows: int, most: int) -> int:
    """In how many passes to evaluate the rows of a device: as many as divide them, up to those of a step."""
    return max(count for count in range(1, min(rows, most) + 1) if rows % count == 0)


def reduce_once(
    make: Callable[[Placement], GradientFunction], placement: Placement
) -> GradientFunction:
    """`make(placement)`, but summed over the replicas of `data` a single time, behind all its passes.

    Left to itself the compiler reduces inside the loop, once a pass. Here the replicas are a batch dim of the whole
    computation: each adds up the gradients of its own rows, and the sum over that dim is the one reduction. The other
    axes are as they were: `fsdp` gathers parameters and scatters gradients in every pass, which is what keeps a device
    from holding more than its share of either.
    """
    replicas = placement.mesh.shape["data"]
    if replicas == 1:
        return make(placement)
    of_one_replica = make(placement.inside("data"))

    def reduced(params: Params, batch: Any, key: jax.Array) -> tuple[Params, Any]:
        shards = _split_rows(batch, "(data row) ... -> data row ...", data=replicas)
        over_replicas = jax.vmap(of_one_replica, in_axes=(None, 0, 0), spmd_axis_name="data")
        partial = over_replicas(params, shards, jax.random.split(key, replicas))
        total: tuple[Params, Any] = jax.tree.map(lambda value: value.sum(0), partial)
        return total

    return reduced


def _split_rows(batch: Any, pattern: str, **sizes: int) -> Any:
    return jax.tree.map(lambda rows: einops.rearrange(rows, pattern, **sizes), batch)
