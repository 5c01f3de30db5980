"""What attention's backward pass needs beside its inputs, so that a rematerialization policy can keep it."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

NAME = "attention_residual"
# JAX's primitive for cuDNN's kernel, whose results are the output and the statistics of its rows.
_CUDNN = "dot_product_attention_fwd"


def residual(array: jax.Array) -> jax.Array:
    """The same array, as one that `is_residual` knows."""
    marked: jax.Array = checkpoint_name(array, NAME)
    return marked


def is_residual(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """A policy of `jax.checkpoint`: keeps what stands for attention's forward pass, which then runs once."""
    if primitive.name == "name":
        return bool(parameters["name"] == NAME)
    return str(primitive.name).startswith(_CUDNN)
