"""Attention by cuDNN's fused kernel, through JAX's public door to it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxscale.kernels.attention.form import Form

_DTYPES = (jnp.bfloat16, jnp.float16)
_MOST_HEAD_DIM = 128


def reason_to_decline(
    query: jax.Array | jax.ShapeDtypeStruct,
    key: jax.Array | jax.ShapeDtypeStruct,
    form: Form,
    *,
    packed: bool,
    platform: str,
) -> str | None:
    """Why cuDNN does not serve such a call, or None."""
    if platform not in {"gpu", "cuda"}:
        return f"it needs an NVIDIA GPU, and this is {platform}"
    if query.dtype not in _DTYPES:
        return f"it computes in bfloat16 or float16, not {query.dtype.name}"
    if query.shape[1] != key.shape[1]:
        lengths = f"{query.shape[1]} and {key.shape[1]}"
        return f"its causal mask wants as many queries as keys, not {lengths}"
    if query.shape[3] > _MOST_HEAD_DIM or query.shape[3] % 8:
        return f"head dimension {query.shape[3]} is not a multiple of 8 up to {_MOST_HEAD_DIM}"
    if packed:
        return "documents in a row would need a [sequence, sequence] bias in memory"
    return None if form.softcap is None else "it has no soft-cap"


def cudnn_attention(
    query: Float[Array, "batch sequence heads head_dim"],
    key: Float[Array, "batch sequence kv_heads head_dim"],
    value: Float[Array, "batch sequence kv_heads head_dim"],
    form: Form,
) -> Float[Array, "batch sequence heads head_dim"]:
    """See `api.attention`, for calls that `reason_to_decline` has nothing against."""
    past = None if form.window is None else (form.window - 1, 0)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=form.scale,
        is_causal=True,
        local_window_size=past,
        implementation="cudnn",
    )
