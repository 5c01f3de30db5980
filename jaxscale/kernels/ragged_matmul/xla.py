"""Ragged products as loops over groups, and over blocks of each group's rows.

`jax.lax.ragged_dot` becomes one product of every row with every group's matrix wherever the backend has no kernel for
it: on CPU 8 groups take 7 times the time of these loops and 20 times the memory. Here the rows that a block has beyond
its group's end are all that is computed for nothing. The loops have traced lengths: they are not differentiated, but
are each other's gradients (`api`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxscale.kernels.layout import transposed_copy
from jaxscale.kernels.ragged_matmul.form import OutRows, Rows, Sizes, Weights, group_bounds

_ROWS = 128
_ROWS_SUMMED = 256


def rows_by_matrices(
    x: Rows, weight: Weights, group_sizes: Sizes, *, transposed: bool = False, block: int = _ROWS
) -> OutRows:
    """Each row times its group's matrix (transposed: times its transpose); zeros beyond the last group."""
    tokens, block = x.shape[0], min(block, x.shape[0])
    outward = weight.shape[1 if transposed else 2]
    starts, ends = group_bounds(group_sizes, tokens)
    equation = "ti,oi->to" if transposed else "ti,io->to"

    def one_group(group: Int[Array, ""], out: OutRows) -> OutRows:
        matrix, start, end = weight[group], starts[group], ends[group]

        def one_block(index: Int[Array, ""], out: OutRows) -> OutRows:
            first = jnp.minimum(start + index * block, tokens - block)
            rows = jax.lax.dynamic_slice_in_dim(x, first, block)
            new = _product(equation, rows, matrix).astype(out.dtype)
            old = jax.lax.dynamic_slice_in_dim(out, first, block)
            mixed = jnp.where(_within(first, block, start, end), new, old)
            return jax.lax.dynamic_update_slice_in_dim(out, mixed, first, axis=0)

        changed: OutRows = jax.lax.fori_loop(0, -(-(end - start) // block), one_block, out)
        return changed

    zeros = jnp.zeros((tokens, outward), x.dtype)
    if not tokens:
        return zeros
    out: OutRows = jax.lax.fori_loop(0, weight.shape[0], one_group, zeros)
    return out


def rows_over_rows(
    x: Rows,
    y: OutRows,
    group_sizes: Sizes,
    *,
    block: int = _ROWS_SUMMED,
    pin_layouts: bool = False,
) -> Weights:
    """x.T @ y over each group's rows: zeros for an empty group. pin_layouts: see `layout`, for arrays of one CPU."""
    tokens, block = x.shape[0], min(block, x.shape[0])
    starts, ends = group_bounds(group_sizes, tokens)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    nothing = jnp.zeros((x.shape[1], y.shape[1]), wide)

    def one_group(group: Int[Array, ""]) -> Float[Array, "inward outward"]:
        start, end = starts[group], ends[group]

        def one_block(index: Int[Array, ""], total: jax.Array) -> jax.Array:
            wanted = start + index * block
            first = jnp.minimum(wanted, tokens - block)
            rows, others = (jax.lax.dynamic_slice_in_dim(a, first, block) for a in (x, y))
            rows = jnp.where(_within(first, block, wanted, end), rows, 0)
            turned = transposed_copy(rows) if pin_layouts else rows.T
            return total + _product("it,to->io", turned, others)

        total: jax.Array = jax.lax.fori_loop(0, -(-(end - start) // block), one_block, nothing)
        return total.astype(x.dtype)

    if not tokens:
        return jnp.zeros((group_sizes.shape[0], *nothing.shape), x.dtype)
    matrices: Weights = jax.lax.map(one_group, jnp.arange(group_sizes.shape[0]))
    return matrices


def _within(
    first: Int[Array, ""], block: int, start: Int[Array, ""], end: Int[Array, ""]
) -> Int[Array, "block 1"]:
    """Which of a block's rows lie between two places."""
    places = first + jnp.arange(block, dtype=jnp.int32)
    return ((places >= start) & (places < end))[:, None]


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    wide = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.einsum(equation, left, right, preferred_element_type=wide)
