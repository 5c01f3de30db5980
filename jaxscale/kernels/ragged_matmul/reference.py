"""The ragged products as their definition: a matrix for every row. Slow, large, and obviously right."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxscale.kernels.ragged_matmul.form import OutRows, Rows, Sizes, Weights


def reference_ragged_matmul(x: Rows, weight: Weights, group_sizes: Sizes) -> OutRows:
    """Sums in fp32, or wider where the inputs are; differentiable by JAX. Rows beyond the last group are zeros."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    member = _membership(x.shape[0], group_sizes).astype(x.dtype)
    matrix_of_row = jnp.einsum("tg,gio->tio", member, weight, precision=jax.lax.Precision.HIGHEST)
    out = jnp.einsum("ti,tio->to", x, matrix_of_row, preferred_element_type=wide)
    return out.astype(x.dtype)


def _membership(tokens: int, group_sizes: Sizes) -> Int[Array, "tokens groups"]:
    """1 where a row belongs to a group."""
    ends = jnp.cumsum(group_sizes)
    row = jnp.arange(tokens)[:, None]
    return ((row < ends) & (row >= ends - group_sizes)).astype(jnp.int32)
