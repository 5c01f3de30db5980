"""Attention of a few new tokens to a cache of keys: plain, since one row of scores a head is small."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxscale.kernels.attention.form import MASKED, cap


def decode_attention(
    query: Float[Array, "batch new heads head_dim"],
    key_cache: Float[Array, "batch capacity kv_heads head_dim"],
    value_cache: Float[Array, "batch capacity kv_heads head_dim"],
    positions: Int[Array, "batch new"],
    kv_positions: Int[Array, "batch capacity"] | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Float[Array, "batch new heads head_dim"]:
    """Each new token sees the cached keys at or before its position, at most `window` of them.

    kv_positions: position of the key in each slot of the cache, in any order, negative for an empty slot; None where a
    slot's place is its position. A token at a negative position sees nothing, and gets zeros.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    batch, new, heads, head_dim = query.shape
    if kv_positions is None:
        kv_positions = jnp.arange(key_cache.shape[1])[None]
    grouped = query.reshape(batch, new, key_cache.shape[2], -1, head_dim)
    scores = jnp.einsum("bnkgd,bckd->bkgnc", grouped, key_cache, preferred_element_type=wide)
    visible = _visible(positions, kv_positions, window)[:, None, None]
    scores = jnp.where(visible, cap(scores * scale, softcap), MASKED)
    weights = jnp.where(visible, jax.nn.softmax(scores, axis=-1), 0).astype(value_cache.dtype)
    out = jnp.einsum("bkgnc,bckd->bnkgd", weights, value_cache)
    return out.reshape(batch, new, heads, head_dim)


def _visible(
    positions: Int[Array, "batch new"],
    kv_positions: Int[Array, "#batch capacity"],
    window: int | None,
) -> jax.Array:
    back = positions[:, :, None] - kv_positions[:, None, :]
    visible = (back >= 0) & (kv_positions >= 0)[:, None, :]
    return visible if window is None else visible & (back < window)
