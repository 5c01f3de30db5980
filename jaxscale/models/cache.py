"""Keys and values of earlier tokens, for decoding.

A token's slot is its position, so rows of different lengths need no padding mask: a query at position p reads slots up
to p, and what padding wrote beyond is overwritten by the token that gets that position before anybody reads it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxscale.models.architecture import Architecture


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values by layer and slot; without the leading dim inside one layer."""

    key: Float[Array, "*layers batch length kv_heads head_dim"]
    value: Float[Array, "*layers batch length kv_heads head_dim"]


def empty_cache(arch: Architecture, *, batch: int, length: int, dtype: jnp.dtype) -> KVCache:
    """Room for `length` tokens in each of `batch` rows, all layers."""
    shape = (arch.num_layers, batch, length, arch.num_kv_heads, arch.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def write(
    cache: KVCache,
    key: Float[Array, "batch new kv_heads head_dim"],
    value: Float[Array, "batch new kv_heads head_dim"],
    positions: Int[Array, "batch new"],
) -> KVCache:
    """One layer's cache with new tokens at the slots of their positions."""
    rows = jnp.arange(positions.shape[0])[:, None]
    return KVCache(
        cache.key.at[rows, positions].set(key.astype(cache.key.dtype)),
        cache.value.at[rows, positions].set(value.astype(cache.value.dtype)),
    )
