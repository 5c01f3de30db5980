"""Attention written as its definition: every score of every pair, then softmax. Slow, and obviously right."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxscale.kernels.attention.form import MASKED, Form, SegmentIds, cap, in_sight, same_document


def reference_attention(
    query: Float[Array, "batch sequence heads head_dim"],
    key: Float[Array, "batch kv_sequence kv_heads head_dim"],
    value: Float[Array, "batch kv_sequence kv_heads head_dim"],
    segments: SegmentIds | None,
    form: Form,
) -> Float[Array, "batch sequence heads head_dim"]:
    """Softmax in fp32 (in the inputs' dtype where it is wider). A query that sees no key gets zeros."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    group = query.shape[2] // key.shape[2]
    key, value = jnp.repeat(key, group, axis=2), jnp.repeat(value, group, axis=2)
    scores = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=wide)
    scores = cap(scores * form.scale, form.softcap)
    visible = in_sight(form, jnp.arange(query.shape[1]), jnp.arange(key.shape[1]))[None, None]
    if segments is not None:
        visible = visible & same_document(segments, slice(None), slice(None))[:, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, MASKED), axis=-1)
    weights = jnp.where(visible, weights, 0)
    return jnp.einsum("bnqk,bknd->bqnd", weights.astype(value.dtype), value)
