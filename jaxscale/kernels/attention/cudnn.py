"""Attention by cuDNN's fused kernel, through JAX's public door to it."""

import jax
from jaxtyping import Array, Float

from jaxscale.kernels.attention.form import Form


def cudnn_attention(
    query: Float[Array, "batch sequence heads head_dim"],
    key: Float[Array, "batch sequence kv_heads head_dim"],
    value: Float[Array, "batch sequence kv_heads head_dim"],
    form: Form,
) -> Float[Array, "batch sequence heads head_dim"]:
    """See `api.attention`, for calls that `call` gives no reason against."""
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
